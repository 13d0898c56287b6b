"""Which latents a trained guide uses: active units, and the KL of each dimension."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyro_vae.data import Columns, DataLike, columns_for
from pyro_vae.evaluate.bound import EVALUATED
from pyro_vae.kinds import takes
from pyro_vae.scopes import evaluating, telling_memory
from pyro_vae.traces import Particles, Programs, draw_latents, library_path, particles

THRESHOLD = 0.01
"""The variance of means above which a latent counts as used (Burda et al. 2016, section 5.1)."""


@takes
def active_units(
    programs: Programs,
    data: DataLike,
    site: str | None = None,
    threshold: float = THRESHOLD,
    draws: int = 20,
    seed: int = 0,
) -> Tensor:
    """Returns which latents are in use ``(d,)``: those whose Var_x E_q[t_j|x] is above a threshold.

    This definition is that of Burda et al. 2016 (section 5.1).

    Args:
        programs: a model and a guide.
        data: N data, at least two.
        site: the name of one latent. The default is all latents, one after another in the guide's order.
        threshold: the variance above which a latent is in use. The default is that of the paper.
        draws: the number of draws in each of the two means of `variance_of_means`.
        seed: the seed of the draws.
    """
    return variance_of_means(programs, data, site, draws, seed) > threshold


@takes
def variance_of_means(
    programs: Programs, data: DataLike, site: str | None = None, draws: int = 20, seed: int = 0
) -> Tensor:
    """Returns Var_x E_q[t_j|x] ``(d,)``, without bias from the noise of the draws, for guides of any kind.

    Two means are computed for each x, from independent draws. Their covariance over x has this variance as its
    expectation, so that no mean in closed form is needed. The arguments are those of `active_units`.
    """
    columns = columns_for(programs, data)
    halves: list[list[Tensor]] = [[], []]
    with evaluating(programs, columns.x.device, seed, "active units"):
        for batch in columns.batches(1000):
            for half in halves:
                half.append(
                    torch.stack([_flat(draw_latents(programs.guide, *batch), site) for _ in range(draws)])
                    .double()
                    .mean(0)
                )
    one, other = (torch.cat(half).double() for half in halves)
    return ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (len(one) - 1)


@takes
def kl_per_dimension(
    programs: Programs,
    data: DataLike,
    draws: int = 1,
    seed: int = 0,
    *,
    batch_size: int = 1000,
    max_plate_nesting: int = 1,
) -> dict[str, Tensor]:
    """Returns the mean over data of E_q [log q(t_j|x) - log p(t_j)], by site and dimension, in nats.

    Sites where q or p is not independent over its dimensions, as a flow is, have no such terms, and are left out. Where the
    KL has a closed form, it is that; elsewhere it is estimated from draws.

    Args:
        programs: a model and a guide.
        data: N data, on the device of the programs.
        draws: the number of draws of each datum.
        seed: the seed of the draws.
        batch_size: the number of data at a time, which is larger where the data are small.
        max_plate_nesting: the number of plate dimensions that the programs use.

    Raises:
        ValueError: there are no draws, or the model cannot be called with the data.
    """
    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size: expected at least 1 each, got {draws} and {batch_size}")
    return kl_over(programs, columns_for(programs, data), draws, seed, batch_size, max_plate_nesting)


def kl_over(
    programs: Programs, columns: Columns, draws: int, seed: int, batch_size: int, max_plate_nesting: int
) -> dict[str, Tensor]:
    """Returns what `kl_per_dimension` returns, of columns that were checked before."""
    size = max(batch_size, EVALUATED // (draws * prod(columns.x.shape[1:])))
    sums: dict[str, Tensor] = {}
    with (
        telling_memory(draws=draws, batch_size=batch_size),
        evaluating(programs, columns.x.device, seed, "KL per dimension"),
        library_path(),
    ):
        for batch in columns.batches(size):
            found = particles(programs.model, programs.guide, *batch, K=draws, max_plate_nesting=max_plate_nesting)
            for name, (kl, _) in kl_of_draws(found).items():
                sums[name] = sums.get(name, 0.0) + kl.sum(0)
    return {name: total / len(columns) for name, total in sums.items()}


def kl_of_draws(draws: Particles) -> dict[str, tuple[Tensor, bool]]:
    """Returns E_q [log q_j - log p_j] of each datum and dimension (B, *event), and whether it is in closed form, by site.

    Sites are left out where q or p is not independent over dimensions. A closed form holds only where the guide draws its
    latents in the model's order: only then do a site's q and p depend on the same draws before it.
    """
    found = {}
    in_order = list(draws.guide) == [name for name in draws.model if name not in draws.observed]
    for name, distributions in draws.distributions.items():
        q, p = (_independent(each) for each in distributions)
        value = draws.values[name]
        if q is None or p is None or q.batch_shape != value.shape or draws.log_q.shape != value.shape[:2]:
            continue
        try:
            if not in_order:
                raise NotImplementedError
            kl, exact = kl_divergence(q, p.expand(q.batch_shape)), True
        except NotImplementedError:
            kl, exact = q.log_prob(value) - p.log_prob(value), False
        found[name] = kl.expand(value.shape).double().mean(0), exact
    return found


def _independent(distribution: Any) -> Any:
    """Returns the distribution of single numbers that another one is made of, or None where it is not."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return None if distribution.event_shape or hasattr(distribution, "_mask") else distribution


def _flat(latents: dict[str, Tensor], site: str | None) -> Tensor:
    """Returns one latent, or all of them, as vectors ``(N, d)``."""
    if site is not None and site not in latents:
        raise ValueError(f"site: expected one of the latents {', '.join(latents)}, got {site!r}")
    chosen = latents.values() if site is None else [latents[site]]
    return torch.cat([t.reshape(len(t), -1) for t in chosen], 1)
