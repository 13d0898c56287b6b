"""A model that is still to be told its sizes: which parts, put together how, with how many latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_vae.data import Splits
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import default_likelihood
from pyro_vae.models.base import Model
from pyro_vae.models.vae import VAE
from pyro_vae.parts import Dims, Guide, Likelihood, Prior
from pyro_vae.priors import StandardNormal
from pyro_vae.scopes import seeded

PriorFactory = Callable[[Dims], Prior]
GuideFactory = Callable[[Dims], Guide]
LikelihoodFactory = Callable[[Dims], Likelihood]
ModelFactory = Callable[[Dims, PriorFactory, GuideFactory, LikelihoodFactory], Model]


@dataclass(frozen=True)
class ModelSpec:
    """Which model is trained, before its sizes are known.

    Args:
        prior: The prior p(t).
        guide: The guide q(t|x,φ), with its network, the encoder.
        likelihood: The likelihood p(x|t,w), with its network, the decoder. By default the one that fits the data: Bernoulli
            for binary pixels, Binomial for counts, Normal with a learned scale for other numbers.
        model: A model of another kind than p(t) p(x|t,w): TwoLayer and Ladder have two stochastic layers, Conditional is a model
            of data given their labels. By default the VAE of prior, guide and likelihood.
        latent: d, the dimension of the latent t.
    """

    prior: PriorFactory = StandardNormal
    guide: GuideFactory = DiagonalNormal
    likelihood: LikelihoodFactory | None = None
    model: ModelFactory | None = None
    latent: int = 8

    def build(self, data: Splits, seed: int) -> Model:
        """The model for these data, on the CPU, with the first weights that the seed decides.

        Raises:
            ValueError: a part cannot be built for these data, or the parts do not fit each other.
        """
        likelihood = self.likelihood or default_likelihood(data.support)
        with seeded(torch.device("cpu"), seed, "first weights"):  # the same first weights, wherever training runs
            return assemble(data.dims(self.latent), self.prior, self.guide, likelihood, self.model)


def assemble(
    dims: Dims,
    prior: PriorFactory,
    guide: GuideFactory,
    likelihood: LikelihoodFactory,
    model: ModelFactory | None = None,
) -> Model:
    """The model of these sizes: a `VAE` of the three parts, or another class, which is told what makes them."""
    if model is None:
        return VAE(prior(dims), guide(dims), likelihood(dims))
    return model(dims, prior, guide, likelihood)
