"""The four kinds of part that a VAE is made of, and the shapes that they promise.

A part is a prior, a guide, a likelihood or a network. The first three return a distribution, a network returns a
tensor:

========== ========= ===================== ==================== ================
part       maths     call                  batch shape          event shape
========== ========= ===================== ==================== ================
Prior      p(t)      ``prior()``           ``()``               ``(d,)``
Guide      q(t|x,φ)  ``guide(x)``          the batch of x       ``(d,)``
Likelihood p(x|t,w)  ``likelihood(t)``     ``t.shape[:-1]``     ``x_shape``
Network              ``network(inputs)``   leading dimensions   ``out_shape``
========== ========= ===================== ==================== ================

A new part is a class with a constructor ``(dims, own options ...)`` and a method ``forward``. The base class checks
inputs and outputs at every call, so that a wrong shape is an error that names the part, and is never broadcast
silently. Every class of this project is abstract or final: no subclass overrides a concrete method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.description import Described

Shape = tuple[int, ...]
Distribution = TorchDistributionMixin
"""Any distribution of `pyro.distributions`, which a prior, a guide or a likelihood returns."""


@dataclass(frozen=True, eq=False)
class Dims:
    """The sizes, and the training data if there are any, which every part is given when it is built.

    Attributes:
        latent: d, the dimension of t.
        x_shape: the shape of one datum, for example ``(1, 28, 28)``.
        x_mean: the mean training datum, of shape ``x_shape``. Likelihoods start their output at it. If it is None, they
            start at the center of their link (probability 1/2, location 0).
        train: the training data ``(N, *x_shape)``, for parts that are made of data. While a saved model is loaded, this
            is a tensor on the ``meta`` device, which has a shape and no values: the values are among the weights.
        dynamic: whether `train` holds probabilities, from which pixels are drawn again at each use.
        classes: the number of different labels, if the data have labels.
        x_scale: the largest absolute value of the training data, where that is above 1. Encoders divide x by it.
        train_size: N, which is kept where the training data are not kept.
    """

    latent: int
    x_shape: Shape
    x_mean: Tensor | None = None
    train: Tensor | None = None
    dynamic: bool = False
    classes: int | None = None
    x_scale: float = 1.0
    train_size: int | None = None

    def __post_init__(self) -> None:
        """Checks that sizes are positive and that the mean has the shape of a datum.

        Raises:
            ValueError: a size is below 1, or the mean or the training data have another shape.
        """
        if self.latent < 1:
            raise ValueError(f"latent: expected a size of at least 1, got {self.latent}")
        if not self.x_shape or min(self.x_shape) < 1:
            raise ValueError(f"x_shape: expected sizes of at least 1, got {self.x_shape}")
        if self.x_mean is not None and self.x_mean.shape != self.x_shape:
            raise ValueError(f"x_mean: expected shape {self.x_shape}, got {tuple(self.x_mean.shape)}")
        if self.train is not None and self.train.shape[1:] != self.x_shape:
            raise ValueError(f"train: expected shape (N, *{self.x_shape}), got {tuple(self.train.shape)}")

    def without_data(self) -> Dims:
        """Returns the sizes alone.

        A part keeps only these, so that a copy of a VAE, or a file of it, holds no training data.
        """
        size = self.train_size if self.train is None else len(self.train)
        return replace(self, x_mean=None, train=None, train_size=size)


class Network(Described, nn.Module, ABC):
    """A deterministic map from ``(*lead, *in_shape)`` to ``(*lead, *out_shape)`` for any leading dimensions.

    Leading dimensions are data, particles, or both. A network that accepts only ``(B, ...)``, such as a convolution,
    flattens them and restores them itself.

    Args:
        in_shape: the shape of one input.
        out_shape: the shape of one output.

    Raises (when called):
        ValueError: the input does not end in ``in_shape``, or the output is not ``(*lead, *out_shape)``.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(*lead, *in_shape)`` to ``(*lead, *out_shape)``."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Calls ``forward`` and checks the shapes of the input and of the output.

        The output has the type of the input, also under autocast.
        """
        lead = leading_shape(inputs, self.in_shape, f"input of {type(self).__name__}")
        outputs: Tensor = super().__call__(inputs).to(inputs.dtype)
        if outputs.shape != lead + self.out_shape:
            raise ValueError(
                f"output of {type(self).__name__}: expected shape {lead + self.out_shape}, got {tuple(outputs.shape)}"
            )
        return outputs


class Parts(NamedTuple):
    """The prior, the guide and the likelihood of one VAE."""

    prior: Prior
    guide: Guide
    likelihood: Likelihood


class DistributionPart(Described, nn.Module, ABC):
    """The base class of priors, guides and likelihoods.

    Args:
        dims: the sizes (see `Dims`).

    Attributes:
        dims: the sizes without the training data.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims.without_data()
        self._parts: Parts | None = None

    @property
    def parts(self) -> Parts:
        """The parts of the VAE that this part belongs to.

        A part that uses another one needs them, for example a prior that is made of the guide. They are not submodules
        of this part, so that each parameter is held once, by the part that owns it.

        Raises:
            ValueError: this part belongs to no VAE.
        """
        if self._parts is None:
            raise ValueError(
                f"{type(self).__name__} uses the other parts of a VAE: put it into one first (models of another "
                f"kind, --model, cannot take it)"
            )
        return self._parts

    @final
    def join(self, parts: Parts) -> None:
        """Tells this part, and the parts inside it, which parts the VAE has.

        A VAE calls this for each of its parts.
        """
        for part in self.modules():
            if isinstance(part, DistributionPart):
                part._parts = parts


class Prior(DistributionPart):
    """p(t): ``prior()`` is a distribution of batch shape ``()`` and event shape ``(d,)``.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: ``forward`` returned a distribution of another shape.
        TypeError: ``forward`` returned an object that is not a Pyro distribution.
    """

    @abstractmethod
    def forward(self) -> Distribution:
        """Returns p(t)."""

    def __call__(self) -> Distribution:
        """Calls ``forward`` and checks what it returns."""
        return checked(super().__call__(), (), (self.dims.latent,), self)


class Guide(DistributionPart):
    """q(t|x,φ): ``guide(x)`` is a distribution over t.

    Its batch shape is ``x.shape[:-len(x_shape)]`` and its event shape is ``(d,)``.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: x does not end in ``x_shape``, or ``forward`` returned a distribution of another shape.
        TypeError: ``forward`` returned an object that is not a Pyro distribution.
    """

    @final
    def scaled(self, x: Tensor) -> Tensor:
        """Returns the data divided by ``dims.x_scale``.

        Training data are then within [-1, 1]. Levels 0..255 would be too large for a network.
        """
        return x if self.dims.x_scale == 1 else x / self.dims.x_scale  # this avoids a copy of x

    @abstractmethod
    def forward(self, x: Tensor) -> Distribution:
        """Returns q(t|x,φ) for x of shape ``(*batch, *x_shape)``."""

    def __call__(self, x: Tensor) -> Distribution:
        """Calls ``forward``, and checks its input and what it returns."""
        batch_shape = leading_shape(x, self.dims.x_shape, f"x given to {type(self).__name__}")
        return checked(super().__call__(x), batch_shape, (self.dims.latent,), self)


class Likelihood(DistributionPart):
    """p(x|t,w): ``likelihood(t)`` is a distribution over x.

    Its batch shape is ``t.shape[:-1]`` and its event shape is ``x_shape``.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: t does not end in d, or ``forward`` returned a distribution of another shape.
        TypeError: ``forward`` returned an object that is not a Pyro distribution.
    """

    @abstractmethod
    def forward(self, t: Tensor) -> Distribution:
        """Returns p(x|t,w) for t of shape ``(*batch, d)``."""

    def __call__(self, t: Tensor) -> Distribution:
        """Calls ``forward``, and checks its input and what it returns."""
        batch_shape = leading_shape(t, (self.dims.latent,), f"t given to {type(self).__name__}")
        return checked(super().__call__(t), batch_shape, self.dims.x_shape, self)


def placed(tensor: Tensor) -> Tensor:
    """Returns the tensor on the default device, where parts are built.

    A tensor without values stays on the ``meta`` device.
    """
    return tensor if tensor.is_meta else tensor.to(torch.get_default_device())


def leading_shape(value: Tensor, event_shape: Shape, what: str) -> Shape:
    """Returns the dimensions of ``value`` left of ``event_shape``.

    Raises:
        ValueError: ``value`` does not end in ``event_shape``; the message begins with ``what``.
    """
    cut = value.dim() - len(event_shape)
    if cut < 0 or value.shape[cut:] != event_shape:
        sizes = ", ".join(str(size) for size in event_shape)
        raise ValueError(f"{what}: expected shape (..., {sizes}), got {tuple(value.shape)}")
    return tuple(value.shape[:cut])


def checked(distribution: Any, batch_shape: Shape, event_shape: Shape, part: nn.Module) -> Distribution:
    """Returns the distribution if its shapes are the promised ones.

    Raises:
        ValueError: a shape is not the promised one; the message names the part.
        TypeError: the object is not a Pyro distribution.
    """
    name = f"{type(part).__name__} ({type(part).__mro__[1].__name__})"
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"{name}: expected a distribution of pyro.distributions, got {type(distribution).__module__}."
            f"{type(distribution).__qualname__}"
        )
    if distribution.event_shape != event_shape:
        raise ValueError(
            f"{name}: expected event shape {event_shape}, got {tuple(distribution.event_shape)}; "
            f".to_event(n) moves n batch dimensions into the event"
        )
    if distribution.batch_shape != batch_shape:
        raise ValueError(f"{name}: expected batch shape {batch_shape}, got {tuple(distribution.batch_shape)}")
    return distribution
