"""Variational autoencoders as probabilistic programs in Pyro."""

from pyro_vae._version import version as __version__
from pyro_vae.arviz import pit_to_arviz, to_arviz, to_elpd
from pyro_vae.estimators import Estimator
from pyro_vae.models import VAE, Model, ModelSpec
from pyro_vae.parts import Dims, Guide, Likelihood, Network, Prior
from pyro_vae.runs import load, save
from pyro_vae.training import TrainingPlan, fit

__all__ = [
    "VAE",
    "Dims",
    "Estimator",
    "Guide",
    "Likelihood",
    "Model",
    "ModelSpec",
    "Network",
    "Prior",
    "TrainingPlan",
    "__version__",
    "fit",
    "load",
    "pit_to_arviz",
    "save",
    "to_arviz",
    "to_elpd",
]
