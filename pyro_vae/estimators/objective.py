"""The objective that is optimized, which is kept apart from the bound that is reported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.estimators.divergence import closed_form_kl
from pyro_vae.kinds import names_checked, require
from pyro_vae.parts import Guide
from pyro_vae.traces import Particles, Program

WITH_MEANS = "DiagonalNormal, FullRankNormal, LowRankNormal, Householder, MixtureOfNormals, PerDatum"
"""Guides whose distribution has a mean in closed form (`SemiAmortized` has one if its inner guide has one)."""


@names_checked
@dataclass(frozen=True)
class Objective:
    """The weights of a bound's terms: log w becomes log p(x|t,w) + c (log p(t) - log q(t|x,φ)).

    The weight c is β (Higgins et al. 2017). It is multiplied by epoch/warm_up in the first epochs (Bowman et al. 2016),
    and by zero for a batch whose mean KL is below the free nats (Kingma et al. 2016, appendix C.8, with all latents in
    one group). The KL that is compared is the one in the objective: the closed form with `AnalyticKL`, with which
    alone there is a KL without noise, and the mean of log q(t|x,φ) - log p(t) over the draws with the others. The
    default is the bound itself. The plain autoencoder is the limit β = 0 without noise.

    Args:
        beta: β, the weight of the KL.
        warm_up: the number of epochs over which the weight of the KL rises to β.
        free_nats: the KL per datum, as the mean over a batch, that costs nothing.
        alpha: α, the weight of the guide's auxiliary log-probabilities, such as log q(y|x) of the labels that a
            `SemiSupervised` model is told (Kingma et al. 2014, equation 9). They are added to the objective, and are in no
            bound.
        noise: whether t is drawn from q. Without noise t is the mean of q, which the guide must have in closed form, as
            must be a KL with a weight.

    Raises:
        ValueError: a number is negative.
    """

    beta: float = 1.0
    warm_up: int = 0
    free_nats: float = 0.0
    noise: bool = True
    alpha: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        require(vars(self), get_type_hints(Objective), "objective")
        for name in ("beta", "warm_up", "free_nats", "alpha"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective: expected {name} of at least 0, got {getattr(self, name)}")

    @property
    def is_the_bound(self) -> bool:
        """Whether the objective is the bound itself."""
        return self == Objective()

    def weight(self, epoch: int) -> float:
        """Returns the weight of the KL in an epoch; epochs are counted from 1."""
        return self.beta * min(1.0, epoch / self.warm_up) if self.warm_up else self.beta

    def reweigh(
        self, draws: Particles, weight: float | Tensor | None = None, in_closed_form: bool = False
    ) -> Particles:
        """Returns the same draws with another weight of the KL.

        It is the given weight, or β where none is given. It becomes zero if the mean KL is not above the free nats.

        Args:
            draws: the draws.
            weight: the weight of the KL in this step.
            in_closed_form: whether the KL in the objective is the closed form, which then meets the free nats too.
        """
        weight = self.beta if weight is None else weight
        if self.free_nats:
            kl = closed_form_kl(draws) if in_closed_form else draws.log_q - draws.log_prior
            kl = kl.mean().detach()
            weight = weight * (kl > self.free_nats).to(kl.dtype)
        return replace(draws, kl_weight=weight)

    def sampling(self, guide: Program | None = None) -> AbstractContextManager[Any]:
        """Returns a context within which latents are the means of their distributions if ``noise`` is off.

        Args:
            guide: the guide that is run inside, which the message of an error names.

        Raises (when a latent is drawn inside):
            ValueError: its distribution has no mean in closed form.
        """
        means: AbstractContextManager[Any] = _Means(guide)
        return nullcontext() if self.noise else means

    def check_means(self, optimized: Particles) -> None:
        """Checks that the means, which latents are without noise, are numbers; no training step looks at them.

        Args:
            optimized: the draws behind the surrogate of an estimate with this objective.

        Raises:
            ValueError: a distribution says that its mean is not a finite number, as those of a Cauchy distribution do.
        """
        for name, t in optimized.values.items():
            if not self.noise and not bool(t.isfinite().all()):
                raise ValueError(_no_mean(optimized.programs[1], name, "is not a finite number"))


class _Means(Messenger):
    """Sets each latent that is not yet drawn to the mean of its distribution."""

    def __init__(self, guide: Program | None) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["done"] and not msg["is_observed"] and hasattr(msg["fn"], "rsample"):
            try:
                msg["value"], msg["done"] = msg["fn"].mean, True
            except NotImplementedError:
                raise ValueError(_no_mean(self.guide, msg["name"], "has no closed form")) from None


def _no_mean(guide: Program | None, site: str, why: str) -> str:
    return (
        f"objective: without noise, t is the mean of q, which {why} at site {site!r} of {_named(guide)}: train with noise, "
        f"or choose a guide whose mean is known, such as {WITH_MEANS}"
    )


def _named(guide: Program | None) -> str:
    """Returns the names of the guides that a Pyro guide is made of, or its own name."""
    owner = getattr(guide, "__self__", None)
    parts = [part for part in owner.modules() if isinstance(part, Guide)] if isinstance(owner, nn.Module) else []
    return ", ".join(type(part).__name__ for part in parts) or getattr(guide, "__qualname__", "the guide")
