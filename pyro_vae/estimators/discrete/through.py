"""Gradients of discrete latents through a continuous function of the logits: of little noise, and biased.

The value of a latent is discrete wherever it is used, so that the bound is that of the discrete model. Its gradient is that of
a continuous function.
"""

from __future__ import annotations

from math import log
from typing import Literal, final

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.estimators.base import Estimator
from pyro_vae.estimators.discrete.sites import binary_logits, class_logits, gumbel_noise, logistic_noise
from pyro_vae.estimators.divergence import closed_form_kl
from pyro_vae.traces import Particles, layers

KL = Literal["exact", "sampled"]


class _Through(Estimator):
    """What the estimators of this module share.

    The KL is in closed form, unless ``kl`` is "sampled": then log q at the draws has the continuous function's gradient too.
    """

    for_discrete = True
    climbs = 1

    def __init__(self, K: int, kl: KL, max_plate_nesting: int) -> None:
        super().__init__(K, max_plate_nesting)
        self.closed_form_kl = kl == "exact"
        self.averages = False  # a discrete site that is enumerated needs no such gradient

    @final
    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,).

        Raises:
            ValueError: a site has no KL in closed form, and ``kl`` is "exact".
        """
        return self._of(draws).mean(0)

    def _of(self, draws: Particles) -> Tensor:
        return draws.log_lik - draws.kl_weight * closed_form_kl(draws) if self.closed_form_kl else draws.log_w

    @final
    def _other(self, site: str, q: TorchDistributionMixin) -> Tensor:
        """Returns draws of a site that is not discrete.

        Raises:
            ValueError: it is discrete, and no continuous function stands for it.
        """
        if q.has_rsample:
            value: Tensor = q.rsample()
            return value
        raise ValueError(
            f"{type(self).__name__}: latent {site!r} is {type(layers(q)[-1]).__name__.lstrip('_')}, in whose place no real "
            f"numbers can stand: it needs Bernoulli or OneHotCategorical latents, or such that have rsample; ScoreFunction and "
            f"VIMCO take any"
        )


@final
class StraightThrough(_Through):
    """Discrete draws with the gradient of their mean (Bengio, Léonard and Courville 2013, section 4).

    Bound: (1/K) Σ_k log p(x|t_k,w) - KL(q‖p), of the discrete model.

    Gradient: by φ, that of the bound with ∂t/∂α in the place of ∂E[t]/∂α for the logits α: p (1-p) for Bernoulli latents, the
    derivative of softmax for one-hot vectors. It is biased. By w, the gradient of the bound.

    Domain: guides with Bernoulli and OneHotCategorical latents, and others with ``rsample``; models that can be
    differentiated by their latents. A KL in closed form unless ``kl`` is "sampled".

    Args:
        K: the number of particles.
        kl: whether the KL is in closed form ("exact"), or estimated from the draws ("sampled").
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    def __init__(self, K: int = 1, kl: KL = "exact", max_plate_nesting: int = 1) -> None:
        super().__init__(K, kl, max_plate_nesting)

    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns discrete draws, whose gradient is that of their mean."""
        del alike
        if (logits := binary_logits(q)) is not None:
            return _with_gradient_of(q.sample(), logits.sigmoid())
        if (logits := class_logits(q)) is not None:
            hard: Tensor = q.sample()
            return _with_gradient_of(hard, logits.softmax(-1).reshape(hard.shape))
        return self._other(site, q)


@final
class ReinMax(_Through):
    """Discrete draws with a gradient of second order (Liu et al. 2023, algorithm 2).

    Bound: (1/K) Σ_k log p(x|t_k,w) - KL(q‖p), of the discrete model.

    Gradient: by φ, that of the bound with 2 π₁ - ½ π in the place of t, where π = softmax(α), and π₁ is the softmax whose value
    is (softmax(α/τ) + t)/2 and whose gradient by α is that at this value; a Bernoulli latent is a class of two. It is exact
    where f is quadratic along the way from one value to another, as Heun's method is. By w, the gradient of the bound.

    Domain: that of `StraightThrough`.

    Args:
        K: the number of particles.
        temperature: τ, above 0.
        kl: whether the KL is in closed form ("exact"), or estimated from the draws ("sampled").
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: the temperature is not positive.
    """

    def __init__(self, K: int = 1, temperature: float = 1.0, kl: KL = "exact", max_plate_nesting: int = 1) -> None:
        super().__init__(K, kl, max_plate_nesting)
        check_temperature(self, temperature)
        self.temperature = temperature

    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns discrete draws, with the gradient of the method."""
        del alike
        if (logits := binary_logits(q)) is not None:
            hard: Tensor = q.sample()
            pairs = torch.stack([logits, torch.zeros_like(logits)], -1)
            return _with_gradient_of(hard, self._soft(pairs, torch.stack([hard, 1 - hard], -1))[..., 0])
        if (logits := class_logits(q)) is not None:
            hard = q.sample()
            return _with_gradient_of(hard, self._soft(logits, hard.reshape(logits.shape)).reshape(hard.shape))
        return self._other(site, q)

    def _soft(self, logits: Tensor, hard: Tensor) -> Tensor:
        middle = ((logits / self.temperature).softmax(-1) + hard) / 2
        shifted = (middle.clamp(min=torch.finfo(middle.dtype).tiny).log() - logits).detach() + logits
        return 2 * shifted.softmax(-1) - 0.5 * logits.softmax(-1)


@final
class GumbelSoftmax(_Through):
    """Relaxed draws, by which the gradient is taken (Jang, Gu and Poole 2017; Maddison, Mnih and Teh 2017).

    Bound: (1/K) Σ_k log p(x|t_k,w) - KL(q‖p), of the discrete model, with t_k the discrete draw of the same noise.

    Gradient: by φ, that of the bound at softmax((α + g)/τ), with Gumbel noise g, in the place of t; for Bernoulli latents at
    sigmoid((α + l)/τ), with logistic noise l. If ``straight_through`` is true, the model is evaluated at the discrete draw, and
    the gradient alone is that of the relaxed one; otherwise w too has the gradient at the relaxed draws, and each of the K
    particles takes two evaluations of the model: one at the discrete draw, for the bound. It is biased. Without
    ``straight_through`` the bias goes to zero with the temperature, while the noise grows; with it, it does not.

    Domain: that of `StraightThrough`.

    Args:
        K: the number of particles.
        temperature: τ in the first step, above 0.
        anneal: how much the temperature falls in each step: it is multiplied by e^(-anneal).
        lowest: the temperature below which it does not fall.
        straight_through: whether the model is evaluated at discrete draws alone.
        kl: whether the KL is in closed form ("exact"), or estimated from the draws ("sampled").
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: a temperature is not positive, or anneal is negative.
    """

    def __init__(
        self,
        K: int = 1,
        temperature: float = 1.0,
        anneal: float = 0.0,
        lowest: float = 0.5,
        straight_through: bool = False,
        kl: KL = "exact",
        max_plate_nesting: int = 1,
    ) -> None:
        super().__init__(K, kl, max_plate_nesting)
        check_temperature(self, temperature)
        check_temperature(self, lowest, "lowest")
        if not 0 <= anneal < float("inf"):
            raise ValueError(f"GumbelSoftmax: expected anneal of at least 0, got {anneal}")
        self.temperature, self.anneal, self.lowest = temperature, anneal, min(lowest, temperature)
        self.straight_through = straight_through
        self.M = 1 if straight_through else 2
        if anneal:
            self.state = {"log temperature": torch.tensor(log(temperature))}

    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns discrete draws with the gradient of relaxed ones, or K discrete draws and then the K relaxed ones."""
        del alike
        binary = binary_logits(q)
        logits = class_logits(q) if binary is None else binary
        if logits is None:
            return self._other(site, q)
        noise = (logistic_noise if binary is not None else gumbel_noise)(
            logits
        )  # for all, whose first dimension is known
        noisy = (logits + noise)[: self.K]
        temperature = self.state["log temperature"].exp().to(logits) if self.anneal else self.temperature
        if binary is not None:
            hard, soft = (noisy > 0).to(noisy.dtype), (noisy / temperature).sigmoid()
        else:
            soft = (noisy / temperature).softmax(-1)
            hard = torch.zeros_like(soft).scatter(-1, noisy.argmax(-1, keepdim=True), 1.0)
        shape = (len(noisy), *q.batch_shape[1:], *q.event_shape)
        hard, soft = hard.reshape(shape).detach(), soft.reshape(shape)
        return _with_gradient_of(hard, soft) if self.straight_through else torch.cat([hard, soft])

    def drawn_from_q(self, draws: Particles) -> Particles:
        """Returns the discrete draws."""
        return draws if self.straight_through else draws.some(slice(self.K))

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,), at the relaxed draws."""
        return self._of(draws if self.straight_through else draws.some(slice(self.K, None))).mean(0)

    def advance(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the temperature of the next step."""
        del draws
        if not self.anneal:
            return {}
        return {"log temperature": (self.state["log temperature"] - self.anneal).clamp(min=log(self.lowest))}


def check_temperature(estimator: object, temperature: float, name: str = "temperature") -> None:
    """Raises ValueError if a temperature is not a positive number."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{type(estimator).__name__}: expected a positive {name}, got {temperature}")


def _with_gradient_of(hard: Tensor, soft: Tensor) -> Tensor:
    """Returns discrete values with the gradient of others."""
    return hard.detach() + (soft - soft.detach())
