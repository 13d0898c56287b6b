"""The shape k̂ of the tail of importance weights, by ArviZ (Vehtari, Simpson, Gelman, Yao and Gabry 2024)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from math import ceil, log10, nan, sqrt
from typing import Any

import numpy as np

LEAST = 25
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
    return _psis()(given)


@cache
def _psis() -> Callable[[np.ndarray], float]:
    """Returns ArviZ's k̂ of log weights whose largest fifth is the tail.

    Its two lines have it under different names, the newer one of minus the log weights. Importing takes seconds.
    """
    fifth = {"r_eff": 1e-9}  # as if draws were nearly useless: then the tail is a fifth, and no smaller
    try:
        from arviz_stats.base import array_stats  # noqa: PLC0415
    except ImportError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what it says is of its next line
            import arviz  # noqa: PLC0415

        older: Any = arviz
        return lambda log_w: float(older.psislw(log_w, reff=fifth["r_eff"])[1])
    return lambda log_w: float(array_stats.psislw(-log_w, **fifth)[1])
