"""Figures of gradients: their signal-to-noise ratio against K, and their cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pyro_vae.evaluate import Interval, Line
from pyro_vae.figures.layout import MARKERS, error_bars, legend, logarithmic, new_figure
from pyro_vae.kinds import takes

PARAMETERS = {"phi": "φ, the guide's", "w": "w, the model's"}


class SNRLine(NamedTuple):
    """Signal-to-noise ratio of an estimator's gradient by one side of the parameters against K, and the fitted line."""

    K: Sequence[int]
    snr: Sequence[Interval]
    line: Line
    fit_from: int


@takes
def snr(lines: Mapping[str, Mapping[str, SNRLine]], title: str = "") -> Figure:
    """Draws the signal-to-noise ratio against K on logarithmic axes, with fitted lines.

    Each side of the parameters has a panel, in which each estimator has a color.
    """
    figure = new_figure(11, 4.6, title)
    for axes, (side, of_side) in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines.items(), strict=True):
        for i, (name, (K, ratios, line, fit_from)) in enumerate(of_side.items()):
            seen = [(k, ratio) for k, ratio in zip(K, ratios, strict=True) if isfinite(ratio.value)]
            at, value = np.array([k for k, _ in seen]), np.array([interval for _, interval in seen]).reshape(-1, 3)
            slope = f": slope {line.slope.value:+.2f} [{line.slope.low:+.2f}, {line.slope.high:+.2f}]"
            if not seen:  # a name without a point says that there is none
                axes.plot(
                    [],
                    [],
                    color=f"C{i}",
                    marker=MARKERS[i % len(MARKERS)],
                    ls="",
                    label=f"{name}: not resolved at any K",
                )
            left = f" ({len(K) - len(seen)} of {len(K)} K not resolved)" if seen and len(seen) < len(K) else ""
            error_bars(axes, at, value, i, name + (slope if line.points >= 3 else "") + left)
            if line.points >= 3:
                fitted = at[at >= fit_from]
                ends = np.array([fitted.min(), fitted.max()])
                axes.plot(ends, np.exp(line.intercept) * ends**line.slope.value, color=f"C{i}", lw=1)
        logarithmic(axes, f"gradient by {PARAMETERS[side]}", [K for line in of_side.values() for K in line.K])
        axes.set_ylabel("signal-to-noise ratio of one draw (no unit)")
        legend(axes)
    return figure


@takes
def cost(rows: Mapping[str, Mapping[str, tuple[Sequence[int], np.ndarray]]], title: str = "") -> Figure:
    """Draws variance × time of one draw against K, as values with their intervals (n, 3).

    Each side of the parameters has a panel, in which each estimator has a color.
    """
    figure = new_figure(11, 4.4, title)
    for axes, (side, of_side) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True):
        for i, (name, (K, value)) in enumerate(of_side.items()):
            error_bars(axes, np.array(K), value, i, name, joined=True)
        logarithmic(axes, f"gradient by {PARAMETERS[side]}", [K for at, _ in of_side.values() for K in at])
        axes.set_ylabel("variance (nats²) × milliseconds: less is better")
        legend(axes)
    return figure
