"""The abstract parts of a VAE and the shapes they promise.

A part is a module that returns a distribution:

========== ========= ================= ================ ===========
part       maths     call              batch shape      event shape
========== ========= ================= ================ ===========
Prior      p(t)      ``prior()``       ``()``           ``(d,)``
Guide      q(t|x,φ)  ``guide(x)``      the batch of x   ``(d,)``
Likelihood p(x|t,w)  ``likelihood(t)`` ``t.shape[:-1]`` ``x_shape``
========== ========= ================= ================ ===========

A new part is a class with a constructor ``(dims, own options...)`` and a ``forward``; the base class checks what goes in and
what comes out at every call, so that a wrong shape is an error that names the part and never a silent broadcast.
Every class of this project is abstract or final: no concrete method is overridden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import pyro.infer
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.objectives import Objective
from pyro_vae.particles import Latents, Particles, Program, particles

Shape = tuple[int, ...]
Distribution = TorchDistributionMixin
"""What a part returns: any distribution of `pyro.distributions`."""


@dataclass(frozen=True, eq=False)
class Dims:
    """What every part is told when it is built.

    Attributes:
        latent: d, the dimension of t.
        x_shape: shape of one datum, for example ``(1, 28, 28)``.
        x_mean: mean training datum, of shape ``x_shape``. Likelihoods start their output there; None starts it at the
            center of their link (probability 1/2, location 0).
        train: the training data ``(N, *x_shape)``, for parts that are made of data (exemplars, a posterior for each datum).
        dynamic: `train` holds probabilities, by which pixels are drawn anew at each use.
        classes: number of labels that a datum may have, if it has one.
        x_scale: largest absolute value of the training data, where that is above 1: what encoders divide x by.
    """

    latent: int
    x_shape: Shape
    x_mean: Tensor | None = None
    train: Tensor | None = None
    dynamic: bool = False
    classes: int | None = None
    x_scale: float = 1.0

    def __post_init__(self) -> None:
        """Checks that sizes are positive and that the mean has the shape of a datum.

        Raises:
            ValueError: a size below 1, or a mean of another shape.
        """
        if self.latent < 1:
            raise ValueError(f"latent: expected a size of at least 1, got {self.latent}")
        if not self.x_shape or min(self.x_shape) < 1:
            raise ValueError(f"x_shape: expected sizes of at least 1, got {self.x_shape}")
        if self.x_mean is not None and self.x_mean.shape != self.x_shape:
            raise ValueError(f"x_mean: expected shape {self.x_shape}, got {tuple(self.x_mean.shape)}")
        if self.train is not None and self.train.shape[1:] != self.x_shape:
            raise ValueError(f"train: expected shape (N, *{self.x_shape}), got {tuple(self.train.shape)}")

    def __deepcopy__(self, _memo: dict[int, Any]) -> Dims:
        """Itself: nothing in it changes, and a copy of a part shall not copy the training data."""
        return self


class Network(nn.Module, ABC):
    """A deterministic map from ``(*lead, *in_shape)`` to ``(*lead, *out_shape)`` for any leading dimensions.

    Leading dimensions are data, particles, or both: a network that knows only ``(B, ...)``, such as a convolution, flattens
    and restores them itself.

    Raises (when called):
        ValueError: the input does not end in ``in_shape`` or the output is not ``(*lead, *out_shape)``.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(*lead, *in_shape)`` to ``(*lead, *out_shape)``."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Calls ``forward`` between checks of both shapes. Its output has the type of its input, under autocast too."""
        lead = leading_shape(inputs, self.in_shape, f"input of {type(self).__name__}")
        outputs: Tensor = super().__call__(inputs).to(inputs.dtype)
        if outputs.shape != lead + self.out_shape:
            raise ValueError(
                f"output of {type(self).__name__}: expected shape {lead + self.out_shape}, got {tuple(outputs.shape)}"
            )
        return outputs


class Parts(NamedTuple):
    """The three parts of one VAE."""

    prior: Prior
    guide: Guide
    likelihood: Likelihood


class Part(nn.Module, ABC):
    """What priors, guides and likelihoods share.

    Args:
        dims: the sizes (see `Dims`).
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims
        self._parts: Parts | None = None

    @property
    def parts(self) -> Parts:
        """The parts of the VAE that this one is in, for a part that uses another, such as a prior made of the guide.

        They are no submodules of this one: each parameter is held once, by the part that owns it.

        Raises:
            ValueError: it is in no VAE.
        """
        if self._parts is None:
            raise ValueError(
                f"{type(self).__name__} uses the other parts of a VAE: put it into one first (models of another "
                f"kind, --model, cannot take it)"
            )
        return self._parts

    @final
    def join(self, parts: Parts) -> None:
        """Tells this part, and those inside it, which others it is put together with; a VAE does."""
        for part in self.modules():
            if isinstance(part, Part):
                part._parts = parts


class Prior(Part):
    """p(t): ``prior()`` is a distribution of batch shape ``()`` and event shape ``(d,)``.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: ``forward`` returned a distribution of another shape.
        TypeError: ``forward`` returned no Pyro distribution.
    """

    @abstractmethod
    def forward(self) -> Distribution:
        """Returns p(t)."""

    def __call__(self) -> Distribution:
        """Calls ``forward`` and checks what it returns."""
        return checked(super().__call__(), (), (self.dims.latent,), self)


class Guide(Part):
    """q(t|x,φ): ``guide(x)`` is a distribution over t, of batch shape ``x.shape[:-len(x_shape)]`` and event shape ``(d,)``.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: x does not end in ``x_shape``, or ``forward`` returned a distribution of another shape.
        TypeError: ``forward`` returned no Pyro distribution.
    """

    @final
    def scaled(self, x: Tensor) -> Tensor:
        """X as a network likes it: within [-1, 1] on the training data, so that levels 0..255 do not flood it."""
        return x if self.dims.x_scale == 1 else x / self.dims.x_scale  # no copy of x where none is needed

    @abstractmethod
    def forward(self, x: Tensor) -> Distribution:
        """Returns q(t|x,φ) for x of shape ``(*batch, *x_shape)``."""

    def __call__(self, x: Tensor) -> Distribution:
        """Calls ``forward`` and checks what goes in and what it returns."""
        batch_shape = leading_shape(x, self.dims.x_shape, f"x given to {type(self).__name__}")
        return checked(super().__call__(x), batch_shape, (self.dims.latent,), self)


class Likelihood(Part):
    """p(x|t,w): ``likelihood(t)`` is a distribution over x, of batch shape ``t.shape[:-1]`` and event shape ``x_shape``.

    Args:
        dims: the sizes (see `Dims`).

    Raises (when called):
        ValueError: t does not end in d, or ``forward`` returned a distribution of another shape.
        TypeError: ``forward`` returned no Pyro distribution.
    """

    @abstractmethod
    def forward(self, t: Tensor) -> Distribution:
        """Returns p(x|t,w) for t of shape ``(*batch, d)``."""

    def __call__(self, t: Tensor) -> Distribution:
        """Calls ``forward`` and checks what goes in and what it returns."""
        batch_shape = leading_shape(t, (self.dims.latent,), f"t given to {type(self).__name__}")
        return checked(super().__call__(t), batch_shape, self.dims.x_shape, self)


def leading_shape(value: Tensor, event_shape: Shape, what: str) -> Shape:
    """Returns the dimensions of ``value`` left of ``event_shape``, or raises ValueError if it does not end in them."""
    cut = value.dim() - len(event_shape)
    if cut < 0 or value.shape[cut:] != event_shape:
        sizes = ", ".join(str(size) for size in event_shape)
        raise ValueError(f"{what}: expected shape (..., {sizes}), got {tuple(value.shape)}")
    return tuple(value.shape[:cut])


def checked(distribution: Any, batch_shape: Shape, event_shape: Shape, part: nn.Module) -> Distribution:
    """Returns the distribution if its shapes are the promised ones, else raises an error that names the part."""
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


class Estimate(NamedTuple):
    """What an estimator returns for a batch.

    Attributes:
        bound: the bound on log p(x) of each datum, in nats (B,).
        surrogate: what is differentiated (B,): its gradient is the estimator's, its value has no meaning of its own.
        particles: the log-probabilities behind it.
    """

    bound: Float[Tensor, " B"]
    surrogate: Float[Tensor, " B"]
    particles: Particles


class Estimator(pyro.infer.ELBO, ABC):
    """A bound on log p(x) and its gradient, for any Pyro model and guide.

    A new estimator writes `combine`, from the log-probabilities of its draws to a bound and a surrogate, and says in class
    attributes what it draws. As a `pyro.infer.ELBO` it also goes into ``pyro.infer.SVI(loss=...)``, where it follows Pyro's
    convention: the loss is minus the bound, summed over the batch and multiplied by the plate's scale.

    Args:
        K: number of particles.
        max_plate_nesting: number of plate dimensions the Pyro programs use.

    Attributes:
        latents: how φ acts on the draws (see `pyro_vae.particles.particles`); all but "fixed" need guides with ``rsample``.
        M: how many groups of K particles are drawn; they come as one dimension of M·K.
        closed_form_kl: whether the KL is computed and not estimated from the draws.

    Raises:
        ValueError: K below 1.
    """

    latents: Latents = "path"
    M: int = 1
    closed_form_kl: bool = False

    def __init__(self, K: int = 1, max_plate_nesting: int = 1) -> None:
        if K < 1:
            raise ValueError(f"K: expected at least 1 particle, got {K}")
        super().__init__(num_particles=K, max_plate_nesting=max_plate_nesting)
        self.K = K

    @abstractmethod
    def combine(self, draws: Particles) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Returns the bound of each datum and the surrogate whose gradient is the estimator's."""

    @final
    def estimate(
        self,
        model: Program,
        guide: Program,
        *args: Any,
        objective: Objective | None = None,
        kl_weight: float | Tensor | None = None,
        **kwargs: Any,
    ) -> Estimate:
        """Draws, and returns bound and surrogate of each datum.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            *args: given to both.
            objective: what is optimized in place of the bound; the bound that is returned stays what it is.
            kl_weight: of this step, in place of the objective's β.
            **kwargs: given to both.

        Raises:
            ValueError: the guide or the objective is outside the estimator's domain.
        """
        K, nesting = self.M * self.K, self.max_plate_nesting

        def draw() -> Particles:
            return particles(model, guide, *args, K=K, max_plate_nesting=nesting, latents=self.latents, **kwargs)

        # Without noise the draws are for the bound that is reported, and others are differentiated.
        reported = objective is not None and not objective.noise and self.latents == "path"
        with torch.no_grad() if reported else nullcontext():
            draws = draw()
            if self.latents != "fixed":
                self._require_rsample(draws)
            bound, surrogate = self.combine(draws)
        if objective is not None and not objective.is_the_bound:
            if not objective.noise:
                self._require_closed_form(objective)
                with objective.sampling():
                    surrogate = self.combine(objective.reweigh(draw(), kl_weight))[1]
            else:
                surrogate = self.combine(objective.reweigh(draws, kl_weight))[1]
        return Estimate(bound.detach(), surrogate, draws)

    def _require_rsample(self, draws: Particles) -> None:
        if blocked := [name for name, has_rsample in draws.reparameterized.items() if not has_rsample]:
            raise ValueError(
                f"{type(self).__name__} differentiates through the guide's samples, but its sites {blocked} have no "
                f"rsample; use a reparameterized guide, or ScoreFunction, VIMCO, RWS or TVO"
            )

    def _require_closed_form(self, objective: Objective) -> None:
        if objective.beta > 0 and not self.closed_form_kl:
            raise ValueError(
                f"objective: without noise the KL cannot be estimated from draws: use the estimator AnalyticKL, or "
                f"beta = 0 (got {type(self).__name__} and beta = {objective.beta:g})"
            )
        if self.latents == "fixed":
            raise ValueError(
                f"objective: without noise φ acts through t alone, which {type(self).__name__} does not differentiate"
            )

    @final
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Pyro's loss: minus the scaled sum of the bound, with the estimator's own gradient."""
        estimate = self.estimate(model, guide, *args, **kwargs)
        value = estimate.surrogate + (estimate.bound - estimate.surrogate).detach()
        return -(value * estimate.particles.scale).sum()

    @final
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Pyro's loss as a number, without a gradient."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    @final
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Pyro's loss as a number; adds its gradient to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    @final
    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        """Pyro's hook for estimators that sum over traces; unused, since `estimate` reads its own."""
        raise NotImplementedError
