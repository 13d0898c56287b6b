"""Guides q(t|x,φ). Each is a `Guide`: ``guide(x)`` has the batch shape of x and event shape ``(d,)``."""

from pyro_vae.guides.normal import DiagonalNormal

__all__ = ["DiagonalNormal"]
