"""Figures of signals: what `pyro_vae.figures.predictions` draws where the data are lines over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from pyro_vae.figures.layout import new_figure, panels_of, wrapped
from pyro_vae.figures.look import MISSING, Look

_BAR = 2.5
"""The height of a color bar, in inches."""
_CHANNELS = 10
"""How many channels are drawn: there are as many colors."""


def reconstructions(x: Tensor, means: Tensor, look: Look, title: str) -> Figure:
    """Draws each datum and its reconstruction in one panel."""
    figure, panels = _small_panels(len(x), look, title, x, means)
    for axes, datum, mean in zip(panels, _channels(x), _channels(means), strict=False):
        _pair(axes, datum, mean)
    _legend(figure, panels[0], _channels(x).shape[1])
    return figure


def samples(drawn: Tensor, look: Look, title: str, x: Tensor | None, names: Sequence[str]) -> Figure:  # noqa: ARG001
    """Draws up to 24 signals, each in a panel, or a panel for each group."""
    groups = _channels(drawn)[: None if names else 24]
    groups = groups.reshape(len(names) or len(groups), -1, *groups.shape[1:])
    figure, panels = _small_panels(len(groups), look, title, drawn)
    for i, (axes, group) in enumerate(zip(panels, groups, strict=False)):
        for signal in group:
            _lines(axes, signal, lw=1.0, alpha=0.6 if names else 1.0)
        if names:
            axes.set_title(names[i], fontsize=9)
    _legend(figure, panels[0], groups.shape[2])
    return figure


def plane(means: Tensor, ticks: Sequence[float], look: Look, title: str) -> Figure:
    """Draws signals at up to seven times seven points of the latent plane."""
    n = len(ticks)
    shown = range(0, n, max(1, ceil((n - 1) / 6)))
    figure, panels = _small_panels(len(shown) ** 2, look, title, means, across=len(shown), inches=(1.2, 0.9))
    signals = _channels(means)
    for k, axes in enumerate(panels):
        i, j = shown[k // len(shown)], shown[k % len(shown)]
        _lines(axes, signals[i * n + j], lw=1.0)
        axes.set(xticks=[], yticks=[])
        if i == shown[-1]:
            axes.set_xlabel(f"{ticks[j]:.1f}", fontsize=8)
        if j == shown[0]:
            axes.set_ylabel(f"{ticks[n - 1 - i]:.1f}", fontsize=8)
    figure.supxlabel("$t_1$", fontsize=9)
    figure.supylabel("$t_2$", fontsize=9)
    _legend(figure, panels[0], signals.shape[1])
    return figure


def traversals(means: Tensor, names: Sequence[str], ticks: Sequence[float], look: Look, title: str) -> Figure:
    """Draws a line of panels for each latent, with a panel for each channel and a color for each value of the latent."""
    signals = _channels(means)
    C, shades = signals.shape[1], colormaps["coolwarm"]
    scale = Normalize(ticks[0], ticks[-1])
    across = C if C > 1 else min(len(names), 3)
    figure, panels = _small_panels(len(names) * C, look, title, means, across=across, inches=(3.0, 1.7))
    for k, axes in enumerate(panels):
        i, c = k // C, k % C
        for tick, signal in zip(ticks, signals[i * len(ticks) : (i + 1) * len(ticks)], strict=True):
            axes.plot(signal[c], color=shades(scale(tick)), lw=1.0)
        axes.set_title(names[i] if C == 1 else f"{names[i]}, channel {c + 1}", fontsize=9)
    shrink = min(0.8, _BAR / figure.get_figheight())
    figure.colorbar(
        ScalarMappable(scale, shades),
        ax=panels,
        label="value of the latent",
        shrink=shrink,
        aspect=15,
        anchor=(0.0, 1.0),
    )
    return figure


def side_by_side(pictures: Mapping[str, Tensor], look: Look, title: str, x: Tensor | None) -> Figure:
    """Draws ten signals of each name above each other in a panel."""
    figure, panels = panels_of(len(pictures), title)
    for axes, (name, drawn) in zip(panels, pictures.items(), strict=False):
        several(axes, drawn[:10], look, x)
        axes.set_title(wrapped(name), fontsize=9)
    return figure


def pairs(axes: Axes, x: Tensor, means: Tensor, look: Look) -> None:
    """Draws six data and their reconstructions, moved apart, in one panel."""
    for i, (datum, mean) in enumerate(zip(_channels(x[:6]), _channels(means[:6]), strict=True)):
        _pair(axes, datum - i * (look.high - look.low), mean - i * (look.high - look.low))
    axes.set(yticks=[])


def several(axes: Axes, drawn: Tensor, look: Look, x: Tensor | None) -> None:  # noqa: ARG001
    """Draws up to twelve signals, moved apart, in one panel."""
    for i, signal in enumerate(_channels(drawn[:12])):
        _lines(axes, signal - i * (look.high - look.low), lw=1.0)
    axes.set(yticks=[])


def _channels(values: Tensor) -> np.ndarray:
    """Returns signals ``(N, ..., L)`` as (N, channels, L)."""
    array = values.detach().cpu().double().numpy()
    return array.reshape(len(array), -1, array.shape[-1])[:, :_CHANNELS]


def _lines(axes: Axes, signal: np.ndarray, label: str = "", **style: Any) -> None:
    """Draws each channel (C, L) in its color. A missing value is a gap."""
    marker = "." if signal.shape[1] == 1 else ""
    for c, channel in enumerate(signal):
        axes.plot(channel, label=label if c == 0 else "", marker=marker, **{"color": f"C{c}"} | style)


def _pair(axes: Axes, datum: np.ndarray, mean: np.ndarray) -> None:
    """Draws a datum as a broad pale line, gray if it has one channel, and its reconstruction as a narrow one.

    Where the datum is missing, the reconstruction is an imputation, which is marked by points.
    """
    _lines(axes, datum, "x", lw=2.6, alpha=0.35, solid_capstyle="butt", **({"color": "0.2"} if len(datum) == 1 else {}))
    _lines(axes, mean, "E[x′|t]", lw=1.0)
    imputed = np.where(np.isnan(datum), mean, np.nan)
    for channel in imputed[np.isfinite(imputed).any(1)]:
        axes.plot(channel, ".", color=MISSING, ms=4)


def _legend(figure: Figure, axes: Axes, channels: int) -> None:
    """Adds a legend below the panels: what is drawn how, and the color of each channel, where there are several."""
    handles, _ = axes.get_legend_handles_labels()
    if channels > 1:
        handles += [Line2D([], [], color=f"C{c}", label=f"channel {c + 1}") for c in range(channels)]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8)


def _small_panels(
    n: int, look: Look, title: str, *drawn: Tensor, across: int = 6, inches: tuple[float, float] = (1.9, 1.4)
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of n panels with the same range: that of the data, and of what is drawn, unless that is far beyond."""
    across = min(n, across)
    lines = ceil(n / across)
    figure = new_figure(max(inches[0] * across + 0.6, 4.5), inches[1] * lines + 0.8, title)
    panels = list(figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True).ravel())
    width, length = look.high - look.low, drawn[0].shape[-1]
    finite = np.concatenate([each[np.isfinite(each)] for each in map(_channels, drawn)])
    low, high = (min(look.low, finite.min()), max(look.high, finite.max())) if len(finite) else (look.low, look.high)
    low, high = max(low, look.low - width), min(high, look.high + width)
    margin = 0.05 * (high - low)
    for axes in panels:
        axes.set(xlim=(0, max(1, length - 1)), ylim=(low - margin, high + margin))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, lw=0.4)
    for axes in panels[n:]:
        axes.axis("off")
    return figure, panels[:n]
