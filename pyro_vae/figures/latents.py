"""Figures of latents: data in the latent space, and the aggregate posterior against the prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.figures.layout import colors_of, legend_of_classes, new_figure, panels_of, wrapped
from pyro_vae.figures.look import literal
from pyro_vae.kinds import takes

_FEWEST = 5
"""The fewest different points that t-SNE is asked to arrange: below, its perplexity is 1, and it fails at one."""

_MANY, _JITTER = 10, 0.2
"""With this many times as many points as different ones, as of discrete latents, each is moved at random by so much."""


@takes
def latents(
    t: Tensor | Mapping[str, Tensor],
    labels: Tensor | None,
    title: str = "",
    name: Callable[[float], str] = "{:g}".format,
) -> Figure:
    """Draws latents ``(N, d)`` as points, colored by label, with a panel for each latent.

    Latents with d > 2 are drawn by t-SNE (van der Maaten and Hinton 2008), which keeps neighbors together. Its larger
    distances mean nothing. A handful of points has no neighborhoods: their two coordinates of the largest variance are
    drawn. Points of discrete latents that would hide each other are moved apart at random.

    Args:
        t: one latent, or several by the name of their site.
        labels: classes ``(N,)``, or None.
        title: the title of the figure.
        name: what a label is called.
    """
    by_site = {"t": t} if isinstance(t, Tensor) else t
    sizes = {(len(values),) for values in by_site.values()}
    if labels is not None and {tuple(labels.shape)} != sizes:
        raise ValueError(f"labels: expected one for each of the data, shape {sizes.pop()}, got {tuple(labels.shape)}")
    figure = new_figure(6.6 + 5.2 * (len(by_site) - 1), 5.6, title)
    panels = figure.subplots(1, len(by_site), squeeze=False)[0]
    for axes, (site, values) in zip(panels, by_site.items(), strict=True):
        _scatter(axes, site, values, labels, name)
    if labels is not None and len(panels[0].collections) <= 20:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, title="label", loc="outside right center", markerscale=2)
    return figure


@takes
def coordinate(site: str, j: int, shape: Sequence[int]) -> str:
    """Returns the label of coordinate j of a latent of this shape.

    It is the site alone for a single number, t with an index from 1, or ``site[index]``.

    Args:
        site: the name of the latent.
        j: the place among all coordinates of a latent, counted from 0.
        shape: the shape of one datum's latent.
    """
    if not 0 <= j < prod(shape):
        raise ValueError(f"j: expected 0 to {prod(shape) - 1} for a latent of shape {tuple(shape)}, got {j}")
    if prod(shape) == 1:
        return "$t$" if site == "t" else site
    index = ",".join(str(int(i) + 1) for i in np.unravel_index(j, tuple(shape)))
    return f"$t_{{{index}}}$" if site == "t" else f"{site}[{index}]"


def _scatter(axes: Axes, site: str, t: Tensor, labels: Tensor | None, name: Callable[[float], str]) -> None:
    """Draws one latent ``(N, *shape)`` as points in the plane."""
    points = t.detach().cpu().double().reshape(len(t), -1).numpy()
    names = [coordinate(site, j, t.shape[1:]) for j in range(points.shape[1])]
    if points.shape[1] > 2 and len(np.unique(points, axis=0)) < _FEWEST:
        used = np.sort(points.var(0).argsort(kind="stable")[::-1][:2])
        points, names = points[:, used], [names[j] for j in used]
    if points.shape[1] > 2:
        from sklearn.manifold import TSNE  # noqa: PLC0415  (a second of import that nothing else needs)

        perplexity = min(30.0, max(1.0, (len(points) - 1) / 3))
        points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(points)
        names = [f"t-SNE of {site}, coordinate {j + 1}" for j in range(2)]
    if points.shape[1] <= 2 and len(points) >= _MANY * len(np.unique(points, axis=0)):  # else points hide each other
        points = points + np.random.default_rng(0).uniform(-_JITTER, _JITTER, points.shape)
        names = [f"{each} (± {_JITTER:g} at random)" for each in names]
    if points.shape[1] == 1:
        points, names = np.stack([points[:, 0], np.zeros(len(points))], 1), [names[0], ""]
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=9, alpha=0.75, linewidths=0)
    else:
        given = labels.cpu().numpy()
        for value, color in colors_of(labels)[1].items():
            of_class = points[given == value]
            label = literal(name(value))
            axes.scatter(of_class[:, 0], of_class[:, 1], s=9, alpha=0.75, linewidths=0, color=color, label=label)
    axes.set(xlabel=names[0], ylabel=names[1])
    if points.shape[1] == 2:
        axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)


class Cloud(NamedTuple):
    """Two coordinates of draws ``(N, 2)`` from a prior and from the guide, and the prior's log density where d = 2."""

    prior: Tensor
    posterior: Tensor
    density: Callable[[Tensor], Tensor] | None
    axes: list[int]


@takes
def against_prior(
    clouds: Mapping[str, Cloud],
    labels: Tensor | None,
    title: str = "",
    name: Callable[[float], str] = "{:g}".format,
) -> Figure:
    """Draws points of the aggregate posterior, colored by label, over the prior.

    The prior is drawn as its density where d = 2, and as draws in gray otherwise.

    Args:
        clouds: two coordinates of each model.
        labels: classes ``(N,)``, or None.
        title: the title of the figure.
        name: what a label is called.
    """
    figure, panels = panels_of(len(clouds), title)
    colors: Any = "C0"
    if labels is not None:
        colors, by_class = colors_of(labels)
        legend_of_classes(figure, by_class, lambda label: literal(name(label)))
    for axes, (called, cloud) in zip(panels, clouds.items(), strict=False):
        points, draws = cloud.posterior.cpu().numpy(), cloud.prior.cpu().numpy()
        both = np.concatenate([points, draws])
        low, high = np.percentile(both, 0.5, axis=0), np.percentile(both, 99.5, axis=0)
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        if cloud.density is None:
            axes.scatter(*draws.T, s=5, color="0.75", linewidths=0)
        else:
            ticks = [np.linspace(low[i], high[i], 160) for i in range(2)]
            at = torch.tensor(np.stack(np.meshgrid(*ticks), -1), dtype=cloud.prior.dtype, device=cloud.prior.device)
            with torch.no_grad():
                log_p = cloud.density(at.reshape(-1, 2)).reshape(160, 160).cpu().numpy()
            axes.contourf(*ticks, np.exp(log_p - log_p.max()), levels=12, cmap="Greys", alpha=0.8)
        axes.scatter(*points.T, s=6, c=colors, linewidths=0, alpha=0.8)
        axes.set_title(wrapped(called), fontsize=9)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.set(xlabel=f"$t_{{{cloud.axes[0] + 1}}}$", ylabel=f"$t_{{{cloud.axes[1] + 1}}}$")
    return figure
