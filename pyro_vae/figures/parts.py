"""Figures that compare parts: samples side by side, the aggregate posterior against the prior, what is gained and lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.figures.canvas import new_figure, panels_of
from pyro_vae.figures.images import tiles


class Cloud(NamedTuple):
    """Two coordinates of draws ``(N, 2)`` from a prior and from the guide, and in the plane the prior's log density."""

    prior: Tensor
    posterior: Tensor
    density: Callable[[Tensor], Tensor] | None
    axes: list[int]


def side_by_side(pictures: Mapping[str, Tensor], vmax: float, title: str = "") -> Figure:
    """Images ``(N, *x_shape)`` of each name in a square, up to four squares a line."""
    figure, panels = panels_of(len(pictures), title)
    for axes, (name, images) in zip(panels, pictures.items(), strict=False):
        side = isqrt(len(images))
        tiles(axes, [images[i * side : (i + 1) * side] for i in range(side)], vmax)
        axes.set_title(_wrapped(name), fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal")
    return figure


def against_prior(clouds: Mapping[str, Cloud], labels: Tensor | None, title: str = "") -> Figure:
    """Points of the aggregate posterior, colored by label, over the prior: its density where d = 2, else its draws in gray."""
    figure, panels = panels_of(len(clouds), title)
    colors: Any = "C0"
    if labels is not None:
        classes, member = np.unique(labels.cpu().numpy(), return_inverse=True)
        colors = colormaps["tab10" if len(classes) <= 10 else "viridis"](
            member if len(classes) <= 10 else member / member.max()
        )
    for axes, (name, cloud) in zip(panels, clouds.items(), strict=False):
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
        axes.set_title(_wrapped(name), fontsize=9)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.set(xlabel=f"$t_{{{cloud.axes[0] + 1}}}$", ylabel=f"$t_{{{cloud.axes[1] + 1}}}$")
    return figure


def gaps(bars: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "") -> Figure:
    """Log p(x) and ELBO of the same images for each name, as means with standard errors; a line between them is the gap."""
    names = [_wrapped(name) for name in bars]
    figure = new_figure(8.5, sum(0.35 + 0.15 * name.count("\n") for name in names) + 1.6, title)
    axes = figure.subplots()
    for i, (log_px, elbo) in enumerate(bars.values()):
        axes.plot([elbo.mean(), log_px.mean()], [i + 0.12, i - 0.12], color="0.6", lw=2, zorder=0)
        for values, color, marker, label, at in (
            (elbo, "C1", "s", "ELBO", i + 0.12),
            (log_px, "C0", "o", "log p(x)", i - 0.12),
        ):
            error = values.std(ddof=1) / np.sqrt(len(values))
            axes.errorbar(
                values.mean(), at, xerr=error, fmt=marker, color=color, capsize=3, label=label if i == 0 else None
            )
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.set(xlabel="nats per datum", ylim=(len(bars) - 0.4, -0.6))
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside right upper")
    return figure


def _wrapped(name: str) -> str:
    """A cell's name in lines that a panel has room for."""
    return "\n".join(fill(line, 36) for line in name.split("\n"))
