"""Models whose answers are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae import VAE, Dims, Guide, Network, Prior
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

    def correlate(self, by: float = 0.15) -> None:
        """Makes the columns of W far from orthogonal, so that the posterior's covariance is not diagonal (with d > 1)."""
        d = self.W.shape[1]
        with torch.no_grad():
            self.W.copy_(self.W @ (torch.eye(d, dtype=torch.float64) + by * torch.ones(d, d, dtype=torch.float64)))

    def approximation_gap(self) -> Tensor:
        """min over m, s of KL(N(m, diag s²)‖posterior) = ½ (Σ log Λ_jj - log det Λ), the same for each datum."""
        precision = torch.eye(self.W.shape[1], dtype=torch.float64) + self.W.T @ self.W / self.variance
        return (precision.diagonal().log().sum() - torch.logdet(precision)) / 2

    def set_guide(self, x_gain: Tensor, shift: Tensor, scale: Tensor) -> None:
        """q(t|x) = N(G x + shift, diag scale²)."""
        layer, d = self.vae.posterior.network.layers[0], self.W.shape[1]
        with torch.no_grad():
            layer.weight[:d].copy_(x_gain)
            layer.bias[:d].copy_(shift)
            layer.weight[d:].zero_()
            layer.bias[d:].copy_(scale.log())

    def spoil(self, how: str) -> None:
        """Sets q to the posterior with its correlations dropped, and then makes it worse."""
        covariance = self.posterior(torch.zeros(1, len(self.W), dtype=torch.float64)).covariance_matrix[0]
        gain = covariance @ self.W.T / self.variance
        shift, scale = covariance @ self.a - gain @ self.b, covariance.diagonal().sqrt()
        if how == "prior":
            gain, shift, scale = torch.zeros_like(gain), torch.zeros_like(shift), torch.ones_like(scale)
        factor, by = {"narrow": (0.5, 0), "wide": (2, 0), "shifted": (1, 1.5)}.get(how, (1, 0))
        self.set_guide(gain, shift + by * scale, factor * scale)

    def aggregate(self) -> tuple[MultivariateNormal, Tensor]:
        """q(t) = E_x q(t|x) for x from the model, and I(x;t) under q, for a q whose scale is the same for all x."""
        layer, d, n = self.vae.posterior.network.layers[0], self.W.shape[1], len(self.W)
        gain, scale = layer.weight[:d], layer.bias[d:].exp()
        of_x = self.W @ self.W.T + self.variance * torch.eye(n, dtype=torch.float64)
        covariance = gain @ of_x @ gain.T + (scale**2).diag_embed()
        loc = gain @ (self.W @ self.a + self.b) + layer.bias[:d]
        return MultivariateNormal(loc, covariance), torch.logdet(covariance) / 2 - scale.log().sum()

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


class PosteriorOfObserved(Guide):
    """The exact p(t|x_obs), for a standard normal prior and a `Normal` likelihood with an affine decoder."""

    def forward(self, x):
        W, b, variance, m, s = linear_parts(self.parts.likelihood)
        there = ~x.isnan()
        error = torch.where(there, (x - m) / s - b, 0.0)
        weighted = W / variance[:, None]  # (n, d)
        outer = (weighted[:, :, None] * W[:, None, :]).flatten(1)  # (n, d d)
        d = W.shape[1]
        precision = (there.to(x.dtype) @ outer).unflatten(-1, (d, d)) + torch.eye(d, dtype=x.dtype)
        covariance = torch.linalg.inv(precision)
        loc = (covariance @ (error @ weighted).unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, covariance)


def linear_parts(likelihood):
    """W, b and the variance of each column in the units that parts see, and the mean and the scale of these units."""
    layer, n = likelihood.network.layers[0], likelihood.dims.x_shape[0]
    variance = (2 * likelihood.log_scale).exp().expand(n)
    units = likelihood.units.of_x if likelihood.dims.standardized else torch.stack([torch.zeros(n), torch.ones(n)])
    return layer.weight, layer.bias + likelihood.offset, variance, units[0], units[1]


def log_p_observed(likelihood, x: Tensor) -> Tensor:
    """log N(x_obs; b_obs, W_obs W_obsᵀ + diag σ_obs²) for each datum, in float64 and in the units of x.

    It is 0 where no value is observed.
    """
    W, b, variance, m, s = (each.double() for each in linear_parts(likelihood))
    x = x.double()
    patterns, which = (~x.isnan()).unique(dim=0, return_inverse=True)
    found = x.new_zeros(len(x))
    for k, pattern in enumerate(patterns):
        at, rows = pattern.nonzero()[:, 0], which == k
        if len(at):
            scaled = W[at] * s[at, None]
            covariance = scaled @ scaled.T + (variance[at] * s[at] ** 2).diag_embed()
            exact = MultivariateNormal(m[at] + s[at] * b[at], covariance)
            found = found.masked_scatter(rows, exact.log_prob(x[rows][:, at]))
    return found


class RandomFeatures(Network):
    """An affine encoder of features that are random given x: a guide with it is random beyond its sample sites.

    ``fixed`` holds the random numbers in place of drawn ones, and ``cases`` all of them with their probabilities.

    Args:
        layer: the affine layer.
        kind: "dropout" of both features, a "mask" of one, or "noise" that is added to one, as a user writes each.
    """

    def __init__(self, layer: torch.nn.Linear, kind: str) -> None:
        super().__init__((layer.in_features,), (layer.out_features,))
        self.layer, self.kind, self.fixed, self.dropout = layer, kind, None, torch.nn.Dropout(0.4)

    @property
    def cases(self) -> list[tuple[float, Tensor]]:
        if self.kind == "noise":
            points, weights = np.polynomial.hermite_e.hermegauss(9)
            return list(zip((weights / weights.sum()).tolist(), torch.from_numpy(points), strict=True))
        keep = [(0.4, 0.0), (0.6, 1.0)]
        if self.kind == "mask":
            return [(p, torch.tensor(kept).double()) for p, kept in keep]
        return [(p * q, torch.tensor([a, b]).double() / 0.6) for p, a in keep for q, b in keep]

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        if self.kind == "dropout":
            return self.layer(self.dropout(x) if self.fixed is None else x * self.fixed)
        if self.kind == "mask":
            kept = torch.bernoulli(torch.full_like(first, 0.6)) if self.fixed is None else self.fixed
            return self.layer(torch.stack([first * kept, second], -1))
        noise = torch.randn_like(first) if self.fixed is None else self.fixed
        return self.layer(torch.stack([first + noise, second], -1))


def random_oracle_and_data(kind: str) -> tuple[LinearGaussian, Tensor]:
    """The oracle with d = 1 and a guide that is random beyond its sample site, and two data."""
    oracle, x = oracle_and_data()
    guide = oracle.vae.posterior
    guide.network = RandomFeatures(guide.network.layers[0], kind)
    return oracle, x


def oracle_and_data() -> tuple[LinearGaussian, Tensor]:
    """The oracle with d = 1, for which expectations over K particles are quadratures, and two data."""
    oracle = LinearGaussian.random(d=1, n=2)
    return oracle, oracle.data(2)


Exact = Callable[[LinearGaussian, Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""From an oracle, data and c, the weight of the KL in log w_c = log p(x|t) + c (log p(t) - log q(t|x)): the expected value of
an estimator, the objective whose gradient w climbs, and the one whose gradient φ climbs, as functions of all parameters."""


class Quadrature:
    """E over ε_1..ε_K of functions of log w_c, for x (B, n), by Gauss-Hermite quadrature, differentiable by all parameters."""

    def __init__(self, oracle: LinearGaussian, x: Tensor, K: int, nodes: int, c: float = 1.0):
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        points, weights = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
        self.weights = torch.cartesian_prod(*[weights] * K).reshape(-1, K).prod(1)
        eps = torch.cartesian_prod(*[points] * K).reshape(-1, K).T[..., None]  # (K, nodes^K, 1)
        m, log_s = oracle.vae.posterior.network(x).chunk(2, -1)
        self.m, self.s, self.oracle, self.x, self.c = m[:, 0], log_s[:, 0].exp(), oracle, x, c
        self.t = self.m + self.s * eps  # (K, nodes^K, B)
        self.log_q = self.q.log_prob(self.t)
        self.log_w = self.log_weight(self.t)

    @property
    def q(self) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.m, self.s)

    def log_weight(self, t: Tensor) -> Tensor:
        """log w_c."""
        loc = t[..., None] * self.oracle.W[:, 0] + self.oracle.b
        log_lik = torch.distributions.Normal(loc, self.oracle.variance.sqrt()).log_prob(self.x).sum(-1)
        log_prior = torch.distributions.Normal(self.oracle.a, 1.0).log_prob(t)
        return log_lik + self.c * (log_prior - self.q.log_prob(t))

    def mean(self, value: Tensor) -> Tensor:
        """The expectation of (nodes^K, B), averaged over data."""
        return (self.weights @ value).mean()

    @property
    def log_q_fixed(self) -> Tensor:
        """log q at fixed t."""
        return self.q.log_prob(self.t.detach())

    @property
    def normalized(self) -> Tensor:
        return self.log_w.detach().softmax(0)


def log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - np.log(len(log_w))


def kl_to_prior(oracle: LinearGaussian, x: Tensor) -> Tensor:
    """KL(q(t|x)‖p(t)) (B,)."""
    m, log_s = oracle.vae.posterior.network(x).chunk(2, -1)
    normal = torch.distributions.Normal
    return kl_divergence(normal(m, log_s.exp()), normal(oracle.a, torch.ones_like(oracle.a))).sum(-1)


def elbo(oracle, x, c=1.0):
    value = (oracle.elbo(x) + (1 - c) * kl_to_prior(oracle, x)).mean()
    return value, value, value


def iwae(oracle, x, c=1.0, K=2, nodes=60):
    q = Quadrature(oracle, x, K, nodes, c)
    value = q.mean(log_mean(q.log_w))
    return value, value, value


def iwae_stl(oracle, x, c=1.0):
    q = Quadrature(oracle, x, 2, 60, c)
    value = q.mean(log_mean(q.log_w))
    return value, value, q.mean((q.normalized * (q.log_w + c * q.log_q_fixed)).sum(0))


def rws(oracle, x, c=1.0):
    q = Quadrature(oracle, x, 2, 60, c)
    value = q.mean(log_mean(q.log_w))
    return value, value, q.mean((q.normalized * q.log_q_fixed).sum(0))


def renyi(alpha, oracle, x, c=1.0):
    q = Quadrature(oracle, x, 2, 60, c)
    value = q.mean(log_mean((1 - alpha) * q.log_w) / (1 - alpha))
    return value, value, value


def ciwae(beta, oracle, x, c=1.0):
    value = beta * elbo(oracle, x, c)[0] + (1 - beta) * iwae(oracle, x, c)[0]
    return value, value, value


def piwae(oracle, x, c=1.0):
    """M = 2, K = 2: w climbs L_4, φ climbs L_2."""
    by_w = iwae(oracle, x, c, K=4, nodes=22)[0]
    return by_w, by_w, iwae(oracle, x, c)[0]


def piwae_of_two(oracle, x, c=1.0):
    """M = 2, K = 1: w climbs L_2, φ climbs the evidence lower bound."""
    by_w = iwae(oracle, x, c)[0]
    return by_w, by_w, elbo(oracle, x, c)[0]


def tvo(betas, oracle, x, c=1.0):
    """The limit of many particles: integrals over t."""
    q = Quadrature(oracle, x, 1, 4, c)
    t = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    log_w, log_q = q.log_weight(t), q.q.log_prob(t)
    value = torch.zeros((), dtype=torch.float64)
    for beta, after in pairwise(betas):
        pi = (log_q + beta * log_w).softmax(0)
        value = value + (after - beta) * (pi * log_w).sum(0).mean()
    return value, value, value
