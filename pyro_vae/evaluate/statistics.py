"""Statistics: means with their errors, intervals, the jackknife, and a straight line through points with errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, isfinite, log, nan, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from pyro_vae.kinds import takes


class Mean(NamedTuple):
    """A mean over independent values with its standard error (the sample standard deviation over √n), and n.

    The error is NaN where it cannot be computed: a single value has none.
    """

    mean: float
    error: float
    n: int

    def __str__(self) -> str:
        """Returns mean ± standard error, for a table."""
        return self.text()

    def text(self, digits: int = 2) -> str:
        """Returns mean ± standard error with this many digits behind the point; a line says where there is no error."""
        error = f"± {self.error:.{digits}f}" if isfinite(self.error) else f"({self.missing or 'no ±'})"
        return f"{self.mean:.{digits}f} {error}"

    @property
    def missing(self) -> str | None:
        """Why there is no error; None where there is one."""
        if isfinite(self.error):
            return None
        return "no ±: a single value" if self.n < 2 else "no ±: a value is infinite or NaN"

    def values(self) -> dict[str, Any]:
        """Returns the numbers by name, for a file; where there is no error, the reason stands beside it."""
        return self._asdict() | ({"error_missing": self.missing} if self.missing else {})


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


def student_reach(freedom: int) -> float:
    """Returns how many standard errors a 95 % interval reaches to either side.

    The distribution is Student's, with these degrees of freedom.
    """
    return float(stdtrit(freedom, 0.975)) if freedom > 0 else nan


@takes
def interval(values: np.ndarray) -> Interval:
    """Returns the mean of independent values, such as one for each seed, with its 95 % interval.

    A single value has no interval (NaN).
    """
    found = mean(values)
    reach = student_reach(found.n - 1) * found.error
    return Interval(found.mean, found.mean - reach, found.mean + reach)


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
