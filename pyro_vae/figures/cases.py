"""Pictures of trained models side by side: reconstructions, samples and latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.figures.layout import colors_of, legend_of_classes, new_figure
from pyro_vae.figures.look import Look, literal
from pyro_vae.figures.predictions import OF_KIND
from pyro_vae.kinds import takes


class Case(NamedTuple):
    """The pictures of one trained VAE: data and their reconstructions, samples, latents of data and of the prior."""

    x: Tensor
    reconstructions: Tensor
    samples: Tensor
    t: Tensor
    t_prior: Tensor


@takes
def cases(
    columns: Mapping[str, Case],
    labels: Tensor | None,
    look: Look,
    title: str = "",
    label: Callable[[float], str] = "{:g}".format,
) -> Figure:
    """Draws cases side by side: reconstructions, samples, and latents of data over those of the prior.

    The latents of data are colored by label. If the latents have more than two dimensions, the two with the largest
    variance over data are shown.

    Args:
        columns: the pictures of each case.
        labels: classes ``(N,)`` of the data in the latent space, or None.
        look: how data are drawn.
        title: the title of the figure.
        label: what a label is called.
    """
    figure = new_figure(3 * len(columns) + 0.4, 8.2, title)
    axes = figure.subplots(3, len(columns), squeeze=False, height_ratios=[1, 1, 1.2])
    for j, (name, case) in enumerate(columns.items()):
        OF_KIND[look.kind].pairs(axes[0, j], case.x, case.reconstructions, look)
        OF_KIND[look.kind].several(axes[1, j], case.samples, look, case.x)
        axes[0, j].set_title(name, fontsize=10)
        t, t_prior = case.t.cpu().numpy(), case.t_prior.cpu().numpy()
        used = np.sort(t.var(0).argsort()[::-1][:2])
        plane = axes[2, j]
        first, second = used[0], used[-1]
        plane.scatter(t_prior[:, first], t_prior[:, second], s=4, color="0.8", linewidths=0, label="prior")
        color = {} if labels is None else {"c": colors_of(labels)[0]}
        plane.scatter(t[:, first], t[:, second], s=5, alpha=0.8, linewidths=0, **color)
        labeled = {"xlabel": f"$t_{{{first + 1}}}$", "ylabel": f"$t_{{{second + 1}}}$"}
        plane.set(**labeled, aspect="equal", adjustable="datalim")
        plane.grid(alpha=0.3)
    if labels is not None:
        legend_of_classes(figure, colors_of(labels)[1], lambda each: literal(label(each)))
    for row, what in enumerate(("x and its reconstruction", "samples, t ~ p(t)")):
        axes[row, 0].set_ylabel(what)
    axes[2, 0].legend(loc="upper left", fontsize=8, markerscale=3)
    return figure
