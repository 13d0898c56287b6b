"""Estimators of the evidence lower bound E_q log w, with log w = log p(x,t) - log q(t|x,φ)."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from pyro_vae.estimators.base import Estimator, require_particles
from pyro_vae.estimators.divergence import closed_form_kl
from pyro_vae.estimators.paths import path_log_w
from pyro_vae.traces import Particles


@final
class ELBO(Estimator):
    """The evidence lower bound (Kingma and Welling 2014, equation 3), averaged over K particles.

    Bound: (1/K) Σ_k log w_k, with t = g(ε,x,φ).

    Gradient: the gradient of the bound, taken through t (their equation 7; Σᵢ E_p(ε) ∇ log w(g(ε,xᵢ,φ), xᵢ)).

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    averages = True
    climbs = 1

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return draws.log_w.mean(0)


@final
class AnalyticKL(Estimator):
    """The evidence lower bound with KL(q‖p) in closed form (Kingma and Welling 2014, equation 10).

    Bound: (1/K) Σ_k log p(x|t_k,w) - KL(q(t|x,φ) ‖ p(t)).

    Gradient: the gradient of the bound, taken through t.

    Domain: reparameterized guides in which each site has a closed-form KL to the model's site. A guide with several
    latents must draw them in the model's order, since the KL of each latent, given those before it, is a term of the
    bound only then.

    Args:
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    averages = True
    climbs = 1
    closed_form_kl = True

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,).

        Raises:
            ValueError: a site has no KL in closed form, or the guide's latents have another order than the model's. The
                KL is never sampled instead.
        """
        return (draws.log_lik - draws.kl_weight * closed_form_kl(draws)).mean(0)


@final
class STL(Estimator):
    """The evidence lower bound without the score in its gradient: sticking the landing (Roeder et al. 2017, section 3).

    Bound: (1/K) Σ_k log w_k.

    Gradient: by φ, (1/K) Σ_k ∂log w_k/∂t ∂t/∂φ, which leaves out -∇φ log q(t|x,φ) at fixed t, a term of mean zero; by
    w, the gradient of the bound. If q is the posterior, the gradient by φ is zero for each draw.

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    averages = True
    climbs = 1

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return draws.log_w.mean(0)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,), log w without the score of q."""
        return path_log_w(draws).mean(0)


@final
class ScoreFunction(Estimator):
    """The ELBO with the log-derivative gradient (Ranganath et al. 2014, equation 3; Mnih and Gregor 2014).

    Bound: (1/K) Σ_k log w_k.

    Gradient: by φ, (1/K) Σ_k (log w_k - b_k) ∇φ log q(t_k|x,φ) at fixed t; by w, (1/K) Σ_k ∇w log p(x,t_k).

    Domain: any guide, also without ``rsample``.

    Args:
        K: the number of particles.
        control: the control variate b. It is zero for "none". It is a moving average of log w over steps for "running"
            (Mnih and Gregor 2014, section 2.3). It is the mean log w of the datum's other particles for "leave-one-out"
            (Kool et al. 2019), which needs K ≥ 2.
        decay: the weight of the old average in each update of the moving average.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: control is "leave-one-out" with one particle, or decay is outside [0, 1).
    """

    averages = True
    climbs = 1
    latents = "fixed"

    def __init__(
        self,
        K: int = 1,
        control: Literal["none", "running", "leave-one-out"] = "none",
        decay: float = 0.9,
        max_plate_nesting: int = 1,
    ) -> None:
        super().__init__(K, max_plate_nesting)
        if control == "leave-one-out":
            require_particles(K, 2, self, "leave-one-out has no other particle to average")
        if not 0 <= decay < 1:
            raise ValueError(f"ScoreFunction: expected a decay in [0, 1), got {decay}")
        self.control, self.decay = control, decay
        if control == "running":
            self.state = {"average": torch.zeros(()), "steps": torch.zeros(())}

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return draws.log_w.mean(0)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,), with the log-derivative term."""
        log_w = draws.log_w.detach()
        return (draws.log_p + (log_w - self._control(log_w)) * draws.log_q).mean(0)

    def advance(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the moving average and the number of steps after a step.

        The first step sets the average to its own mean of log w.
        """
        if not self.state:
            return {}
        new, average, steps = draws.log_w.mean(), self.state["average"], self.state["steps"]
        new = new.to(average)
        return {
            "average": torch.where(steps == 0, new, self.decay * average + (1 - self.decay) * new),
            "steps": steps + 1,
        }

    def _control(self, log_w: Tensor) -> Tensor:
        if self.control == "leave-one-out":
            return (log_w.sum(0) - log_w) / (self.K - 1)
        if self.control == "none":
            return torch.zeros_like(log_w)
        # This average of earlier steps does not depend on this step's draws, so the gradient keeps its mean.
        return self.state["average"].to(log_w)
