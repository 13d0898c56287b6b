"""Predictions of a trained model: latents and reconstructions of data, and data that the model draws itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Columns, DataLike, Split, columns_for
from pyro_vae.data.checks import check_labels, check_shape
from pyro_vae.data.splits import x_of
from pyro_vae.evaluate.bound import EVALUATED
from pyro_vae.kinds import takes
from pyro_vae.missing import check_seen
from pyro_vae.parts import Dims
from pyro_vae.scopes import evaluating, telling_memory
from pyro_vae.traces import Programs, draw_latents, inputs_of, observed, run_guide


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
    programs: Programs,
    n: int,
    seed: int = 0,
    *,
    like: DataLike | None = None,
    y: Tensor | None = None,
    noise: bool = False,
) -> Tensor:
    """Returns E[x|t] at n draws t ~ p(t), or draws of x themselves: the prior predictive distribution.

    Args:
        programs: a model and a guide.
        n: the number of draws.
        seed: the seed of the draws.
        like: data, of which only the shape of a datum, the type and the device are used. The models of this project know them.
        y: labels ``(n,)``, for programs that take them.
        noise: x ~ p(x|t) is drawn in place of its mean.

    Raises:
        ValueError: n is below 1, or the programs do not say what shape a datum has and there is no ``like``.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 draw, got {n}")
    columns = _in_shape(programs, like, n, y)
    with evaluating(programs, columns.x.device, seed, "images"):
        p_x = _first_observed(programs, columns.tensors, {})
        drawn: Tensor = p_x.sample() if noise else p_x.mean
        return drawn


@takes
def decode(
    programs: Programs, latents: Mapping[str, Tensor], like: DataLike | None = None, *, y: Tensor | None = None
) -> Tensor:
    """Returns E[x|t] for given latents.

    Args:
        programs: a model and a guide.
        latents: values by site, with n as the first dimension. Latents that are left out are drawn from the prior.
        like: data, of which only the shape of a datum, the type and the device are used. The models of this project know them.
        y: labels ``(n,)``, for programs that take them.
    """
    if not latents:
        raise ValueError("latents: expected values of at least one site")
    columns = _in_shape(programs, like, len(next(iter(latents.values()))), y)
    with evaluating(programs, columns.x.device, "images"):
        return _mean(programs, columns.tensors, latents)


@takes
def posterior_predictive(
    programs: Programs, data: DataLike, draws: int = 1, seed: int = 0, *, batch_size: int = 1000
) -> Tensor:
    """Returns draws ``(S, N, *x_shape)`` of x' ~ p(x'|t) with t ~ q(t|x,φ), S of them for each datum.

    They are of the model's first observed site. Where x is missing (NaN), a draw is whole.

    Args:
        programs: a model and a guide.
        data: N data, on the device of the programs.
        draws: S, the number of draws of t, and of x' given it, for each datum.
        seed: the seed of the draws.
        batch_size: the number of data at a time.
    """
    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size: expected at least 1, got {draws} and {batch_size}")
    columns = columns_for(programs, data)
    found: list[Tensor] = []
    with telling_memory(draws=draws, batch_size=batch_size), evaluating(programs, columns.x.device, seed, "images"):
        for batch in columns.batches(batch_size):
            most = max(1, EVALUATED // (len(batch[0]) * columns.x[0].numel()))
            each = []
            for start in range(0, draws, most):
                run = run_guide(programs.guide, *batch, K=min(most, draws - start))
                latents = {name: value for name, (value, _) in run.items()}
                each.append(_first_observed(programs, batch, latents).sample())
            found.append(torch.cat(each))
    drawn = torch.cat(found, 1)
    check_seen(drawn, columns.x)
    return drawn


def example_of(programs: Any, like: DataLike | None) -> Tensor:
    """Returns one datum ``(1, *x_shape)`` whose values have no meaning, of the type and on the device of the programs.

    Raises:
        ValueError: the programs do not say what shape a datum has, and there is no ``like``.
    """
    if like is not None:
        return torch.zeros_like(x_of(like)[:1])
    dims = getattr(programs, "dims", None)
    if not isinstance(dims, Dims):
        raise ValueError("like: these programs do not say what shape a datum has, so that data are needed: give like=x")
    own = next((each for each in programs.parameters() if each.is_floating_point()), torch.zeros(()))
    return torch.zeros((1, *dims.x_shape), dtype=own.dtype, device=own.device)


def _in_shape(programs: Programs, like: DataLike | None, n: int, y: Tensor | None) -> Columns:
    """Returns n zeros of the shape of the data, with labels if there are any."""
    if like is not None:
        check_shape(programs, x_of(like))
    x = example_of(programs, like)
    columns = Split(x.expand(n, *x.shape[1:]), y).columns(inputs_of(programs))
    check_labels(programs, columns)
    return columns


def _mean(programs: Programs, batch: tuple[Tensor, ...], values: Mapping[str, Tensor]) -> Tensor:
    """Returns the mean of the first observed site."""
    mean: Tensor = _first_observed(programs, batch, values).mean
    return mean


def _first_observed(programs: Programs, batch: tuple[Tensor, ...], values: Mapping[str, Tensor]) -> Any:
    """Returns the distribution of the first observed site."""
    return next(iter(observed(programs.model, *batch, values=values).values()))
