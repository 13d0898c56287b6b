"""Likelihoods of pixels that are counts."""

from __future__ import annotations

from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.likelihoods.decoder_outputs import logit_of_mean, mean_or
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Likelihood


@final
class Binomial(Likelihood):
    """p(x|t,w) = ∏ Binomial(x_j; n, sigmoid(logit_j(t))) for pixels that are counts 0..n.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to one logit for each pixel.
        total_count: n, the largest count.

    Raises:
        ValueError: the total count is below 1.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, total_count: int = 255) -> None:
        super().__init__(dims)
        if total_count < 1:
            raise ValueError(f"total_count: expected at least 1, got {total_count}")
        self.total_count = total_count
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", logit_of_mean(dims, total_count))

    def forward(self, t: Tensor) -> Distribution:
        """Returns the Binomial distributions of all pixels, for t of shape ``(*batch, d)``."""
        logits = self.network(t) + self.offset
        return dist.Binomial(self.total_count, logits=logits).to_event(len(self.dims.x_shape))


@final
class Poisson(Likelihood):
    """p(x|t,w) = ∏ Poisson(x_j; exp(a_j(t))) for counts without an upper limit.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to the logarithm of each pixel's rate.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", mean_or(dims, 1.0).clamp(min=1e-3).log())

    def forward(self, t: Tensor) -> Distribution:
        """Returns the Poisson distributions of all pixels, for t of shape ``(*batch, d)``."""
        return dist.Poisson((self.network(t) + self.offset).exp()).to_event(len(self.dims.x_shape))


@final
class NegativeBinomial(Likelihood):
    """p(x|t,w) = ∏ NegativeBinomial(x_j; mean μ_j(t), shape r_j) for counts that vary more than a Poisson distribution.

    The variance is μ + μ²/r.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to log μ of each pixel.
        shape: the initial value of r, which is learned, one number for each pixel.

    Raises:
        ValueError: the shape is not positive.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, shape: float = 10.0) -> None:
        super().__init__(dims)
        if not shape > 0:
            raise ValueError(f"shape: expected a positive number, got {shape}")
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", mean_or(dims, 1.0).clamp(min=1e-3).log())
        self.log_shape = nn.Parameter(torch.full(dims.x_shape, shape).log())

    def forward(self, t: Tensor) -> Distribution:
        """Returns the negative binomial distributions of all pixels, for t of shape ``(*batch, d)``."""
        log_mean = self.network(t) + self.offset
        each = dist.NegativeBinomial(self.log_shape.exp().expand_as(log_mean), logits=log_mean - self.log_shape)
        return each.to_event(len(self.dims.x_shape))
