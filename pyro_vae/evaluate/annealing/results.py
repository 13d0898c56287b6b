"""What annealed chains tell: log p(x) with its error, the bracket of log p(x), and the rate-distortion curve."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float64
from torch import Tensor

from pyro_vae.evaluate.annealing.path import Annealing
from pyro_vae.evaluate.statistics import Mean, mean

_UNSURE = 0.5
"""The standard error over chains, in nats, above which the log p(x) of a datum is called unsure: fewer than about 4 of the
chains then carry the weight."""
_SHARE = 0.05
"""The share of unsure data that is told."""
_ACCEPTANCE = 0.3
"""The acceptance rate below which chains mix badly; the best is about 0.65 (Neal 2011, section 5.4.4)."""
_WIDE = 1.0
"""The width of a bracket, in nats, above which it is told."""


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """The rate-distortion curve of a decoder under its prior (Huang et al. 2020), at each β of the path from the prior.

    The best channel to t at the slope -β is p_β(t|x) ∝ p(t) p(x|t)^β, which the chains draw at β. Its distortion is E[-log
    p(x|t)], and its rate is KL(p_β(t|x)‖p(t)) = -β distortion - log Z_β. The chains give log Z_β from below, so that the
    rate is an upper bound in expectation. At β = 1 rate and distortion add up to -log p(x).

    Attributes:
        beta: the inverse temperatures (T + 1,), from 0 to 1.
        rate: the mean over data of the upper bound on the rate (T + 1,), in nats.
        rate_error: its standard error over data.
        distortion: the mean over data of the distortion (T + 1,), in nats.
        distortion_error: its standard error over data.
        n: the number of data.
    """

    beta: Float64[Tensor, " T1"]
    rate: Float64[Tensor, " T1"]
    rate_error: Float64[Tensor, " T1"]
    distortion: Float64[Tensor, " T1"]
    distortion_error: Float64[Tensor, " T1"]
    n: int


@dataclass(frozen=True, eq=False)
class Annealed:
    """log p(x) of each datum by annealed importance sampling, over K chains.

    The mean weight is unbiased for p(x), so that `log_px` is a lower bound in expectation. It is too high by c nats or more
    with a probability of at most exp(-c) (Markov's inequality).

    Attributes:
        log_px: log (1/K) Σ_k w_k of each datum (N,), in nats.
        error: the standard error of `log_px` over the chains (N,), by the delta method: the standard deviation of the weights
            over √K and over their mean. It is NaN for one chain, and too small where few chains carry the weight.
        ess: the effective sample size (Σ w)² / Σ w² of the K chains (N,).
        spread: the standard deviation of log w over the chains (N,), in nats; NaN for one chain.
        acceptance: the mean acceptance rate of the moves (N,).
        chains: K.
        annealing: the path.
        curve: the rate-distortion curve, for a path from the prior.
    """

    log_px: Float64[Tensor, " N"]
    error: Float64[Tensor, " N"]
    ess: Float64[Tensor, " N"]
    spread: Float64[Tensor, " N"]
    acceptance: Float64[Tensor, " N"]
    chains: int
    annealing: Annealing
    curve: RateDistortion | None = None

    @property
    def mean(self) -> Mean:
        """The mean of log p(x) over data, with its standard error over data."""
        return mean(self.log_px)

    @property
    def error_of_chains(self) -> float:
        """The standard error of the mean over these data that is due to the chains, in nats: √(Σ error²) / N."""
        return float(self.error.square().sum().sqrt() / len(self.error))

    def notices(self) -> list[str]:
        """Returns what cannot be trusted, and what to do about it."""
        found = _about_chains(self.log_px, self.error, self.chains, "log p(x)")
        return found + _about_acceptance(self.acceptance, self.annealing)


@dataclass(frozen=True, eq=False)
class Bracket:
    """log p(x) of data that the model drew itself, from both sides (bidirectional Monte Carlo, Grosse et al. 2015).

    Forward chains give a lower bound in expectation. Reverse chains, which start at the t that x was drawn from, an exact draw
    of the posterior, give an upper bound in expectation. Each is exceeded by c nats or more with a probability of at most
    exp(-c). The bracket says how far annealing can be trusted for this model; it says so of the data that it draws, and of
    other data only as far as they are alike.

    Attributes:
        x: the data that were drawn (N, *x_shape).
        lower: the lower bound of each datum (N,), in nats.
        upper: the upper bound of each datum (N,), in nats.
        error: the standard error of the lower bound over the chains (N,) (see `Annealed`).
        upper_error: the same of the upper bound. All its chains of a datum start at one t, which is not part of it.
        acceptance: the mean acceptance rate of the moves of both directions (N,).
        chains: K, the number of chains in each direction.
        annealing: the path.
    """

    x: Tensor
    lower: Float64[Tensor, " N"]
    upper: Float64[Tensor, " N"]
    error: Float64[Tensor, " N"]
    upper_error: Float64[Tensor, " N"]
    acceptance: Float64[Tensor, " N"]
    chains: int
    annealing: Annealing

    @property
    def width(self) -> Float64[Tensor, " N"]:
        """The upper bound minus the lower bound of each datum; by chance it may be below 0."""
        return self.upper - self.lower

    @property
    def mean_lower(self) -> Mean:
        """The mean of the lower bound over data."""
        return mean(self.lower)

    @property
    def mean_upper(self) -> Mean:
        """The mean of the upper bound over data."""
        return mean(self.upper)

    @property
    def mean_width(self) -> Mean:
        """The mean of the width over data: the error of both bounds together, without the spread of log p(x) over data."""
        return mean(self.width)

    def interval(self, alpha: float = 0.05) -> tuple[Float64[Tensor, " N"], Float64[Tensor, " N"]]:
        """Returns the ends of an interval that contains log p(x) of a datum with a probability of 1 - alpha or more (N,).

        Both bounds are moved out by log (2 / alpha), which is what Markov's inequality asks for whatever the weights are.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected a probability between 0 and 1, got {alpha}")
        return self.lower - log(2 / alpha), self.upper + log(2 / alpha)

    def notices(self) -> list[str]:
        """Returns what cannot be trusted, and what to do about it."""
        found = _about_chains(self.lower, self.error, self.chains, "the lower bound")
        found += _about_chains(self.upper, self.upper_error, self.chains, "the upper bound")
        width = self.mean_width
        if width.mean > _WIDE:
            found.append(
                f"The bracket of log p(x) is {width.text()} nats wide: annealed importance sampling may be too low by as much. "
                f"Use more temperatures (they were {self.annealing.temperatures:,})."
            )
        if width.high < 0:
            found.append(
                f"The upper bound lies {-width.mean:.2f} nats below the lower bound: the moves do not leave their densities as "
                f"they are. A log-probability of the model that is not normalized, or is no function of the latents, does this."
            )
        return found + _about_acceptance(self.acceptance, self.annealing)


def _about_chains(values: Tensor, error: Tensor, chains: int, what: str) -> list[str]:
    found, finite = [], values.isfinite()
    if not bool(finite.all()):
        found.append(
            f"{what[0].upper()}{what[1:]} is infinite or NaN for {_count(~finite)} data: all chains are at places where the "
            f"model has no density."
        )
    if chains < 2:
        found.append(f"With one chain, {what} has no error: use more chains.")
    elif float((unsure := error > _UNSURE).to(torch.float64).mean()) > _SHARE:
        side = "high" if "upper" in what else "low"
        found.append(
            f"For {_count(unsure)} data the standard error of {what} over {chains} chains is above {_UNSURE} nats, since a few "
            f"chains carry the weight: it may be far too {side} there. Use more temperatures, then more chains."
        )
    return found


def _about_acceptance(acceptance: Tensor, annealing: Annealing) -> list[str]:
    least = min(_ACCEPTANCE, annealing.acceptance / 2)
    low = acceptance < least
    if float(low.to(torch.float64).mean()) <= _SHARE:
        return []
    return [
        f"For {_count(low)} data the acceptance rate of the moves is below {least:g} (the median is "
        f"{float(acceptance.nanmedian()):.2f}): the chains mix badly, and the bounds are loose. Use more temperatures, or "
        f"another start of the path."
    ]


def _count(of: Tensor) -> str:
    return f"{int(of.sum()):,} of {len(of):,}"
