"""Expectations over discrete sites of the guide, in place of draws."""

from __future__ import annotations

from math import comb, lgamma, log
from typing import final

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.estimators.base import Estimator
from pyro_vae.estimators.evidence import ELBO, AnalyticKL
from pyro_vae.kinds import takes
from pyro_vae.traces import MOST_STATES, Particles, counted


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
        self.climbs = self.inner.climbs
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


@final
class Exact(Estimator):
    """The bound of K particles and its gradient as sums over states, without noise, where all latents are discrete.

    Bound: L_K = Σ q(z_1|x,φ) ⋯ q(z_K|x,φ) log (1/K) Σ_k w(z_k) over all K states of the latents. It is the ELBO for K = 1, as
    that of `Enumerate`, which is for latents of which some are drawn.

    Gradient: the gradient of the bound, exactly.

    Domain: guides whose sites are all discrete, with S states together. The model is evaluated at each, and log w once for
    each of the (S+K-1)!/(K! (S-1)!) ways to take K of them in any order, which are at most `MOST_STATES`.

    Args:
        K: the number of particles of the bound.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    for_discrete = True
    latents = "fixed"
    enumerate = "all"
    drawn = 1  # a particle that has all states

    def __init__(self, K: int = 1, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = K

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,).

        Raises:
            ValueError: a site of the guide is not discrete, or there are too many sets of K states.
        """
        if draws.states is None or draws.values:
            raise ValueError(
                f"Exact: the guide draws {sorted(draws.values)}, which cannot be enumerated: it is for guides whose sites are "
                f"all discrete; Enumerate takes expectations over some"
            )
        found, J = draws.states(), self.K
        S = len(found.log_q)
        check_sets(S, J)
        log_q = found.log_q[:, 0]
        log_w = (found.log_lik + draws.kl_weight * (found.log_prior - found.log_q))[:, 0]
        # A state of no probability adds nothing, also where log w is infinite.
        log_w = torch.where(log_q.isneginf(), 0.0, log_w)
        sets = torch.combinations(torch.arange(S, device=log_q.device), J, with_replacement=True)  # (sets, J)
        weights = (log_q[sets].sum(1) + _log_orders(sets).to(log_q).unsqueeze(1)).exp()
        return (weights * (log_w[sets].logsumexp(1) - log(J))).sum(0)


@takes
def number_of_sets(states: int, together: int) -> int:
    """Returns in how many ways so many states can be taken together, each any number of times and in any order."""
    return comb(states + together - 1, together)


def check_sets(states: int, together: int) -> None:
    """Raises ValueError if there are too many sets of states for their sum (see `Exact`)."""
    if (sets := number_of_sets(states, together)) > MOST_STATES:
        raise ValueError(
            f"Exact: {together} of {counted(states)} states can be taken in {counted(sets)} ways for each datum, and "
            f"{MOST_STATES:,} are the most: use VIMCO, which draws them"
        )


def _log_orders(sets: Tensor) -> Tensor:
    """Returns the logarithm of the number of orders of each of some sets (sets, J), whose entries ascend."""
    total = torch.full((len(sets),), lgamma(sets.shape[1] + 1), dtype=torch.float64, device=sets.device)
    run = torch.ones_like(total)  # how often the last entry so far stands there
    for before, after in zip(sets.T[:-1], sets.T[1:], strict=True):
        run = torch.where(before == after, run + 1, 1.0)
        total = total - run.log()
    return total
