"""The shape k̂ of the tail of importance weights, by ArviZ (Vehtari, Simpson, Gelman, Yao and Gabry 2024)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from math import ceil, log10, nan, sqrt
from typing import Any

import numpy as np
from scipy.special import logsumexp

LEAST = 30
"""The fewest weights that k̂ is computed from: the tail is then five of them."""
_UNDERFLOW = -700.0
"""The log of the smallest weight, relative to the largest, that is told from zero."""


def tail_size(K: int) -> int:
    """Returns how many of K weights, the largest, are the tail: min(K/5, 3 √K), rounded up."""
    return ceil(min(K / 5, 3 * sqrt(K)))


def good_k(K: int) -> float:
    """Returns the largest k̂ at which an estimate from K weights is reliable: min(1 - 1 / log10 K, 0.7).

    It is NaN for fewer weights than k̂ can be computed from.
    """
    return min(1 - 1 / log10(K), 0.7) if K >= LEAST else nan


def pareto_k(largest: np.ndarray, K: int, unit: float) -> np.ndarray:
    """Returns the shape k̂ of the tail of each datum's weights (N,).

    Weights have a finite variance if it is below 1/2, and a finite mean if it is below 1. It is 0 where the tail's weights are
    equal, as they are where the guide is the posterior; infinite where a weight or two are all that is not zero; and NaN where
    there are too few weights, or some are NaN.

    Args:
        largest: the largest log weights of each datum (M, N), one more than `tail_size`, the largest first.
        K: the number of weights.
        unit: the relative rounding error of log weights.
    """
    if K < LEAST:
        return np.full(largest.shape[1], nan)
    return np.array([_pareto_k(each, unit) for each in largest.T])


def _pareto_k(largest: np.ndarray, unit: float) -> float:
    top = largest[0]
    if not np.isfinite(top):
        return nan
    if top - largest[-1] <= 8 * unit * max(1.0, abs(top)):
        return 0.0
    above = largest[largest - top > max(largest[-1] - top, _UNDERFLOW)]
    if len(above) < LEAST // 5:
        return np.inf
    # ArviZ fits the largest fifth of the weights that it is given, of which it reads no more.
    given = np.full(5 * len(above), -np.inf)
    given[: len(above)], given[len(above)] = above - top, largest[min(len(above), len(largest) - 1)] - top
    return _fitted(given, _FIFTH)[1]


_FIFTH = 1e-9
"""An ArviZ option (r_eff) that says draws are nearly useless: then its tail is a fifth of the weights, and no smaller."""


def smoothed(log_w: np.ndarray) -> np.ndarray:
    """Returns log weights (K, N) that sum to 1 for each datum, with the largest ones smoothed by ArviZ, if K is 30 or more.

    The tail's weights are replaced by the quantiles of a generalized Pareto distribution that is fitted to them, so that the
    few largest have less noise (Vehtari et al. 2024). Where k̂ cannot be computed, weights stay as they are.

    Args:
        log_w: log weights (K, N).
    """
    smooth = np.array(log_w, dtype=np.float64)
    if len(smooth) >= LEAST:
        for each in smooth.T:
            # Equal weights have no tail, and ArviZ asks for weights in it that differ.
            if np.isfinite(each.max()) and len(np.unique(each[each > each.max() + _UNDERFLOW])) > LEAST // 5:
                each[:] = _fitted(each, 1.0)[0]
    return smooth - logsumexp(smooth, axis=0)


def _fitted(log_w: np.ndarray, r_eff: float) -> tuple[np.ndarray, float]:
    """Returns what `_psis` does. Where the fit weighs two values of k̂ against each other that are far apart, exp overflows.

    The weight of the worse one is 0 then, as it should be.
    """
    with np.errstate(over="ignore"):
        smooth, k = _psis()(log_w, r_eff)
    return smooth, float(k)


@cache
def _psis() -> Callable[[np.ndarray, float], tuple[np.ndarray, float]]:
    """Returns ArviZ's Pareto-smoothed importance sampling: from log weights and r_eff, smoothed log weights and k̂.

    Its two lines have it under different names, the newer one as a function of minus the log weights. Importing takes seconds.
    """
    try:
        from arviz_stats.base import array_stats  # noqa: PLC0415
    except ImportError:
        older = arviz()
        return lambda log_w, r_eff: older.psislw(log_w, reff=r_eff)
    return lambda log_w, r_eff: array_stats.psislw(-log_w, r_eff=r_eff)


def arviz() -> Any:
    """Returns ArviZ, of either line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 says that 1.0 differs
        import arviz as found  # noqa: PLC0415
    return found
