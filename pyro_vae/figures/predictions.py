"""Figures of data and of what a model makes of them. They show images as images, signals as lines, a table by its columns.

Each kind of data has a module with the same functions, which `Look.kind` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.figures import images, signals, tables
from pyro_vae.figures.look import Look, literal
from pyro_vae.kinds import takes
from pyro_vae.view import Kind


class OfOneKind(Protocol):
    """What the module of each kind of data draws."""

    def reconstructions(self, x: Tensor, means: Tensor, look: Look, title: str) -> Figure:
        """Data and their reconstructions."""

    def samples(self, drawn: Tensor, look: Look, title: str, x: Tensor | None, names: Sequence[str]) -> Figure:
        """Draws of the model."""

    def plane(self, means: Tensor, ticks: Sequence[float], look: Look, title: str) -> Figure:
        """Means over the latent plane."""

    def traversals(self, means: Tensor, names: Sequence[str], ticks: Sequence[float], look: Look, title: str) -> Figure:
        """Means while a latent moves."""

    def side_by_side(self, pictures: Mapping[str, Tensor], look: Look, title: str, x: Tensor | None) -> Figure:
        """Draws of several models."""

    def pairs(self, axes: Axes, x: Tensor, means: Tensor, look: Look) -> None:
        """Some data and their reconstructions, in one panel."""

    def several(self, axes: Axes, drawn: Tensor, look: Look, x: Tensor | None) -> None:
        """Some draws of the model, in one panel."""


OF_KIND: Mapping[Kind, OfOneKind] = {"image": images, "signal": signals, "table": tables}


@takes
def reconstructions(x: Tensor, means: Tensor, look: Look, title: str = "") -> Figure:
    """Draws data ``(N, *x_shape)`` and their reconstructions: images above each other, others in one panel."""
    return OF_KIND[look.kind].reconstructions(x, means, look, title)


@takes
def samples(
    drawn: Tensor, look: Look, title: str = "", *, x: Tensor | None = None, names: Sequence[str] = ()
) -> Figure:
    """Draws what a model drew: images in a square, signals in small panels, histograms of a table's columns.

    Args:
        drawn: draws ``(N, *x_shape)``.
        look: how data are drawn.
        title: the title of the figure.
        x: data whose histograms stand behind those of a table's draws.
        names: the names of groups of draws, which follow each other and are equally large; tables show all together.
    """
    return OF_KIND[look.kind].samples(drawn, look, title, x, [literal(name) for name in names])


@takes
def plane(means: Tensor, ticks: Sequence[float], look: Look, title: str = "") -> Figure:
    """Draws means ``(n·n, *x_shape)`` over the latent plane.

    The one in line i and column j is at t = (ticks[j], ticks[n-1-i]).
    """
    return OF_KIND[look.kind].plane(means, ticks, look, title)


@takes
def traversals(means: Tensor, names: Sequence[str], ticks: Sequence[float], look: Look, title: str = "") -> Figure:
    """Draws means ``(latents · ticks, *x_shape)`` while each latent moves over the ticks and the others stay."""
    return OF_KIND[look.kind].traversals(means, names, ticks, look, title)


@takes
def side_by_side(pictures: Mapping[str, Tensor], look: Look, title: str = "", *, x: Tensor | None = None) -> Figure:
    """Draws the draws ``(N, *x_shape)`` of several models, by the name of the model.

    Images and signals have a panel for each model; a table has one for each column, with the histograms of all models
    over that of the data x.
    """
    return OF_KIND[look.kind].side_by_side(pictures, look, title, x)
