"""Models whose answers are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_vae import VAE, Dims, Prior
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Normal
from pyro_vae.networks import MLP

affine = partial(MLP, hidden=())


class ShiftedNormal(Prior):
    """p(t) = N(a, I) with a learned a, which starts at 0: the gradient of the prior is tested too."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.loc = torch.nn.Parameter(torch.zeros(dims.latent))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


@dataclass
class LinearGaussian:
    """p(t) = N(a, I) at a = 0, p(x|t) = N(W t + b, σ² I), q(t|x) = N(A x + a, diag s²): everything below is exact, in float64.

    The columns of W are orthogonal, so that the posterior has a diagonal covariance and the guide can be made equal to it.
    """

    vae: VAE

    @classmethod
    def random(cls, d: int = 2, n: int = 5, seed: int = 0) -> LinearGaussian:
        """A model with random W, b, σ and a guide that is not its posterior."""
        generator = torch.Generator().manual_seed(seed)
        dims = Dims(d, (n,))
        vae = VAE(
            ShiftedNormal(dims), DiagonalNormal(dims, affine), Normal(dims, affine, scale=0.7, learn_scale=True)
        ).double()
        decoder, encoder = vae.likelihood.network.layers[0], vae.posterior.network.layers[0]
        with torch.no_grad():
            q, _ = torch.linalg.qr(torch.randn(n, d, generator=generator, dtype=torch.float64))
            decoder.weight.copy_(q * torch.linspace(1.5, 0.6, d, dtype=torch.float64))
            decoder.bias.copy_(torch.randn(n, generator=generator, dtype=torch.float64))
            encoder.weight[:d].copy_(0.3 * torch.randn(d, n, generator=generator, dtype=torch.float64))
            encoder.weight[d:].copy_(0.05 * torch.randn(d, n, generator=generator, dtype=torch.float64))
            encoder.bias.copy_(torch.tensor([0.1] * d + [-0.5] * d, dtype=torch.float64))
        return cls(vae)

    @property
    def a(self) -> Tensor:
        return self.vae.prior.loc

    @property
    def W(self) -> Tensor:
        return self.vae.likelihood.network.layers[0].weight

    @property
    def b(self) -> Tensor:
        return self.vae.likelihood.network.layers[0].bias + self.vae.likelihood.offset

    @property
    def variance(self) -> Tensor:
        return (2 * self.vae.likelihood.log_scale).exp()

    def data(self, size: int, seed: int = 1) -> Tensor:
        """Draws of p(x)."""
        generator = torch.Generator().manual_seed(seed)
        n, d = self.W.shape
        t = torch.randn(size, d, generator=generator, dtype=torch.float64)
        noise = torch.randn(size, n, generator=generator, dtype=torch.float64)
        return (t @ self.W.T + self.b + self.variance.sqrt() * noise).detach()

    def log_px(self, x: Tensor) -> Tensor:
        """log p(x|w) = log N(x; W a + b, W Wᵀ + σ² I)."""
        covariance = self.W @ self.W.T + self.variance * torch.eye(len(self.W), dtype=x.dtype)
        return MultivariateNormal(self.W @ self.a + self.b, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """p(t|x) = N(Λ⁻¹ (Wᵀ (x - b) / σ² + a), Λ⁻¹) with Λ = I + Wᵀ W / σ²."""
        precision = torch.eye(self.W.shape[1], dtype=x.dtype) + self.W.T @ self.W / self.variance
        covariance = torch.linalg.inv(precision)
        loc = ((x - self.b) @ self.W / self.variance + self.a) @ covariance
        return MultivariateNormal(loc, covariance)

    def elbo(self, x: Tensor) -> Tensor:
        """log p(x) - KL(q(t|x) ‖ p(t|x))."""
        m, log_s = self.vae.posterior.network(x).chunk(2, -1)
        q = MultivariateNormal(m, torch.diag_embed((2 * log_s).exp()))
        return self.log_px(x) - torch.distributions.kl_divergence(q, self.posterior(x))

    def set_guide_to_posterior(self) -> None:
        """A and a so that q is the posterior: exact, since Λ is diagonal."""
        layer, d = self.vae.posterior.network.layers[0], self.W.shape[1]
        covariance = torch.linalg.inv(torch.eye(d, dtype=torch.float64) + self.W.T @ self.W / self.variance)
        with torch.no_grad():
            gain = covariance @ self.W.T / self.variance
            layer.weight[:d].copy_(gain)
            layer.bias[:d].copy_(-gain @ self.b)
            layer.weight[d:].zero_()
            layer.bias[d:].copy_(covariance.diagonal().log() / 2)
