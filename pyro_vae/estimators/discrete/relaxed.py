"""Unbiased gradients of Bernoulli latents with a relaxed model as the control variate."""

from __future__ import annotations

from math import log
from typing import final

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import leaky_relu, softplus

from pyro_vae.estimators.base import Estimator, learnable
from pyro_vae.estimators.discrete.baselines import check_rate, data_as_vectors, first_weights, summed_over_data
from pyro_vae.estimators.discrete.sites import (
    at_places,
    binary_logits,
    binary_sites,
    logistic_noise,
    require_sites,
)
from pyro_vae.estimators.discrete.through import check_temperature
from pyro_vae.traces import Particles


class _Relaxed(Estimator):
    """What `REBAR` and `RELAX` share.

    There are three evaluations of the model for each of K particles: at the discrete draw b, which is 1 where z = α + l > 0
    with logistic noise l; at the relaxed one, sigmoid(z/τ); and at sigmoid(z̃/τ), where z̃ is drawn given b.
    """

    for_discrete = True
    averages = False  # the guide has Bernoulli latents alone, which leave nothing to draw where they are enumerated
    latents = "path"
    climbs = 1
    M = 3

    def __init__(self, K: int, temperature: float, learning_rate: float, max_plate_nesting: int) -> None:
        super().__init__(K, max_plate_nesting)
        check_temperature(self, temperature)
        check_rate(self, learning_rate)
        self.learning_rate = learning_rate
        self.state = learnable({"scale": torch.ones(()), "log temperature": torch.tensor(log(temperature))})

    @final
    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns b for K particles, then the relaxed draws, then those given b, both as functions of the logits."""
        logits = binary_logits(q)
        if logits is None or not alike:
            return super().draw(site, q, alike)  # the surrogate refuses it
        first, second, third = logits.unflatten(0, (3, self.K))
        temperature = self.state["log temperature"].exp().to(logits)
        u, v, _ = logistic_noise(logits).unflatten(0, (3, self.K))  # for all, whose first dimension is known
        b = (first.detach() + u > 0).to(logits.dtype)
        # z given b has the noise's distribution, cut off at 0 (Tucker et al. 2017, appendix B).
        given = torch.where(b > 0, softplus(v + softplus(third)), -softplus(softplus(-third) - v))
        return torch.cat([b, ((second + u) / temperature).sigmoid(), (given / temperature).sigmoid()])

    @final
    def drawn_from_q(self, draws: Particles) -> Particles:
        """Returns the discrete draws."""
        return draws.some(slice(self.K))

    @final
    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return draws.log_w.mean(0)

    @final
    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        sites = list(binary_sites(draws))
        require_sites(
            len(sites) == len(draws.guide),
            self,
            "Bernoulli latents alone that depend on x alone",
            f"it draws {list(draws.guide)}; use DisARM, or ScoreFunction with control='leave-one-out'",
        )
        discrete = draws.some(slice(self.K))
        if not draws.log_w.requires_grad:  # nothing is differentiated, so no surrogate is needed
            return torch.zeros_like(draws.log_w[0])
        f = discrete.log_w.detach()
        _, relaxed, given = self._control(draws).unflatten(0, (3, self.K))
        slopes = torch.autograd.grad(
            (relaxed - given).sum(), [logits for _, logits, _ in sites], create_graph=True, materialize_grads=True
        )
        total, squares = discrete.log_p.mean(0), torch.zeros_like(f[0])
        for (name, logits, b), slope in zip(sites, slopes, strict=True):
            alpha, hard = (each.unflatten(0, (3, self.K))[0] for each in (logits, b.detach()))
            _, of_relaxed, of_given = slope.unflatten(0, (3, self.K))
            signal = at_places(discrete, f - given, alpha)
            estimate = (signal * (hard - alpha.detach().sigmoid()) + of_relaxed + of_given).mean(0)
            total = total + summed_over_data(draws, name, estimate.detach() * alpha[0])
            squares = squares + summed_over_data(draws, name, estimate**2)
        return total - self._learned(squares.mean())

    def _learned(self, loss: Tensor) -> Tensor | float:
        """Returns a number with the gradient of a loss by what is learned, and by nothing else."""
        learned = [self.state[name] for name in self.learns if self.state[name].requires_grad]
        if not learned:
            return 0.0
        slopes = torch.autograd.grad(loss, learned, retain_graph=True, materialize_grads=True)
        return torch.stack([(slope * value).sum() for slope, value in zip(slopes, learned, strict=True)]).sum()

    def _control(self, draws: Particles) -> Tensor:
        """Returns the control variate at all 3K particles (3K, B), a function of the relaxed values."""
        return self.state["scale"].to(draws.log_w) * draws.log_w


@final
class REBAR(_Relaxed):
    """The log-derivative gradient with the relaxed model as the control variate (Tucker et al. 2017, equation 7).

    Bound: (1/K) Σ_k log w_k, of the discrete draws.

    Gradient: by the logits α, with f = log w, (f(b) - η f(σ(z̃))) ∂log q(b)/∂α + η ∂f(σ(z))/∂α - η ∂f(σ(z̃))/∂α, where
    σ(z) = sigmoid(z/τ), z = α + logistic noise, b = 1 where z > 0, and z̃ is z drawn again given b; by w, the gradient of the
    bound. η and τ follow the gradient of minus the mean square of the estimate. Each particle takes three evaluations of the
    model.

    Domain: guides whose sites are all Bernoulli latents that depend on x alone, and models that take real numbers in their
    place. log q and log p at relaxed values are their formulas for 0 and 1, which are linear.

    Args:
        K: the number of particles.
        temperature: τ in the first step, above 0.
        learning_rate: the rate of Adam for η and log τ.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: the temperature or the rate is not positive.
    """

    learns = ("scale", "log temperature")

    def __init__(
        self, K: int = 1, temperature: float = 0.5, learning_rate: float = 1e-3, max_plate_nesting: int = 1
    ) -> None:
        super().__init__(K, temperature, learning_rate, max_plate_nesting)


@final
class RELAX(_Relaxed):
    """`REBAR` with a control variate to which a network is added (Grathwohl et al. 2018, section 3.1).

    Bound: (1/K) Σ_k log w_k, of the discrete draws.

    Gradient: that of `REBAR`, with c = η f(σ(z)) + r_ψ(x, σ(z)) in the place of η f(σ(z)), and ψ learned as η and τ are. The
    network r_ψ has one hidden layer with LeakyReLU, and is zero at first.

    Domain: that of `REBAR`.

    Args:
        K: the number of particles.
        temperature: τ in the first step, above 0.
        hidden: the number of hidden units of r_ψ.
        learning_rate: the rate of Adam for η, log τ and ψ.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: the temperature or the rate is not positive, or there is no hidden unit.
    """

    learns = ("scale", "log temperature", "weight of x", "weight of t", "hidden bias", "output weight")

    def __init__(
        self,
        K: int = 1,
        temperature: float = 0.1,
        hidden: int = 137,
        learning_rate: float = 1e-3,
        max_plate_nesting: int = 1,
    ) -> None:
        super().__init__(K, temperature, learning_rate, max_plate_nesting)
        if hidden < 1:
            raise ValueError(f"RELAX: expected at least 1 hidden unit, got {hidden}")
        self.hidden = hidden

    def begin(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the first weights of r_ψ."""
        like = draws.log_w
        d = sum(draws.vectors(name).shape[-1] for name in draws.values)
        both = first_weights(data_as_vectors(draws).shape[1] + d, self.hidden).to(like)
        return learnable(
            {
                "weight of x": both[d:],
                "weight of t": both[:d],
                "hidden bias": like.new_zeros(self.hidden),
                "output weight": like.new_zeros(self.hidden),
            }
        )

    def _control(self, draws: Particles) -> Tensor:
        t = torch.cat([draws.vectors(name) for name in draws.values], -1)
        state = self.state
        x = data_as_vectors(draws, state["weight of x"])
        hidden = x @ state["weight of x"] + t @ state["weight of t"] + state["hidden bias"]
        return super()._control(draws) + leaky_relu(hidden, 0.3) @ state["output weight"]
