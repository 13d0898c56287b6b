"""Statistics: means with their errors, intervals, the jackknife, and a straight line through points with errors.

Wherever this project writes ±, it is half the width of a 95 % interval. Intervals of means are Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, isfinite, log, nan, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import bdtr, stdtrit
from torch import Tensor

from pyro_vae.kinds import takes


class Mean(NamedTuple):
    """A mean over independent values with its standard error (the sample standard deviation over √n), and n.

    The error is NaN where it cannot be computed: a single value has none. ``reason`` says why, where the values do not.
    """

    mean: float
    error: float
    n: int
    reason: str | None = None

    @property
    def reach(self) -> float:
        """Half the width of the 95 % interval (Student's t, n - 1 degrees of freedom): what stands after ±."""
        return student_reach(self.n - 1) * self.error

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return self.mean - self.reach

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        return self.mean + self.reach

    def as_dict(self) -> dict[str, Any]:
        """Returns the mean, the ends of its 95 % interval, its standard error, and n, for a file.

        Where there is no interval, the reason stands beside it.
        """
        numbers = {"mean": self.mean, "low": self.low, "high": self.high, "standard_error": self.error, "n": self.n}
        absent = ("low", "high", "standard_error") if self.missing else ()
        return numbers | {f"{name}_missing": self.missing for name in absent}

    def text(self, digits: int = 2, sign: bool = False) -> str:
        """Returns the mean ± half the width of its 95 % interval, or the mean and why there is no interval."""
        number = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return f"{number} ± {self.reach:.{digits}f}" if isfinite(self.reach) else f"{number} ({self.missing})"

    def __str__(self) -> str:
        """Returns the mean ± half the width of its 95 % interval, for a table."""
        return self.text()

    @property
    def missing(self) -> str | None:
        """Why there is no interval; None where there is one."""
        if isfinite(self.error):
            return None
        found = "a single value" if self.n < 2 else "a value is infinite or NaN"
        return f"no ±: {self.reason or found}"


@takes
def mean(values: Tensor | np.ndarray) -> Mean:
    """Returns the mean and the standard error of independent values (N,), summed in float64.

    A single value has no error (NaN).
    """
    values, n = torch.as_tensor(values).to(torch.float64), len(values)
    return Mean(values.mean().item(), values.std().item() / sqrt(n) if n > 1 else nan, n)


class Interval(NamedTuple):
    """A value with its 95 % interval; all three numbers are NaN where the data do not resolve the value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Returns the value and its interval, for a table."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]" if isfinite(self.value) else "not resolved"


UNRESOLVED = Interval(nan, nan, nan)


def student_reach(freedom: float, together: int = 1) -> float:
    """Returns how many standard errors a 95 % interval reaches to either side.

    The distribution is Student's, with these degrees of freedom. Several intervals ``together`` hold their values at once with
    95 % (Bonferroni).
    """
    return float(stdtrit(freedom, 1 - 0.025 / together)) if freedom > 0 else nan


@takes
def interval(values: np.ndarray) -> Interval:
    """Returns the mean of independent values, such as one for each seed, with its 95 % interval.

    A single value has no interval (NaN).
    """
    found = mean(values)
    return Interval(found.mean, found.low, found.high)


class Crossed(NamedTuple):
    """The mean of values (S, N), one for each of S seeds and N data, with its errors.

    Attributes:
        over_seeds: the mean over seeds, of means over data. Its error is the spread over seeds, on the same data.
        over_data: the mean over data, of means over seeds. Its error is the spread over data, at the same seeds.
        over_both: half the width of the 95 % interval for other seeds and other data; NaN with one seed or one datum.
    """

    over_seeds: Mean
    over_data: Mean
    over_both: float


@takes
def crossed(values: np.ndarray, together: int = 1) -> Crossed:
    """Returns the mean of values (S, N), one for each of S seeds and N data, with its errors over each and over both.

    With effects of the seed, of the datum and a residual, all random, the mean squares MS of the two-way table give the
    variance (MS_seeds + MS_data - MS_residual) / (S N) of the mean. Satterthwaite's degrees of freedom belong to it
    (Satterthwaite 1946). The interval is never taken to be narrower than that over seeds or over data alone.

    Args:
        values: the values.
        together: how many such intervals over both are to hold their values at once, with 95 % (see `student_reach`).
    """
    values = _table(values, "values", "(S, N)")
    S, N = values.shape
    seeds, data = mean(values.mean(1)), mean(values.mean(0))
    if S < 2 or N < 2:
        return Crossed(seeds, data, nan)
    residual = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    of_seeds, of_data = S * N * seeds.error**2, S * N * data.error**2
    of_residual = (residual**2).sum() / ((S - 1) * (N - 1))
    total = max(0.0, of_seeds + of_data - of_residual)
    scatter = of_seeds**2 / (S - 1) + of_data**2 / (N - 1) + of_residual**2 / ((S - 1) * (N - 1))
    reach = student_reach(total**2 / scatter, together) * sqrt(total / (S * N)) if total > 0 else 0.0
    alone = [student_reach(each.n - 1, together) * each.error for each in (seeds, data)]
    return Crossed(seeds, data, max(reach, *alone))


def _table(values: np.ndarray, name: str, shape: str) -> np.ndarray:
    """An array of numbers in float64.

    Raises:
        ValueError: it holds no numbers, or is of another number of dimensions.
    """
    if values.dtype.kind not in "biuf" or values.ndim != shape.count(",") + 1 or values.size == 0:
        raise ValueError(f"{name}: expected numbers {shape}, got {values.dtype} of shape {values.shape}")
    return values.astype(np.float64)


@takes
def needed(differences: np.ndarray, together: int = 1) -> tuple[int | None, int | None]:
    """Returns how many seeds, on the same data, and how many data, at the same seeds, would decide a mean difference's sign.

    They are the least numbers whose interval does not hold 0, if the mean and the variances stay what they are here. Each is
    None where 1,000 seeds, or 1,000,000 data, are not enough, and that of seeds also where there is one.

    Args:
        differences: differences (S, N), one for each of S seeds and N data.
        together: how many intervals are to hold their values at once (see `student_reach`).
    """
    differences = _table(differences, "differences", "(S, N)")
    S, N = differences.shape
    residual = (
        differences - differences.mean(1, keepdims=True) - differences.mean(0, keepdims=True) + differences.mean()
    )
    of_residual = (residual**2).sum() / max(1, (S - 1) * (N - 1))
    of_seeds = max(0.0, differences.mean(1).var(ddof=1) - of_residual / N) if S > 1 else nan
    of_data = max(0.0, differences.mean(0).var(ddof=1) - of_residual / S) if N > 1 else nan

    def decided(seeds: int, data: int) -> bool:
        over_seeds = student_reach(seeds - 1, together) ** 2 * (of_seeds + of_residual / data) / seeds if S > 1 else 0.0
        over_data = student_reach(data - 1, together) ** 2 * of_data / data
        return bool(over_seeds + over_data < differences.mean() ** 2)

    more_seeds = next((n for n in range(S + 1, 1001) if decided(n, N)), None) if S > 1 else None
    grid = np.unique(np.geomspace(N + 1, max(N + 1, 1_000_000), 400).astype(int)).tolist()
    return more_seeds, next((n for n in grid if decided(S, n)), None)


@takes
def probability_first(values: np.ndarray, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """Returns the probability that each of C models has the largest mean (C,), by the Bayesian bootstrap (Rubin 1981).

    Seeds and data both get random weights, the same for all models, so that what they share cancels. Models with the same
    values share a first place. With few seeds it is rough.

    Args:
        values: values (C, S, N) of C models, S seeds and N data.
        draws: the number of draws.
        seed: the seed of the draws.
    """
    values = _table(values, "values", "(C, S, N)")
    C, S, N = values.shape
    rng = np.random.default_rng(seed)
    first = np.zeros(C)
    for some in np.array_split(np.arange(draws), max(1, draws * N // 2**22)):
        of_seeds = rng.dirichlet(np.ones(S), len(some))
        of_data = rng.dirichlet(np.ones(N), len(some))
        means = np.einsum("rs,csr->rc", of_seeds, values @ of_data.T)
        best = means.max(1, keepdims=True)
        firsts = means >= best - 1e-12 * np.abs(best)
        first += (firsts / firsts.sum(1, keepdims=True)).sum(0)
    return first / draws


@takes
def interval_of_median(values: np.ndarray) -> Interval:
    """Returns the median of independent values with its 95 % interval, whatever their distribution is.

    The ends are two of the values: how many lie below the median is binomial. Fewer than six values have no interval (NaN).
    """
    ordered, n = np.sort(np.asarray(values, dtype=np.float64)), len(values)
    below = [k for k in range(n // 2) if bdtr(k, n, 0.5) <= 0.025]
    low, high = (ordered[below[-1]], ordered[n - 1 - below[-1]]) if below else (nan, nan)
    return Interval(float(np.median(ordered)), float(low), float(high))


def jackknife(statistic: Callable[[np.ndarray], float], groups: int) -> tuple[float, float]:
    """Returns a statistic of groups of draws, and its standard error by the jackknife (Efron and Stein 1981).

    The jackknife leaves out one group at a time.

    Args:
        statistic: a function of the indices of the groups that are kept.
        groups: the number of groups.
    """
    every = np.arange(groups)
    without = np.array([statistic(np.delete(every, g)) for g in every])
    return statistic(every), sqrt((groups - 1) * without.var())


class Line(NamedTuple):
    """log y = intercept + slope · log K, with the slope's 95 % interval and the number of points that were fitted."""

    slope: Interval
    intercept: float
    points: int

    def at(self, K: np.ndarray) -> np.ndarray:
        """Returns y on the line."""
        return exp(self.intercept) * K**self.slope.value


def fit_line(K: Sequence[float], log_y: Sequence[tuple[float, float]]) -> Line:
    """Fits log y against log K by weighted least squares, where each point has its own standard error.

    NaN points are left out. The interval is Student's with n - 2 degrees of freedom, and is never narrower than the
    points' errors allow. It grows with the scatter of the points where they scatter more than their errors say, for
    example because the line is not straight. It is NaN for fewer than 3 points.
    """
    kept = [(log(k), y, e) for k, (y, e) in zip(K, log_y, strict=True) if isfinite(y)]
    if len(kept) < 3:
        return Line(UNRESOLVED, nan, len(kept))
    at, y, error = np.array(kept).T
    weight = 1 / error**2
    center = (weight * at).sum() / weight.sum()
    spread = (weight * (at - center) ** 2).sum()
    slope = float((weight * (at - center) * y).sum() / spread)
    intercept = float((weight * y).sum() / weight.sum() - slope * center)
    freedom = len(kept) - 2
    scatter = (weight * (y - intercept - slope * at) ** 2).sum() / freedom
    reach = student_reach(freedom) * sqrt(max(1.0, scatter) / spread)
    return Line(Interval(slope, slope - reach, slope + reach), intercept, len(kept))
