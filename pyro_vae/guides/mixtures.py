"""Guides that are mixtures."""

from __future__ import annotations

from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.flows import Sizes
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Guide
from pyro_vae.special import Mixture, latent_scale


@final
class MixtureOfNormals(Guide):
    """q(t|x,φ) = Σ_c π_c N(m_c, diag s_c²), where the network gives π, m and s.

    Implicit reparameterization (Figurnov, Mohamed and Mnih 2018) gives its samples gradients by m, s and π.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to m, log s and a logit of π for each component.
        components: the number of Gaussians.

    Raises:
        ValueError: there is no component.
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, components: int = 3) -> None:
        super().__init__(dims)
        if components < 1:
            raise ValueError(f"components: expected at least 1, got {components}")
        self.components = components
        self.network = network(dims.seen_shape, (components * (2 * dims.latent + 1),))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the mixture for x of shape ``(*batch, *x_shape)``."""
        C, d = self.components, self.dims.latent
        loc, log_scale, logits = self.network(self.scaled(x)).split([C * d, C * d, C], dim=-1)
        each = dist.Normal(loc.unflatten(-1, (C, d)), latent_scale(log_scale.unflatten(-1, (C, d)))).to_event(1)
        return _Mixture(dist.Categorical(logits=logits), each)


class _Mixture(Mixture):
    """A mixture of diagonal Gaussians whose samples are functions of its parameters.

    Pyro's ``MixtureOfDiagNormals`` is not used, because its gradient by the weights is biased (as of Pyro 1.9.2).
    """

    has_rsample = True

    def rsample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws a t whose derivative solves dF_j(t_j|t_<j) = 0 for one coordinate j after the other.

        F_j is the conditional distribution function of t_j. Given the coordinates before it, t_j is distributed as a
        mixture of Gaussians whose weights are π_c ∏_{i<j} N(t_i; m_ci, s_ci²), normalized.
        """
        drawn = self.sample(torch.Size(sample_shape))
        loc, scale = self.component_distribution.base_dist.loc, self.component_distribution.base_dist.scale
        log_weight, coordinates = self.mixture_distribution.logits, []
        for j in range(drawn.shape[-1]):
            each, at = dist.Normal(loc[..., j], scale[..., j]), drawn[..., j, None]
            weight = log_weight.softmax(-1)
            F, density = (weight * each.cdf(at)).sum(-1), (weight * each.log_prob(at).exp()).sum(-1)
            t = drawn[..., j] - (F - F.detach()) / density.detach()
            log_weight = log_weight + each.log_prob(t[..., None])
            coordinates.append(t)
        return torch.stack(coordinates, -1)
