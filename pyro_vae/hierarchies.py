"""Models with more than one stochastic layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import final

import pyro
from torch import Tensor

from pyro_vae.base import Dims, Guide, Likelihood, Prior
from pyro_vae.guides import DiagonalNormal
from pyro_vae.vae import Model, check_prior


@final
class TwoLayer(Model):
    """p(t2) p(t|t2) p(x|t) with q(t|x) q(t2|t), the two-layer model of Burda et al. 2016 (section 5).

    The site ``"t"``, of dimension d, is next to the data, and ``"t2"`` above it. The guide and the likelihood are q(t|x) and
    p(x|t), and the prior is p(t2). p(t|t2) belongs to w, q(t2|t) to φ.

    Args:
        dims: the sizes, filled in by the program.
        prior: p(t2), filled in by the program.
        guide: q(t|x), filled in by the program.
        likelihood: p(x|t), filled in by the program.
        top: dimension of t2.
        between: the class of p(t|t2) and of q(t2|t): any guide that needs no data, since one maps a vector to a distribution.

    Raises:
        ValueError: a dimension below 1, or a prior that is made of the guide, whose latent is not t2.
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
        if top < 1:
            raise ValueError(f"top: expected a dimension of at least 1, got {top}")
        super().__init__(prior(replace(dims, latent=top)), guide(dims), likelihood(dims))
        self.down, self.up = between(Dims(dims.latent, (top,))), between(Dims(top, (dims.latent,)))
        check_prior(self.prior)

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """p(t2) p(t|t2) p(x|t).

        Args:
            x: observed data ``(B, *x_shape)``; None draws x.
            n: how many data are drawn where x is None.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.
        """
        for role, part in (("prior", self.prior), ("down", self.down), ("likelihood", self.likelihood)):
            self.register(role, part)
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            t2 = pyro.sample("t2", self.prior())
            t = pyro.sample("t", self.down(t2))
            sample: Tensor = pyro.sample("x", self.likelihood(t), obs=x)
        return sample

    def guide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(t|x) q(t2|t), with one pass of the encoder for each datum.

        Args:
            x: data ``(B, *x_shape)``.

        Returns:
            t and t2, of shapes ``(B, d)`` and ``(B, top)``, or with K leading.
        """
        self.register("guide", self.posterior)
        self.register("up", self.up)
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", self.posterior(x))
            t2 = pyro.sample("t2", self.up(t))
        return t, t2
