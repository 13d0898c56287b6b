"""Latents and data drawn from a model itself: t ~ p(t) and x ~ p(x|t), in the form that its programs are called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Columns
from pyro_vae.scopes import seeded
from pyro_vae.traces import observations, simulate

Drawn = tuple[tuple[Tensor, ...], dict[str, Tensor]]
"""What the programs are called with, and the latents that belong to it, by site."""


def rows(columns: Columns, n: int) -> Columns:
    """Returns n rows of the data in random order, each as often as any other, up to one.

    Labels and missing values of simulated data are those of these rows. Pixels are not drawn: x is only a shape here.
    """
    order = columns.order()
    index = order.repeat(-(-n // len(columns)))[:n]
    return replace(columns, tensors=tuple(column[index] for column in columns.tensors), dynamic=False)


def drawn_from(model: Any, like: Columns, key: tuple[int | str, ...]) -> Drawn:
    """Draws latents and data from a model.

    Each number of x that the model observes is drawn; where it is missing (NaN) in `like`, it is missing again. Labels and
    numbers of x that the model does not observe are those of `like`: the model is one of the others given them.

    Args:
        model: the Pyro model.
        like: what the model is called with, of which shapes, labels and missing values are taken.
        key: the seed and what the numbers are for.

    Raises:
        ValueError: what the model draws does not say what x is, or p(x|t) reads x itself.
    """
    places = _places(model, like)
    device = like.x.device

    def draw(given: tuple[Tensor, ...]) -> Drawn:
        with seeded(device, *key):
            latents, seen = simulate(model, *given)
        return _filled(given, like.inputs, seen, places), latents

    found, latents = draw(like.tensors)
    again, latents_again = draw(found)
    if not like.x.is_meta and not _same([*found, *latents.values()], [*again, *latents_again.values()]):
        raise ValueError(
            "the model: what it draws changes with what it is called with, so that data cannot be drawn from it: the "
            "distribution of x must depend on what the model samples, and not on the x (or labels) that it observes"
        )
    return found, latents


def _places(model: Any, like: Columns) -> dict[str, tuple[str, Tensor | None]]:
    """Returns where each number that the model observes stands among what it is called with.

    It is called with a different number in each place of x, and these are looked for among its observations. A label is found
    by its values.

    Returns:
        For each observed site the name of the input, and the flat places of its numbers, or None for all in their order.

    Raises:
        ValueError: a site observes something else than numbers of x or the labels, or a number of x is observed twice.
    """
    x = like.x
    if x.is_meta:
        return dict.fromkeys(observations(model, *like.tensors), ("x", None))
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    marked = numbers.to(x.dtype if x.is_floating_point() else torch.int64)
    given = tuple(marked if name == "x" else column for name, column in zip(like.inputs, like.tensors, strict=True))
    found: dict[str, tuple[str, Tensor | None]] = {}
    for name, seen in observations(model, *given).items():
        value, y = seen.value, like.y
        place = value.double().round().long()
        if y is not None and value.shape == y.shape and torch.equal(value.double(), y.double()):
            found[name] = "y", None
        elif (
            value.numel()
            and torch.equal(place.double(), value.double())
            and 0 <= place.min() <= place.max() < x.numel()
        ):
            found[name] = "x", place
        else:
            raise ValueError(
                f"the model: site {name!r} observes something else than the numbers of x as they are, so that the x that "
                f"belongs to a draw is not known"
            )
    used = torch.cat([place.flatten() for _, place in found.values() if place is not None] or [numbers[:0].flatten()])
    if not len(used):
        raise ValueError("the model: it observes no number of x, so that there is no x to draw from it")
    if len(used.unique()) < len(used):
        raise ValueError("the model: it observes a number of x at two places, which two draws would not agree on")
    return found


def _filled(
    given: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    seen: Mapping[str, Tensor],
    places: Mapping[str, tuple[str, Tensor | None]],
) -> tuple[Tensor, ...]:
    """Returns what programs are called with, where what was drawn stands in its places."""
    columns = dict(zip(inputs, given, strict=True))
    for name, value in seen.items():
        column, place = places[name]
        old = columns[column]
        kind = old.dtype if old.is_floating_point() or column == "y" else value.dtype
        if place is None:
            new = value.to(kind).reshape(old.shape)
        else:
            new = old.to(kind).flatten().index_copy(0, place.flatten(), value.to(kind).flatten()).reshape(old.shape)
        columns[column] = torch.where(old.isnan(), torch.nan, new) if old.is_floating_point() else new
    return tuple(columns.values())


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True))
