"""Estimators with several particles: importance-weighted bounds and their gradients.

The weights normalized over the K particles of a datum are w̃_k = w_k / Σ_j w_j, and L_K is log (1/K) Σ_k w_k.
"""

from __future__ import annotations

from itertools import pairwise
from math import log
from typing import final

import torch
from torch import Tensor

from pyro_vae.estimators.base import Estimator, require_particles
from pyro_vae.estimators.paths import path, path_log_w
from pyro_vae.traces import Particles


@final
class IWAE(Estimator):
    """The importance-weighted bound (Burda et al. 2016, equation 8).

    Bound: L_K.

    Gradient: the gradient of the bound, Σ_k w̃_k ∇ log w_k, taken through t (their equation 14). If ``stl`` is true,
    the gradient by φ goes through t alone, as in `STL`: it has a smaller variance, and is biased for K > 1 (Tucker et
    al. 2019, section 4).

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles.
        stl: whether the score of q is left out of the gradient by φ.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    def __init__(self, K: int = 5, stl: bool = False, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = K
        self.stl = stl

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return log_mean(draws.log_w)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        if not self.stl:
            return log_mean(draws.log_w)
        return (normalized(draws.log_w) * path_log_w(draws)).sum(0)


@final
class DReG(Estimator):
    """The importance-weighted bound with the doubly reparameterized gradient (Tucker et al. 2019, equation 8).

    Bound: L_K.

    Gradient: by φ, Σ_k w̃_k² ∂log w_k/∂t_k ∂t_k/∂φ; by w, Σ_k w̃_k ∇w log p(x,t_k). The gradient by φ has the same mean
    as that of `IWAE`, but its signal-to-noise ratio does not vanish as K grows. If q is the posterior, it is zero for
    each draw.

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    latents = "leaves"

    def __init__(self, K: int = 5, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = K

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return log_mean(draws.log_w)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        weights = normalized(draws.log_w)
        by_w = (weights * draws.log_p).sum(0)
        return by_w + path(draws, weights - draws.kl_weight * (weights - weights**2))


@final
class Renyi(Estimator):
    """The variational Rényi bound (Li and Turner 2016, equation 6).

    Bound: log ((1/K) Σ_k w_k^(1-α)) / (1-α). It is the bound of `IWAE` for α = 0. It exceeds log p(x) as K
    grows for α < 0.

    Gradient: the gradient of the bound, taken through t (their equation 9).

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles.
        alpha: the order α of the bound. The bound tends to the ELBO as α tends to 1.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: α is 1, a limit that `ELBO` computes.
    """

    def __init__(self, K: int = 5, alpha: float = 0.5, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = K if alpha == 0 else "another objective"
        if alpha == 1:
            raise ValueError("Renyi: alpha = 1 is a limit of the formula, the evidence lower bound: use ELBO")
        self.alpha = alpha

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return log_mean((1 - self.alpha) * draws.log_w) / (1 - self.alpha)


@final
class MIWAE(Estimator):
    """The mean of M importance-weighted bounds of K particles (Rainforth et al. 2018, equation 12).

    Bound: (1/M) Σ_m L_K^(m).

    Gradient: the gradient of the bound, taken through t.

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles of each bound.
        M: the number of bounds.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: M is below 1.
    """

    def __init__(self, K: int = 8, M: int = 8, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = K
        self.M = _positive(M, self)

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return log_mean(draws.log_w.unflatten(0, (self.K, self.M))).mean(0)


@final
class PIWAE(Estimator):
    """One importance-weighted bound for w and the mean of M smaller ones for φ (Rainforth et al. 2018, section 4).

    Bound: L_{MK}, the bound whose gradient w follows.

    Gradient: by w, the gradient of L_{MK}; by φ, the gradient of (1/M) Σ_m L_K^(m). A parameter that p and q share,
    such as the guide's under `VampPrior` or p(t|t2) in `Ladder`, is both: its gradient is the sum of that of L_{MK}
    through p(x,t) at fixed t, and that of (1/M) Σ_m L_K^(m) through q, as if p and q had copies of it. This sum is the
    gradient of neither bound.

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles of each bound for φ.
        M: the number of bounds for φ.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: M is below 1.
    """

    latents = "leaves"

    def __init__(self, K: int = 8, M: int = 8, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = "another objective"
        self.M = _positive(M, self)

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return log_mean(draws.log_w)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        by_w = (normalized(draws.log_w) * draws.log_p).sum(0)
        weights = normalized(draws.log_w.unflatten(0, (self.K, self.M))).flatten(0, 1) / self.M
        by_phi = path(draws, weights) - (weights * draws.kl_weight * draws.log_q).sum(0)
        return by_w + by_phi


@final
class CIWAE(Estimator):
    """A mixture of the evidence lower bound and the importance-weighted one (Rainforth et al. 2018, section 4).

    Bound: β (1/K) Σ_k log w_k + (1-β) L_K.

    Gradient: the gradient of the bound, taken through t.

    Domain: guides whose sites are all reparameterized (``rsample``).

    Args:
        K: the number of particles.
        beta: β in [0, 1], the weight of the evidence lower bound.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: β is outside [0, 1].
    """

    def __init__(self, K: int = 64, beta: float = 0.05, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = "another objective"
        if not 0 <= beta <= 1:
            raise ValueError(f"CIWAE: expected beta in [0, 1], got {beta}")
        self.beta = beta

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return self.beta * draws.log_w.mean(0) + (1 - self.beta) * log_mean(draws.log_w)


@final
class VIMCO(Estimator):
    """The importance-weighted bound with the log-derivative gradient and leave-one-out signals (Mnih and Rezende 2016).

    Bound: L_K.

    Gradient: by φ, Σ_k (L_K - L_K^(-k) - w̃_k) ∇φ log q(t_k|x,φ) at fixed t, where L_K^(-k) is L_K with w_k replaced by
    the geometric mean of the other weights; by w, Σ_k w̃_k ∇w log p(x,t_k) (their equations 5 and 10).

    Domain: any guide, with or without ``rsample``; K ≥ 2.

    Args:
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: K is below 2.
    """

    latents = "fixed"

    def __init__(self, K: int = 5, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = K
        require_particles(K, 2, self, "each particle's baseline is made of the others")

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return log_mean(draws.log_w)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        log_w = draws.log_w.detach()
        others = (log_w.sum(0) - log_w) / (self.K - 1)
        replaced = torch.logaddexp(_log_sum_of_others(log_w), others) - log(self.K)
        signal = log_mean(log_w) - replaced
        return (signal * draws.log_q + normalized(log_w) * draws.log_w).sum(0)


@final
class RWS(Estimator):
    """Reweighted wake-sleep, with the wake phase for both w and φ (Bornschein and Bengio 2015, equations 4 and 9).

    Bound: L_K.

    Gradient: by w, Σ_k w̃_k ∇w log p(x,t_k); by φ, Σ_k w̃_k ∇φ log q(t_k|x,φ) at fixed t, which lowers KL(p(t|x)‖q). If
    ``dreg`` is true, the gradient by φ is Σ_k (w̃_k - w̃_k²) ∂log w_k/∂t_k ∂t_k/∂φ, which has the same mean (Tucker et
    al. 2019, section 5).

    Domain: any guide; if ``dreg`` is true, guides whose sites are all reparameterized. K ≥ 2, since the normalized
    weight of a single particle is always 1.

    Args:
        K: the number of particles.
        dreg: whether the gradient by φ has the doubly reparameterized form.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: K is below 2.
    """

    def __init__(self, K: int = 5, dreg: bool = False, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        self.climbs = "another objective"
        require_particles(K, 2, self, "with one particle the weights say nothing about the posterior")
        self.dreg = dreg
        self.latents = "leaves" if dreg else "fixed"

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return log_mean(draws.log_w)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        weights = normalized(draws.log_w)
        by_phi = path(draws, weights - weights**2) if self.dreg else (weights * draws.log_q).sum(0)
        by_w = (weights * draws.log_p).sum(0)
        return by_w + by_phi


@final
class TVO(Estimator):
    """The thermodynamic variational objective (Masrani et al. 2019, equations 9 and 11).

    Bound: Σ_p (β_{p+1} - β_p) E_{π_β_p} log w, with π_β ∝ q^(1-β) p(x,t)^β and 0 = β_0 < ... < β_P = 1. It is a left
    Riemann sum of log p(x) = ∫ E_{π_β} log w dβ. The weights w^β, normalized over the K particles, estimate each
    expectation.

    Gradient: for each β, E_π ∇log w + Cov_π(∇(log q + β log w), log w) at fixed t, estimated with the same weights.

    Domain: any guide, with or without ``rsample``; K ≥ 2.

    Args:
        K: the number of particles.
        partitions: P, the number of terms. The bound is the ELBO for P = 1.
        beta_1: β_1. The other values lie between β_1 and 1, evenly on a logarithmic scale (their section 6).
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: K is below 2, there is no partition, or β_1 is outside (0, 1).
    """

    latents = "fixed"

    def __init__(self, K: int = 10, partitions: int = 2, beta_1: float = 0.025, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        require_particles(K, 2, self, "a covariance needs two")
        if partitions < 1 or not 0 < beta_1 < 1:
            raise ValueError(
                f"TVO: expected a partition or more (partitions) and beta_1 in (0, 1), got {partitions} and {beta_1}"
            )
        self.climbs = 1 if partitions == 1 else "another objective"
        inner = [beta_1 ** (1 - p / (partitions - 1)) for p in range(partitions - 1)]
        self.betas = [0.0, *inner, 1.0]

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        log_w = draws.log_w
        means = [(normalized(beta * log_w) * log_w).sum(0) for beta in self.betas[:-1]]
        widths = [after - beta for beta, after in pairwise(self.betas)]
        return torch.stack([width * mean for width, mean in zip(widths, means, strict=True)]).sum(0)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        log_w, total = draws.log_w, torch.zeros_like(draws.log_w[0])
        f = log_w.detach()
        for beta, after in pairwise(self.betas):
            v = normalized(beta * f)
            # The mean of Σ_k v_k (f_k - mean) z_k with v_k = 1/K (β = 0) is (K-1)/K times the covariance, so that it
            # is corrected by a factor.
            spread = v * (f - (v * f).sum(0)) * (self.K / (self.K - 1) if beta == 0 else 1.0)
            terms = v * log_w + spread * (draws.log_q + beta * log_w)
            total = total + (after - beta) * terms.sum(0)
        return total


def log_mean(log_w: Tensor) -> Tensor:
    """Returns log (1/K) Σ_k w_k, where k is the first dimension."""
    return log_w.logsumexp(0) - log(len(log_w))


def _log_sum_of_others(log_w: Tensor) -> Tensor:
    """Returns log Σ_{j≠k} w_j for each k (K, B).

    The sums before and after k are added, since a difference of large numbers would be inaccurate.
    """
    none = torch.full_like(log_w[:1], -torch.inf)
    before = torch.cat([none, log_w.logcumsumexp(0)[:-1]])
    after = torch.cat([log_w.flip(0).logcumsumexp(0).flip(0)[1:], none])
    return torch.logaddexp(before, after)


def normalized(log_w: Tensor) -> Tensor:
    """Returns the normalized weights w̃ (K, B), without a gradient."""
    return log_w.detach().softmax(0)


def _positive(M: int, estimator: Estimator) -> int:
    if M < 1:
        raise ValueError(f"{type(estimator).__name__}: expected M of at least 1, got {M}")
    return M
