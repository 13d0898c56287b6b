"""Figures of the benchmark: times by contender, and how a step grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_vae.figures.layout import error_bars, new_figure, panels_of


def timings(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Milliseconds by contender (with keys case, contender, ms, low, high): one panel a case, shortest at the top."""
    by_case = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, panels = panels_of(len(by_case), title, width=3.8, height=0.32 * len(names) + 1.0)
    for panel, case in zip(panels, by_case, strict=True):
        of_case = sorted((row for row in rows if row["case"] == case), key=lambda row: -row["ms"])
        colors = [f"C{names.index(row['contender']) % 10}" for row in of_case]
        value = np.array([_interval(row) for row in of_case])
        reach = np.abs(value[:, 1:] - value[:, :1]).T
        panel.barh(range(len(of_case)), value[:, 0], xerr=reach if np.isfinite(reach).any() else None, color=colors)
        panel.set_yticks(range(len(of_case)), [row["contender"] for row in of_case], fontsize=7)
        panel.set_title(case, fontsize=9)
        panel.set_xlabel("ms")
        panel.grid(alpha=0.3, axis="x")
    return figure


def growth(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Milliseconds against a size (keys by, size, contender, ms, low, high), on logarithmic axes: one panel a size."""
    kinds = list(dict.fromkeys(row["by"] for row in rows))
    figure = new_figure(3.6 * len(kinds), 3.4, title)
    for panel, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        of_kind = [row for row in rows if row["by"] == kind]
        for i, name in enumerate(dict.fromkeys(row["contender"] for row in of_kind)):
            points = [row for row in of_kind if row["contender"] == name]
            value = np.array([_interval(row) for row in points])
            error_bars(panel, np.array([row["size"] for row in points]), value, i, name, joined=True)
        panel.set(xscale="log", yscale="log", xlabel=kind, ylabel="ms")
        panel.grid(alpha=0.3, which="both", lw=0.4)
        panel.legend(fontsize=8)
    return figure


def _interval(row: Mapping[str, Any]) -> list[float]:
    """The median and the ends of its interval; NaN where there is none."""
    return [float(row[key]) if row[key] != "" else float("nan") for key in ("ms", "low", "high")]
