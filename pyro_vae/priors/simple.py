"""Priors p(t). Each is a `Prior`: ``prior()`` has batch shape ``()`` and event shape ``(d,)``."""

from __future__ import annotations

from typing import final

import pyro.distributions as dist
import torch

from pyro_vae.base import Dims, Distribution, Prior


@final
class StandardNormal(Prior):
    """p(t) = N(0, I) (Kingma and Welling 2014, section 3).

    Args:
        dims: the sizes, filled in by the program.
    """

    loc: torch.Tensor

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.register_buffer("loc", torch.zeros(dims.latent), persistent=False)

    def forward(self) -> Distribution:
        """Returns N(0, I)."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
