"""Likelihoods p(x|t,w). Each is a `Likelihood`.

``likelihood(t)`` has batch shape ``t.shape[:-1]`` and event shape ``x_shape``.
"""

from pyro_vae.likelihoods.basic import Bernoulli, Binomial, Normal, default_likelihood

__all__ = ["Bernoulli", "Binomial", "Normal", "default_likelihood"]
