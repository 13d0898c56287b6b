"""Guides q(t|x,φ). Each is a `Guide`: ``guide(x)`` has the batch shape of x and event shape ``(d,)``."""

from __future__ import annotations

from typing import final

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.base import Dims, Distribution, Guide
from pyro_vae.networks import MLP, NetworkFactory


@final
class DiagonalNormal(Guide):
    """q(t|x,φ) = N(m, diag s²), where one network head gives m and log s (Kingma and Welling 2014, equation 9).

    Its samples are reparameterised: t = g(ε,x,φ) = ε ⊙ s + m with ε ~ N(0, I), so ∇φ passes through t.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, from x to the 2d numbers (m, log s).
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        self.network = network(dims.x_shape, (2 * dims.latent,))

    def forward(self, x: Tensor) -> Distribution:
        """Returns N(m, diag s²) for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        # pyro.sample draws ε and returns ε ⊙ s + m: Normal.rsample is g.
        return dist.Normal(loc, log_scale.exp()).to_event(1)
