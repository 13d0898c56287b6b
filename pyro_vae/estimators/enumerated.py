"""Expectations over discrete sites of the guide, in place of draws."""

from __future__ import annotations

from typing import final

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.estimators.base import Estimator
from pyro_vae.estimators.evidence import ELBO, AnalyticKL
from pyro_vae.traces import Particles


@final
class Enumerate(Estimator):
    """Another estimator, with log w of each particle in expectation over discrete sites z of the guide.

    Bound: that of the other estimator, with Σ_z q(z|x,φ) log w(z) in the place of log w. It is the exact ELBO, without noise,
    where all latents are discrete.

    Gradient: that of the other estimator, and by φ also through q(z|x,φ), exactly.

    Domain: estimators whose bound is a mean of log w. Sites of the guide have few values (see `MOST_STATES`). What the guide
    draws given them is drawn for each value; `ELBO` and `AnalyticKL` alone can differentiate this.

    Sites of the model that the guide does not sample, and that are marked ``infer={"enumerate": "parallel"}``, are summed out
    of p by every estimator and every evaluation, also without this class: log p(x,t) = log Σ_z p(x,t,z). All numbers are
    those of Pyro's TraceEnum_ELBO, but for its dimensions of samples.

    Args:
        inner: the other estimator.
        sites: the names of sites of the guide; by default all that are discrete.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: the bound of the other estimator is no mean of log w, or there are no sites.
    """

    for_discrete = True

    def __init__(
        self, inner: Estimator | None = None, sites: list[str] | None = None, max_plate_nesting: int = 1
    ) -> None:
        self.inner = inner or ELBO()
        super().__init__(self.inner.K, max_plate_nesting)
        name = type(self.inner).__name__
        if not self.inner.averages:
            raise ValueError(
                f"Enumerate: the bound of {name} is no mean of log w, so that an expectation of log w has no place in it: use "
                f"it with ELBO, AnalyticKL, STL or ScoreFunction; sites of the model alone are summed out by every estimator"
            )
        if sites is not None and not sites:
            raise ValueError("Enumerate: sites is empty; name at least one site of the guide, or leave it out for all")
        self.enumerate = "all" if sites is None else tuple(sites)
        self.latents, self.M, self.closed_form_kl = self.inner.latents, self.inner.M, self.inner.closed_form_kl
        self.per_datum, self.averages, self.draws_itself = self.inner.per_datum, True, self.inner.draws_itself
        self.learns, self.learning_rate = self.inner.learns, self.inner.learning_rate

    @property
    def state(self) -> dict[str, Tensor]:
        """The state of the other estimator."""
        return self.inner.state

    @state.setter
    def state(self, state: dict[str, Tensor]) -> None:
        if state or not self.inner.state:  # the base class begins with none
            self.inner.state = state

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,).

        Raises:
            ValueError: the guide has no such site, or draws sites given it, which the other estimator cannot differentiate.
        """
        if not draws.expected:
            raise ValueError(
                f"Enumerate: no site of the guide is discrete, it draws {sorted(draws.values)}: use "
                f"{type(self.inner).__name__} itself"
            )
        if draws.dependent and not isinstance(self.inner, ELBO | AnalyticKL):
            raise ValueError(
                f"Enumerate: the guide draws {list(draws.dependent)} given {sorted(draws.expected)}, which "
                f"{type(self.inner).__name__} cannot differentiate for each value: use ELBO"
            )
        return self.inner.bound(draws)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        return self.inner.surrogate(draws)

    def begin(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the other estimator's first state."""
        return self.inner.begin(draws)

    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns draws of what is not enumerated, as the other estimator draws them."""
        return self.inner.draw(site, q, alike)

    def advance(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the other estimator's state after a step."""
        return self.inner.advance(draws)
