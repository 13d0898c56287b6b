"""Log-derivative gradients of discrete latents with control variates that are learned."""

from __future__ import annotations

from math import prod
from typing import final

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.estimators.base import Estimator, learnable, require_particles
from pyro_vae.estimators.discrete.sites import at_places, binary_sites, require_sites, summed
from pyro_vae.traces import Particles


@final
class NVIL(Estimator):
    """The log-derivative gradient with a baseline that is learned from x (Mnih and Gregor 2014).

    Bound: (1/K) Σ_k log w_k.

    Gradient: by φ, (1/K) Σ_k (log w_k - c - C_ψ(x)) ∇φ log q(t_k|x,φ) at fixed t (their equation 8), divided by the larger of
    1 and the signal's standard deviation if ``normalize`` is true (section 2.3.2); by w, (1/K) Σ_k ∇w log p(x,t_k). The
    network C_ψ has one hidden layer of tanh units, and follows the gradient of minus the mean square of the signal. The
    average c and the variance are moving averages over the steps before.

    With ``normalize``, the gradient by φ has another length than that of the bound, and its direction.

    Domain: any guide, also without ``rsample``.

    Args:
        K: the number of particles.
        hidden: the number of hidden units of C_ψ.
        normalize: whether the signal is divided by its standard deviation.
        decay: the weight of the old averages in each update.
        learning_rate: the rate of Adam for ψ.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: decay is outside [0, 1), there is no hidden unit, or the rate is not positive.
    """

    latents = "fixed"
    climbs = 1
    learns = ("hidden weight", "hidden bias", "output weight")

    def __init__(
        self,
        K: int = 1,
        hidden: int = 100,
        normalize: bool = False,
        decay: float = 0.8,
        learning_rate: float = 1e-3,
        max_plate_nesting: int = 1,
    ) -> None:
        super().__init__(K, max_plate_nesting)
        check_rate(self, learning_rate)
        if hidden < 1 or not 0 <= decay < 1:
            raise ValueError(
                f"NVIL: expected at least 1 hidden unit and a decay in [0, 1), got hidden = {hidden} and decay = {decay}"
            )
        self.hidden, self.normalize, self.decay, self.learning_rate = hidden, normalize, decay, learning_rate
        self.averages = not normalize

    def begin(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the first weights of C_ψ, which is zero, and the averages."""
        x, zero = data_as_vectors(draws), draws.log_w.new_zeros(())
        state = learnable(
            {
                "hidden weight": first_weights(x.shape[1], self.hidden).to(zero),
                "hidden bias": zero.new_zeros(self.hidden),
                "output weight": zero.new_zeros(self.hidden),
            }
        )
        return state | {"average": zero, "square": zero.clone(), "steps": zero.clone()}

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return draws.log_w.mean(0)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        signal = draws.log_w.detach() - self.state["average"] - self._baseline(draws)
        fixed = signal.detach()
        if self.normalize:
            variance = self.state["square"] - self.state["average"] ** 2
            fixed = fixed / variance.clamp(min=1).sqrt()
        return (draws.log_p + fixed * draws.log_q - 0.5 * signal**2).mean(0)

    def advance(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the averages of log w - C_ψ(x) and of its square after a step. The first step sets them to its own."""
        signal, steps = draws.log_w - self._baseline(draws), self.state["steps"]
        new = {"average": signal.mean(), "square": (signal**2).mean()}
        moved = {name: self.decay * self.state[name] + (1 - self.decay) * value for name, value in new.items()}
        return {name: torch.where(steps == 0, new[name], moved[name]) for name in new} | {"steps": steps + 1}

    def _baseline(self, draws: Particles) -> Float[Tensor, " B"]:
        state = self.state
        x = data_as_vectors(draws, state["hidden weight"])
        return torch.tanh(x @ state["hidden weight"] + state["hidden bias"]) @ state["output weight"]


@final
class DoubleCV(Estimator):
    """Leave-one-out signals with a learned, linear control variate (Titsias and Shi 2022, equations 9 to 12).

    Bound: (1/K) Σ_k log w_k.

    Gradient: by φ, with f = log w, ḡ_k the mean of ∇f(b_j) over j ≠ k, and c_k = a ⟨ḡ_k, b_k - p⟩,
    (1/K) Σ_k [f(b_k) + c_k - mean over j ≠ k of (f(b_j) + c_j)] (b_k - p) - a (1/K) Σ_k ∇f(b_k) p (1-p) by the logits; by w,
    the gradient of the bound. Here ∇f is the derivative of log w by the values of the latents, as if these were real numbers.
    It is `ScoreFunction` with leave-one-out for a = 0. The number a follows the gradient of minus the mean square of the
    estimate.

    Domain: guides whose sites are all Bernoulli latents that depend on x alone, and models that take real numbers in their
    place; K ≥ 2.

    Args:
        K: the number of particles.
        learning_rate: the rate of Adam for a.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Raises:
        ValueError: K is below 2, or the rate is not positive.
    """

    averages = True
    climbs = 1
    for_discrete = True
    latents = "leaves"
    learns = ("a",)

    def __init__(self, K: int = 2, learning_rate: float = 1e-3, max_plate_nesting: int = 1) -> None:
        super().__init__(K, max_plate_nesting)
        require_particles(K, 2, self, "each particle's baseline is made of the others")
        check_rate(self, learning_rate)
        self.learning_rate = learning_rate
        self.state = learnable({"a": torch.zeros(())})

    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns independent draws, whose values the gradient is taken by."""
        return q.sample() if not q.has_rsample else super().draw(site, q, alike)

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,)."""
        return draws.log_w.mean(0)

    def surrogate(self, draws: Particles) -> Tensor:
        """Returns the surrogate of each datum (B,)."""
        sites = list(binary_sites(draws))
        require_sites(
            len(sites) == len(draws.guide),
            self,
            "Bernoulli latents alone that depend on x alone",
            f"it draws {list(draws.guide)}; use DisARM, or ScoreFunction with control='leave-one-out'",
        )
        if not draws.log_w.requires_grad:  # nothing is differentiated, so no surrogate is needed
            return torch.zeros_like(draws.log_w[0])
        slopes = torch.autograd.grad(
            draws.log_w.sum(), [b for _, _, b in sites], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        f, away = draws.log_w.detach(), [(b - logits.sigmoid()).detach() for _, logits, b in sites]
        linear = torch.zeros_like(f)
        for (name, _, _), g, gap in zip(sites, slopes, away, strict=True):
            linear = linear + summed(draws, name, self._others(g) * gap)
        a = self.state["a"].to(f)
        total = draws.log_p.mean(0)
        for (name, logits, _), g, gap in zip(sites, slopes, away, strict=True):
            p = logits.detach().sigmoid()
            plain = at_places(draws, f - self._others(f), logits) * gap
            control = at_places(draws, linear - self._others(linear), logits) * gap - g * p * (1 - p)
            estimate = (plain + a * control).mean(0)  # by the logits of each datum; a alone has a gradient here
            total = total + summed_over_data(draws, name, estimate.detach() * logits[0] - estimate**2)
        return total

    def _others(self, value: Tensor) -> Tensor:
        """Returns the mean of the other particles."""
        return (value.sum(0) - value) / (self.K - 1)


def summed_over_data(draws: Particles, name: str, numbers: Tensor) -> Float[Tensor, " B"]:
    """Returns numbers of a latent without particles, summed over all that belongs to one datum."""
    return summed(draws, name, numbers.unsqueeze(0)).mean(0)


def first_weights(inputs: int, outputs: int) -> Tensor:
    """Returns the first weights of a layer, which are always the same, of variance 1 / inputs."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn((inputs, outputs), generator=generator, device="cpu") / inputs**0.5


def data_as_vectors(draws: Particles, learned: Tensor | None = None) -> Float[Tensor, "B D"]:
    """Returns the data that the programs were called with, as vectors; large numbers are compressed, missing ones are zero.

    Raises:
        ValueError: weights were learned (D, hidden) for data of another size.
    """
    x: Tensor = draws.programs[2][0]
    flat = x.reshape(len(x), prod(x.shape[1:]))
    if learned is not None and len(learned) != flat.shape[1]:
        raise ValueError(
            f"this estimator has learned a network for data of {len(learned)} numbers, and is given data of {flat.shape[1]}: "
            f"make a new one for other data"
        )
    return flat.to(draws.log_w.dtype).nan_to_num().asinh()


def check_rate(estimator: Estimator, rate: float) -> None:
    """Raises ValueError if the rate of what an estimator learns is not a positive number."""
    if not 0 < rate < float("inf"):
        raise ValueError(f"{type(estimator).__name__}: expected a positive learning_rate, got {rate}")
