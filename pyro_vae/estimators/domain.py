"""How an estimator refuses what it cannot do."""

from __future__ import annotations

from pyro_vae.base import Estimator


def require_particles(K: int, least: int, estimator: Estimator, why: str) -> None:
    """Raises ValueError if there are too few particles."""
    if least > K:
        raise ValueError(f"{type(estimator).__name__}: expected K of at least {least}, got {K}: {why}")
