"""Variational autoencoders as probabilistic programs in Pyro."""

from pyro_vae._version import version as __version__
from pyro_vae.base import Dims, Estimator, Guide, Likelihood, Network, Prior
from pyro_vae.runs import load
from pyro_vae.training import fit
from pyro_vae.vae import VAE

__all__ = ["VAE", "Dims", "Estimator", "Guide", "Likelihood", "Network", "Prior", "__version__", "fit", "load"]
