"""Gradients by φ that are split into two: through the draws t (the path), and through log q at fixed t (the score).

Several latents t_1, t_2, ... are drawn one given those before it. So t_2 is a function of φ directly and through t_1,
and log q(t_2|t_1) at fixed t has no gradient through t_1. Everything here is taken from one run of the guide: a guide
that is random beyond its sample sites, such as one with dropout, would be another one in a second run.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.traces import Particles

ByDatum = Float[Tensor, "K B"]


def path(draws: Particles, weights: ByDatum) -> Float[Tensor, " B"]:
    """Returns a surrogate whose gradient by φ is Σ_k c_k ∂log w_k/∂t_k ∂t_k/∂φ, for constant weights c (K, B).

    The draws are leaves. The derivative of log w by t is taken in this function, and is a constant in the surrogate.
    """
    if not draws.log_w.requires_grad:  # nothing is differentiated, so no surrogate is needed
        return torch.zeros_like(draws.log_w[0])
    leaves = list(draws.values.values())
    slopes = torch.autograd.grad(
        draws.log_w, leaves, weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    through: dict[str, Tensor] = {}
    for name, slope in reversed(list(zip(draws.values, slopes, strict=True))):
        through[name] = slope + _by(draws.values[name], through, draws)
    return _products(through, draws).sum(0)


def path_log_w(draws: Particles) -> ByDatum:
    """Returns the sum of log w and of log q at fixed latents.

    Its gradient by φ goes through t alone, since the two scores cancel. The draws are functions of φ.
    """
    return draws.log_w + draws.kl_weight * _score(draws)


def _score(draws: Particles) -> ByDatum:
    """Returns log q, with its gradient by φ at fixed latents.

    Each site's own latent is detached. What its distribution owes to the latents before it is taken away again.
    """
    fixed = draws.guide_at({name: value.detach() for name, value in draws.values.items()})
    log_q: Tensor = sum(fixed.values(), torch.zeros_like(draws.log_w))
    earlier = {name: value for name, value in list(draws.values.items())[:-1] if value.requires_grad}
    if not (earlier and log_q.requires_grad):
        return log_q
    slopes = torch.autograd.grad(
        log_q.sum(), list(earlier.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    direct: dict[str, Tensor] = {}
    for name, slope in reversed(list(zip(earlier, slopes, strict=True))):
        direct[name] = slope - _by(earlier[name], direct, draws)  # without what goes through the latents after it
    owed = _products(direct, draws)
    return log_q - (owed - owed.detach())


def _by(latent: Tensor, slopes: dict[str, Tensor], draws: Particles) -> Tensor:
    """Returns the derivative by a latent of the products of later draws and their slopes."""
    later = [(draws.drawn[name], slope) for name, slope in slopes.items() if draws.drawn[name].requires_grad]
    if not later:
        return torch.zeros_like(latent)
    (found,) = torch.autograd.grad(
        [t for t, _ in later],
        latent,
        [slope for _, slope in later],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return found


def _products(slopes: dict[str, Tensor], draws: Particles) -> ByDatum:
    """Returns the inner products of draws and constant slopes (K, B), summed over sites."""
    total = torch.zeros_like(draws.log_w)
    for name, slope in slopes.items():
        event = len(draws.distributions[name][0].event_shape)
        product = slope * draws.drawn[name]
        total = total + draws.per_datum(product.sum(tuple(range(-event, 0))) if event else product)
    return total
