"""What an estimator asks of the programs, and how it refuses what it cannot do."""

from __future__ import annotations

from pyro_vae.base import Estimator
from pyro_vae.particles import Particles


def require_rsample(draws: Particles, estimator: Estimator) -> None:
    """Raises ValueError, naming the site, if a latent of the guide carries no pathwise gradient."""
    if blocked := [name for name, has_rsample in draws.reparameterised.items() if not has_rsample]:
        raise ValueError(
            f"{type(estimator).__name__} differentiates through the guide's samples, but its sites {blocked} have no "
            f"rsample; use a reparameterised guide, or ScoreFunction, VIMCO, RWS or TVO"
        )


def require_particles(K: int, least: int, estimator: Estimator, why: str) -> None:
    """Raises ValueError if there are too few particles."""
    if least > K:
        raise ValueError(f"{type(estimator).__name__}: expected K of at least {least}, got {K}: {why}")
