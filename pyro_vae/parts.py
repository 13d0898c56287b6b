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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, final, get_type_hints

import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_vae.description import Described
from pyro_vae.kinds import names_checked, require, settle, wrong_kind
from pyro_vae.missing import Marginal, filling_of

Shape = tuple[int, ...]
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""The smallest scale of data: 1 divided by a smaller one is no number of float32."""
Distribution = TorchDistributionMixin
"""Any distribution of `pyro.distributions`, which a prior, a guide or a likelihood returns."""


@names_checked
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
        standardized: whether parts see every number of x with its training mean subtracted and divided by its standard
            deviation. Bounds stay densities of x itself (see `Units`). The mean `x_mean` is then 0.
        x_units: the training mean and the standard deviation of every number of x, of shape ``(2, *x_shape)``, where
            parts are built for standardized data.
        missing: whether data may have missing values, which are NaN. Likelihoods then score the observed numbers alone, and
            encoders see which these are (see `seen_shape`).
    """

    latent: int
    x_shape: Shape
    x_mean: Tensor | None = None
    train: Tensor | None = None
    dynamic: bool = False
    classes: int | None = None
    x_scale: float = 1.0
    train_size: int | None = None
    standardized: bool = False
    x_units: Tensor | None = None
    missing: bool = False

    @property
    def seen_shape(self) -> Shape:
        """The shape of what an encoder sees of one datum.

        It is ``x_shape``. Where values may be missing, it has twice as many channels, ``(2 C, ...)``, or ``(2, D)`` for a
        vector: x, with 0 for missing values, and then 1 where x is observed and 0 where it is missing.
        """
        if not self.missing:
            return self.x_shape
        return (2 * self.x_shape[0], *self.x_shape[1:]) if len(self.x_shape) > 1 else (2, *self.x_shape)

    def __post_init__(self) -> None:
        """Checks that sizes are positive and that the mean has the shape of a datum.

        Raises:
            ValueError: a size is below 1, or the mean or the training data have another shape.
            WrongKindError: a size is no whole number, or a field is of another wrong kind.
        """
        if isinstance(self.x_shape, list):
            object.__setattr__(self, "x_shape", tuple(self.x_shape))
        settle(self)
        require(vars(self), get_type_hints(Dims), "Dims")
        if self.latent < 1:
            raise ValueError(f"latent: expected a size of at least 1, got {self.latent}")
        if not self.x_shape or min(self.x_shape) < 1:
            raise ValueError(f"x_shape: expected sizes of at least 1, got {self.x_shape}")
        if not self.x_scale >= SMALLEST_SCALE:
            raise ValueError(
                f"x_scale: expected a number of at least {SMALLEST_SCALE:.2g}, by which float32 can be divided, got "
                f"{self.x_scale}"
            )
        if self.x_mean is not None and self.x_mean.shape != self.x_shape:
            raise ValueError(f"x_mean: expected shape {self.x_shape}, got {tuple(self.x_mean.shape)}")
        if self.train is not None and self.train.shape[1:] != self.x_shape:
            raise ValueError(f"train: expected shape (N, *{self.x_shape}), got {tuple(self.train.shape)}")
        if self.x_units is not None and self.x_units.shape != (2, *self.x_shape):
            raise ValueError(f"x_units: expected shape {(2, *self.x_shape)}, got {tuple(self.x_units.shape)}")

    def without_data(self) -> Dims:
        """Returns the sizes alone.

        A part keeps only these, so that a copy of a VAE, or a file of it, holds no training data.
        """
        size = self.train_size if self.train is None else len(self.train)
        return replace(self, x_mean=None, train=None, x_units=None, train_size=size)

    def in_units_of_x(self) -> Dims:
        """Returns the sizes for a likelihood of x itself, also where other parts see standardized data.

        A likelihood on [0, 1] needs this, since standardized data are not in [0, 1].
        """
        mean = self.x_mean if self.x_units is None else self.x_units[0].clone()
        return replace(self, standardized=False, x_units=None, x_mean=mean) if self.standardized else self

    def without_values(self) -> Dims:
        """Returns the sizes while a saved model is loaded: the training data, if there were any, have a shape and no values."""
        sizes = self.without_data()
        if sizes.train_size is None:
            return sizes
        return replace(sizes, train=torch.empty((sizes.train_size, *sizes.x_shape), device="meta"))


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


class Units(nn.Module):
    """The units in which parts see data: z = (x - m) / s, with the mean m and the standard deviation s of training data.

    A guide is given z, and a likelihood describes z. What is reported is a density of x itself, since `Rescaled` contains
    the Jacobian. Without standardized data this is x / x_scale for a guide, and x itself for a likelihood. Where values may
    be missing, a guide is also told which are there, and the density is that of the others (`pyro_vae.missing.Marginal`).

    Args:
        dims: the sizes. Where data are standardized and ``x_units`` is not known, a model is being loaded: the values
            are then among the weights.
    """

    of_x: Tensor
    filling: Tensor

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.standardized, self.x_scale = dims.standardized, dims.x_scale
        if self.standardized:
            units = (
                torch.empty((2, *dims.x_shape), device="meta") if dims.x_units is None else placed(dims.x_units).clone()
            )
            self.register_buffer("of_x", units)
        self.missing, self.axes = dims.missing, len(dims.x_shape)
        if self.missing:
            filling = torch.full(dims.x_shape, 0.5)  # any number, where no data are known
            if dims.train is not None:
                meta = dims.train.is_meta
                filling = torch.empty(dims.x_shape, device="meta") if meta else placed(filling_of(dims.train))
            self.register_buffer("filling", filling)

    def scaled(self, x: Tensor) -> Tensor:
        """Returns x as networks see it, of the shape ``(*batch, *dims.seen_shape)``."""
        x = floating(x)
        if self.standardized:
            z = (x - self.of_x[0]) / self.of_x[1]
        elif self.x_scale != 1:
            z = x / self.x_scale
        else:
            z = x  # without a copy
        if not self.missing:
            return z
        there = ~x.isnan()
        joined = torch.cat if self.axes > 1 else torch.stack
        return joined([torch.where(there, z, 0.0), there.to(z.dtype)], -max(2, self.axes))

    def rescaled(self, distribution: Distribution) -> Distribution:
        """Returns the distribution of x, given that of x in these units."""
        whole = Rescaled(distribution, self.of_x) if self.standardized else distribution
        return Marginal(whole, self.filling) if self.missing else whole


class Rescaled(TorchDistribution):
    """The distribution of x = m + s ⊙ z, where z has a given distribution: log p(x) = log p(z) - Σ log s.

    Args:
        base: the distribution of z.
        units: m and s, of shape ``(2, *event_shape)``.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (as torch declares it)

    def __init__(self, base: Any, units: Tensor) -> None:
        self.base_dist, self.units, self.has_rsample = base, units, base.has_rsample
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        """The values of x that the distribution of z can score."""
        return _RescaledSupport(self.base_dist.support, self.units)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rescaled:
        """Returns the same distribution for more data or particles."""
        return Rescaled(self.base_dist.expand(batch_shape), self.units)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of x, in nats."""
        log_prob: Tensor = self.base_dist.log_prob((value - self.units[0]) / self.units[1])
        return log_prob - self.units[1].log().sum()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws x as a function of the parameters."""
        return self.units[0] + self.units[1] * self.base_dist.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws x."""
        return self.units[0] + self.units[1] * self.base_dist.sample(torch.Size(sample_shape))

    @property
    def mean(self) -> Tensor:
        """The mean m + s ⊙ E[z]."""
        return self.units[0] + self.units[1] * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """The variance s² ⊙ Var[z]."""
        return self.units[1] ** 2 * self.base_dist.variance


class _RescaledSupport(Constraint):
    """The values of x whose standardized value is in a support.

    Args:
        base: the support of the standardized values.
        units: m and s.
    """

    def __init__(self, base: Constraint, units: Tensor) -> None:
        self.base, self.units, self.event_dim = base, units, base.event_dim
        self.is_discrete = base.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each value is inside."""
        return self.base.check((value - self.units[0]) / self.units[1])

    def __repr__(self) -> str:
        return f"that of standardized data, {self.base}"


Method = TypeVar("Method", bound=Callable[..., Any])


def overridable(method: Method) -> Method:
    """Marks a concrete method that a subclass may override. No subclass overrides any other concrete method."""
    method.__overridable__ = True  # type: ignore[attr-defined]
    return method


class LatentPart(DistributionPart):
    """The base class of priors and guides, which are distributions of a latent t.

    Args:
        dims: the sizes (see `Dims`).
    """

    @overridable
    def seen(self, t: Tensor) -> Tensor:
        """Returns what stands for t wherever a network is given it: t itself by default.

        Relaxed latents are drawn as logits or logarithms, and seen as numbers in [0, 1]. It is a function of single
        latents, and keeps the shape ``(*batch, d)``. In a model it is that of the part which is p(t), so that a guide
        may be of another class.
        """
        return t


class Prior(LatentPart):
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


class Guide(LatentPart):
    """q(t|x,φ): ``guide(x)`` is a distribution over t.

    Its batch shape is ``x.shape[:-len(x_shape)]`` and its event shape is ``(d,)``. In models of several latents a guide
    is also p(t_1|t_2), one latent given another, which maps a vector to a distribution as well.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: x does not end in ``x_shape``, or ``forward`` returned a distribution of another shape.
        TypeError: ``forward`` returned an object that is not a Pyro distribution.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.units = Units(dims)

    @final
    def scaled(self, x: Tensor) -> Tensor:
        """Returns the data as a network should see them: standardized, or divided by ``dims.x_scale``.

        Training data that are not standardized are then within [-1, 1]. Levels 0..255 would be too large for a network.
        The shape is ``(*batch, *dims.seen_shape)``: where values may be missing, it is told which are there.
        """
        return self.units.scaled(x)

    @abstractmethod
    def forward(self, x: Tensor) -> Distribution:
        """Returns q(t|x,φ) for x of shape ``(*batch, *x_shape)``."""

    def __call__(self, x: Tensor) -> Distribution:
        """Calls ``forward``, and checks its input and what it returns."""
        batch_shape = leading_shape(x, self.dims.x_shape, f"x given to {type(self).__name__}")
        return checked(super().__call__(x), batch_shape, (self.dims.latent,), self)


class Likelihood(DistributionPart):
    """p(x|t,w): ``likelihood(t)`` is a distribution over x.

    Its batch shape is ``t.shape[:-1]`` and its event shape is ``x_shape``. Where ``dims.standardized`` holds, ``forward``
    describes standardized data, and what a call returns is the distribution of the data themselves. Where ``dims.missing``
    holds, it is that of the observed numbers, for which the numbers of x must be independent given t.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: t does not end in d, ``forward`` returned a distribution of another shape, or values may be missing and the
            numbers of x are not independent given t.
        TypeError: ``forward`` returned an object that is not a Pyro distribution.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.units = Units(dims)

    @abstractmethod
    def forward(self, t: Tensor) -> Distribution:
        """Returns p(x|t,w) for t of shape ``(*batch, d)``."""

    def __call__(self, t: Tensor) -> Distribution:
        """Calls ``forward``, and checks its input and what it returns."""
        batch_shape = leading_shape(t, (self.dims.latent,), f"t given to {type(self).__name__}")
        return self.units.rescaled(checked(super().__call__(t), batch_shape, self.dims.x_shape, self))


def floating(x: Tensor) -> Tensor:
    """Returns whole numbers, which counts may come as, in the default dtype, in which networks compute and densities score."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def placed(tensor: Tensor) -> Tensor:
    """Returns the tensor on the default device, where parts are built.

    A tensor without values stays on the ``meta`` device.
    """
    return tensor if tensor.is_meta else tensor.to(torch.get_default_device())


def leading_shape(value: Tensor, event_shape: Shape, what: str) -> Shape:
    """Returns the dimensions of ``value`` left of ``event_shape``.

    Raises:
        ValueError: ``value`` does not end in ``event_shape``; the message begins with ``what``.
        WrongKindError: ``value`` is no tensor.
    """
    if not isinstance(value, Tensor):
        raise wrong_kind(what, value, Tensor)
    cut = value.dim() - len(event_shape)
    if cut < 0 or value.shape[cut:] != event_shape:
        sizes = ", ".join(str(size) for size in event_shape)
        raise ValueError(f"{what}: expected shape (..., {sizes}), got {tuple(value.shape)}")
    return tuple(value.shape[:cut])


def check_batch(x: Tensor, x_shape: Shape) -> None:
    """Checks that data are a batch ``(N, *x_shape)``. One datum alone would be broadcast, and taken for several.

    Raises:
        ValueError: they are not.
    """
    if x.shape[1:] == x_shape and x.dim() > len(x_shape):
        return
    sizes = ", ".join(map(str, x_shape))
    one = " of one datum: give x[None]" if x.shape == x_shape else ""
    raise ValueError(f"x: a batch of shape (N, {sizes}) is expected, got shape {tuple(x.shape)}{one}")


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
