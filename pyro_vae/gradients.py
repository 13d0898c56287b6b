"""Gradients of estimators at a frozen state: mean, variance, signal-to-noise ratio, bias and cost of their draws.

N draws of a gradient come in G groups. The group means enter every figure as inner products between different groups alone,
which have no noise in common: ‖E g‖² is estimated without bias by the mean of <ḡ_a, ḡ_b> over a ≠ b, even where N draws are
far too few to see E g itself. Errors are by the jackknife over groups (Efron and Stein 1981).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, nan, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy.stats import t as student_t
from torch import Tensor

from pyro_vae.base import Estimator
from pyro_vae.particles import library_path, parameters
from pyro_vae.programs import Programs, given, mode, seeded

GROUPS = 20
"""G: enough for an error by the jackknife, and few enough that G gradients fit into memory."""
PARTS = ("w", "phi")
_Z = float(student_t.ppf(0.975, GROUPS - 1))
_WARM_UP = 3

Matrix = Float64[np.ndarray, "G G"]


class Interval(NamedTuple):
    """A value with its 95 % interval; all NaN where the draws do not resolve it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """For a table."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]" if isfinite(self.value) else "not resolved"


UNRESOLVED = Interval(nan, nan, nan)


@dataclass(frozen=True)
class Draws:
    """Gradient draws of one estimator, by part ("w" and "phi").

    Attributes:
        means: group means ``(G, D)`` of the gradient of the mean bound of the batch, in nats.
        squares: for each group the mean of ‖g‖² over its draws.
        seconds: wall time of one draw, the median over groups.
    """

    means: dict[str, Tensor]
    squares: dict[str, list[float]]
    seconds: float


@dataclass(frozen=True)
class Moments:
    """Moments of the gradient draws by one part of the parameters, in a form that is small enough to keep.

    Attributes:
        inner: inner products of the group means.
        squares: for each group the mean of ‖g‖² over its draws.
        gap: inner products of the differences to the reference's group means.
        reference: inner products of the reference's group means.
    """

    inner: Matrix
    squares: Float64[np.ndarray, " G"]
    gap: Matrix
    reference: Matrix

    @property
    def norm(self) -> Interval:
        """‖E g‖."""
        return _root(self._jackknife(lambda keep: _off_diagonal(self.inner, keep)))

    @property
    def variance(self) -> Interval:
        """The trace of Cov g, the sum of the variances of all coordinates."""
        value, error = self._jackknife(self._variance)
        return Interval(value, max(0.0, value - _Z * error), value + _Z * error)

    def log_snr(self, mean_of_reference: bool = False) -> tuple[float, float]:
        """Logarithm of `snr` and its standard error; NaN where ‖E g‖² is within two errors of zero."""
        inner = self.reference if mean_of_reference else self.inner
        value, error = self._jackknife(lambda keep: _off_diagonal(inner, keep) / self._variance(keep))
        if not value > 2 * error:
            return nan, nan
        return log(value) / 2, error / value / 2

    def snr(self, mean_of_reference: bool = False) -> Interval:
        """Signal-to-noise ratio of one draw, ‖E g‖ / √tr Cov g (Rainforth et al. 2018, equation 3, over all coordinates).

        Args:
            mean_of_reference: take ‖E g‖ from the reference's draws: for a gradient of the same mean and more noise.
        """
        value, error = self.log_snr(mean_of_reference)
        return Interval(exp(value), exp(value - _Z * error), exp(value + _Z * error)) if isfinite(value) else UNRESOLVED

    @property
    def bias(self) -> Interval:
        """‖E g - E g_reference‖ / ‖E g_reference‖. The interval holds 0 where no bias is seen."""

        def ratio(keep: np.ndarray) -> float:
            return _off_diagonal(self.gap, keep) / _off_diagonal(self.reference, keep)

        value, error = self._jackknife(lambda keep: _off_diagonal(self.reference, keep))
        return _root(self._jackknife(ratio)) if value > 2 * error else UNRESOLVED

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Moments:
        """The inverse of `as_dict`."""
        return cls(**{name: np.asarray(value, dtype=np.float64) for name, value in values.items()})

    def _variance(self, keep: np.ndarray) -> float:
        return float(self.squares[keep].mean() - _off_diagonal(self.inner, keep))

    def _jackknife(self, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
        """A statistic of the groups that are kept, and its standard error from leaving out one at a time."""
        groups = np.arange(len(self.squares))
        without = np.array([statistic(np.delete(groups, g)) for g in groups])
        return statistic(groups), sqrt((len(groups) - 1) * without.var())


def draw_gradients(
    programs: Programs,
    x: Tensor,
    estimator: Estimator,
    N: int,
    seed: int | str = 0,
    on_draw: Callable[[int], None] | None = None,
    y: Tensor | None = None,
) -> Draws:
    """Draws N gradients of an estimator's mean bound of a batch, with the parameters as they are.

    Args:
        programs: a `VAE`, or any Pyro ``model(x)`` and ``guide(x)``.
        x: the batch, the same for every draw.
        estimator: whose gradients.
        N: number of draws, a multiple of `GROUPS`.
        seed: of the noise.
        on_draw: told the number of draws done, after each.
        y: labels of the batch, for programs that take them.

    Raises:
        ValueError: N is no positive multiple of `GROUPS`, or the programs are outside the estimator's domain.
    """
    if N < GROUPS or N % GROUPS:
        raise ValueError(f"draws: expected a multiple of {GROUPS}, since they come in {GROUPS} groups, got {N}")
    batch = given(x, y)
    with seeded(x.device, seed, "parameters"):
        leaves = dict(zip(PARTS, parameters(programs.model, programs.guide, *batch), strict=True))

    def draw() -> dict[str, Tensor]:
        flat = [leaf for part in PARTS for leaf in leaves[part].values()]
        surrogate = estimator.estimate(programs.model, programs.guide, *batch).surrogate.mean()
        slopes = iter(torch.autograd.grad(surrogate, flat, allow_unused=True, materialize_grads=True))
        return {part: torch.cat([x.new_zeros(0), *(next(slopes).flatten() for _ in leaves[part])]) for part in PARTS}

    def wait() -> float:
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return time.perf_counter()

    means: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    squares: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    seconds: list[float] = []
    with seeded(x.device, seed, "gradients"), library_path(), mode(programs, training=False):
        for _ in range(_WARM_UP):
            draw()
        for group in range(GROUPS):
            start = wait()
            totals = {part: torch.zeros((), device=x.device) for part in PARTS}
            square = {part: torch.zeros((), dtype=torch.float64, device=x.device) for part in PARTS}
            for i in range(N // GROUPS):
                for part, gradient in draw().items():
                    totals[part] = totals[part] + gradient
                    square[part] = square[part] + gradient.dot(gradient)
                if on_draw:
                    on_draw(group * (N // GROUPS) + i + 1)
            seconds.append((wait() - start) / (N // GROUPS))
            for part in PARTS:
                means[part].append(totals[part] / (N // GROUPS))
                squares[part].append(square[part] / (N // GROUPS))
    return Draws(
        {part: torch.stack(means[part]) for part in PARTS},
        {part: torch.stack(squares[part]).tolist() for part in PARTS},
        float(np.median(seconds)),
    )


def moments(draws: Draws, reference: Draws) -> dict[str, Moments]:
    """Moments by part; those of the reference itself have no gap."""
    return {
        part: Moments(
            _inner(draws.means[part]),
            np.array(draws.squares[part]),
            _inner(draws.means[part] - reference.means[part]),
            _inner(reference.means[part]),
        )
        for part in PARTS
    }


class Line(NamedTuple):
    """log SNR = intercept + slope · log K, with the slope's 95 % interval and the number of points it rests on."""

    slope: Interval
    intercept: float
    points: int


def fit_line(K: Sequence[float], log_snr: Sequence[tuple[float, float]]) -> Line:
    """Weighted least squares of log SNR against log K, each point with its own error; NaN points are left out.

    The interval is Student's with n - 2 degrees of freedom, and is never narrower than the points' errors allow: where they
    scatter more than their errors say (no straight line, say), it grows with the scatter. Below 3 points it is NaN.
    """
    kept = [(log(k), y, e) for k, (y, e) in zip(K, log_snr, strict=True) if isfinite(y)]
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
    reach = float(student_t.ppf(0.975, freedom)) * sqrt(max(1.0, scatter) / spread)
    return Line(Interval(slope, slope - reach, slope + reach), intercept, len(kept))


def _inner(means: Tensor) -> Matrix:
    product: Matrix = (means.double() @ means.double().T).cpu().numpy()
    return product


def _off_diagonal(matrix: Matrix, keep: np.ndarray) -> float:
    """Mean over pairs of different groups."""
    kept = matrix[np.ix_(keep, keep)]
    return float((kept.sum() - np.trace(kept)) / (len(keep) * (len(keep) - 1)))


def _root(value: tuple[float, float]) -> Interval:
    """The interval of a non-negative number whose square has an estimate, which may fall below zero, and an error."""
    square, error = value
    return Interval(*(sqrt(max(0.0, end)) for end in (square, square - _Z * error, max(0.0, square) + _Z * error)))
