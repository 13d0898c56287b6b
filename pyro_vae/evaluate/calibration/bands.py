"""Whether ranks are uniform: one exact p-value, simultaneous bands of the ECDF, and a correction for several quantities.

The ranks of n independent data among L draws are uniform on 0..L under the null. The count C_k of ranks below k is then
binomial, Bin(n, k / (L + 1)). The statistic is that of Säilynoja et al. 2022 (equation 9): γ = min_k 2 min(P(Bin ≤ C_k),
P(Bin ≥ C_k)), the least of the two-sided tails at all k. Its distribution under the null is computed by a recursion over k,
without simulation: given the count at the k before, the next count depends on nothing else. So the p-value is exact for each
n and L, and a band is the set of counts whose statistic is above a critical γ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import bdtr, bdtrc, gammaln

_POINTS = 200
"""The most values of k at which the ECDF is looked at: no two of them are then further apart than a level of 1/200."""
_TABLE = 4_000_000
"""The most tails that are kept, values of k × counts. With very many data, k has fewer values."""
_LEAST = 1e-9
"""Below this, 1 - P(inside the band) is rounding error, and the p-value is the bound by the sum over k."""
_TINY = float(np.finfo(np.float64).tiny)
"""No p-value is below this, since none is 0."""
_HALVINGS = 40
"""How often the interval of log γ is halved: it is then shorter than a rounding error."""


class Null(NamedTuple):
    """The counts that ranks may have under the null, and their tails.

    Attributes:
        points: the values of k, from 1 to L.
        levels: k / (L + 1), the share of ranks below k that is expected.
        tails: for each k and each count 0..n, 2 min(P(Bin ≤ count), P(Bin ≥ count)).
        n: the number of ranks.
    """

    points: Int64[np.ndarray, " P"]
    levels: Float64[np.ndarray, " P"]
    tails: Float64[np.ndarray, "P m"]
    n: int


@lru_cache(maxsize=8)
def null(n: int, L: int) -> Null:
    """Returns what n ranks on 0..L are compared with."""
    most = min(L, _POINTS, max(20, _TABLE // n))
    points = np.unique(np.linspace(1, L, most).round().astype(np.int64))
    levels = points / (L + 1)
    counts = np.arange(n + 1)
    below = bdtr(counts, n, levels[:, None])
    above = np.concatenate([np.ones((len(points), 1)), bdtrc(counts[:-1], n, levels[:, None])], 1)
    with np.errstate(divide="ignore"):
        # Tails at k and at L + 1 - k are the same numbers but for rounding errors, and are to be ties.
        log_tails = np.log(2 * np.minimum(below, above)).round(9)
    return Null(points, levels, np.exp(log_tails), n)


def counts_below(ranks: Int64[np.ndarray, "n ..."], points: Int64[np.ndarray, " P"]) -> Int64[np.ndarray, "P ..."]:
    """Returns, for each k, how many ranks are below k."""
    return np.stack([(ranks < k).sum(0) for k in points]).astype(np.int64)


def p_value(ranks: Int64[np.ndarray, " n"], L: int) -> float:
    """Returns the p-value of the null that ranks are uniform on 0..L: exact, or, below 10⁻⁹, an upper bound.

    Args:
        ranks: the ranks of independent data.
        L: the largest possible rank, which is the number of draws.
    """
    of = null(len(ranks), L)
    gamma = float(of.tails[np.arange(len(of.points)), counts_below(ranks, of.points)].min())
    outside = 1 - _inside(of, gamma)
    return outside if outside > _LEAST else min(_LEAST, max(len(of.points) * gamma, _TINY))


@lru_cache(maxsize=64)
def band(n: int, L: int, alpha: float) -> Float64[np.ndarray, "P 2"]:
    """Returns the lowest and the highest share of ranks below each k that are inside a simultaneous band.

    Under the null, the ECDF of n ranks on 0..L leaves the band at any k with a probability of at most alpha.
    """
    of = null(n, L)
    low, high = np.log(alpha / len(of.points)), 0.0  # at the lower end, the sum over k alone is at most alpha
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - _inside(of, float(np.exp(middle))) <= alpha else (low, middle)
    return np.stack(_limits(of, float(np.exp(low))), 1) / n


def holm(p: Sequence[float], weights: Sequence[float]) -> Float64[np.ndarray, " J"]:
    """Returns adjusted p-values by the weighted procedure of Holm (1979, section 4).

    Where those that are at most α are rejected, a true null is rejected with a probability of at most α, whatever the
    dependence between the tests.

    Args:
        p: the p-value of each test.
        weights: positive numbers, which say how the α is shared between the tests.
    """
    value, weight = np.asarray(p, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    order = np.argsort(value / weight, kind="stable")
    remaining = weight[order][::-1].cumsum()[::-1]
    stepped = np.minimum(1.0, np.maximum.accumulate(remaining * value[order] / weight[order]))
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return adjusted


def _limits(of: Null, gamma: float) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Returns the least and the greatest count at each k whose tail is above γ. Where none is, the least is above."""
    kept = of.tails > gamma
    low = np.where(kept.any(1), kept.argmax(1), 1)
    high = np.where(kept.any(1), of.n - kept[:, ::-1].argmax(1), 0)
    return low.astype(np.int64), high.astype(np.int64)


def _inside(of: Null, gamma: float) -> float:
    """Returns P(γ of n uniform ranks > gamma), the probability that all counts stay within the limits.

    Counts of a Poisson process with rate n have independent increments, and are those of n uniform numbers if there are n in
    all. So the chances of all paths within the limits are multiplied up from k to k, and divided by that of n in all.
    """
    low, high = _limits(of, gamma)
    if (low > high).any():
        return 0.0
    steps = np.diff(of.levels, prepend=0.0, append=1.0) * of.n
    low, high = np.append(low, of.n), np.append(high, of.n)
    chances, before = np.ones(1), 0
    for rate, least, most in zip(steps, low, high, strict=True):
        more = np.arange(most - before + 1)
        increments = np.exp(more * np.log(rate) - rate - gammaln(more + 1))
        chances = np.convolve(chances, increments)[max(0, least - before) : most - before + 1]
        # Counts never fall, so that the least reachable one is the greater of the two.
        before = max(least, before)
    total = np.exp(of.n * np.log(of.n) - of.n - gammaln(of.n + 1))
    return min(1.0, float(chances[0] / total))
