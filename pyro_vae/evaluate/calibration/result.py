"""What a calibration found: ranks, curves with their bands, p-values, and what follows in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pyro_vae.evaluate.calibration.bands import band, counts_below, null
from pyro_vae.evaluate.calibration.ranks import JOINT
from pyro_vae.evaluate.statistics import Mean, mean
from pyro_vae.kinds import takes

ALPHA = 0.05
"""The chance of any false alarm."""


class RankCurve(NamedTuple):
    """The ECDF of the ranks of one quantity, with the band that it stays in if q is the posterior.

    Attributes:
        name: the quantity.
        level: the level, which is what is expected of `found`.
        found: the share of ranks below the level. Of "coverage", it is the share of the simulated data whose truth is in the
            region of highest density of this level; of "TARP", the share whose truth is nearer to the reference point than
            1 - level of the draws.
        low: the lower end of the band.
        high: the upper end of the band.
        adjusted: the adjusted p-value of the quantity.
    """

    name: str
    level: Float64[np.ndarray, " P"]
    found: Float64[np.ndarray, " P"]
    low: Float64[np.ndarray, " P"]
    high: Float64[np.ndarray, " P"]
    adjusted: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """The ranks of true latents among draws of q(t|x), for n data that the model drew itself (see `calibrate`).

    Attributes:
        names: the J quantities: d single numbers of the latents, such as ``"t[1]"`` (counted from 1; a site with one number is
            named after the site), and the joint quantities ``"log p(x|t)"``, ``"log p(t)"``, ``"log w"``, ``"coverage"`` and
            ``"TARP"``.
        ranks: how many of the L draws are below the truth, from 0 to L. For "coverage", it is how many are denser.
        L: the number of draws.
        p: the p-value of each quantity, under the null that its ranks are uniform.
        adjusted: the same after Holm's procedure. Where it is at most 0.05, the quantity is not calibrated; the chance that
            this is said of any quantity that is calibrated is at most 5 %.
        weights: the shares of the quantities in that chance: 1/d for each number of the latents, 1 for each joint quantity.
        mean: the mean over the draws of each latent number, for each datum.
        variance: their variance.
        pairs: for each pair of latent numbers, of the products of their normal scores: the mean over data of the truth's, that
            of the draws', and the mean and the mean square of the difference. Empty with more than 200 numbers.
        ess: the effective sample size of the M weights that the draws were taken by; None where q was taken as it is.
        M: the number of draws that importance weights chose from; None where q was taken as it is.
        seed: the seed of all random numbers.
    """

    names: tuple[str, ...]
    ranks: Int64[np.ndarray, "n J"]
    L: int
    p: Float64[np.ndarray, " J"]
    adjusted: Float64[np.ndarray, " J"]
    weights: Float64[np.ndarray, " J"]
    mean: Float64[np.ndarray, "n d"]
    variance: Float64[np.ndarray, "n d"]
    pairs: Float64[np.ndarray, "4 e e"]
    ess: Float64[np.ndarray, " n"] | None
    M: int | None
    seed: int

    @property
    def n(self) -> int:
        """The number of simulated data."""
        return len(self.ranks)

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the single numbers of the latents."""
        return self.names[: -len(JOINT)]

    @property
    def flagged(self) -> Bool[np.ndarray, " J"]:
        """Which quantities are not calibrated, at 5 % for all together."""
        return self.adjusted <= ALPHA

    @property
    def calibrated(self) -> bool:
        """Whether no quantity is seen to be uncalibrated. A true posterior gets False with a chance of at most 5 %.

        True does not say that q is the posterior: with more data, smaller errors are seen.
        """
        return not bool(self.flagged.any())

    @takes
    def curve(self, name: str) -> RankCurve:
        """Returns the ECDF of the ranks of a quantity.

        The band is simultaneous over all levels, and over all quantities: with the posterior itself, any of the curves leaves
        its band with a chance of at most 5 %. Its width is that of the quantity's share in this chance (see `weights`).

        Args:
            name: one of `names`.
        """
        j = self._place(name)
        of = null(self.n, self.L)
        low, high = band(self.n, self.L, ALPHA * float(self.weights[j] / self.weights.sum())).T
        found = counts_below(self.ranks[:, j], of.points) / self.n
        return RankCurve(name, of.levels, found, low, high, float(self.adjusted[j]))

    @property
    def curves(self) -> list[RankCurve]:
        """The curves of all quantities, for `pyro_vae.figures.calibration`."""
        return [self.curve(name) for name in self.names]

    @takes
    def coverage(self, level: float) -> Mean:
        """Returns how often the truth is in the region of highest density of this level, with its error over data.

        Args:
            level: the level between 0 and 1; a multiple of 1 / (L + 1) is what can be had, and the nearest is taken.
        """
        k = self._multiple(level)
        return mean((self.ranks[:, self._place("coverage")] < k).astype(np.float64))

    @takes
    def interval_coverage(self, name: str, level: float = 0.9) -> Mean:
        """Returns how often the truth is in the central interval of this level, with its error over data.

        Args:
            name: one of `names`.
            level: the level between 0 and 1. An interval leaves out the same whole number of ranks at both ends, so that the
                nearest such level is taken (see `interval_level`).
        """
        out, ranks = self._left_out(level), self.ranks[:, self._place(name)]
        return mean(((ranks >= out) & (ranks <= self.L - out)).astype(np.float64))

    @takes
    def interval_level(self, level: float = 0.9) -> float:
        """Returns the level of the central interval that `interval_coverage` takes for this level."""
        return 1 - 2 * self._left_out(level) / (self.L + 1)

    @property
    def share_of_x(self) -> Float64[np.ndarray, " d"]:
        """The share of the variance of the draws of each latent number that goes with x: 0 for a guide that ignores x.

        It is the intraclass correlation of the one-way analysis of variance, which has no bias from the number of draws.
        It is NaN for a number that is the same in all draws.
        """
        within = self.variance.mean(0)
        between = np.maximum(self.mean.var(0, ddof=1) - within / self.L, 0.0)
        total = within + between
        return np.divide(between, total, out=np.full_like(total, np.nan), where=total > 0)

    @property
    def correlations(self) -> tuple[Float64[np.ndarray, "e e"], Float64[np.ndarray, "e e"]]:
        """The correlations of normal scores given x: those of the truth, and those of the draws.

        A score of a latent number is Φ⁻¹ of its rank among the truth and the draws, so that what all of these have in common
        given x is taken out. The two are equal, up to their errors, where q is the posterior.
        """
        with np.errstate(invalid="ignore"):
            sizes = [np.sqrt(np.diagonal(each)) for each in self.pairs[:2]]
            truth, draws = (each / np.outer(size, size) for each, size in zip(self.pairs[:2], sizes, strict=True))
        return truth, draws

    def notices(self) -> list[str]:
        """Returns in sentences what is wrong, what follows from it, and what to do; nothing where `calibrated`.

        Where importance weights were used, one more sentence may say that they were too few.
        """
        from pyro_vae.evaluate.calibration.words import notices  # noqa: PLC0415  (it reads this class)

        return notices(self)

    def __str__(self) -> str:
        """Returns a table of the quantities with their p-values."""
        wide = max(map(len, self.names))
        title = f"{self.n} simulated data, {self.L} draws each" + (f" of {self.M} by their weights" if self.M else "")
        rows = [
            f"{name:<{wide}}  p = {_shown(p):<9} adjusted {_shown(adjusted):<9} {'not calibrated' if wrong else ''}".rstrip()
            for name, p, adjusted, wrong in zip(self.names, self.p, self.adjusted, self.flagged, strict=True)
        ]
        return "\n".join([title, *rows])

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"name: expected one of {', '.join(self.names)}, got {name!r}")
        return self.names.index(name)

    def _multiple(self, level: float) -> int:
        if not 0 < level < 1:
            raise ValueError(f"level: expected a number between 0 and 1, got {level}")
        return round(level * (self.L + 1))

    def _left_out(self, level: float) -> int:
        """How many ranks at each end are outside of a central interval; at least one, so that its level is below 1."""
        whole = self._multiple(level)
        return min(max(1, round((self.L + 1 - whole) / 2)), self.L // 2)


def _shown(p: float) -> str:
    """A p-value in at most eight letters."""
    return f"{p:.2g}" if p >= 1e-99 else "< 1e-99"
