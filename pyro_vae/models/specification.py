"""The choice of a model before its sizes are known: its parts, its class and the dimension of its latent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_type_hints

import torch
from torch.distributions import constraints

from pyro_vae.data import Splits
from pyro_vae.description import called_by
from pyro_vae.guides import DiagonalNormal
from pyro_vae.kinds import names_checked, require, settle
from pyro_vae.likelihoods import default_likelihood
from pyro_vae.models.base import Model
from pyro_vae.models.vae import VAE
from pyro_vae.parts import Dims, Guide, Likelihood, Prior
from pyro_vae.priors import StandardNormal
from pyro_vae.scopes import seeded
from pyro_vae.traces import layers

PriorFactory = Callable[[Dims], Prior]
GuideFactory = Callable[[Dims], Guide]
LikelihoodFactory = Callable[[Dims], Likelihood]
ModelFactory = Callable[[Dims, PriorFactory, GuideFactory, LikelihoodFactory], Model]


@names_checked
@dataclass(frozen=True)
class ModelSpec:
    """The choice of the model that is trained, before its sizes are known.

    Args:
        prior: The prior p(t).
        guide: The guide q(t|x,φ), with its network, the encoder.
        likelihood: The likelihood p(x|t,w), with its network, the decoder. The default is the one that fits the data,
            and is told: Bernoulli for 0 and 1, Binomial or NegativeBinomial for counts, DiscretizedLogistic for images of
            levels, such as 0..255, Normal with learned scales for real numbers.
        model: A model of another kind than p(t) p(x|t,w): TwoLayer and Ladder have two stochastic layers, Conditional
            is a model of data given their labels. The default is the VAE of prior, guide and likelihood.
        latent: d, the dimension of the latent t.

    Raises:
        WrongKindError: a field is of a wrong kind.
        ValueError: the latent has no dimension.
    """

    prior: PriorFactory = StandardNormal
    guide: GuideFactory = DiagonalNormal
    likelihood: LikelihoodFactory | None = None
    model: ModelFactory | None = None
    latent: int = 8

    def __post_init__(self) -> None:
        """Checks the kinds of the fields."""
        settle(self)
        require(vars(self), get_type_hints(ModelSpec), "ModelSpec")
        if self.latent < 1:
            raise ValueError(f"latent: expected a size of at least 1, got {self.latent}")

    def build(self, data: Splits, seed: int) -> Model:
        """Builds the model for these data, on the CPU, with first weights that depend on the seed alone.

        Raises:
            ValueError: a part cannot be built for these data, or the parts do not fit each other.
        """
        if called_by(self.model) is VAE:
            raise ValueError("model: the VAE of prior, guide and likelihood is the default: leave it out")
        likelihood = self.likelihood
        if likelihood is not None and data.standardize and data.support is constraints.unit_interval:
            data = data._replace(standardize=_describes_reals(likelihood, data, self.latent))
        if likelihood is None:
            likelihood = default_likelihood(data.support, data.train.x, data.standardize, data.view).likelihood
        # The first weights are the same wherever training runs.
        with seeded(torch.device("cpu"), seed, "first weights"):
            return assemble(data.dims(self.latent), self.prior, self.guide, likelihood, self.model)


def _describes_reals(likelihood: LikelihoodFactory, data: Splits, latent: int) -> bool:
    """Whether a likelihood describes all real numbers, and not those in [0, 1] alone. Standardized data are not in [0, 1]."""
    with seeded(torch.device("cpu"), "support"), torch.no_grad():
        made = likelihood(data._replace(standardize=False).dims(latent))
        support = layers(made.forward(torch.zeros(1, latent)))[-1].support
    return bool(support.check(torch.tensor([-1.0, 2.0])).all()) if not support.event_dim else True


def assemble(
    dims: Dims,
    prior: PriorFactory,
    guide: GuideFactory,
    likelihood: LikelihoodFactory,
    model: ModelFactory | None = None,
) -> Model:
    """Builds a model of these sizes: a `VAE` of the three parts, or a model of another class.

    Another class is given the functions that make the parts, since it may need parts of other sizes.
    """
    if model is None:
        return VAE(prior(dims), guide(dims), likelihood(dims))
    return model(dims, prior, guide, likelihood)
