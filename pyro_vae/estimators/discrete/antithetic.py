"""Gradients of Bernoulli latents from particles that are drawn to differ, with each particle's others as its baseline.

For n binary draws of any coupling in which every two have the correlation ρ, and Bernoulli(p) each,
E Σ_i (f(b_i) - f̄) (b_i - p) / ((n-1) (1-ρ)) = ∂E f(b)/∂α with p = sigmoid(α), for each latent in turn if the latents are
independent (Dimitriev and Zhou 2021, theorem 1). The more negative ρ is, the less noise is left.
"""

from __future__ import annotations

from math import log
from typing import Literal, final

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.estimators.base import Estimator, require_particles
from pyro_vae.estimators.discrete.sites import at_places, binary_logits, binary_sites, require_sites, summed
from pyro_vae.estimators.importance import log_mean
from pyro_vae.traces import Particles

Bound = Literal["ELBO", "IWAE"]


class _Antithetic(Estimator):
    """What `DisARM` and `ARMS` share: M groups of n = K particles, which are negatively correlated within a group."""

    for_discrete = True
    latents = "fixed"

    def __init__(self, K: int, M: int, bound: Bound, max_plate_nesting: int) -> None:
        super().__init__(K, max_plate_nesting)
        if M < 1:
            raise ValueError(f"{type(self).__name__}: expected M of at least 1 group of particles, got {M}")
        self.M, self.of = M, bound
        self.averages = bound == "ELBO"
        self.climbs = 1 if bound == "ELBO" else M

    @final
    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns draws that are correlated within a group, of Bernoulli latents whose distribution is the same for all.

        Uniform numbers are u_i = (1 - d_i)^(n-1), with d of a flat Dirichlet distribution over the n particles of a group. The
        less probable value is drawn where u is below its probability.
        """
        logits = binary_logits(q)
        if logits is None or not alike:
            return super().draw(site, q, alike)
        alpha = logits.detach()
        e = -torch.log1p(-torch.rand_like(alpha)).unflatten(0, (self.K, self.M))
        total = e.sum(0)
        u = ((total - e) / total) ** (self.K - 1)
        return ((u.flatten(0, 1) < torch.sigmoid(-alpha.abs())) ^ (alpha > 0)).to(alpha.dtype)

    @final
    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        if self.of == "ELBO":
            return draws.log_w.mean(0)
        return log_mean(self._grouped(draws.log_w).transpose(0, 1)).mean(0)

    @final
    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        require_sites(
            any(True for _ in binary_sites(draws)),
            self,
            "site of Bernoulli latents that depend on x alone",
            "antithetic draws are for these; use ScoreFunction with control='leave-one-out', or VIMCO",
        )
        log_w = self._grouped(draws.log_w.detach())  # (n, M, B)
        if self.of == "ELBO":
            f, share = log_w, 1 / self.M
            direct = draws.log_p.mean(0)  # the score of q itself has the mean zero
        else:
            others = torch.logaddexp(log_w.unsqueeze(1), _log_sum_of_others(log_w).unsqueeze(0))  # (n, n, M, B)
            f, share = others.mean(1) - log(self.M), 1.0
            weights = log_w.softmax(1).flatten(0, 1)
            direct = (weights * draws.log_w).sum(0) / self.K
        signal = ((f - f.mean(0)) / (self.K - 1)).flatten(0, 1) * share
        antithetic, total = set[str](), direct
        for name, logits, b in binary_sites(draws):
            antithetic.add(name)
            alpha = logits.detach()
            score = (b - alpha.sigmoid()) * self._correction(alpha)
            total = total + summed(draws, name, at_places(draws, signal, logits) * score * logits).sum(0)
        for name, log_q in draws.guide.items():
            if name not in antithetic:  # drawn independently, so that the others of a group are a baseline as they are
                total = total + (signal * log_q).sum(0)
        return total

    def _correction(self, alpha: Tensor) -> Tensor:
        """Returns 1 / (1 - ρ), where ρ is the correlation of two particles of a group."""
        p = torch.sigmoid(-alpha.abs())  # of the less probable value
        both = (2 * p ** (1 / (self.K - 1)) - 1).clamp(min=0) ** (self.K - 1)
        return (1 - p) / (1 - torch.where(p > 0, both / p, 0.0))

    def _grouped(self, value: Tensor) -> Tensor:
        return value.unflatten(0, (self.K, self.M))


@final
class DisARM(_Antithetic):
    """Antithetic pairs of Bernoulli latents (Dong, Mnih and Tucker 2020, equation 6; Yin et al. 2020 call it U2G).

    Bound: the ELBO, (1/2M) Σ log w, or L_M, the bound of `IWAE` with M particles, averaged over both sides of the pairs.

    Gradient: by φ, for each pair (b, b̃) drawn with u and 1-u, ½ (f(b) - f(b̃)) (-1)^b̃ 1[b ≠ b̃] sigmoid(|α|) by the logit α of
    each latent, where f is log w, or L_M as a function of one particle (their section 3.3), averaged over which of the pairs'
    sides the others are taken from. A latent that is drawn given another one has the log-derivative gradient with the other
    particle of the pair as the baseline. By w, the gradient of the bound.

    Domain: guides with a site of Bernoulli latents that depends on x alone; other sites may be of any kind. K is 2.

    Args:
        K: the number of particles of a pair, 2.
        M: the number of pairs.
        bound: the bound that is climbed, "ELBO" or "IWAE".
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: K is not 2, or M is below 1.
    """

    def __init__(self, K: int = 2, M: int = 1, bound: Bound = "ELBO", max_plate_nesting: int = 1) -> None:
        if K != 2:
            raise ValueError(
                f"DisARM: antithetic particles are pairs, so that K is 2, got {K}; M is the number of pairs"
            )
        super().__init__(K, M, bound, max_plate_nesting)


@final
class ARMS(_Antithetic):
    """K Bernoulli draws that all differ from each other as much as can be (Dimitriev and Zhou 2021, algorithm 1).

    Bound: the ELBO, (1/KM) Σ log w, or L_M, the bound of `IWAE` with M particles, averaged over the K draws.

    Gradient: by φ, Σ_k (f(b_k) - f̄) (b_k - p) / ((K-1) (1-ρ)) by the logit of each latent, with draws by a Dirichlet copula and
    their correlation ρ in closed form. It is `DisARM` for K = 2. The rest is as there.

    Domain: as that of `DisARM`, with K ≥ 2.

    Args:
        K: the number of particles of a group.
        M: the number of groups.
        bound: the bound that is climbed, "ELBO" or "IWAE".
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: K is below 2, or M is below 1.
    """

    def __init__(self, K: int = 4, M: int = 1, bound: Bound = "ELBO", max_plate_nesting: int = 1) -> None:
        super().__init__(K, M, bound, max_plate_nesting)
        require_particles(K, 2, self, "each particle's baseline is made of the others")


def _log_sum_of_others(log_w: Tensor) -> Tensor:
    """Returns log Σ_{m'≠m} w_m' over the second dimension (n, M, B); minus infinity where there are no others."""
    M = log_w.shape[1]
    same = torch.eye(M, dtype=torch.bool, device=log_w.device)[None, :, :, None]
    if M == 1:
        return torch.full_like(log_w, -torch.inf)
    return log_w.unsqueeze(1).masked_fill(same, -torch.inf).logsumexp(2)
