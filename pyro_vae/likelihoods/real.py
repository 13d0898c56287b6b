"""Likelihoods of pixels that are real numbers."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, pi
from typing import Any, Literal, final

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid

from pyro_vae.flows import Sizes
from pyro_vae.likelihoods.decoder_outputs import mean_or, stacked, unstacked
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Likelihood
from pyro_vae.special import Elementwise, bounded, stirling_remainder

_REMEMBERED = 100.0
"""The number of batches in the running mean of squared errors."""
_LARGEST_LOG_SCALE = 24.0
"""The bound of |log σ|. A square of σ, and of its reciprocal, is far inside the range of float32."""
_SMALLEST = 1e-12
"""The smallest variance, because a decoder that is exact on all data has no optimal scale."""


@final
class Normal(Likelihood):
    """p(x|t,w) = N(x; m(t), σ² I), so that p(x|w) = ∫ p(x|t,w) p(t) dt is an infinite mixture of Gaussians.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to the location m(t).
        scale: σ, or its initial value if it is learned, in units of x, or in standard deviations of the training data where
            these are standardized.
        learn_scale: how σ is learned; false fixes it. With true, log σ is one learned number for all pixels; with
            "pixel", it is one for each pixel. With "optimal" (Rybkin et al. 2021), σ² is the mean squared error, which
            is the optimum of E_q log p(x|t,w) in closed form, as a running mean over about the last hundred batches. A
            batch is scored before it enters this mean, so that p(x|t,w) does not depend on x. This σ is the optimum of
            the ELBO, and is larger than the optimum of bounds that weigh their particles. It changes in E-steps too.

    Raises:
        ValueError: the scale is not positive, or outside what float32 can square.
    """

    offset: Tensor
    log_scale: Tensor
    batches: Tensor

    def __init__(
        self,
        dims: Dims,
        network: NetworkFactory = MLP,
        scale: float = 1.0,
        learn_scale: bool | Literal["pixel", "optimal"] = False,
    ) -> None:
        super().__init__(dims)
        if not exp(-_LARGEST_LOG_SCALE) <= scale <= exp(_LARGEST_LOG_SCALE):
            raise ValueError(
                f"scale: expected a number from {exp(-_LARGEST_LOG_SCALE):.0e} to {exp(_LARGEST_LOG_SCALE):.0e}, got "
                f"{scale}; standardize the data, or bring them to other units"
            )
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", mean_or(dims, 0.0))
        log_scale = torch.full(dims.x_shape if learn_scale == "pixel" else (), scale).log()
        self.optimal = learn_scale == "optimal"
        if learn_scale and not self.optimal:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        if self.optimal:
            self.register_buffer("batches", torch.zeros(()))

    def forward(self, t: Tensor) -> Distribution:
        """Returns N(m(t), σ² I) for t of shape ``(*batch, d)``."""
        loc = self.network(t) + self.offset
        scale = bounded(self.log_scale, -_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE).exp()
        if self.optimal and self.training and torch.is_grad_enabled():
            return _Watched(loc, scale, self._follow).to_event(len(self.dims.x_shape))
        return dist.Normal(loc, scale).to_event(len(self.dims.x_shape))

    @torch.no_grad()
    def _follow(self, error: Tensor, there: Tensor | None) -> None:
        """Adds a batch's errors x - m(t) to the running mean of squares, at first the plain mean of all batches."""
        self.batches.add_(1).clamp_(max=_REMEMBERED)
        variance = (2 * self.log_scale).exp()
        if there is None:
            squares = (error**2).mean()
        else:
            number = there.expand_as(error).sum()
            squares = torch.where(there, error, 0.0).square().sum() / number.clamp(min=1)
            squares = torch.where(number > 0, squares, variance)
        variance = variance + (squares - variance) / self.batches
        self.log_scale.copy_(variance.clamp(min=_SMALLEST).log() / 2)


class _Watched(dist.Normal):
    """A Gaussian that reports the error x - loc of each value x that it scores.

    Args:
        loc: the location.
        scale: the scale.
        told: a function that is called with the errors x - loc, and with which of them are of observed values.
        there: which values are observed; None where all are.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, told: Callable[[Tensor, Tensor | None], None], there: Tensor | None = None
    ) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.told, self.there = told, there

    def where_observed(self, there: Tensor) -> _Watched:
        """Returns the same distribution, of values of which some are missing (see `pyro_vae.missing.Marginal`)."""
        return _Watched(self.loc, self.scale, self.told, there)

    def expand(self, batch_shape: Sizes, _instance: Any = None) -> _Watched:
        """Returns the same distribution for more data or particles."""
        return _Watched(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.told, self.there)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats."""
        log_prob = dist.Normal.log_prob(self, value)
        self.told(value - self.loc, self.there)
        return log_prob


@final
class Beta(Likelihood):
    """p(x|t,w) = ∏ Beta(x_j; m_j ν_j, (1 - m_j) ν_j) for gray pixels strictly between 0 and 1.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to logit m and log ν of each pixel.
        concentration: the initial value of ν.

    Raises:
        ValueError: the concentration is not positive.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, concentration: float = 10.0) -> None:
        dims = dims.in_units_of_x()
        super().__init__(dims)
        if not concentration > 0:
            raise ValueError(f"concentration: expected a positive number, got {concentration}")
        self.concentration = concentration
        self.network = network((dims.latent,), stacked(dims, 2))
        self.register_buffer("offset", mean_or(dims, 0.5).clamp(0.01, 0.99).logit())

    def forward(self, t: Tensor) -> Distribution:
        """Returns the Beta distributions of all pixels, for t of shape ``(*batch, d)``."""
        logit, log_ratio = unstacked(self.network(t), self.dims, 2)
        return _OpenBeta(logit + self.offset, log_ratio + log(self.concentration)).to_event(len(self.dims.x_shape))


class _BetweenZeroAndOne(Constraint):
    """The constraint 0 < x < 1."""

    advice = (
        ". Pixels at exactly 0 or 1 have no finite density under it: bring them inside, say x to (254 x + 0.5) / 255, or "
        "choose ContinuousBernoulli, which scores them"
    )

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each value is inside."""
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "the numbers between 0 and 1, without both"


class _OpenBeta(Elementwise):
    """A Beta distribution of mean m = sigmoid(l) and concentration ν, whose support does not contain 0 and 1.

    log ν is bounded by -40 and 40 (see `pyro_vae.special.bounded`): a pixel that is nearly certain, or whose
    distribution is narrower than the distance of two numbers in float32, has no better density in float32.

    Args:
        logit: l.
        log_concentration: log ν.
    """

    logit: Tensor
    log_concentration: Tensor
    support: Constraint = _BetweenZeroAndOne()

    def __init__(self, logit: Tensor, log_concentration: Tensor) -> None:
        super().__init__(logit=logit, log_concentration=log_concentration)

    def _logs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns log α, log β and log ν in float64, where α = m ν and β = (1 - m) ν."""
        logit, log_nu = self.logit.double(), bounded(self.log_concentration.double(), -40.0, 40.0)
        return log_nu + logsigmoid(logit), log_nu + logsigmoid(-logit), log_nu

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats.

        It is -ν KL(m‖x) - log x - log(1 - x), plus what Stirling's formula gives for the beta function. With δ =
        logit x - logit m, KL(m‖x) = log(1 + m (e^δ - 1)) - m δ, here for the smaller one of m and 1 - m.
        """
        log_a, log_b, log_nu = self._logs()
        x, logit = value.double(), self.logit.double()
        log_x, log_rest = x.log(), torch.log1p(-x)
        delta, large = log_x - log_rest - logit, logit > 0
        m, delta = torch.where(large, -logit, logit).sigmoid(), torch.where(large, -delta, delta)
        divergence = torch.log1p(m * torch.expm1(delta)) - m * delta
        a, b, nu = log_a.exp(), log_b.exp(), log_nu.exp()
        remainders = stirling_remainder(nu) - stirling_remainder(a) - stirling_remainder(b)
        constant = (log_a + log_b - log_nu - _LOG_2PI) / 2 + remainders
        return (constant - nu * divergence - log_x - log_rest).to(self.logit.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.logit.sigmoid()

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws numbers, of which those that round to 0 or 1 are moved to the number next to it.

        A draw is sigmoid(log g - log h) for gamma variables g and h, whose logarithms are drawn as those of
        Gamma(α + 1) plus log(u) / α, because a gamma variable itself underflows where α is small.
        """
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            logs = []
            for log_a in self._logs()[:2]:
                a = log_a.exp().expand(shape)
                uniform = torch.rand_like(a).clamp(min=1e-300)
                logs.append(torch._standard_gamma(a + 1).log() + uniform.log() / a)
            type_ = torch.finfo(self.logit.dtype)
            drawn = (logs[0] - logs[1]).sigmoid().to(self.logit.dtype)
            return drawn.clamp(type_.tiny, 1 - type_.eps / 2)


_LOG_2PI = log(2 * pi)
