"""Likelihoods of pixels that are counts."""

from __future__ import annotations

from math import inf, pi
from typing import final

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid

from pyro_vae.flows import Sizes
from pyro_vae.likelihoods.decoder_outputs import logit_of_mean, mean_or
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Likelihood
from pyro_vae.special import Elementwise, bounded, stirling_remainder

_LIMIT = 80.0
"""Log rates and log shapes are `bounded` by 80 from above: the rate is a term of the log-probability, which float32 holds up to
e^88, and a sum over pixels must be finite too. From below no bound is needed, since all is computed in float64, where a rate
of 0 is right as well: k log rate is the whole log-probability, and k its gradient."""
_SMALLEST = -300.0
"""Log shapes are `bounded` from below too: the squares of r and 1/r that derivatives contain are then finite in float64."""


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
        return _Binomial(self.total_count, logits).to_event(len(self.dims.x_shape))


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
        return _Poisson(self.network(t) + self.offset).to_event(len(self.dims.x_shape))


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
        return _NegativeBinomial(log_mean, self.log_shape.expand_as(log_mean)).to_event(len(self.dims.x_shape))


# The terms below cancel to a few nats although each grows with the counts: they are computed in float64, and the terms
# of the data, which have no gradient, too. Draws are made in float64. A draw above 2^24 is rounded to a number that the
# type of the parameters holds; that is a whole number too.


class _Binomial(Elementwise):
    """Binomial(n, sigmoid(l)), right within 1e-4 nats up to n = 1e10.

    Args:
        total_count: n.
        logits: l.
    """

    logits: Tensor

    def __init__(self, total_count: int, logits: Tensor) -> None:
        self.total_count = total_count
        super().__init__(logits=logits)

    @property
    def support(self) -> Constraint:
        """The support is the counts 0..n."""
        return constraints.integer_interval(0, self.total_count)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log [n! / (k! (n - k)!)] + k l - n log(1 + e^l), in nats."""
        k, logits, n = value.double(), self.logits.double(), float(self.total_count)
        log_choose = torch.lgamma(k.new_tensor(n + 1)) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return (log_choose + k * logits + n * logsigmoid(-logits)).to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean n sigmoid(l)."""
        return self.total_count * self.logits.sigmoid()

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws counts. The rarer of the two outcomes is counted, whose probability is exact."""
        with torch.no_grad():
            logits = self.logits.double().expand(self._extended_shape(Size(sample_shape)))
            rarer = torch.binomial(torch.full_like(logits, self.total_count), (-logits.abs()).sigmoid())
            drawn = torch.where(logits > 0, self.total_count - rarer, rarer).to(self.logits.dtype)
            inside = drawn.double() <= self.total_count  # n itself may have been rounded upward
            return torch.where(inside, drawn, drawn.nextafter(torch.zeros_like(drawn)))


class _Poisson(Elementwise):
    """Poisson(exp(a)), for rates from 0 to 5e34 (see `_LIMIT`).

    Args:
        log_rate: a.
    """

    log_rate: Tensor
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor) -> None:
        super().__init__(log_rate=log_rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability in nats, relative to that of the rate which equals the count."""
        k = value.double()
        c = k.clamp(min=_NO_COUNT)
        delta = _bounded_log(self.log_rate) - c.log()
        at_count = torch.where(k > 0, -stirling_remainder(c) - (2 * pi * c).log() / 2, 0.0)
        return (at_count + k * delta - c * torch.expm1(delta)).to(self.log_rate.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean exp(a)."""
        return _bounded_log(self.log_rate).exp().to(self.log_rate.dtype)

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws counts."""
        with torch.no_grad():
            rate = _bounded_log(self.log_rate).exp().expand(self._extended_shape(Size(sample_shape)))
            return _poisson(rate).to(self.log_rate.dtype)


class _NegativeBinomial(Elementwise):
    """The negative binomial distribution of mean exp(a) and shape exp(ρ), which tends to `_Poisson` as ρ grows.

    Args:
        log_mean: a.
        log_shape: ρ.
    """

    log_mean: Tensor
    log_shape: Tensor
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_shape: Tensor) -> None:
        super().__init__(log_mean=log_mean, log_shape=log_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability in nats, relative to that of the mean which equals the count.

        With δ = log(μ / k), it is k δ - (k + r) log(1 + k (e^δ - 1) / (k + r)) plus the log probability at μ = k, which
        is taken by Stirling's remainders.
        """
        k, r = value.double(), _bounded_shape(self.log_shape).exp()
        c = k.clamp(min=_NO_COUNT)
        log_mean = _bounded_log(self.log_mean)
        delta = log_mean - c.log()
        remainders = stirling_remainder(c + r) - stirling_remainder(r) - stirling_remainder(c)
        at_count = remainders - ((2 * pi * c).log() + torch.log1p(c / r)) / 2
        ratio = c / (c + r) * torch.expm1(delta)  # (μ + r) / (k + r) - 1, which rounds to -1 where μ and r are small
        far = ratio < -0.5
        near = torch.log1p(torch.where(far, 0.0, ratio))
        log_ratio = torch.where(far, (log_mean.exp() + r).log() - (c + r).log(), near)
        moved = k * delta - (c + r) * log_ratio
        return (torch.where(k > 0, at_count, 0.0) + moved).to(self.log_mean.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean exp(a)."""
        return _bounded_log(self.log_mean).exp().to(self.log_mean.dtype)

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws counts from Poisson distributions whose rates are drawn from a gamma distribution."""
        with torch.no_grad():
            shape = self._extended_shape(Size(sample_shape))
            r = _bounded_shape(self.log_shape).exp().expand(shape)
            rate = torch._standard_gamma(r) / r * _bounded_log(self.log_mean).exp()
            return _poisson(rate).to(self.log_mean.dtype)


_NO_COUNT = 1e-30
"""A count of 0 is compared with this number, because log 0 is infinite."""
_LARGE_RATE = 1e9
"""From this rate on, PyTorch's sampler overflows on some devices, and a Gaussian differs by less than 1e-4 in its shape."""


def _bounded_log(number: Tensor) -> Tensor:
    return bounded(number.double(), -inf, _LIMIT)


def _bounded_shape(number: Tensor) -> Tensor:
    return bounded(number.double(), _SMALLEST, _LIMIT)


def _poisson(rate: Tensor) -> Tensor:
    gaussian = (rate + rate.sqrt() * torch.randn_like(rate)).round()
    return torch.where(rate < _LARGE_RATE, torch.poisson(rate.clamp(max=_LARGE_RATE)), gaussian)
