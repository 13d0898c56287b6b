"""Ranks of the truth among draws, and what else of them is kept for each batch of data.

Particle 0 is the truth and the others are the draws. Under the null, all L + 1 of them are exchangeable given x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

JOINT = ("log p(x|t)", "log p(t)", "log w", "coverage", "TARP")
"""The quantities that see all latents of a datum together, in the order of their ranks, after those of single numbers."""
_GRAINS = 64
"""How many units in the last place of its terms a log-probability is rounded to."""


class Particles(NamedTuple):
    """The truth and the draws of b data, all sites together.

    Attributes:
        t: the latents as vectors.
        log_lik: log p(x|t).
        log_prior: log p(t).
        log_q: log q(t|x).
    """

    t: Float64[Tensor, "K b d"]
    log_lik: Float[Tensor, "K b"]
    log_prior: Float[Tensor, "K b"]
    log_q: Float[Tensor, "K b"]

    @property
    def log_w(self) -> Float[Tensor, "K b"]:
        """The log importance weight, log p(x,t) - log q(t|x)."""
        return self.log_lik + self.log_prior - self.log_q


def rank(values: Float[Tensor, "K ..."]) -> Int64[Tensor, " ..."]:
    """Returns the rank of the first value among the others, from 0 to K - 1: how many of them are below it.

    Where values are equal, the truth is put at any place among its equals with the same chance. So the rank is uniform under
    the null, for discrete values too.
    """
    truth, draws = values[0], values[1:]
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    chance = torch.rand(truth.shape, dtype=torch.float64, device=values.device)
    return below + (chance * (equal + 1)).long().clamp(max=equal)


def rounded(value: Float[Tensor, "K b"], terms: list[Tensor]) -> Float64[Tensor, "K b"]:
    """Returns log-probabilities without their rounding errors: whole multiples of a small number, so that equal ones are equal.

    At the exact posterior, log w is the same for all t, and its order would be that of rounding errors. The small number
    depends on x and on the values in any order, so that the truth and the draws stay exchangeable.

    Args:
        value: a sum of terms.
        terms: these terms, whose size sets that of the rounding errors.
    """
    size = torch.stack([term.double().abs() for term in terms]).sum(0).median(0).values
    grain = _GRAINS * torch.finfo(value.dtype).eps * size.clamp(min=1.0).nan_to_num(posinf=1.0)
    return (value.double() / grain).floor()


def ranks_of(
    particles: Particles, by_density: bool, reference: Float64[Tensor, "b d"], unit: Float64[Tensor, " d"]
) -> Int64[Tensor, "b J"]:
    """Returns the ranks of each latent number and of the joint quantities (see `JOINT`).

    Args:
        particles: the truth and the draws.
        by_density: whether regions of highest density are those of q; otherwise those of p(t|x), by log p(x,t).
        reference: the point from which TARP measures distances, for each datum.
        unit: the unit of each latent number in these distances.
    """
    t, log_lik, log_prior, log_q = particles
    log_w = rounded(particles.log_w, [log_lik, log_prior, log_q])
    density = rounded(log_q, [log_q]) if by_density else rounded(log_lik + log_prior, [log_lik, log_prior])
    distance = ((t - reference) / unit).square().sum(-1)
    # The share of draws that are denser than the truth is the level of the smallest region that holds the truth.
    joint = [rounded(log_lik, [log_lik]), rounded(log_prior, [log_prior]), log_w, -density, distance]
    return torch.cat([rank(t), torch.stack([rank(value) for value in joint], 1)], 1)


class Products(NamedTuple):
    """Products of normal scores of two latent numbers, (b, d, d): those of the truth, and means over the draws."""

    truth: Float64[Tensor, "b d d"]
    draws: Float64[Tensor, "b d d"]


def products(t: Float64[Tensor, "K b d"]) -> Products:
    """Returns the products of the normal scores Φ⁻¹((rank + 1/2) / K), where ranks are those among all K particles.

    Scores do not depend on units, and are of one size for heavy tails too. Under the null, the expected product is that of
    the draws. Equal values are ranked at random.
    """
    K, shuffle = len(t), torch.randperm(len(t), device="cpu").to(t.device)
    order = t[shuffle].argsort(dim=0, stable=True)
    scores = torch.special.ndtri((torch.arange(K, device=t.device, dtype=t.dtype) + 0.5) / K)
    of_shuffled = torch.empty_like(t).scatter_(0, order, scores[:, None, None].expand_as(t))
    z = torch.empty_like(t).index_copy_(0, shuffle, of_shuffled)
    truth = z[0][:, :, None] * z[0][:, None, :]
    draws = torch.einsum("kbi,kbj->bij", z[1:], z[1:]) / (K - 1)
    return Products(truth, draws)
