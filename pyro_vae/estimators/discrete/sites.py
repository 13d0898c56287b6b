"""Discrete sites of a guide: their logits, and numbers (K, B) put at their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.traces import Particles, layers


def binary_logits(q: Any) -> Tensor | None:
    """Returns the logits of a site of Bernoulli distributions, of the shape of its draws, and None for any other site."""
    innermost = layers(q)[-1]
    logits: Tensor | None = innermost.logits if isinstance(innermost, dist.Bernoulli) else None
    return logits


def class_logits(q: Any) -> Tensor | None:
    """Returns the logits (..., classes) of a site of one-hot vectors, and None for any other site."""
    innermost = layers(q)[-1]
    one_hot = isinstance(innermost, dist.OneHotCategorical) or hasattr(innermost.support, "classes")
    logits: Tensor | None = innermost.logits if one_hot else None
    return logits


def binary_sites(draws: Particles) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Gives the name, the logits and the draws of each site of Bernoulli distributions that are the same for all particles."""
    for name, (q, _) in draws.distributions.items():
        logits = binary_logits(q)
        if logits is not None and name in draws.alike:
            yield name, logits, draws.values[name]


def at_places(draws: Particles, numbers: Float[Tensor, "K B"], like: Tensor) -> Tensor:
    """Returns numbers (K, B) with dimensions of size 1, so that they go with numbers of a latent, such as its logits."""
    particle_dim, data_dim = draws.plates
    shape, event = [1] * -particle_dim, like.dim() + particle_dim
    shape[0], shape[data_dim] = numbers.shape
    return numbers.reshape(*shape, *[1] * event)


def summed(draws: Particles, name: str, numbers: Tensor) -> Float[Tensor, "K B"]:
    """Returns numbers of a latent summed over all that belongs to one datum and particle."""
    event = len(draws.distributions[name][0].event_shape)
    return draws.per_datum(numbers.sum(tuple(range(-event, 0))) if event else numbers)


def logistic_noise(like: Tensor) -> Tensor:
    """Returns logistic noise, the logits of uniform numbers."""
    u = _uniform(like)
    return u.log() - torch.log1p(-u)


def gumbel_noise(like: Tensor) -> Tensor:
    """Returns Gumbel noise, minus the logarithm of exponential noise."""
    return -torch.log(-torch.log1p(-_uniform(like)))


def _uniform(like: Tensor) -> Tensor:
    """Returns uniform numbers above 0 and below 1."""
    return torch.rand_like(like.detach()).clamp(min=torch.finfo(like.dtype).eps / 4)


def require_sites(found: bool, estimator: object, kind: str, advice: str) -> None:
    """Raises ValueError if the guide has no site that an estimator is for."""
    if not found:
        raise ValueError(f"{type(estimator).__name__}: the guide has no {kind}: {advice}")
