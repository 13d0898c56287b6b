"""Likelihoods of pixels that are black or white, or gray."""

from __future__ import annotations

from typing import final

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae.flows import Sizes
from pyro_vae.likelihoods.decoder_outputs import logit_of_mean, mean_or
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Likelihood
from pyro_vae.special import Elementwise, half_langevin, log_sinhc


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
        dims = dims.in_units_of_x()
        super().__init__(dims)
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", _logit_with_mean(mean_or(dims, 0.5)))

    def forward(self, t: Tensor) -> Distribution:
        """Returns the continuous Bernoulli distributions of all pixels, for t of shape ``(*batch, d)``."""
        return _ContinuousBernoulli(self.network(t) + self.offset).to_event(len(self.dims.x_shape))


class _ContinuousBernoulli(Elementwise):
    """The density λ^x (1 - λ)^(1 - x) C(λ) on [0, 1], which is proportional to e^(l x) where l = logit λ.

    PyTorch's distribution is not used, because it clamps λ, so that its density does not integrate to one where |l| is
    large, and because it replaces the constant by a Taylor series that is too short near l = 0.

    Args:
        logits: l.
    """

    logits: Tensor
    support = constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits)

    def _split(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns whether |l| < 2, and l where that is so and |l| where it is not; elsewhere both are 1 or 2."""
        near = self.logits.abs() < 2
        return near, torch.where(near, self.logits, 1.0), torch.where(near, 2.0, self.logits.abs())

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats.

        Near 0 it is (x - ½) l - log [sinh(l/2) / (l/2)]. Elsewhere it is log a - log(1 - e^-a) - a |x - end|, where
        a = |l|, and the end is 1 for l > 0 and 0 for l < 0.
        """
        near, small, a = self._split()
        distance = torch.where(self.logits > 0, 1 - value, value)
        far = a.log() - torch.log1p(-(-a).exp()) - a * distance
        return torch.where(near, (value - 0.5) * small - log_sinhc(small), far)

    @property
    def mean(self) -> Tensor:
        """The mean 1 / (1 - e^-l) - 1 / l."""
        near, small, a = self._split()
        far = 1 / a - (-a).exp() / (1 - (-a).exp())  # the distance of the mean from the end
        return torch.where(near, 0.5 + half_langevin(small), torch.where(self.logits > 0, 1 - far, far))

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the distribution function (e^(l x) - 1) / (e^l - 1)."""
        a = self.logits.abs().clamp(min=_FLAT)
        rising = (-a * torch.where(self.logits > 0, 1 - value, 0.0)).exp()
        return rising * torch.expm1(-a * value) / torch.expm1(-a)

    def icdf(self, value: Tensor) -> Tensor:
        """Returns the x at which the distribution function has this value."""
        a, up = self.logits.abs().clamp(min=_FLAT), self.logits > 0
        v, rest = torch.where(up, 1 - value, value), torch.where(up, value, 1 - value)
        low = -torch.log1p(v * torch.expm1(-a))
        high = -(rest + v * (-a).exp()).log()
        y = (torch.where((v < 0.5) | (a < 2), low, high) / a).clamp(0, 1)
        return torch.where(up, 1 - y, y)

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws by the inverse of the distribution function."""
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))


_FLAT = 1e-20
"""The smallest |l| in quotients by l; the distribution is uniform to the last bit long before."""


def _logit_with_mean(mean: Tensor) -> Tensor:
    """Finds by bisection the logit λ for which the continuous Bernoulli has this mean, clipped to [.01, .99]."""
    target = mean.clamp(0.01, 0.99).double()
    low, high = torch.full_like(target, -101.0), torch.full_like(target, 101.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = _ContinuousBernoulli(middle).mean < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).to(mean.dtype)
