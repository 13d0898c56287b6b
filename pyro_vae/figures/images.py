"""Figures of images: reconstructions, samples, the latent plane, traversals, and samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from pyro_vae.figures.layout import new_figure, panels_of, wrapped


def reconstructions(x: Tensor, means: Tensor, title: str = "") -> Figure:
    """Draws inputs ``(N, *x_shape)`` above their reconstructions, up to 12 in a line."""
    per_line = min(12, len(x))
    lines = ceil(len(x) / per_line)
    rows = [images[i * per_line : (i + 1) * per_line] for i in range(lines) for images in (x, means)]
    return grid(rows, row_labels=["x", "E[x′|t]"] * lines, vmax=float(x.max()), title=title)


def samples(means: Tensor, vmax: float, title: str = "") -> Figure:
    """Draws images ``(N, *x_shape)`` in a square."""
    side = isqrt(len(means))
    return grid([means[i * side : (i + 1) * side] for i in range(side)], vmax=vmax, title=title)


def plane(means: Tensor, ticks: Sequence[float], vmax: float, title: str = "") -> Figure:
    """Draws the latent plane: images ``(n·n, *x_shape)`` without gaps.

    The image in line i and column j is at t = (ticks[j], ticks[n-1-i]).
    """
    n = len(ticks)
    shown = range(0, n, max(1, (n - 1) // 6))
    figure, axes = _canvas([means[i * n : (i + 1) * n] for i in range(n)], vmax, title, gap=0)
    height, width = _image(means[0]).shape[:2]
    axes.set_xticks([(j + 0.5) * width for j in shown], [f"{ticks[j]:.1f}" for j in shown])
    axes.set_yticks([(i + 0.5) * height for i in shown], [f"{ticks[n - 1 - i]:.1f}" for i in shown])
    axes.set(xlabel="$t_1$", ylabel="$t_2$")
    return figure


def traversals(means: Tensor, names: Sequence[str], ticks: Sequence[float], vmax: float, title: str = "") -> Figure:
    """Draws one line of images for each latent, which moves over the ticks while the other latents stay.

    The images are ``(lines · ticks, *x_shape)``.
    """
    n = len(ticks)
    rows = [means[i * n : (i + 1) * n] for i in range(len(names))]
    return grid(
        rows,
        row_labels=names,
        column_labels=[f"{tick:+.1f}" if abs(tick) > 1e-6 else "0" for tick in ticks],
        vmax=vmax,
        title=title,
    )


def side_by_side(pictures: Mapping[str, Tensor], vmax: float, title: str = "") -> Figure:
    """Draws the images ``(N, *x_shape)`` of each name in a square, with up to four squares in a line."""
    figure, panels = panels_of(len(pictures), title)
    for axes, (name, images) in zip(panels, pictures.items(), strict=False):
        side = isqrt(len(images))
        tiles(axes, [images[i * side : (i + 1) * side] for i in range(side)], vmax)
        axes.set_title(wrapped(name), fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal")
    return figure


def grid(
    rows: Sequence[Tensor],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    vmax: float = 1.0,
    title: str = "",
) -> Figure:
    """Draws lines of images, with labels beside the lines and above the columns."""
    figure, axes = _canvas(rows, vmax, title, gap=0.12, margin=0.9 if row_labels else 0.0)
    height, width = (side * 1.12 for side in _image(rows[0][0]).shape[:2])
    axes.set_xticks([(j + 0.5) * width for j in range(len(column_labels))], column_labels, fontsize=8)
    axes.set_yticks([(i + 0.5) * height for i in range(len(row_labels))], row_labels, fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _canvas(rows: Sequence[Tensor], vmax: float, title: str, gap: float, margin: float = 0.6) -> tuple[Figure, Axes]:
    """Draws lines of images into one pair of axes, measured in pixels.

    The argument ``gap`` is the space between two images as a share of an image.
    """
    height, width = _image(rows[0][0]).shape[:2]
    columns = max(len(row) for row in rows)
    inches = min(0.7, 9 / columns)
    tall = inches * len(rows) * height / width
    figure = new_figure(inches * columns + margin, tall + (0.7 if title else 0.4), title)
    axes = figure.subplots()
    tiles(axes, rows, vmax, gap)
    return figure, axes


def tiles(axes: Axes, rows: Sequence[Tensor], vmax: float, gap: float = 0.12) -> None:
    """Draws lines of images into a pair of axes, measured in pixels."""
    height, width = _image(rows[0][0]).shape[:2]
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            left, top = j * width * (1 + gap), i * height * (1 + gap)
            axes.imshow(
                _image(value),
                cmap="gray_r",
                vmin=0,
                vmax=vmax,
                interpolation="nearest",
                extent=(left, left + width, top + height, top),
            )
            if gap:
                axes.add_patch(Rectangle((left, top), width, height, fill=False, lw=0.5, color="0.7"))
    columns = max(len(row) for row in rows)
    axes.set(xlim=(-0.5, columns * width * (1 + gap)), ylim=(len(rows) * height * (1 + gap), -0.5))


def _image(value: Tensor) -> np.ndarray:
    """Returns a datum as an array that can be drawn, (H, W) or (H, W, 3).

    A vector becomes the rectangle of its size that is closest to a square.
    """
    array = value.detach().cpu().float().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        return array[0] if array.shape[0] == 1 else np.clip(array.transpose(1, 2, 0), 0, 1)
    if array.ndim == 2:
        return array
    flat = array.reshape(-1)
    height = next(side for side in range(isqrt(flat.size), 0, -1) if flat.size % side == 0)
    return flat.reshape(height, -1)
