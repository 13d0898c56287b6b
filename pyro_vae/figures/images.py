"""Figures of one run: learning curves, images, latents."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isqrt

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from torch import Tensor

from pyro_vae.figures.canvas import new_figure
from pyro_vae.training import Epoch


def learning_curves(records: Sequence[Epoch], title: str = "") -> Figure:
    """Training and validation bound, reconstruction and KL against the epoch, in nats per datum."""
    figure = new_figure(11, 3.4, title)
    epochs = [record.epoch for record in records]
    for axes, name, label in zip(
        figure.subplots(1, 3),
        ("bound", "reconstruction", "kl"),
        ("bound on log p(x)", "reconstruction  E log p(x|t)", "KL  E log q(t|x) − log p(t)"),
        strict=True,
    ):
        curves = [[getattr(getattr(record, part), name) for record in records] for part in ("train", "valid")]
        marker = "o" if len(records) < 15 else ""
        axes.plot(epochs, curves[0], color="C0", marker=marker, ms=3, label="train")
        axes.plot(epochs, curves[1], color="C1", marker=marker, ms=3, label="validation")
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        # The first epochs fall off the scale that the rest is read on: the axis begins where most of the curve lies.
        if len(records) >= 10:
            settled = np.concatenate([curve[len(curve) // 10 :] for curve in curves])
            margin = 0.05 * (settled.max() - settled.min()) or 1.0
            axes.set_ylim(settled.min() - margin, settled.max() + margin)
    figure.axes[0].set_ylabel("nats per datum")
    figure.axes[0].legend(loc="lower right")
    return figure


def reconstructions(x: Tensor, means: Tensor, title: str = "") -> Figure:
    """Inputs ``(N, *x_shape)`` above their reconstructions, up to 12 a line."""
    per_line = min(12, len(x))
    lines = ceil(len(x) / per_line)
    rows = [part[i * per_line : (i + 1) * per_line] for i in range(lines) for part in (x, means)]
    return grid(rows, row_labels=["x", "E[x′|t]"] * lines, vmax=float(x.max()), title=title)


def samples(means: Tensor, vmax: float, title: str = "") -> Figure:
    """Images ``(N, *x_shape)`` in a square."""
    side = isqrt(len(means))
    return grid([means[i * side : (i + 1) * side] for i in range(side)], vmax=vmax, title=title)


def plane(means: Tensor, ticks: Sequence[float], vmax: float, title: str = "") -> Figure:
    """The latent plane: images ``(n·n, *x_shape)`` at t = (ticks[j], ticks[n-1-i]) for line i, column j, without gaps."""
    n = len(ticks)
    shown = range(0, n, max(1, (n - 1) // 6))
    figure, axes = _canvas([means[i * n : (i + 1) * n] for i in range(n)], vmax, title, gap=0)
    height, width = _image(means[0]).shape[:2]
    axes.set_xticks([(j + 0.5) * width for j in shown], [f"{ticks[j]:.1f}" for j in shown])
    axes.set_yticks([(i + 0.5) * height for i in shown], [f"{ticks[n - 1 - i]:.1f}" for i in shown])
    axes.set(xlabel="$t_1$", ylabel="$t_2$")
    return figure


def traversals(means: Tensor, names: Sequence[str], ticks: Sequence[float], vmax: float, title: str = "") -> Figure:
    """One line for each latent ``(lines · ticks, *x_shape)``: it moves over the ticks while the others stay."""
    n = len(ticks)
    rows = [means[i * n : (i + 1) * n] for i in range(len(names))]
    return grid(
        rows,
        row_labels=names,
        column_labels=[f"{tick:+.1f}" if abs(tick) > 1e-6 else "0" for tick in ticks],
        vmax=vmax,
        title=title,
    )


def latents(t: Tensor, labels: Tensor | None, title: str = "") -> Figure:
    """Latents ``(N, d)`` as points, colored by label; above d = 2 by t-SNE.

    t-SNE (van der Maaten and Hinton 2008) keeps neighbors together; its larger distances mean nothing.

    """
    points = t.detach().cpu().double().numpy()
    names = [f"$t_{j + 1}$" for j in range(points.shape[1])]
    if points.shape[1] > 2:
        perplexity = min(30.0, max(1.0, (len(points) - 1) / 3))
        points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(points)
        names = [f"t-SNE of t, coordinate {j + 1}" for j in range(2)]
    if points.shape[1] == 1:
        points, names = np.stack([points[:, 0], np.zeros(len(points))], 1), [names[0], ""]
    figure = new_figure(6.6, 5.6, title)
    axes = figure.subplots()
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=9, alpha=0.75, linewidths=0)
    else:
        classes, member = np.unique(labels.cpu().numpy(), return_inverse=True)
        palette = colormaps["tab10" if len(classes) <= 10 else "viridis"]
        for k, value in enumerate(classes):
            color = palette(k) if len(classes) <= 10 else palette(k / len(classes))
            of_class = points[member == k]
            axes.scatter(of_class[:, 0], of_class[:, 1], s=9, alpha=0.75, linewidths=0, color=color, label=f"{value:g}")
        if len(classes) <= 20:
            figure.legend(title="label", loc="outside right center", markerscale=2)
    axes.set(xlabel=names[0], ylabel=names[1])
    if points.shape[1] == 2:
        axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)
    return figure


def grid(
    rows: Sequence[Tensor],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    vmax: float = 1.0,
    title: str = "",
) -> Figure:
    """Lines of images, with labels beside the lines and above the columns."""
    figure, axes = _canvas(rows, vmax, title, gap=0.12, margin=0.9 if row_labels else 0.0)
    height, width = (side * 1.12 for side in _image(rows[0][0]).shape[:2])
    axes.set_xticks([(j + 0.5) * width for j in range(len(column_labels))], column_labels, fontsize=8)
    axes.set_yticks([(i + 0.5) * height for i in range(len(row_labels))], row_labels, fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _canvas(rows: Sequence[Tensor], vmax: float, title: str, gap: float, margin: float = 0.6) -> tuple[Figure, Axes]:
    """Lines of images in one pair of axes, measured in pixels; ``gap`` is the space between them as a share of an image."""
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
    """A datum as an array that can be drawn: (H, W), (H, W, 3), or for a vector the squarest rectangle that holds it."""
    array = value.detach().cpu().float().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        return array[0] if array.shape[0] == 1 else np.clip(array.transpose(1, 2, 0), 0, 1)
    if array.ndim == 2:
        return array
    flat = array.reshape(-1)
    height = next(side for side in range(isqrt(flat.size), 0, -1) if flat.size % side == 0)
    return flat.reshape(height, -1)
