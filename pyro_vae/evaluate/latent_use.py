"""Active units: which latents a trained guide uses."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.data import DataLike, columns_for
from pyro_vae.kinds import takes
from pyro_vae.scopes import evaluating
from pyro_vae.traces import Programs, draw_latents

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


def _flat(latents: dict[str, Tensor], site: str | None) -> Tensor:
    """Returns one latent, or all of them, as vectors ``(N, d)``."""
    if site is not None and site not in latents:
        raise ValueError(f"site: expected one of the latents {', '.join(latents)}, got {site!r}")
    chosen = latents.values() if site is None else [latents[site]]
    return torch.cat([t.reshape(len(t), -1) for t in chosen], 1)
