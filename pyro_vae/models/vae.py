"""The VAE: a prior, a guide and a likelihood as a Pyro model and a Pyro guide."""

from __future__ import annotations

from typing import final

import pyro
from torch import Tensor

from pyro_vae.kinds import takes
from pyro_vae.models.base import ThreePartModel, check_prior, scored
from pyro_vae.parts import Guide, Likelihood, Parts, Prior, check_batch


@final
class VAE(ThreePartModel):
    """p(x|w) = ∫ p(x|t,w) p(t) dt with the amortized posterior q(t|x,φ) (Kingma and Welling 2014, equations 1-3).

    The sites of its programs are ``"t"`` and ``"x"``.

    Args:
        prior: p(t).
        guide: q(t|x,φ). It is kept as `posterior`, since `guide` is the Pyro program.
        likelihood: p(x|t,w).

    Raises:
        ValueError: the parts were built for different sizes, or the prior has no density.
        TypeError: an argument is not the kind of part that it must be.
    """

    def __init__(self, prior: Prior, guide: Guide, likelihood: Likelihood) -> None:
        super().__init__(guide.dims, prior, guide, likelihood)  # a likelihood may leave data in their units
        if guide.dims.x_shape != likelihood.dims.x_shape:
            raise ValueError(f"guide takes x of shape {guide.dims.x_shape}, likelihood gives {likelihood.dims.x_shape}")
        latents = {"prior": prior.dims.latent, "guide": guide.dims.latent, "likelihood": likelihood.dims.latent}
        if len(set(latents.values())) > 1:
            raise ValueError(f"parts of different latent sizes: {latents}")
        parts = Parts(prior, guide, likelihood)
        for part in parts:
            part.join(parts)
        check_prior(self)

    @takes
    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """Draws t ~ p(t) and x ~ p(x|t,w), where x is observed if it is given.

        Args:
            x: observed data ``(B, *x_shape)``. If it is None, x is drawn.
            n: the number of data that are drawn if x is None.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.
        """
        self.register("prior", self.prior)
        self.register("likelihood", self.likelihood)
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            t = pyro.sample("t", self.prior())
            sample: Tensor = pyro.sample("x", self.likelihood(self.prior.seen(t)), obs=scored(x, self.dims.x_shape))
        return sample

    @takes
    def guide(self, x: Tensor) -> Tensor:
        """Draws one t ~ q(t|x,φ) for each datum, or K of them inside a plate of particles.

        The encoder runs once for each datum in both cases.

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
