"""What the ranks of a calibration say, in words, and no more than follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import ndtri

from pyro_vae.evaluate.calibration.ranks import JOINT
from pyro_vae.evaluate.calibration.result import ALPHA, Calibration
from pyro_vae.evaluate.statistics import Mean, mean

_IGNORED = 0.01
"""Below this share of the variance of its draws, a guide's dependence on x is not worth the name (Burda et al. 2016)."""
_ENOUGH = 10
"""How many effective draws each one that is taken needs: its chance to be taken is then off by about L / (2 ESS) = 5 %."""
_NAMED = 5
"""How many latents are named one by one."""
_CENTRAL = 0.9
"""The level of the intervals that are named."""


def notices(found: Calibration) -> list[str]:
    """Returns in sentences what a calibration found (see `Calibration.notices`)."""
    told = [*_of_latents(found), *_of_joint(found), *_of_x(found), *_of_pairs(found)]
    if told and found.M is not None:
        told.insert(0, "What follows is said of draws that importance weights have corrected: it is what they leave.")
    if told:
        told.append(
            "What to do: train the guide for longer or with a larger network, or choose another guide; calibrate(..., M=...) "
            + ("shows what importance weights mend." if found.M is None else "with a larger M may mend more.")
        )
    if found.ess is not None and (few := float((found.ess < _ENOUGH * found.L).mean())) > ALPHA:
        told.append(
            f"For {100 * few:.0f} % of the simulated data, the effective sample size of the {found.M:,} importance weights is "
            f"below {_ENOUGH} for each of the {found.L:,} draws that are taken by them. There, the draws lie between q(t|x) "
            f"and the posterior, and a part of what is left is due to that: take a larger M, fewer draws, or another guide."
        )
    return told


def shape(ranks: Int64[np.ndarray, " n"], L: int, of: int) -> tuple[int, int]:
    """Returns the signs of what is clearly off in ranks: their mean, and their mean square distance from the middle.

    Each is 0 where it is not clear: with errors that are those of these ranks, both signs of all quantities together are wrong
    with a chance of about 5 %. The mean has its own error whatever the width of the ranks is, and the other way around.

    Args:
        ranks: the ranks of one quantity.
        L: the largest possible rank.
        of: the number of quantities that are looked at.
    """
    values = (np.arange(L + 1) + 0.5) / (L + 1) - 0.5
    u, clear = values[ranks], float(ndtri(1 - ALPHA / (4 * of)))

    def sign(off: Float64[np.ndarray, " n"]) -> int:
        error = off.std() / np.sqrt(len(off))
        return int(np.sign(off.mean())) if abs(off.mean()) > clear * error else 0

    return sign(u), sign(u**2 - (values**2).mean())


def _of_latents(found: Calibration) -> Iterator[str]:
    flagged = [name for name, wrong in zip(found.latents, found.flagged, strict=False) if wrong]
    shapes = {name: shape(_ranks(found, name), found.L, len(found.latents)) for name in flagged}
    worst = dict(zip(found.names, found.p, strict=True))

    def where(chosen: Callable[[int, int], bool]) -> list[str]:
        return sorted((name for name in flagged if chosen(*shapes[name])), key=lambda name: worst[name])

    def inside(name: str) -> str:
        level = found.interval_level(_CENTRAL)
        held = _percent(found.interval_coverage(name, _CENTRAL))
        return f"its central {100 * level:.0f} % interval holds the true {name} for {held}"

    def above(name: str) -> str:
        return f"the true {name} is above the median of the draws for {_above(found, name)}"

    cases: list[tuple[Callable[[int, int], bool], str, Callable[[str], str], str]] = [
        (
            lambda _, width: width > 0,
            "is too narrow for",
            inside,
            " A center that is off by amounts that differ from datum to datum gives the same ranks.",
        ),
        (lambda _, width: width < 0, "is too wide for", inside, ""),
        (lambda place, _: place > 0, "lies too low for", above, ""),
        (lambda place, _: place < 0, "lies too high for", above, ""),
        (
            lambda place, width: place == width == 0,
            "has the wrong shape for",
            inside,
            " Neither its place nor its width is clearly off, and its ranks are not uniform.",
        ),
    ]
    for chosen, what, number, more in cases:
        if names := where(chosen):
            yield f"q(t|x) {what} {_listed(names, len(found.latents))}: {number(names[0])}.{more}"


def _of_joint(found: Calibration) -> Iterator[str]:
    for name in JOINT:
        if not found.flagged[found.names.index(name)]:
            continue
        up, _ = shape(_ranks(found, name), found.L, len(JOINT))
        above = _above(found, name)
        if name == "coverage":
            level = found.interval_level(_CENTRAL)
            covered = f"those of {100 * level:.0f} % hold it for {_percent(found.coverage(level))}"
            yield {
                1: f"Regions of highest density of q(t|x) hold the truth too rarely: {covered}. q(t|x) is overconfident.",
                -1: f"Regions of highest density of q(t|x) hold the truth too often: {covered}. q(t|x) is conservative.",
                0: f"Regions of highest density of q(t|x) do not hold the truth as often as their levels say: {covered}.",
            }[up]
        elif name == "TARP":
            nearer = {1: "farther from", -1: "nearer to"}.get(up)
            yield (
                f"The true latents are {nearer} those of a similar datum than draws of q(t|x) are (TARP): their distance is "
                f"above the median of the draws' for {above}."
                if nearer
                else "The distances of the true latents from those of a similar datum are not spread as the draws' (TARP)."
            )
        else:
            meaning = {
                ("log p(x|t)", 1): "Draws of q(t|x) explain x less well than the true latents do",
                ("log p(x|t)", -1): "Draws of q(t|x) explain x better than the true latents do",
                ("log p(t)", 1): "Draws of q(t|x) are less probable under the prior than the true latents",
                ("log p(t)", -1): "Draws of q(t|x) are more probable under the prior than the true latents",
                ("log w", 1): "q(t|x) has too little mass where the true latents are",
            }.get((name, up), f"The values of {name} are not spread as those of the true latents")
            yield f"{meaning}: {name} of the truth is above the median of the draws' for {above}."


def _of_x(found: Calibration) -> Iterator[str]:
    """Whether draws do not depend on x, where the truth explains x better than they do."""
    j = found.names.index("log p(x|t)")
    share = found.share_of_x
    if found.flagged[j] and shape(found.ranks[:, j], found.L, len(JOINT))[0] > 0 and not (share >= _IGNORED).any():
        known = share[~np.isnan(share)]
        most = f"{100 * known.max():.1f} %" if len(known) else "nothing"
        yield f"q(t|x) ignores x: of the variance of its draws, at most {most} goes with x, and the posterior depends on x."


def _of_pairs(found: Calibration) -> Iterator[str]:
    """Which dependences differ, among latents whose own ranks show nothing: a wrong width would show in products too."""
    d = len(found.latents)
    if found.calibrated or d < 2 or not found.pairs.size:
        return
    _, _, gap, square = found.pairs
    with np.errstate(invalid="ignore", divide="ignore"):
        z = gap / np.sqrt((square - gap**2) / (found.n - 1))
    fine = ~found.flagged[:d]
    first, second = np.triu_indices(d, 1)
    clear = float(ndtri(1 - ALPHA / len(first) / 2))
    pairs = [
        (j, k)
        for j, k in zip(first, second, strict=True)
        if fine[j] and fine[k] and abs(np.nan_to_num(z[j, k])) > clear
    ]
    if not pairs:
        return
    truth, draws = found.correlations
    missing = [(j, k) for j, k in pairs if abs(draws[j, k]) < abs(truth[j, k])]
    for what, chosen in (("misses", missing), ("has too much of", [pair for pair in pairs if pair not in missing])):
        if chosen:
            j, k = max(chosen, key=lambda pair: abs(z[pair]))
            yield (
                f"q(t|x) {what} dependence between latents, in {len(chosen)} of {len(first)} pairs: given x, {found.names[j]} "
                f"and {found.names[k]} have a correlation of {truth[j, k]:+.2f} for the true latents and of {draws[j, k]:+.2f} "
                f"for the draws (of normal scores, the mean over x)."
            )


def _ranks(found: Calibration, name: str) -> Float64[np.ndarray, " n"] | Int64[np.ndarray, " n"]:
    return found.ranks[:, found.names.index(name)]


def _above(found: Calibration, name: str) -> str:
    """How often the truth is above the median of the draws; a rank in the middle counts half."""
    ranks = _ranks(found, name)
    return _percent(mean((np.sign(2 * ranks - found.L) + 1) / 2)) + ", where 50 % are expected"


def _percent(share: Mean) -> str:
    return f"{100 * share.mean:.1f} ± {100 * share.reach:.1f} % of the simulated data"


def _listed(names: Sequence[str], of: int) -> str:
    """Names, the worst first."""
    if of == 1:
        return names[0]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} ({len(names)} of {of} latents)"
