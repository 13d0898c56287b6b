"""Likelihoods of pixels that are real numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_vae.flows import Sizes
from pyro_vae.likelihoods.decoder_outputs import mean_or, stacked, unstacked
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Likelihood

_REMEMBERED = 100.0
"""The number of batches in the running mean of squared errors."""
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
        ValueError: the scale is not positive.
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
        if not scale > 0:
            raise ValueError(f"scale: expected a positive number, got {scale}")
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
        if self.optimal and self.training and torch.is_grad_enabled():
            return _Watched(loc, self.log_scale.exp(), self._follow).to_event(len(self.dims.x_shape))
        return dist.Normal(loc, self.log_scale.exp()).to_event(len(self.dims.x_shape))

    @torch.no_grad()
    def _follow(self, error: Tensor) -> None:
        """Adds a batch's errors x - m(t) to the running mean of squares, at first the plain mean of all batches."""
        self.batches.add_(1).clamp_(max=_REMEMBERED)
        variance = (2 * self.log_scale).exp()
        variance = variance + ((error**2).mean() - variance) / self.batches
        self.log_scale.copy_(variance.clamp(min=_SMALLEST).log() / 2)


class _Watched(dist.Normal):
    """A Gaussian that reports the error x - loc of each value x that it scores.

    Args:
        loc: the location.
        scale: the scale.
        told: a function that is called with the errors x - loc.
    """

    def __init__(self, loc: Tensor, scale: Tensor, told: Callable[[Tensor], None]) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.told = told

    def expand(self, batch_shape: Sizes, _instance: Any = None) -> _Watched:
        """Returns the same distribution for more data or particles."""
        return _Watched(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.told)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats."""
        log_prob = dist.Normal.log_prob(self, value)
        self.told(value - self.loc)
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
        super().__init__(dims)
        if not concentration > 0:
            raise ValueError(f"concentration: expected a positive number, got {concentration}")
        self.concentration = concentration
        self.network = network((dims.latent,), stacked(dims, 2))
        self.register_buffer("offset", mean_or(dims, 0.5).clamp(0.01, 0.99).logit())

    def forward(self, t: Tensor) -> Distribution:
        """Returns the Beta distributions of all pixels, for t of shape ``(*batch, d)``."""
        logit, log_ratio = unstacked(self.network(t), self.dims, 2)
        m, nu = (logit + self.offset).sigmoid(), self.concentration * log_ratio.exp()
        return _OpenBeta(m * nu, (1 - m) * nu).to_event(len(self.dims.x_shape))


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


class _OpenBeta(dist.Beta):
    """A Beta distribution whose support does not contain 0 and 1."""

    support: Constraint = _BetweenZeroAndOne()  # type: ignore[assignment]
