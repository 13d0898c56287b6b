"""Predictions of a trained model: latents and reconstructions of data, and data that the model draws itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Columns, DataLike, Split, columns_for
from pyro_vae.data.checks import check_labels, check_shape
from pyro_vae.data.splits import x_of
from pyro_vae.kinds import takes
from pyro_vae.missing import check_seen
from pyro_vae.scopes import evaluating
from pyro_vae.traces import Programs, draw_latents, inputs_of, observed


@takes
def encode(programs: Programs, data: DataLike, seed: int = 0) -> dict[str, Tensor]:
    """Returns one draw of the latents from q(t|x,φ) for each datum, by the name of their site, in the guide's order.

    All draws together are draws of the aggregate posterior. If the programs take labels, this function and those below
    raise a ValueError where a datum has no label, or a label that the model does not know.

    Args:
        programs: a model and a guide.
        data: N data, on the device of the programs.
        seed: the seed of the draws.
    """
    columns = columns_for(programs, data)
    with evaluating(programs, columns.x.device, seed, "images"):
        latents = draw_latents(programs.guide, *columns.take(slice(None)))
    for t in latents.values():
        check_seen(t, columns.x)
    return latents


@takes
def reconstruct(programs: Programs, data: DataLike, seed: int = 0) -> Tensor:
    """Returns E[x'|t] at one draw t ~ q(t|x,φ) for each datum.

    It is the mean of the model's first observed site, and has the shape of x. Where x is missing (NaN), it is an imputation.
    """
    columns = columns_for(programs, data)
    with evaluating(programs, columns.x.device, seed, "images"):
        batch = columns.take(slice(None))
        mean = _mean(programs, batch, draw_latents(programs.guide, *batch))
    check_seen(mean, columns.x)
    return mean


@takes
def sample(
    programs: Programs, like: DataLike, n: int, seed: int = 0, *, y: Tensor | None = None, noise: bool = False
) -> Tensor:
    """Returns E[x|t] at n draws t ~ p(t), or draws of x themselves.

    Args:
        programs: a model and a guide.
        like: data, of which only the shape of a datum and the device are used.
        n: the number of draws.
        seed: the seed of the draws.
        y: labels ``(n,)``, for programs that take them.
        noise: x ~ p(x|t) is drawn in place of its mean.
    """
    columns = _in_shape(programs, like, n, y)
    with evaluating(programs, columns.x.device, seed, "images"):
        p_x = _first_observed(programs, columns.tensors, {})
        drawn: Tensor = p_x.sample() if noise else p_x.mean
        return drawn


@takes
def decode(programs: Programs, latents: Mapping[str, Tensor], like: DataLike, *, y: Tensor | None = None) -> Tensor:
    """Returns E[x|t] for given latents.

    Args:
        programs: a model and a guide.
        latents: values by site, with n as the first dimension. Latents that are left out are drawn from the prior.
        like: data, of which only the shape of a datum and the device are used.
        y: labels ``(n,)``, for programs that take them.
    """
    if not latents:
        raise ValueError("latents: expected values of at least one site")
    columns = _in_shape(programs, like, len(next(iter(latents.values()))), y)
    with evaluating(programs, columns.x.device, "images"):
        return _mean(programs, columns.tensors, latents)


def _in_shape(programs: Programs, like: DataLike, n: int, y: Tensor | None) -> Columns:
    """Returns n zeros of the shape of the data, with labels if there are any."""
    x = x_of(like)
    check_shape(programs, x)
    columns = Split(torch.zeros_like(x[:1]).expand(n, *x.shape[1:]), y).columns(inputs_of(programs))
    check_labels(programs, columns)
    return columns


def _mean(programs: Programs, batch: tuple[Tensor, ...], values: Mapping[str, Tensor]) -> Tensor:
    """Returns the mean of the first observed site."""
    mean: Tensor = _first_observed(programs, batch, values).mean
    return mean


def _first_observed(programs: Programs, batch: tuple[Tensor, ...], values: Mapping[str, Tensor]) -> Any:
    """Returns the distribution of the first observed site."""
    return next(iter(observed(programs.model, *batch, values=values).values()))
