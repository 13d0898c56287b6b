"""Guides that are Gaussians, whose parameters come from one network head."""

from __future__ import annotations

from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Guide
from pyro_vae.special import bounded, latent_scale


@final
class DiagonalNormal(Guide):
    """q(t|x,φ) = N(m, diag s²), where one network head gives m and log s (Kingma and Welling 2014, equation 9).

    Its samples are reparameterized: t = g(ε,x,φ) = ε ⊙ s + m with ε ~ N(0, I), so ∇φ passes through t.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to the 2d numbers (m, log s).
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        self.network = network(dims.x_shape, (2 * dims.latent,))

    def forward(self, x: Tensor) -> Distribution:
        """Returns N(m, diag s²) for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale = self.network(self.scaled(x)).chunk(2, dim=-1)
        # pyro.sample draws ε and returns ε ⊙ s + m: Normal.rsample is g.
        return dist.Normal(loc, latent_scale(log_scale)).to_event(1)


@final
class FullRankNormal(Guide):
    """q(t|x,φ) = N(m, L Lᵀ), where the network gives m, log diag L and the d (d - 1) / 2 numbers below the diagonal.

    The posterior of a linear-Gaussian model is of this form (Kingma and Welling 2019, section 2.5.1).

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to (m, log diag L, L below the diagonal).
    """

    place: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        d = dims.latent
        self.network = network(dims.x_shape, (2 * d + d * (d - 1) // 2,))
        self.register_buffer("place", below_diagonal(d), persistent=False)

    def forward(self, x: Tensor) -> Distribution:
        """Returns N(m, L Lᵀ) for x of shape ``(*batch, *x_shape)``."""
        d = self.dims.latent
        loc, log_diagonal, below = self.network(self.scaled(x)).split([d, d, d * (d - 1) // 2], dim=-1)
        return dist.MultivariateNormal(loc, scale_tril=triangular(latent_scale(log_diagonal), below, self.place))


@final
class LowRankNormal(Guide):
    """q(t|x,φ) = N(m, W Wᵀ + diag s²) where W has few columns (Rezende, Mohamed and Wierstra 2014, section 4.3).

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to (m, log s, W).
        rank: the number of columns of W.

    Raises:
        ValueError: the rank is below 1.
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, rank: int = 2) -> None:
        super().__init__(dims)
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        self.rank = rank
        self.network = network(dims.x_shape, ((2 + rank) * dims.latent,))

    def forward(self, x: Tensor) -> Distribution:
        """Returns N(m, W Wᵀ + diag s²) for x of shape ``(*batch, *x_shape)``."""
        d = self.dims.latent
        loc, log_scale, factor = self.network(self.scaled(x)).split([d, d, d * self.rank], dim=-1)
        return dist.LowRankMultivariateNormal(
            loc, factor.unflatten(-1, (d, self.rank)), (2 * bounded(log_scale, -15.0, 15.0)).exp()
        )


def below_diagonal(d: int) -> Tensor:
    """Numbers the entries below the diagonal of a d×d matrix; all other entries get the number after the last."""
    rows, columns = torch.tril_indices(d, d, offset=-1, device="cpu")
    place = torch.full((d, d), len(rows), device="cpu")
    place[rows, columns] = torch.arange(len(rows), device="cpu")
    return place.to(torch.get_default_device())


def triangular(diagonal: Tensor, below: Tensor, place: Tensor) -> Tensor:
    """Returns the lower triangular matrices ``(*batch, d, d)`` of these numbers; ``place`` is from `below_diagonal`."""
    return diagonal.diag_embed() + pad(below, (0, 1))[..., place]  # all other entries get the added zero
