"""Chains of Hamiltonian Monte Carlo along a path of densities, vectorized over particles and data (Neal 2001, 2011)."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log, pi
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from pyro_vae.evaluate.annealing.path import Annealing
from pyro_vae.traces import Densities

_STAGES = 20
"""The number of parts of the path, each with step lengths of its own: they are kept for parts, since there may be any number
of temperatures."""
_MOVES = 10
"""The least number of moves of the preliminary run in each part of the path."""
_SHARE = 5
"""The preliminary run has at least a fifth of the temperatures."""
_GAIN = 0.3
"""How fast the logarithm of a step's length follows the acceptance rate, which is a mean over particles."""
_MEMORY = 0.9
"""The weight of the past, at each move, in the running variance of the coordinates."""
_OTHERS = 4
"""How many particles the variance over all data counts for, beside the K particles of a datum."""
_VARIANCES = (1e-30, 1e30)
"""The range of variances: those of a latent that a mask leaves out grow without end, since nothing holds its chains."""
_JITTER = 0.2
"""Steps are lengthened or shortened at random by up to this share, so that no orbit closes (Neal 2011, section 5.4.2.2)."""


class State(NamedTuple):
    """Where chains are: the latents in unconstrained coordinates (K, B, D), and the log densities there."""

    z: Float[Tensor, "K B D"]
    at: Densities

    def where(self, keep: Bool[Tensor, "K B"], other: State) -> State:
        """Returns this state where it is kept, and the other one elsewhere."""
        start, ratio = (torch.where(keep, *pair) for pair in zip(self.at, other.at, strict=True))
        return State(torch.where(keep[..., None], self.z, other.z), Densities(start, ratio))


Gradient = Callable[[Tensor, Tensor], tuple[Densities, Tensor]]
"""Returns the log densities at z, and the gradient of log p₀ + β (log p(x,t) - log p₀) by z, from z (K, B, D) and β."""


def gradient_of(density: Callable[..., Densities], z: Tensor, beta: Tensor, *args: Tensor) -> tuple[Densities, Tensor]:
    """Returns the log densities at z with the gradient along the path (see `Gradient`).

    Args:
        density: the log densities as a function of z and ``args``.
        z: the latents in unconstrained coordinates (K, B, D).
        beta: the inverse temperature.
        *args: what else the density depends on.
    """
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        at = density(leaf, *args)
        total = (at.start + beta * at.ratio).sum()
        # A density that is constant in z has no gradient.
        slope = torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(leaf)
    return Densities(at.start.detach(), at.ratio.detach()), slope


def move(
    gradient: Gradient, state: State, beta: Tensor, step: Float[Tensor, "B D"], leapfrog: int
) -> tuple[State, Float[Tensor, "K B"]]:
    """Moves each chain once by Hamiltonian Monte Carlo, so that the density at β is left as it is.

    A momentum is drawn from N(0, I). Leapfrog steps, which are reversible and keep volume, take the chain to a new place. It
    is accepted with probability min(1, exp(H - H')) (Neal 2011, section 5.3.2). A place without a density (NaN) is rejected.

    Args:
        gradient: the densities with their gradient.
        state: where the chains are.
        beta: the inverse temperature.
        step: the length of a leapfrog step in each coordinate of each datum. It must not depend on the chains' states.
        leapfrog: the number of leapfrog steps.

    Returns:
        the chains' states after the move, and the probability with which each was accepted.
    """

    def energy(at: Densities, momentum: Tensor) -> Tensor:
        return momentum.square().sum(-1) / 2 - (at.start + beta * at.ratio)

    z, at = state.z, state.at
    jitter = 1 + _JITTER * (2 * torch.rand_like(z[..., :1]) - 1)
    momentum, length = torch.randn_like(z), step * jitter
    before = energy(at, momentum)
    _, slope = gradient(z, beta)
    for _ in range(leapfrog):
        momentum = momentum + length / 2 * slope
        z = z + length * momentum
        at, slope = gradient(z, beta)
        momentum = momentum + length / 2 * slope
    change = before - energy(at, momentum)
    accepted = (torch.rand_like(change).log() < change) & z.isfinite().all(-1)  # false where the density is NaN
    return State(z, at).where(accepted, state), change.clamp(max=0).exp().nan_to_num(0.0)


def moves_of_preliminary(temperatures: int) -> int:
    """Returns the number of moves of the preliminary run: a fifth of the temperatures, and never fewer than 200."""
    return _STAGES * max(_MOVES, ceil(temperatures / _SHARE / _STAGES))


def tune(gradient: Gradient, state: State, annealing: Annealing, on_move: Callable[[], None]) -> Float[Tensor, "S B D"]:
    """Returns the lengths of steps in each part of the path, from a preliminary run whose chains are thrown away.

    The logarithm of a step's length rises where more moves are accepted than asked for, and falls otherwise (Robbins and Monro
    1951), for each datum alone. The lengths of the coordinates are proportional to their standard deviations over the chains
    of a datum, drawn towards those over all data where particles are few. A move is not longer than π/2 standard deviations, a
    quarter of the orbit in a Gaussian: there it forgets where it came from, and after twice this way it comes back.

    Args:
        gradient: the densities with their gradient.
        state: the chains at the start of the path.
        annealing: the path.
        on_move: what is called after each move.
    """
    K, B, D = state.z.shape
    stages, moves = [], moves_of_preliminary(annealing.temperatures) // _STAGES
    betas = annealing.betas(_STAGES * moves)[1:].split(moves)
    most = log(pi / 2 / annealing.leapfrog)
    # This power of D keeps the acceptance rate as D grows (Neal 2011, section 5.4.4).
    log_step = state.z.new_full((B, 1), min(-log(D) / 4, most))
    if K > 1:
        center, variance = state.z.mean(0), state.z.var(0)
    else:  # of one particle, the spread is known from the other data alone
        center = state.z[0]
        variance = center.var(0).expand(B, D) if B > 1 else torch.ones_like(center)
    for part in betas:
        log_lengths = state.z.new_zeros(B, D)
        for beta in part:
            log_variance = variance.clamp(*_VARIANCES).log()
            shrunk = (K * log_variance + _OTHERS * log_variance.mean(0)) / (K + _OTHERS)
            log_length = log_step + shrunk / 2
            state, accepted = move(gradient, state, _placed(beta, state.z), log_length.exp(), annealing.leapfrog)
            log_step = (log_step + _GAIN * (accepted.mean(0)[:, None] - annealing.acceptance)).clamp(max=most)
            center = _MEMORY * center + (1 - _MEMORY) * state.z.mean(0)
            variance = _MEMORY * variance + (1 - _MEMORY) * (state.z - center).square().mean(0)
            log_lengths = log_lengths + log_length / moves
            on_move()
        stages.append(log_lengths.exp())
    return torch.stack(stages)


class Weighted(NamedTuple):
    """Weighted chains at one inverse temperature, before their move there.

    Attributes:
        beta: the inverse temperature.
        log_w: the log weights, of which the mean of w estimates the ratio of the normalizing constants, here and at the start.
        ratio: log p(x,t) - log p₀(t) of each chain.
    """

    beta: float
    log_w: Float64[Tensor, "K B"]
    ratio: Float[Tensor, "K B"]


class Run(NamedTuple):
    """The end of annealed chains.

    Attributes:
        log_w: the log weights.
        acceptance: the mean acceptance rate of each datum; NaN without a move.
    """

    log_w: Float64[Tensor, "K B"]
    acceptance: Float64[Tensor, " B"]


def anneal(
    gradient: Gradient,
    state: State,
    betas: Float64[Tensor, " T1"],
    steps: Float[Tensor, "S B D"],
    leapfrog: int,
    on_step: Callable[[Weighted], None],
) -> Run:
    """Takes chains along a path and weights them (Neal 2001, equation 11).

    At each step from β to β', log w grows by (β' - β) (log p(x,t) - log p₀(t)), and then a move leaves the density at β' as it
    is. For a reverse chain, β falls. Nothing here depends on the states of the chains but these themselves: the lengths of the
    steps are those of β, whichever way the chain goes, and no step is adapted. With steps that are adapted in this run, the
    moves would not leave their densities as they are, and the weights would not be unbiased.

    Args:
        gradient: the densities with their gradient.
        state: the chains, drawn from the density at the first β.
        betas: the inverse temperatures.
        steps: the lengths of the leapfrog steps in each part of the path, from β = 0 on.
        leapfrog: the number of leapfrog steps of each move.
        on_step: what is called with the weighted chains at each temperature, the first included.
    """
    stages, last = len(steps), len(betas) - 1
    log_w = torch.zeros_like(state.at.ratio, dtype=torch.float64)
    accepted = log_w.mean(0)
    upward = bool(betas[-1] > betas[0])
    on_step(Weighted(float(betas[0]), log_w, state.at.ratio))
    for k in range(1, last + 1):
        log_w = log_w + float(betas[k] - betas[k - 1]) * state.at.ratio.to(torch.float64)
        on_step(Weighted(float(betas[k]), log_w, state.at.ratio))
        if k < last:  # no weight depends on a move at the end
            place = k if upward else last - k
            step = steps[min(place * stages // last, stages - 1)]
            state, probability = move(gradient, state, _placed(betas[k], state.z), step, leapfrog)
            accepted = accepted + probability.to(torch.float64).mean(0)
    return Run(log_w, accepted / (last - 1) if last > 1 else accepted * torch.nan)


def _placed(beta: Tensor, like: Tensor) -> Tensor:
    return beta.to(like.device, like.dtype)
