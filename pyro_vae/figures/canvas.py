"""What every figure is drawn on."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLUMNS = 4


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure outside pyplot: no global state, no display."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def panels_of(n: int, title: str, width: float = 3.2, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """A figure of n panels of a size in inches, up to four a line; those that are left over are empty."""
    columns = min(n, _COLUMNS)
    lines = ceil(n / columns)
    figure = new_figure(width * columns + 0.4, height * lines + 0.4, title)
    panels = list(np.atleast_1d(figure.subplots(lines, columns)).ravel())
    for axes in panels[n:]:
        axes.axis("off")
    return figure, panels[:n]
