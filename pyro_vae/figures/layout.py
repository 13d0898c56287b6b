"""The canvas of all figures, and the elements that several figures draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from torch import Tensor

MARKERS = "osD^vP*X<>hp"
COLUMNS = 4
"""How many panels stand in a line."""
_NARROWEST = 5.0
"""The width in inches that a title needs."""


def new_figure(width: float, height: float, title: str) -> Figure:
    """Returns a figure outside pyplot, which needs no global state and no display."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def panels_of(n: int, title: str, width: float = 3.2, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """Returns a figure and its n panels, with up to four in a line.

    The width and the height of a panel are in inches. Places that are left over are empty.
    """
    columns = min(n, COLUMNS)
    lines = ceil(n / columns)
    figure = new_figure(max(width * columns + 0.4, _NARROWEST), height * lines + 0.4, title)
    panels = list(np.atleast_1d(figure.subplots(lines, columns)).ravel())
    for axes in panels[n:]:
        axes.axis("off")
    return figure, panels[:n]


def error_bars(axes: Axes, at: np.ndarray, value: np.ndarray, i: int, label: str, joined: bool = False) -> None:
    """Draws points with their intervals (n, 3), if there are any."""
    if not len(at):
        return
    middle, low, high = value.T
    axes.errorbar(
        at,
        middle,
        yerr=np.stack([middle - low, high - middle]),
        color=f"C{i}",
        marker=MARKERS[i % len(MARKERS)],
        ms=5,
        ls="-" if joined else "",
        lw=1,
        capsize=2,
        label=label,
    )


def logarithmic(axes: Axes, title: str, at: Sequence[int]) -> None:
    """Makes both axes logarithmic, with these K along the horizontal one, and sets the title."""
    axes.set(xlabel="K", title=title)
    if axes.containers:  # a logarithmic axis with nothing on it cannot be drawn
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(sorted(set(at)), [f"{K}" for K in sorted(set(at))])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3, which="both", lw=0.4)


def legend(axes: Axes) -> None:
    """Adds a legend, unless nothing in the axes has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


_PALETTE = [color for color in colormaps["tab10"].colors if len({*color}) > 1] + [(0.0, 0.0, 0.0)]  # type: ignore[attr-defined]
"""Colors of up to ten classes. None is gray, as draws of the prior are."""
_NAMED = 20
"""How many classes a legend names."""


def colors_of(labels: Tensor) -> tuple[np.ndarray, dict[float, Any]]:
    """Returns the color of each label (N, 4), and the color of each class by its label."""
    classes, member = np.unique(labels.cpu().numpy(), return_inverse=True)
    few = len(classes) <= len(_PALETTE)
    palette = np.array(
        [to_rgba(_PALETTE[k]) if few else colormaps["viridis"](k / len(classes)) for k in range(len(classes))]
    )
    return palette[member], dict(zip(classes.tolist(), palette, strict=True))


def legend_of_classes(figure: Figure, colors: Mapping[float, Any], name: Callable[[float], str]) -> None:
    """Adds a legend of classes beside the panels, unless there are too many.

    Args:
        figure: the figure.
        colors: the color of each class by its label.
        name: what a label is called.
    """
    if len(colors) <= _NAMED:
        handles = [
            Line2D([], [], color=color, marker="o", ls="", ms=5, label=name(float(label)))
            for label, color in colors.items()
        ]
        figure.legend(handles=handles, title="label", loc="outside right center", fontsize=8)


def wrapped(name: str) -> str:
    """Returns the name of a cell in lines that fit into a panel."""
    return "\n".join(in_lines(line, 36) for line in name.split("\n"))


def in_lines(name: str, width: int) -> str:
    """Returns a name in lines of at most this width.

    They are broken behind a comma, a bracket or an equals sign where that is possible.
    """
    lines = [""]
    for piece in re.findall(r"[^,(=]*[,(=]? ?", name):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        for letter in piece:
            if len(lines[-1]) + len(letter.strip()) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(line.rstrip() for line in lines)
