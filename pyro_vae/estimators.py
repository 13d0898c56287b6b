"""Estimators: each a bound on log p(x) in nats per datum, and a gradient of its own."""

from __future__ import annotations

from typing import Any, final

from pyro_vae.base import Estimate, Estimator
from pyro_vae.particles import Particles, Program, particles


@final
class ELBO(Estimator):
    """The evidence lower bound (Kingma and Welling 2014, equation 3), averaged over K particles.

    Bound: (1/K) Σ_k log w_k,  with log w = log p(x,t) - log q(t|x,φ) and t = g(ε,x,φ).

    Gradient: that of the bound, through t (their equation 7; Σᵢ E_p(ε) ∇ log w(g(ε,xᵢ,φ), xᵢ)).

    Domain: guides whose sites are all reparameterised (``rsample``).

    Args:
        K: number of particles.
        max_plate_nesting: number of plate dimensions the Pyro programs use.
    """

    def estimate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Estimate:
        """Returns bound and surrogate (B,), which are the same here."""
        draws = particles(model, guide, *args, K=self.K, max_plate_nesting=self.max_plate_nesting, **kwargs)
        require_rsample(draws, self)
        bound = draws.log_w.mean(0)
        return Estimate(bound=bound, surrogate=bound, particles=draws)


def require_rsample(draws: Particles, estimator: Estimator) -> None:
    """Raises ValueError, naming the site, if a latent of the guide carries no pathwise gradient."""
    if blocked := [name for name, has_rsample in draws.reparameterised.items() if not has_rsample]:
        raise ValueError(
            f"{type(estimator).__name__} differentiates through the guide's samples, but its sites {blocked} have no rsample; "
            f"use a reparameterised guide or pyro.infer.TraceGraph_ELBO"
        )
