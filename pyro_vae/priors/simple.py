"""Priors whose coordinates are independent."""

from __future__ import annotations

from math import inf, pi
from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.parts import Dims, Distribution, Prior
from pyro_vae.special import latent_scale, stirling_remainder


@final
class StandardNormal(Prior):
    """p(t) = N(0, I) (Kingma and Welling 2014, section 3).

    Args:
        dims: the sizes, filled in by the program.
    """

    loc: Tensor

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.register_buffer("loc", torch.zeros(dims.latent), persistent=False)

    def forward(self) -> Distribution:
        """Returns N(0, I)."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


@final
class Normal(Prior):
    """p(t) = N(a, diag b²) with learned a and b, which start at 0 and 1.

    Args:
        dims: the sizes, filled in by the program.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(dims.latent)), nn.Parameter(torch.zeros(dims.latent))

    def forward(self) -> Distribution:
        """Returns N(a, diag b²)."""
        return dist.Normal(self.loc, latent_scale(self.log_scale)).to_event(1)


@final
class Laplace(Prior):
    """p(t) = ∏ Laplace(t_j; 0, scale), which makes latents sparser than a normal distribution does.

    Args:
        dims: the sizes, filled in by the program.
        scale: the scale of each coordinate's distribution; the standard deviation is √2 times the scale.

    Raises:
        ValueError: the scale is not positive.
    """

    loc: Tensor

    def __init__(self, dims: Dims, scale: float = 0.7071) -> None:
        super().__init__(dims)
        if not scale > 0:
            raise ValueError(f"scale: expected a positive number, got {scale}")
        self.scale = scale
        self.register_buffer("loc", torch.zeros(dims.latent), persistent=False)

    def forward(self) -> Distribution:
        """Returns the product of the Laplace distributions."""
        return dist.Laplace(self.loc, torch.full_like(self.loc, self.scale)).to_event(1)


@final
class StudentT(Prior):
    """p(t) = ∏ StudentT(t_j; df, 0, scale), which has heavier tails than a normal distribution.

    Args:
        dims: the sizes, filled in by the program.
        df: the degrees of freedom; 1 gives the Cauchy distribution.
        scale: the scale of each coordinate's distribution.

    Raises:
        ValueError: the degrees of freedom or the scale are not positive and finite.
    """

    loc: Tensor

    def __init__(self, dims: Dims, df: float = 5.0, scale: float = 1.0) -> None:
        super().__init__(dims)
        if not (0 < df < inf and 0 < scale < inf):
            raise ValueError(f"df and scale: expected positive finite numbers, got {df} and {scale}")
        self.df, self.scale = df, scale
        self.register_buffer("loc", torch.zeros(dims.latent), persistent=False)

    def forward(self) -> Distribution:
        """Returns the product of Student's t-distributions."""
        df, scale = torch.full_like(self.loc, self.df), torch.full_like(self.loc, self.scale)
        return _StudentT(df, self.loc, scale).to_event(1)


class _StudentT(dist.StudentT):
    """Student's t-distribution, whose density is right for large degrees of freedom and for values far out."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats, in float64: the constant is a difference of two log Γ."""
        df, half = self.df.double(), self.df.double() / 2
        y = (value - self.loc).double() / self.scale.double()
        # log Γ(h + ½) - log Γ(h) by Stirling's remainders, which tends to log √h
        remainders = stirling_remainder(half + 0.5) - stirling_remainder(half)
        ratio = half * torch.log1p(0.5 / half) - 0.5 + half.log() / 2 + remainders
        constant = ratio - (df * pi).log() / 2 - self.scale.double().log()
        return (constant - (df + 1) / 2 * torch.log1p(y**2 / df)).to(value.dtype)
