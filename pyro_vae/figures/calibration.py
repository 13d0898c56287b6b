"""The figure of a calibration: ECDFs of ranks with their bands, expected coverage, and TARP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.evaluate import RankCurve
from pyro_vae.figures.layout import new_figure
from pyro_vae.kinds import takes

_REJECTED = 0.05
_COLORED = 5
"""How many latents have a color and a name of their own."""
_STYLES = ("-", "--", "-.", ":", (0, (5, 1)))
"""Curves may lie on each other, as those of log p(x|t) and of log w do where q = p."""
_REGIONS = {
    "coverage": ("expected coverage", "share of truths in the region"),
    "TARP": ("TARP", "share of truths nearer to the reference"),
}
"""Title and label of the panels that show a share against its level."""
_OF_ALL = ("log p(x|t)", "log p(t)", "log w")
"""The joint quantities whose ranks are shown as those of the latents are."""


@takes
def calibration(curves: Sequence[RankCurve], title: str = "") -> Figure:
    """Draws the ECDFs of ranks of a calibration, each with the band that it stays in if q(t|x) is the posterior.

    The ECDFs of single latents, and of log p(x|t), log p(t) and log w, are drawn as differences from the level. There, a curve
    that is above 0 at low levels and below 0 at high ones belongs to a q that is too narrow, and a curve that stays above 0 to
    truths that lie below the draws. Coverage and TARP are drawn against the level. Bands hold for all curves of the figure at
    once, with 95 %. A curve that leaves its band is not calibrated; once there is one, Holm's procedure may say so of others
    too.

    Args:
        curves: what `pyro_vae.evaluate.Calibration.curves` gives.
        title: the title of the figure.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    joint = [curve for curve in curves if curve.name in _OF_ALL]
    latents = [curve for curve in curves if curve.name not in (*_OF_ALL, *_REGIONS)]
    regions = [curve for curve in curves if curve.name in _REGIONS]
    groups = [
        (group, name) for group, name in ((latents, "ranks of latents"), (joint, "ranks of joint quantities")) if group
    ]
    figure = new_figure(3.4 * (len(groups) + len(regions)) + 0.4, 4.5, title)
    panels = list(np.atleast_1d(figure.subplots(1, len(groups) + len(regions))))
    for axes, (group, name) in zip(panels, groups, strict=False):
        _differences(axes, group, name)
    for axes, curve in zip(panels[len(groups) :], regions, strict=True):
        _against_level(axes, curve)
    return figure


def _differences(axes: Axes, curves: Sequence[RankCurve], name: str) -> None:
    """Draws ECDFs minus the level. Where there are many, the least calibrated ones are colored."""
    ordered = sorted(curves, key=lambda curve: (curve.adjusted, -float(np.abs(curve.found - curve.level).max())))
    colored = {id(curve): i for i, curve in enumerate(curves if len(curves) <= _COLORED else ordered[:_COLORED])}
    first = curves[0]
    axes.fill_between(first.level, first.low - first.level, first.high - first.level, color="0.88", lw=0)
    for curve in [each for each in curves if id(each) not in colored]:
        axes.plot(curve.level, curve.found - curve.level, color="0.6", lw=0.7)
    for curve in [each for each in curves if id(each) in colored]:
        i, gap = colored[id(curve)], curve.found - curve.level
        label = f"{curve.name}{': not calibrated' if curve.adjusted <= _REJECTED else ''}"
        axes.plot(curve.level, gap, color=f"C{i}", ls=_STYLES[i], lw=1.3, marker=_marker(curve), ms=3, label=label)
    axes.axhline(0, color="0.3", lw=0.6)
    axes.set(xlabel="level", ylabel="share of ranks below the level − level", title=name, xlim=(0, 1))
    axes.grid(alpha=0.3)
    reach = max(abs(end) for end in axes.get_ylim())
    axes.set_ylim(-reach, reach)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)


def _against_level(axes: Axes, curve: RankCurve) -> None:
    """Draws a share against its level."""
    title, label = _REGIONS[curve.name]
    axes.fill_between(curve.level, curve.low, curve.high, color="0.88", lw=0)
    axes.plot([0, 1], [0, 1], color="0.3", lw=0.6)
    verdict = ": not calibrated" if curve.adjusted <= _REJECTED else ""
    axes.plot(curve.level, curve.found, color="C0", lw=1.3, marker=_marker(curve), ms=3)
    axes.set(xlabel="level", ylabel=label, title=title + verdict, xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)


def _marker(curve: RankCurve) -> str:
    return "o" if len(curve.level) < 15 else ""
