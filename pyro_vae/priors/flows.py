"""Priors that are flows with an exact density: t = f(z), z ~ N(0, I), scored by z = f⁻¹(t).

All start near N(0, I). The masked autoregressive flows score in one pass and draw coordinate by coordinate; coupling
layers do both in one or two passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.flows import FlowDistribution, autoregressive, spline
from pyro_vae.parts import Dims, Distribution, Prior


@final
class MaskedAutoregressiveFlow(Prior):
    """A masked autoregressive flow: z_j is affine in t_j, with shift and scale from t_<j (Papamakarios et al. 2017).

    Args:
        dims: the sizes, filled in by the program.
        transforms: the number of autoregressive transforms, which follow each other.
        hidden: the width of each hidden layer of the transforms' networks.

    Raises:
        ValueError: there is no transform, no hidden layer, or a hidden width below 1.
    """

    loc: Tensor

    def __init__(self, dims: Dims, transforms: int = 3, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__(dims)
        self.register_buffer("loc", torch.zeros(dims.latent), persistent=False)
        self.flow = autoregressive(dims.latent, 0, transforms, hidden)

    def forward(self) -> Distribution:
        """Returns the distribution of f(z)."""
        return _flow(self.loc, self.flow)


@final
class CouplingFlow(Prior):
    """Affine coupling layers: one half of z is affine in the same half of t, given the other half (Dinh et al. 2017).

    Args:
        dims: the sizes, filled in by the program.
        transforms: the number of coupling layers, which follow each other.
        hidden: the width of each hidden layer of the transforms' networks.

    Raises:
        ValueError: there is no transform, no hidden layer, or a hidden width below 1.
    """

    loc: Tensor

    def __init__(self, dims: Dims, transforms: int = 4, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__(dims)
        self.register_buffer("loc", torch.zeros(dims.latent), persistent=False)
        self.flow = autoregressive(dims.latent, 0, transforms, hidden, passes=2)

    def forward(self) -> Distribution:
        """Returns the distribution of f(z)."""
        return _flow(self.loc, self.flow)


@final
class SplineFlow(Prior):
    """Autoregressive rational-quadratic splines on [-5, 5] (Durkan et al. 2019).

    Args:
        dims: the sizes, filled in by the program.
        transforms: the number of autoregressive transforms, which follow each other.
        hidden: the width of each hidden layer of the transforms' networks.
        bins: the number of bins of each spline.

    Raises:
        ValueError: there is no transform, no hidden layer, a hidden width below 1, or fewer than two bins.
    """

    loc: Tensor

    def __init__(self, dims: Dims, transforms: int = 2, hidden: Sequence[int] = (128, 128), bins: int = 8) -> None:
        super().__init__(dims)
        self.register_buffer("loc", torch.zeros(dims.latent), persistent=False)
        self.flow = autoregressive(dims.latent, 0, transforms, hidden, **spline(bins))

    def forward(self) -> Distribution:
        """Returns the distribution of f(z)."""
        return _flow(self.loc, self.flow)


def _flow(loc: Tensor, flow: nn.Module) -> Distribution:
    """Returns the distribution of f(z), for networks that compute f⁻¹."""
    return FlowDistribution(dist.Normal(loc, torch.ones_like(loc)).to_event(1), flow(None).inv)
