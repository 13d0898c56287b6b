"""Likelihoods of pixels that are real numbers."""

from __future__ import annotations

from typing import Literal, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_vae.base import Dims, Distribution, Likelihood
from pyro_vae.likelihoods.links import mean_or, stacked, unstacked
from pyro_vae.networks import MLP, NetworkFactory


@final
class Normal(Likelihood):
    """p(x|t,w) = N(x; m(t), σ² I), so that p(x|w) = ∫ p(x|t,w) p(t) dt is an infinite mixture of Gaussians.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, from t to the location m(t).
        scale: σ, or where it starts if it is learned, in units of x.
        learn_scale: learn σ, as its logarithm: one number for all pixels (true), or one for each pixel ("pixel").

    Raises:
        ValueError: a scale that is not positive.
    """

    offset: Tensor
    log_scale: Tensor

    def __init__(
        self,
        dims: Dims,
        network: NetworkFactory = MLP,
        scale: float = 1.0,
        learn_scale: bool | Literal["pixel"] = False,
    ) -> None:
        super().__init__(dims)
        if not scale > 0:
            raise ValueError(f"scale: expected a positive number, got {scale}")
        self.network = network((dims.latent,), dims.x_shape)
        self.register_buffer("offset", mean_or(dims, 0.0))
        log_scale = torch.full(dims.x_shape if learn_scale == "pixel" else (), scale).log()
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, t: Tensor) -> Distribution:
        """Returns N(m(t), σ² I) for t of shape ``(*batch, d)``."""
        loc = self.network(t) + self.offset
        return dist.Normal(loc, self.log_scale.exp()).to_event(len(self.dims.x_shape))


@final
class Beta(Likelihood):
    """p(x|t,w) = ∏ Beta(x_j; m_j ν_j, (1 - m_j) ν_j) for grey pixels strictly between 0 and 1.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, from t to logit m and log ν of each pixel.
        concentration: ν at the start.

    Raises:
        ValueError: a concentration that is not positive.
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
    """0 < x < 1."""

    advice = (
        ". Pixels at exactly 0 or 1 have no finite density under it: bring them inside, say x to (254 x + 0.5) / 255, or "
        "choose ContinuousBernoulli, which scores them"
    )

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is inside."""
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "the numbers between 0 and 1, without both"


class _OpenBeta(dist.Beta):
    """A Beta distribution that does not claim to score 0 and 1."""

    support: Constraint = _BetweenZeroAndOne()  # type: ignore[assignment]
