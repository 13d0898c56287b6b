"""Models with two stochastic layers, ``t2`` above ``t``: one generative model in two classes with different guides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.guides import DiagonalNormal
from pyro_vae.kinds import takes
from pyro_vae.models.base import ThreePartModel, check_prior, scored
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Guide, Likelihood, Prior, check_batch


class _TwoLayers(ThreePartModel):
    """p(t2) p(t|t2) p(x|t), with a guide that a subclass defines.

    The site ``"t"``, of dimension d, is next to the data, and ``"t2"`` is above it. The attribute `down` is p(t|t2). It
    is built like a guide, since it also maps a vector to a distribution, but its parameters belong to w.
    """

    def __init__(
        self,
        dims: Dims,
        prior: Callable[[Dims], Prior],
        guide: Callable[[Dims], Guide],
        likelihood: Callable[[Dims], Likelihood],
        top: int,
        between: Callable[[Dims], Guide],
    ) -> None:
        if top < 1:
            raise ValueError(f"top: expected a dimension of at least 1, got {top}")
        super().__init__(dims, prior(replace(dims, latent=top)), guide(dims), likelihood(dims))
        self.down = between(Dims(dims.latent, (top,)))
        check_prior(self)

    @final
    @takes
    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """Draws t2, t and x from p(t2) p(t|t2) p(x|t), where x is observed if it is given.

        Args:
            x: observed data ``(B, *x_shape)``. If it is None, x is drawn.
            n: the number of data that are drawn if x is None.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.
        """
        for role, part in (("prior", self.prior), ("down", self.down), ("likelihood", self.likelihood)):
            self.register(role, part)
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            t2 = pyro.sample("t2", self.prior())
            t = pyro.sample("t", self.down(self.prior.seen(t2)))
            sample: Tensor = pyro.sample("x", self.likelihood(self.down.seen(t)), obs=scored(x, self.dims.x_shape))
        return sample


@final
class TwoLayer(_TwoLayers):
    """p(t2) p(t|t2) p(x|t) with q(t|x) q(t2|t), the two-layer model of Burda et al. 2016 (section 5).

    The site ``"t"``, of dimension d, is next to the data, and ``"t2"`` is above it. The guide and the likelihood are
    q(t|x) and p(x|t), and the prior is p(t2). The parameters of p(t|t2) belong to w, those of q(t2|t) to φ.

    Args:
        dims: the sizes, filled in by the program.
        prior: p(t2), made from the sizes.
        guide: q(t|x), made from the sizes.
        likelihood: p(x|t), made from the sizes.
        top: the dimension of t2.
        between: the class of p(t|t2) and of q(t2|t). It may be any guide that needs no data, since a guide maps a
            vector to a distribution.

    Raises:
        ValueError: a dimension is below 1, or the prior is made of the guide, whose latent is not t2.
    """

    def __init__(
        self,
        dims: Dims,
        prior: Callable[[Dims], Prior],
        guide: Callable[[Dims], Guide],
        likelihood: Callable[[Dims], Likelihood],
        top: int = 50,
        between: Callable[[Dims], Guide] = DiagonalNormal,
    ) -> None:
        super().__init__(dims, prior, guide, likelihood, top, between)
        self.up = between(Dims(top, (dims.latent,)))

    @takes
    def guide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draws t and t2 from q(t|x) q(t2|t), with one pass of the encoder for each datum.

        Args:
            x: data ``(B, *x_shape)``.

        Returns:
            t and t2, of shapes ``(B, d)`` and ``(B, top)``, or of shapes ``(K, B, d)`` and ``(K, B, top)``.
        """
        check_batch(x, self.dims.x_shape)
        self.register("guide", self.posterior)
        self.register("up", self.up)
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", self.posterior(x))
            t2 = pyro.sample("t2", self.up(self.down.seen(t)))
        return t, t2


@final
class Ladder(_TwoLayers):
    """p(t2) p(t|t2) p(x|t) with q(t2|x) q(t|t2,x), in the order of the model (Sønderby et al. 2016, section 2.2).

    q(t|t2,x) is the normalized product of the model's own p(t|t2) and of the Gaussian N(m̂(x), diag ŝ²) that the
    encoder returns: precisions add, and means are weighted by the precisions (their equations 16 to 18). This product
    is the posterior in a linear-Gaussian model. The way up is deterministic: q(t2|x) is a Gaussian that a network
    computes from m̂ and log ŝ. The authors use batch normalization, which would make the bound of one datum depend on
    the others. This model has none.

    The site ``"t"``, of dimension d, is next to the data, and ``"t2"`` is above it. The guide gives m̂ and ŝ, the
    likelihood is p(x|t), and the prior is p(t2).

    Args:
        dims: the sizes, filled in by the program.
        prior: p(t2), made from the sizes.
        guide: the guide that gives m̂ and ŝ, made from the sizes. It is a `DiagonalNormal` with any network.
        likelihood: p(x|t), made from the sizes.
        top: the dimension of t2.
        network: the class of the networks of p(t|t2) and of the way up, q(t2|x).

    Raises:
        ValueError: a dimension is below 1, the prior is made of the guide, whose latent is not t2, or the guide is not
            a `DiagonalNormal`, since only two diagonal Gaussians have a product of the same kind.
    """

    def __init__(
        self,
        dims: Dims,
        prior: Callable[[Dims], Prior],
        guide: Callable[[Dims], Guide],
        likelihood: Callable[[Dims], Likelihood],
        top: int = 50,
        network: NetworkFactory = MLP,
    ) -> None:
        super().__init__(dims, prior, guide, likelihood, top, lambda inner: DiagonalNormal(inner, network))
        if not isinstance(self.posterior, DiagonalNormal):
            raise ValueError(
                f"guide: Ladder multiplies the guide's Gaussian with the model's, so that it takes DiagonalNormal alone; got "
                f"{type(self.posterior).__name__}"
            )
        self.up = DiagonalNormal(Dims(top, (2 * dims.latent,)), network)

    @takes
    def guide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draws t2 and t from q(t2|x) q(t|t2,x), with one pass of the encoder for each datum.

        Args:
            x: data ``(B, *x_shape)``.

        Returns:
            t2 and t, of shapes ``(B, top)`` and ``(B, d)``, or of shapes ``(K, B, top)`` and ``(K, B, d)``.
        """
        check_batch(x, self.dims.x_shape)
        self.register("guide", self.posterior)
        self.register("up", self.up)
        loc, scale = _moments(self.posterior(x))
        with pyro.plate("data", len(x), dim=-1):
            t2 = pyro.sample("t2", self.up(torch.cat([loc, scale.log()], -1)))
            t = pyro.sample("t", _product((loc, scale), _moments(self.down(self.prior.seen(t2)))))
        return t2, t


def _moments(normal: Distribution) -> tuple[Tensor, Tensor]:
    """Returns the location and the scale of independent Gaussians."""
    each: Any = normal
    return each.base_dist.loc, each.base_dist.scale


def _product(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Distribution:
    """Returns the normalized product of two densities of independent Gaussians."""
    (loc1, scale1), (loc2, scale2) = one, other
    # The shares of the precisions are computed without the precisions, which overflow where a scale is small.
    both = torch.hypot(scale1, scale2)
    loc = loc1 * (scale2 / both) ** 2 + loc2 * (scale1 / both) ** 2
    return dist.Normal(loc, scale1 * (scale2 / both)).to_event(1)
