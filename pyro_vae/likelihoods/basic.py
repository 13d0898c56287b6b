"""Likelihoods p(x|t,w). Each is a `Likelihood`: ``likelihood(t)`` has batch shape ``t.shape[:-1]`` and event shape ``x_shape``.

All are scored with their full normalising constants, in nats. The decoder's output starts at the training mean: the link of
``dims.x_mean`` is added to what the network returns. This is the initial output bias of Burda et al. 2016 (section 5) for any
network, with or without a bias per pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.base import Dims, Distribution, Likelihood
from pyro_vae.networks import MLP, NetworkFactory


@final
class Bernoulli(Likelihood):
    """p(x|t,w) = ∏ Bernoulli(x_j; sigmoid(logit_j(t))) for binary pixels; grey pixels are refused.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, from t to one logit a pixel.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", _logit_of_mean(dims, 1))

    def forward(self, t: Tensor) -> Distribution:
        """Returns the Bernoulli distributions of all pixels, for t of shape ``(*batch, d)``."""
        return dist.Bernoulli(logits=self.network(t) + self.offset).to_event(len(self.dims.x_shape))


@final
class Binomial(Likelihood):
    """p(x|t,w) = ∏ Binomial(x_j; n, sigmoid(logit_j(t))) for pixels that are counts 0..n.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, from t to one logit a pixel.
        total_count: n, the largest count.

    Raises:
        ValueError: a total count below 1.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, total_count: int = 255) -> None:
        super().__init__(dims)
        if total_count < 1:
            raise ValueError(f"total_count: expected at least 1, got {total_count}")
        self.total_count = total_count
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", _logit_of_mean(dims, total_count))

    def forward(self, t: Tensor) -> Distribution:
        """Returns the Binomial distributions of all pixels, for t of shape ``(*batch, d)``."""
        logits = self.network(t) + self.offset
        return dist.Binomial(self.total_count, logits=logits).to_event(len(self.dims.x_shape))


@final
class Normal(Likelihood):
    """p(x|t,w) = N(x; m(t), σ² I), so that p(x|w) = ∫ p(x|t,w) p(t) dt is an infinite mixture of Gaussians.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, from t to the location m(t).
        scale: σ, or where it starts if it is learned, in units of x.
        learn_scale: learn σ, one number shared by all pixels, as its logarithm.

    Raises:
        ValueError: a scale that is not positive.
    """

    offset: Tensor
    log_scale: Tensor

    def __init__(
        self, dims: Dims, network: NetworkFactory = MLP, scale: float = 1.0, learn_scale: bool = False
    ) -> None:
        super().__init__(dims)
        if not scale > 0:
            raise ValueError(f"scale: expected a positive number, got {scale}")
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", torch.zeros(dims.x_shape) if dims.x_mean is None else dims.x_mean.clone())
        log_scale = torch.tensor(scale).log()
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, t: Tensor) -> Distribution:
        """Returns N(m(t), σ² I) for t of shape ``(*batch, d)``."""
        loc = self.network(t) + self.offset
        return dist.Normal(loc, self.log_scale.exp()).to_event(len(self.dims.x_shape))


def _logit_of_mean(dims: Dims, total_count: int) -> Tensor:
    """logit(clip(mean / n, .001, .999)) of the training mean, or zeros where it is not known (shape ``x_shape``)."""
    if dims.x_mean is None:
        return torch.zeros(dims.x_shape)
    return (dims.x_mean / total_count).clamp(0.001, 0.999).logit()


def default_likelihood(support: Constraint) -> Callable[[Dims], Likelihood]:
    """The likelihood that fits data of a support: Bernoulli for {0, 1}, Binomial for counts, else Normal with learned σ."""
    if support is constraints.boolean:
        return Bernoulli
    if isinstance(support, constraints.integer_interval):
        return partial(Binomial, total_count=int(support.upper_bound))
    return partial(Normal, learn_scale=True)
