"""Figures of tables: what `pyro_vae.figures.predictions` draws where a datum is a row of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vae.figures.layout import COLUMNS, panels_of
from pyro_vae.figures.look import MISSING, Look

_PANELS = 24
"""How many columns are drawn, counted from the first: a figure of more could not be read."""
_IMPUTED = "E[x′|t] where x is missing (imputed)"


def reconstructions(x: Tensor, means: Tensor, look: Look, title: str) -> Figure:
    """Draws the reconstruction against the datum, with a panel for each column and the diagonal where they are equal.

    Where the datum is missing, the reconstruction is an imputation, which is marked at the left edge.
    """
    data, made = _rows(x), _rows(means)
    figure, panels = _columns(data, look, title)
    for j, axes in enumerate(panels):
        seen = np.isfinite(data[:, j]) & np.isfinite(made[:, j])
        axes.scatter(data[seen, j], made[seen, j], s=6, alpha=0.6, linewidths=0)
        if seen.any():
            axes.axline((data[seen, j].mean(),) * 2, slope=1, color="0.6", lw=0.8, zorder=0)
        imputed = made[~np.isfinite(data[:, j]), j]
        if len(imputed):
            edge = axes.get_yaxis_transform()
            axes.plot(np.zeros(len(imputed)), imputed, "_", transform=edge, color=MISSING, ms=12, label=_IMPUTED)
    for axes in panels[-COLUMNS:]:  # at each, since one label for all would stand below the legend
        axes.set_xlabel("x", fontsize=9)
    figure.supylabel("E[x′|t]", fontsize=9)
    labeled = [axes for axes in panels if axes.get_legend_handles_labels()[1]]
    if labeled:
        figure.legend(*labeled[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return figure


def samples(drawn: Tensor, look: Look, title: str, x: Tensor | None, names: Sequence[str]) -> Figure:  # noqa: ARG001
    """Draws the histogram of samples over that of data, with a panel for each column."""
    return side_by_side({"samples": drawn}, look, title, x)


def plane(means: Tensor, ticks: Sequence[float], look: Look, title: str) -> Figure:
    """Draws each column's mean over the latent plane, with a panel and a scale for each column."""
    made = _rows(means)
    figure, panels = _columns(made, look, title)
    for j, axes in enumerate(panels):
        shown = axes.pcolormesh(ticks, ticks[::-1], made[:, j].reshape(len(ticks), len(ticks)), shading="nearest")
        figure.colorbar(shown, ax=axes).ax.tick_params(labelsize=7)
    figure.supxlabel("$t_1$", fontsize=9)
    figure.supylabel("$t_2$", fontsize=9)
    return figure


def traversals(means: Tensor, names: Sequence[str], ticks: Sequence[float], look: Look, title: str) -> Figure:
    """Draws each column's mean against the latent that moves, with a panel for each column and a line for each latent."""
    made = _rows(means).reshape(len(names), len(ticks), -1)
    figure, panels = _columns(made[0], look, title)
    for j, axes in enumerate(panels):
        for i, name in enumerate(names):
            axes.plot(ticks, made[i, :, j], color=f"C{i}", lw=1.2, label=name)
    figure.supxlabel("value of the latent", fontsize=9)
    figure.supylabel("E[x|t]", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def side_by_side(pictures: Mapping[str, Tensor], look: Look, title: str, x: Tensor | None) -> Figure:
    """Draws the histograms of each name over that of data, with a panel for each column."""
    drawn = {name.replace("\n", ", "): _rows(values) for name, values in pictures.items()}
    data = None if x is None else _rows(x)
    figure, panels = _columns(next(iter(drawn.values())), look, title)
    for j, axes in enumerate(panels):
        bins = _bins([values[:, j] for values in (data, *drawn.values()) if values is not None])
        if data is not None:
            _histogram(axes, data[:, j], bins, "data", histtype="stepfilled", color="0.8")
        for i, (name, values) in enumerate(drawn.items()):
            _histogram(axes, values[:, j], bins, name, histtype="step", color=f"C{i}")
    figure.supylabel("share", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def pairs(axes: Axes, x: Tensor, means: Tensor, look: Look) -> None:
    """Draws reconstructions against data in one panel, with a color for each column, each on its own scale."""
    data, made = _rows(x), _rows(means)
    for j in range(data.shape[1]):
        seen = np.isfinite(data[:, j])
        low, width = _scale(data[:, j])
        at, mean = (data[seen, j] - low) / width, (made[seen, j] - low) / width
        axes.scatter(at, mean, s=6, color=f"C{j % 10}", linewidths=0, label=look.name(j))
    axes.axline((0, 0), slope=1, color="0.6", lw=0.8, zorder=0)
    axes.set(xticks=[], yticks=[], xlabel="x, each column from its lowest to its highest value")
    axes.xaxis.label.set_fontsize(7)


def several(axes: Axes, drawn: Tensor, look: Look, x: Tensor | None) -> None:
    """Draws the values of samples by column, each on the scale of the data, beside those of the data in gray."""
    made = _rows(drawn)
    data = made if x is None else _rows(x)
    for j in range(made.shape[1]):
        low, width = _scale(data[:, j])
        for values, at, color in ((data[:, j], j - 0.15, "0.6"), (made[:, j], j + 0.15, "C0")):
            axes.plot(np.full(len(values), at), (values - low) / width, "_", color=color, ms=5, alpha=0.6)
    axes.set(yticks=[])
    axes.set_xticks(range(made.shape[1]), [look.name(j) for j in range(made.shape[1])], fontsize=7, rotation=90)


def _rows(values: Tensor) -> np.ndarray:
    """Returns data as rows (N, D) of the columns that are drawn."""
    return values.detach().cpu().double().flatten(1).numpy()[:, :_PANELS]


def _columns(rows: np.ndarray, look: Look, title: str) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a named panel for each column of the rows."""
    figure, panels = panels_of(rows.shape[1], title, 2.5, 2.1)
    for j, axes in enumerate(panels):
        axes.set_title(look.name(j), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(4))  # more labels of long numbers would overlap
        axes.grid(alpha=0.25, lw=0.4)
    return figure, panels


def _bins(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Returns edges of bins over all of the first column and over 98 % of the others; a bin for each of few whole numbers."""
    finite = [column[np.isfinite(column)] for column in columns]
    finite = [column for column in finite if len(column)]
    if not finite:
        return np.array([0.0, 1.0])
    low = min(finite[0].min(), *(np.percentile(column, 1) for column in finite))
    high = max(finite[0].max(), *(np.percentile(column, 99) for column in finite))
    if high - low < 30 and (finite[0] == finite[0].round()).all():
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    bins = min(30, 5 + isqrt(len(finite[0])))
    return np.linspace(low, high if high > low else low + 1, bins + 1)


def _histogram(axes: Axes, values: np.ndarray, bins: np.ndarray, label: str, histtype: str, color: str) -> None:
    """Draws the share of values in each bin. What lies beyond the bins counts, and is not seen."""
    values = values[np.isfinite(values)]
    weights = np.full(len(values), 1 / max(1, len(values)))
    axes.hist(values, bins, weights=weights, histtype=histtype, color=color, label=label)  # type: ignore[arg-type]


def _scale(column: np.ndarray) -> tuple[float, float]:
    """Returns the lowest value of a column, and the width of its range."""
    finite = column[np.isfinite(column)]
    if not len(finite):
        return 0.0, 1.0
    return float(finite.min()), float(finite.max() - finite.min()) or 1.0
