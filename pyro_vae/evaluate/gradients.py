"""Gradients of estimators at a frozen state: mean, variance, signal-to-noise ratio, bias and cost of their draws.

N draws of a gradient come in G groups. The group means enter every result only as inner products between different
groups, which have no noise in common: the mean of <ḡ_a, ḡ_b> over a ≠ b estimates ‖E g‖² without bias, even where N
draws are far too few to see E g itself. Errors are computed by the jackknife over groups (Efron and Stein 1981).

Where all latents are discrete and have few states, the mean gradient is a sum over them (`exact_gradient`): it is a reference
without an error of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, isfinite, log, nan, sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pyro_vae.data import Columns, DataLike, columns_for
from pyro_vae.estimators import Estimator, Exact
from pyro_vae.evaluate.statistics import UNRESOLVED, Interval, jackknife, student_reach
from pyro_vae.kinds import takes
from pyro_vae.scopes import still, telling_memory
from pyro_vae.traces import Programs, library_path, parameters

GROUPS = 20
"""The number of groups G: enough for an error by the jackknife, and few enough that G gradients fit into memory."""
SIDES = ("w", "phi")
"""The two sides of the parameters: those of the model and those of the guide."""
_Z = student_reach(GROUPS - 1)
_WARM_UP = 3
_ROUNDING = 1e-10
"""The variance of one draw, relative to its mean square, that is taken for rounding."""

_ROUNDED = 1e-5
"""The relative difference between two gradients without noise that is taken for rounding."""

Matrix = Float64[np.ndarray, "G G"]


@dataclass(frozen=True)
class Draws:
    """Gradient draws of one estimator, for each side of the parameters ("w" and "phi").

    Attributes:
        means: the group means ``(G, D)`` of the gradient of the mean bound of the batch, in nats.
        squares: the mean of ‖g‖² over the draws of each group.
        seconds: the wall time of one draw, as the median over groups.
        evaluations: how often log p(x|t,w) is computed for each datum in one draw: once for each particle, relaxed ones
            included, and for each state of what is enumerated.
    """

    means: dict[str, Tensor]
    squares: dict[str, list[float]]
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class Moments:
    """Moments of the gradient draws by one side of the parameters, in a form that is small enough to keep.

    Attributes:
        inner: the inner products of the group means.
        squares: the mean of ‖g‖² over the draws of each group.
        gap: the inner products of the differences between the group means and the reference's group means.
        reference: the inner products of the reference's group means.
    """

    inner: Matrix
    squares: Float64[np.ndarray, " G"]
    gap: Matrix
    reference: Matrix

    @property
    def norm(self) -> Interval:
        """The norm of the mean gradient, ‖E g‖."""
        return _root(self._jackknife(lambda keep: _off_diagonal(self.inner, keep)))

    @property
    def noiseless(self) -> bool:
        """Whether all draws are the same but for rounding, as those of sums over states are."""
        return self._variance(np.arange(len(self.squares))) <= _ROUNDING * float(self.squares.mean())

    @property
    def variance(self) -> Interval:
        """The trace of Cov g, the sum of the variances of all coordinates."""
        if self.noiseless:
            return Interval(0.0, 0.0, 0.0)
        value, error = self._jackknife(self._variance)
        return Interval(value, max(0.0, value - _Z * error), value + _Z * error)

    def log_snr(self, mean_of_reference: bool = False) -> tuple[float, float]:
        """Returns the logarithm of `snr` and its standard error.

        Both are NaN where ‖E g‖² is within two errors of zero, and where there is no noise.
        """
        if self.noiseless:
            return nan, nan
        inner = self.reference if mean_of_reference else self.inner
        value, error = self._jackknife(lambda keep: _off_diagonal(inner, keep) / self._variance(keep))
        if not value > 2 * error:
            return nan, nan
        return log(value) / 2, error / value / 2

    def snr(self, mean_of_reference: bool = False) -> Interval:
        """Returns the signal-to-noise ratio of one draw, ‖E g‖ / √tr Cov g.

        It is that of Rainforth et al. 2018 (equation 3), over all coordinates.

        Args:
            mean_of_reference: whether ‖E g‖ is taken from the reference's draws, for a gradient with the same mean and
                more noise.
        """
        value, error = self.log_snr(mean_of_reference)
        return Interval(exp(value), exp(value - _Z * error), exp(value + _Z * error)) if isfinite(value) else UNRESOLVED

    @property
    def bias(self) -> Interval:
        """The relative bias ‖E g - E g_reference‖ / ‖E g_reference‖.

        The interval contains 0 where no bias is seen, and where nothing but rounding is.
        """

        def ratio(keep: np.ndarray) -> float:
            return _off_diagonal(self.gap, keep) / _off_diagonal(self.reference, keep)

        value, error = self._jackknife(lambda keep: _off_diagonal(self.reference, keep))
        if not value > 2 * error:
            return UNRESOLVED
        found = _root(self._jackknife(ratio))
        return Interval(found.value, 0.0, _ROUNDED) if self.noiseless and found.high < _ROUNDED else found

    def as_dict(self) -> dict[str, Any]:
        """Returns the moments as plain lists, for JSON."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Moments:
        """Builds the moments from the lists that `as_dict` returned."""
        return cls(**{name: np.asarray(value, dtype=np.float64) for name, value in values.items()})

    def _variance(self, keep: np.ndarray) -> float:
        return float(self.squares[keep].mean() - _off_diagonal(self.inner, keep))

    def _jackknife(self, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
        return jackknife(statistic, len(self.squares))


@takes
def draw_gradients(
    programs: Programs,
    batch: DataLike,
    estimator: Estimator,
    N: int,
    seed: int | str = 0,
    on_draw: Callable[[int], None] | None = None,
) -> Draws:
    """Draws N gradients of an estimator's mean bound of a batch, at the current parameters.

    An estimator with a state updates it after each draw, as it would after a step.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        batch: the data, the same for every draw.
        estimator: the estimator whose gradients are drawn.
        N: the number of draws, a multiple of `GROUPS`.
        seed: the seed of the noise.
        on_draw: a function that is called after each draw with the number of draws so far.

    Raises:
        ValueError: N is not a positive multiple of `GROUPS`, or the programs are outside the estimator's domain.
    """
    if N < GROUPS or N % GROUPS:
        raise ValueError(f"draws: expected a multiple of {GROUPS}, since they come in {GROUPS} groups, got N = {N}")
    columns = columns_for(programs, batch)
    device = columns.x.device
    draw = _drawing(programs, columns, estimator, seed)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    means: dict[str, list[Tensor]] = {side: [] for side in SIDES}
    squares: dict[str, list[Tensor]] = {side: [] for side in SIDES}
    seconds: list[float] = []
    evaluations = 0
    sizes = {"the batch": len(columns), "K": estimator.drawn}
    with telling_memory(**sizes), still(programs, device, seed, "gradients"), library_path():
        for _ in range(_WARM_UP):
            draw()
        for group in range(GROUPS):
            start = wait()
            totals = {side: torch.zeros((), dtype=torch.float64, device=device) for side in SIDES}
            square = {side: torch.zeros((), dtype=torch.float64, device=device) for side in SIDES}
            for i in range(N // GROUPS):
                gradients, evaluations = draw()
                for side, gradient in gradients.items():
                    wide = gradient.double()
                    totals[side] = totals[side] + wide
                    square[side] = square[side] + wide.dot(wide)
                if on_draw:
                    on_draw(group * (N // GROUPS) + i + 1)
            seconds.append((wait() - start) / (N // GROUPS))
            for side in SIDES:
                means[side].append((totals[side] / (N // GROUPS)).to(gradients[side].dtype))
                squares[side].append(square[side] / (N // GROUPS))
    return Draws(
        {side: torch.stack(means[side]) for side in SIDES},
        {side: torch.stack(squares[side]).tolist() for side in SIDES},
        float(np.median(seconds)),
        evaluations,
    )


@takes
def exact_gradient(
    programs: Programs, batch: DataLike, K: int = 1, max_plate_nesting: int = 1, seed: int | str = 0
) -> Draws:
    """Returns the gradient of the mean of L_K over a batch, the ELBO's for K = 1, as a sum over states, for `moments`.

    It has no noise, so that a bias against it has the error of the other draws alone.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``, whose latents are all discrete and have few states together.
        batch: the data.
        K: the number of particles of the bound.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of randomness beyond the latents, of which there must be none.

    Raises:
        ValueError: a latent is continuous, there are too many states (see `pyro_vae.estimators.Exact`), or the programs are
            random beyond their latents.
    """
    columns = columns_for(programs, batch)
    draw = _drawing(programs, columns, Exact(K, max_plate_nesting), seed)
    with still(programs, columns.x.device, seed, "gradients"), library_path():
        start = time.perf_counter()
        (found, evaluations), (again, _) = draw(), draw()
        seconds = (time.perf_counter() - start) / 2
    for side in SIDES:
        if bool((found[side] - again[side]).norm() > 1e-3 * found[side].norm()):
            raise ValueError(
                "there is no exact gradient: the programs are random beyond their latents, as by numbers that they draw "
                "without pyro.sample; compare with the mean of an estimator"
            )
    squares = {side: [float(found[side].double().square().sum())] * GROUPS for side in SIDES}
    return Draws({side: found[side].expand(GROUPS, -1) for side in SIDES}, squares, seconds, evaluations)


def _drawing(
    programs: Programs, columns: Columns, estimator: Estimator, seed: int | str
) -> Callable[[], tuple[dict[str, Tensor], int]]:
    """Returns a function that draws a gradient for each side, and tells how many evaluations it took."""
    with still(programs, columns.x.device, seed, "parameters"):
        data = columns.take(slice(None))
        leaves = dict(zip(SIDES, parameters(programs.model, programs.guide, *data), strict=True))
    flat = [leaf for side in SIDES for leaf in leaves[side].values()]

    def draw() -> tuple[dict[str, Tensor], int]:
        estimate, found = estimator.gradients(programs.model, programs.guide, flat, *data)
        estimator.after_step(estimate)
        slopes = iter(found)
        return {
            side: torch.cat([columns.x.new_zeros(0), *(next(slopes).flatten() for _ in leaves[side])]) for side in SIDES
        }, estimate.optimized.evaluations

    return draw


@takes
def moments(draws: Draws, reference: Draws) -> dict[str, Moments]:
    """Returns the moments for each side of the parameters.

    The gap of the reference itself is zero.
    """
    return {
        side: Moments(
            _inner(draws.means[side]),
            np.array(draws.squares[side]),
            _inner(draws.means[side] - reference.means[side]),
            _inner(reference.means[side]),
        )
        for side in SIDES
    }


def _inner(means: Tensor) -> Matrix:
    product: Matrix = (means.double() @ means.double().T).cpu().numpy()
    return product


def _off_diagonal(matrix: Matrix, keep: np.ndarray) -> float:
    """Returns the mean over pairs of different groups."""
    kept = matrix[np.ix_(keep, keep)]
    return float((kept.sum() - np.trace(kept)) / (len(keep) * (len(keep) - 1)))


def _root(value: tuple[float, float]) -> Interval:
    """Returns the interval of a non-negative number, given an estimate of its square and the error of this estimate.

    The estimate may be below zero.
    """
    square, error = value
    return Interval(*(sqrt(max(0.0, end)) for end in (square, square - _Z * error, max(0.0, square) + _Z * error)))
