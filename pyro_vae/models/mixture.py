"""A model of clusters: a class of each datum that is never told, and is summed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.kinds import takes
from pyro_vae.models.base import ThreePartModel, check_prior, scored
from pyro_vae.parts import Dims, Guide, Likelihood, Prior, check_batch
from pyro_vae.special import latent_scale


class _Clusters(nn.Module):
    """The logits of p(y), and m_y and log s_y."""

    def __init__(self, clusters: int, d: int, spread: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(clusters))
        self.loc = nn.Parameter(spread * torch.randn(clusters, d))
        self.log_scale = nn.Parameter(torch.zeros(clusters, d))


@final
class MixtureVAE(ThreePartModel):
    """p(y) p(t|y) p(x|t) with q(t|x), where the class y is summed out (Jiang et al. 2017, VaDE, without pretraining).

    Given y, t = m_y + s_y ⊙ u with u from the prior, and learned m_y and s_y. The guide does not sample y: every bound is one
    on log p(x), with log p(t) = log Σ_y p(y) p(t|y). The clusters are p(y|x), which the metric `Classes` compares with labels.

    Args:
        dims: the sizes, filled in by the program.
        prior: the prior of u, made from the sizes.
        guide: q(t|x), made from the sizes.
        likelihood: p(x|t), made from the sizes.
        clusters: the number of classes y.
        spread: the standard deviation of the first m_y, which are drawn at random.

    Raises:
        ValueError: there are fewer than 2 clusters, the spread is negative, or the prior has no density.
    """

    def __init__(
        self,
        dims: Dims,
        prior: Callable[[Dims], Prior],
        guide: Callable[[Dims], Guide],
        likelihood: Callable[[Dims], Likelihood],
        clusters: int = 10,
        spread: float = 1.0,
    ) -> None:
        if clusters < 2 or not 0 <= spread < float("inf"):
            raise ValueError(
                f"MixtureVAE: expected at least 2 clusters and a spread of at least 0, got {clusters} and {spread}"
            )
        super().__init__(dims, prior(dims), guide(dims), likelihood(dims))
        self.clusters = _Clusters(clusters, dims.latent, spread)
        check_prior(self)

    @takes
    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """Draws y, t and x from p(y) p(t|y) p(x|t), where x is observed if it is given.

        Args:
            x: observed data ``(B, *x_shape)``. If it is None, x is drawn.
            n: the number of data that are drawn if x is None.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.
        """
        self.register("prior", self.prior)
        self.register("likelihood", self.likelihood)
        self.register("clusters", self.clusters)
        of = self.clusters
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(logits=of.weights), infer={"enumerate": "parallel"})
            moved = dist.transforms.AffineTransform(y @ of.loc, latent_scale(y @ of.log_scale), event_dim=1)
            t = pyro.sample("t", dist.TransformedDistribution(self.prior(), [moved]))
            sample: Tensor = pyro.sample("x", self.likelihood(t), obs=scored(x, self.dims.x_shape))
        return sample

    @takes
    def guide(self, x: Tensor) -> Tensor:
        """Draws t from q(t|x).

        Args:
            x: data ``(B, *x_shape)``.

        Returns:
            t, of shape ``(B, d)`` or ``(K, B, d)``.
        """
        check_batch(x, self.dims.x_shape)
        self.register("guide", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            sample: Tensor = pyro.sample("t", self.posterior(x))
        return sample
