"""Figures of images: what `pyro_vae.figures.predictions` draws where the data are images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isqrt

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, stack

from pyro_vae.figures.layout import new_figure, panels_of, wrapped
from pyro_vae.figures.look import MISSING, Look

_FEW = 4
"""With fewer values than this, a latent that moves has a column of its own, and not a line."""
_LETTER = 0.075
"""The width of a letter of a title, in inches."""


def reconstructions(x: Tensor, means: Tensor, look: Look, title: str) -> Figure:
    """Draws inputs above their reconstructions, up to 12 in a line."""
    per_line = min(12, len(x))
    lines = ceil(len(x) / per_line)
    rows = [images[i * per_line : (i + 1) * per_line] for i in range(lines) for images in (x, means)]
    return grid(rows, look, row_labels=["x", "E[x′|t]"] * lines, title=title)


def samples(drawn: Tensor, look: Look, title: str, x: Tensor | None, names: Sequence[str]) -> Figure:  # noqa: ARG001
    """Draws images in a square, or each group of them in a line."""
    if names:
        return grid(list(drawn.split(len(drawn) // len(names))), look, names, title=title)
    side = isqrt(len(drawn))
    return grid([drawn[i * side : (i + 1) * side] for i in range(side)], look, title=title)


def plane(means: Tensor, ticks: Sequence[float], look: Look, title: str) -> Figure:
    """Draws the latent plane as images without gaps."""
    n = len(ticks)
    shown = range(0, n, max(1, (n - 1) // 6))
    figure, axes = _canvas([means[i * n : (i + 1) * n] for i in range(n)], look, title, gap=0)
    height, width = pixels(means[0], look).shape[:2]
    axes.set_xticks([(j + 0.5) * width for j in shown], [f"{ticks[j]:.1f}" for j in shown])
    axes.set_yticks([(i + 0.5) * height for i in shown], [f"{ticks[n - 1 - i]:.1f}" for i in shown])
    axes.set(xlabel="$t_1$", ylabel="$t_2$")
    return figure


def traversals(means: Tensor, names: Sequence[str], ticks: Sequence[float], look: Look, title: str) -> Figure:
    """Draws one line of images for each latent; of a latent with two or three values, one column for each latent."""
    rows = list(means.split(len(ticks)))
    whole = all(tick >= 0 and float(tick).is_integer() for tick in ticks)  # values of something discrete
    columns = [f"{tick:g}" if whole else f"{tick:+.1f}" if abs(tick) > 1e-6 else "0" for tick in ticks]
    if len(ticks) < _FEW <= len(names):
        across = [stack(row) for row in zip(*rows, strict=True)]
        return grid(across, look, row_labels=columns, column_labels=names, title=title)
    return grid(rows, look, row_labels=names, column_labels=columns, title=title)


def side_by_side(pictures: Mapping[str, Tensor], look: Look, title: str, x: Tensor | None) -> Figure:  # noqa: ARG001
    """Draws the images of each name in a square, with up to four squares in a line."""
    figure, panels = panels_of(len(pictures), title)
    for axes, (name, images) in zip(panels, pictures.items(), strict=False):
        several(axes, images, look, None)
        axes.set_title(wrapped(name), fontsize=9)
        axes.set_aspect("equal")
    return figure


def pairs(axes: Axes, x: Tensor, means: Tensor, look: Look) -> None:
    """Draws inputs above their reconstructions, six in a line."""
    tiles(axes, [images[i : i + 6] for i in range(0, len(x), 6) for images in (x, means)], look)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def several(axes: Axes, drawn: Tensor, look: Look, x: Tensor | None) -> None:  # noqa: ARG001
    """Draws images in a square."""
    side = isqrt(len(drawn))
    tiles(axes, [drawn[i * side : (i + 1) * side] for i in range(side)], look)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def grid(
    rows: Sequence[Tensor],
    look: Look,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draws lines of images, with labels beside the lines and above the columns."""
    figure, axes = _canvas(rows, look, title, gap=0.12, margin=0.9 if row_labels else 0.0)
    height, width = (side * 1.12 for side in pixels(rows[0][0], look).shape[:2])
    axes.set_xticks([(j + 0.5) * width for j in range(len(column_labels))], column_labels, fontsize=8)
    axes.set_yticks([(i + 0.5) * height for i in range(len(row_labels))], row_labels, fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _canvas(rows: Sequence[Tensor], look: Look, title: str, gap: float, margin: float = 0.6) -> tuple[Figure, Axes]:
    """Draws lines of images into one pair of axes, measured in pixels.

    The argument ``gap`` is the space between two images as a share of an image.
    """
    height, width = pixels(rows[0][0], look).shape[:2]
    columns = max(len(row) for row in rows)
    inches = min(0.7, 9 / columns)
    tall = inches * len(rows) * height / width
    wide = max(inches * columns + margin, _LETTER * len(title))
    figure = new_figure(wide, tall + (0.7 if title else 0.4), title)
    axes = figure.subplots()
    tiles(axes, rows, look, gap)
    return figure, axes


def tiles(axes: Axes, rows: Sequence[Tensor], look: Look, gap: float = 0.12) -> None:
    """Draws lines of images into a pair of axes, measured in pixels."""
    height, width = pixels(rows[0][0], look).shape[:2]
    shades = colormaps["gray_r" if look.ink else "gray"].with_extremes(bad=MISSING)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            left, top = j * width * (1 + gap), i * height * (1 + gap)
            axes.imshow(
                pixels(value, look),
                cmap=shades,
                vmin=0,
                vmax=1,
                interpolation="nearest",
                extent=(left, left + width, top + height, top),
            )
            if gap:
                axes.add_patch(Rectangle((left, top), width, height, fill=False, lw=0.5, color="0.7"))
    columns = max(len(row) for row in rows)
    axes.set(xlim=(-0.5, columns * width * (1 + gap)), ylim=(len(rows) * height * (1 + gap), -0.5))


def pixels(value: Tensor, look: Look) -> np.ndarray:
    """Returns a datum as an array that can be drawn, (H, W) or (H, W, 3), with the range of the data as 0 to 1.

    A vector becomes the rectangle of its size that is closest to a square. Of three or four channels the first three are
    red, green and blue; of any other number of channels the mean is drawn. Of a volume the middle slice is drawn.
    """
    array = (value.detach().cpu().double().numpy() - look.low) / (look.high - look.low)
    if array.ndim < 2:
        height = next(side for side in range(isqrt(array.size), 0, -1) if array.size % side == 0)
        return array.reshape(height, -1)
    while array.ndim > 3:
        array = array[:, array.shape[1] // 2]
    if array.ndim == 2:
        return array
    if len(array) not in (3, 4):
        gray: np.ndarray = array.mean(0)
        return gray
    color = array[:3].transpose(1, 2, 0)
    filled: np.ndarray = np.where(np.isnan(color).any(-1, keepdims=True), to_rgb(MISSING), np.clip(color, 0, 1))
    return filled


def sheet(x: Tensor, look: Look, columns: int) -> Image.Image:
    """Returns images as one, without gaps, so many in a line: what a page cuts single images from."""
    each = [pixels(value, look) for value in x]
    if each[0].ndim == 2:
        gray = [np.clip(np.nan_to_num(image), 0, 1) for image in each]
        shown = [1 - image if look.ink else image for image in gray]
        if any(np.isnan(image).any() for image in each):
            shown = [
                np.where(np.isnan(image)[..., None], to_rgb(MISSING), level[..., None])
                for image, level in zip(each, shown, strict=True)
            ]
        each = shown
    empty = np.zeros_like(each[0])
    each += [empty] * (-len(each) % columns)
    lines = [np.concatenate(each[i : i + columns], 1) for i in range(0, len(each), columns)]
    return Image.fromarray(np.rint(np.concatenate(lines) * 255).astype(np.uint8))
