"""Likelihoods of pixels that are black or white, or gray."""

from __future__ import annotations

from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.likelihoods.decoder_outputs import logit_of_mean, mean_or
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Likelihood


@final
class Bernoulli(Likelihood):
    """p(x|t,w) = ∏ Bernoulli(x_j; sigmoid(logit_j(t))) for binary pixels; gray pixels are refused.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to one logit for each pixel.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", logit_of_mean(dims, 1))

    def forward(self, t: Tensor) -> Distribution:
        """Returns the Bernoulli distributions of all pixels, for t of shape ``(*batch, d)``."""
        return dist.Bernoulli(logits=self.network(t) + self.offset).to_event(len(self.dims.x_shape))


@final
class ContinuousBernoulli(Likelihood):
    """p(x|t,w) = ∏ C(λ_j) λ_j^x_j (1 - λ_j)^(1 - x_j) for gray pixels in [0, 1] (Loaiza-Ganem and Cunningham 2019).

    It contains the normalizing constant C(λ), which is missing if a Bernoulli scores gray values. The mean is not λ.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to logit λ of each pixel.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", _logit_with_mean(mean_or(dims, 0.5)))

    def forward(self, t: Tensor) -> Distribution:
        """Returns the continuous Bernoulli distributions of all pixels, for t of shape ``(*batch, d)``."""
        return dist.ContinuousBernoulli(logits=self.network(t) + self.offset).to_event(len(self.dims.x_shape))


def _logit_with_mean(mean: Tensor) -> Tensor:
    """Finds by bisection the logit λ for which the continuous Bernoulli has this mean, clipped to [.05, .95]."""
    target = mean.clamp(0.05, 0.95).double()
    low, high = torch.full_like(target, -30.0), torch.full_like(target, 30.0)
    for _ in range(60):
        middle = (low + high) / 2
        # E[x] = 1 / (1 - e^-l) - 1 / l, which is 1/2 + l/12 where l is small and the two terms cancel.
        exact = 1 / -torch.expm1(-middle) - 1 / middle
        below = torch.where(middle.abs() < 1e-3, 0.5 + middle / 12, exact) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).to(mean.dtype)
