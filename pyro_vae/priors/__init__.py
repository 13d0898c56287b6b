"""Priors p(t). Each is a `Prior`: ``prior()`` has batch shape ``()`` and event shape ``(d,)``."""

from pyro_vae.priors.simple import StandardNormal

__all__ = ["StandardNormal"]
