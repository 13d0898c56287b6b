"""Guides that are Gaussians, whose parameters come from one network head."""

from __future__ import annotations

from math import log, pi
from typing import Any, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import pad

from pyro_vae.flows import Sizes
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Guide
from pyro_vae.special import bounded, in_float64, latent_scale


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
        self.network = network(dims.seen_shape, (2 * dims.latent,))

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
        self.network = network(dims.seen_shape, (2 * d + d * (d - 1) // 2,))
        self.register_buffer("place", below_diagonal(d), persistent=False)

    def forward(self, x: Tensor) -> Distribution:
        """Returns N(m, L Lᵀ) for x of shape ``(*batch, *x_shape)``."""
        d = self.dims.latent
        loc, log_diagonal, below = self.network(self.scaled(x)).split([d, d, d * (d - 1) // 2], dim=-1)
        scale = latent_scale(log_diagonal)
        return _FullRank(loc, scale_tril=_resolved(triangular(scale, below, self.place), scale))


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
        self.network = network(dims.seen_shape, ((2 + rank) * dims.latent,))

    def forward(self, x: Tensor) -> Distribution:
        """Returns N(m, W Wᵀ + diag s²) for x of shape ``(*batch, *x_shape)``."""
        d = self.dims.latent
        loc, log_scale, factor = self.network(self.scaled(x)).split([d, d, d * self.rank], dim=-1)
        scale = latent_scale(log_scale)
        return _LowRank(loc, _resolved(factor.unflatten(-1, (d, self.rank)), scale), scale)


_LONGEST = 1e3
"""The largest ratio of a number in a row of L or W to the scale of this row; above it, float32 does not resolve t."""
_FARTHEST = 1e36
"""The largest squared distance, in standard deviations, which float32 holds together with its gradient."""


def _resolved(matrix: Tensor, scale: Tensor) -> Tensor:
    """Returns the matrix with each row bounded relative to its scale (see `_LONGEST`)."""
    s = scale.unsqueeze(-1)
    within = matrix.abs() <= _LONGEST * s
    return torch.where(within, matrix, s * bounded(matrix / s, -_LONGEST, _LONGEST))


class _FullRank(dist.MultivariateNormal):
    """A Gaussian whose density is computed in float64, since the inverse of L may have very large numbers."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats."""
        L, distance = in_float64(self._unbroadcasted_scale_tril), in_float64(value - self.loc)
        eps = torch.linalg.solve_triangular(L, distance.unsqueeze(-1), upper=False).squeeze(-1)
        squares = (eps**2).sum(-1).clamp(max=_FARTHEST)
        half_log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (-0.5 * squares - half_log_det - 0.5 * L.shape[-1] * log(2 * pi)).to(self.loc.dtype)


class _LowRank(TorchDistribution):
    """N(m, W Wᵀ + diag s²), whose density is computed in float64, since Wᵀ diag s⁻² W may be nearly singular.

    Args:
        loc: m.
        factor: W.
        scale: s.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (as torch declares it)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, scale: Tensor) -> None:
        self.loc, self.factor, self.scale = loc, factor, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sizes, _instance: Any = None) -> _LowRank:
        """Returns the same distribution for more data or particles."""
        shapes = (self.loc.shape[-1:], self.factor.shape[-2:], self.scale.shape[-1:])
        parameters = zip((self.loc, self.factor, self.scale), shapes, strict=True)
        return _LowRank(*(value.expand(*batch_shape, *shape) for value, shape in parameters))

    def rsample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws W η + s ⊙ ε + m."""
        shape = self._extended_shape(Size(sample_shape))
        eta = torch.randn((*shape[:-1], self.factor.shape[-1]), dtype=self.loc.dtype, device=self.loc.device)
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ eta.unsqueeze(-1)).squeeze(-1) + self.scale * eps

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats, by the Woodbury identity."""
        s = in_float64(self.scale)
        A, u = in_float64(self.factor) / s.unsqueeze(-1), in_float64(value - self.loc) / s
        root = torch.linalg.cholesky(A.mT @ A + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device))
        v = torch.linalg.solve_triangular(root, (A.mT @ u.unsqueeze(-1)), upper=False).squeeze(-1)
        squares = ((u**2).sum(-1) - (v**2).sum(-1)).clamp(max=_FARTHEST)
        half_log_det = s.log().sum(-1) + root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (-0.5 * squares - half_log_det - 0.5 * s.shape[-1] * log(2 * pi)).to(self.loc.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        return (self.factor**2).sum(-1) + self.scale**2

    @property
    def covariance_matrix(self) -> Tensor:
        """The matrix W Wᵀ + diag s²."""
        return self.factor @ self.factor.mT + (self.scale**2).diag_embed()


def below_diagonal(d: int) -> Tensor:
    """Numbers the entries below the diagonal of a d×d matrix; all other entries get the number after the last."""
    rows, columns = torch.tril_indices(d, d, offset=-1, device="cpu")
    place = torch.full((d, d), len(rows), device="cpu")
    place[rows, columns] = torch.arange(len(rows), device="cpu")
    return place.to(torch.get_default_device())


def triangular(diagonal: Tensor, below: Tensor, place: Tensor) -> Tensor:
    """Returns the lower triangular matrices ``(*batch, d, d)`` of these numbers; ``place`` is from `below_diagonal`."""
    return diagonal.diag_embed() + pad(below, (0, 1))[..., place]  # all other entries get the added zero
