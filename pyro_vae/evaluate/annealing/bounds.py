"""Bounds of log p(x) by annealed chains: from below for any data, from both sides for data that the model draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil, log, nan, prod, sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from pyro_vae.compilation import Compile, kept
from pyro_vae.data import Columns, DataLike, columns_for
from pyro_vae.evaluate.annealing.chains import (
    Gradient,
    Run,
    State,
    Weighted,
    anneal,
    gradient_of,
    moves_of_preliminary,
    tune,
)
from pyro_vae.evaluate.annealing.path import Annealing
from pyro_vae.evaluate.annealing.results import Annealed, Bracket, RateDistortion
from pyro_vae.kinds import takes
from pyro_vae.missing import check_seen
from pyro_vae.scopes import evaluating, tell_progress, telling_memory
from pyro_vae.traces import Densities, Programs, Unconstrained, simulate_arguments

_AUTO_WORK, _AUTO_GRADIENTS = 2**31, 10_000
"""The least work, gradients × particles × data × pixels, or else the least number of gradients, for which compiling saves more
time than it takes: it takes 10 to 30 seconds, and halves the time of a gradient or more."""


@takes
def ais(
    programs: Programs,
    data: DataLike,
    K: int = 16,
    *,
    annealing: Annealing | None = None,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    seed: int = 0,
    compile: Compile = "auto",
) -> Annealed:
    """Returns log p(x) of each datum by annealed importance sampling (Neal 2001; for decoders, Wu et al. 2017).

    K chains for each datum start at the prior or at the guide, and go to the posterior through a path of densities (see
    `Annealing`). The mean of their weights is unbiased for p(x), so that its logarithm is a lower bound in expectation, as
    that of importance sampling is. It does not need a guide that covers the posterior, and from the prior it needs none.

    The lengths of the steps are found in a preliminary run, for each datum and each part of the path, and stay as they are
    in the run that counts. If they followed that run's own chains, the moves would not leave their densities as they are,
    and the bound would not be one.

    Where values of x are missing (NaN), it is log p of the others. Memory does not grow with the number of temperatures,
    but for the means of the rate-distortion curve.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        data: N data, on the device of the programs.
        K: the number of chains for each datum.
        annealing: the path; by default ``Annealing()``.
        batch_size: the number of data at a time.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of the chains.
        compile: whether densities and their gradient are compiled; "auto" compiles where the work is large.

    Raises:
        ValueError: K or a size is below 1; a latent is discrete, or has no density or no known support (see
            `pyro_vae.traces.Unconstrained`); or values of the data are missing and the model was not built for such data.
    """
    path, columns = annealing or Annealing(), _columns(programs, data, K, batch_size)
    progress = _Progress("log p(x) by annealing", path, len(columns), batch_size, directions=1)
    on = _is_compiled(compile, progress, columns, K, batch_size)
    curve = _Curve(path) if path.start == "prior" else None
    found: list[_Summary] = []
    with telling_memory(batch_size=batch_size, K=K), evaluating(programs, columns.x.device, seed, "annealing"):
        for batch in columns.batches(batch_size):
            chains = _Chains(programs, batch, K, path, max_plate_nesting, progress, on)
            found.append(_summary(chains.forward(curve.of_batch() if curve else _nothing)))
    log_px, error, ess, spread, acceptance = (torch.cat(each) for each in zip(*found, strict=True))
    check_seen(log_px, columns.x)
    return Annealed(log_px, error, ess, spread, acceptance, K, path, curve.result(len(columns)) if curve else None)


@takes
def bracket(
    programs: Programs,
    like: DataLike,
    K: int = 16,
    *,
    annealing: Annealing | None = None,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    seed: int = 0,
    compile: Compile = "auto",
) -> Bracket:
    """Returns log p(x) from both sides, for data that the model draws itself: bidirectional Monte Carlo (Grosse et al. 2015).

    For each datum, t ~ p(t) and x ~ p(x|t) are drawn. Forward chains give the lower bound of `ais`. The same moves in reverse
    order, from t on, which is an exact draw of the posterior, estimate 1 / p(x) without bias: minus the logarithm of their
    mean weight is an upper bound in expectation. The lengths of the steps are those of one preliminary run.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        like: N data, of which the shape, the labels and the places of missing values are used: the drawn data are like them.
        K: the number of chains for each datum and direction.
        annealing: the path; by default ``Annealing()``.
        batch_size: the number of data at a time.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of the data and of the chains.
        compile: whether densities and their gradient are compiled; "auto" compiles where the work is large.

    Raises:
        ValueError: as `ais`; or the model observes something else than its arguments, so that it cannot draw them.
    """
    path, columns = annealing or Annealing(), _columns(programs, like, K, batch_size)
    progress = _Progress("the bracket of log p(x)", path, len(columns), batch_size, directions=2)
    on = _is_compiled(compile, progress, columns, K, batch_size)
    forward: list[_Summary] = []
    reverse: list[_Summary] = []
    drawn: list[Tensor] = []
    with telling_memory(batch_size=batch_size, K=K), evaluating(programs, columns.x.device, seed, "bracket"):
        for batch in columns.batches(batch_size):
            latents, simulated = simulate_arguments(programs.model, *batch, inputs=columns.inputs)
            chains = _Chains(programs, simulated, K, path, max_plate_nesting, progress, on)
            forward.append(_summary(chains.forward(_nothing)))
            reverse.append(_summary(chains.reverse(latents)))
            drawn.append(simulated[columns.inputs.index("x")])
    lower, error, _, _, up = (torch.cat(each) for each in zip(*forward, strict=True))
    upper, upper_error, _, _, down = (torch.cat(each) for each in zip(*reverse, strict=True))
    check_seen(lower, columns.x)
    return Bracket(torch.cat(drawn), lower, -upper, error, upper_error, (up + down) / 2, K, path)


def _columns(programs: Programs, data: DataLike, K: int, batch_size: int) -> Columns:
    for name, size in (("K", K), ("batch_size", batch_size)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    columns = columns_for(programs, data)
    if not len(columns):
        raise ValueError("data: expected at least one datum, got none")
    return columns


def _nothing(_at: Weighted) -> None:
    """Keeps nothing of the chains on their way."""


class _Chains:
    """The chains of one batch, with the lengths of their steps from a preliminary run."""

    def __init__(
        self,
        programs: Programs,
        batch: tuple[Tensor, ...],
        K: int,
        path: Annealing,
        nesting: int,
        progress: _Progress,
        compiled: Callable[[int], bool],
    ) -> None:
        guide = programs.guide if path.start == "guide" else None
        density = self.density = Unconstrained(programs.model, guide, *batch, K=K, max_plate_nesting=nesting)
        z = density.draw()
        self.gradient: Gradient = partial(gradient_of, density)
        if compiled(len(batch[0])) and density.repeats:
            self.gradient = _graph(programs, density, z, batch, (nesting, path.start))
        self.K, self.path, self.progress = K, path, progress
        self.steps = tune(self.gradient, self._state(z), path, progress.moved)

    def forward(self, on_step: Callable[[Weighted], None]) -> Run:
        """Runs chains from the start of the path to the posterior."""
        state = self._state(self.density.draw())
        return self._anneal(state, self.path.betas(self.path.temperatures), on_step)

    def reverse(self, latents: Mapping[str, Tensor]) -> Run:
        """Runs chains from draws of the posterior, one for each datum, to the start of the path."""
        z = self.density.at({name: self.density.with_particles(name, t) for name, t in latents.items()}, 1)
        state = self._state(z.repeat(self.K, 1, 1))
        return self._anneal(state, self.path.betas(self.path.temperatures).flip(0), _nothing)

    def _anneal(self, state: State, betas: Tensor, on_step: Callable[[Weighted], None]) -> Run:
        def step(at: Weighted) -> None:
            on_step(at)
            self.progress.moved()

        return anneal(self.gradient, state, betas, self.steps, self.path.leapfrog, step)

    def _state(self, z: Tensor) -> State:
        with torch.no_grad():
            return State(z, self.density(z))


def _is_compiled(
    compile: Compile, progress: _Progress, columns: Columns, K: int, batch_size: int
) -> Callable[[int], bool]:
    """Returns whether a batch of a size is compiled: where the work is large, or this is asked for; a smaller one is not."""
    gradients = progress.total * (progress.leapfrog + 1)
    work = gradients * K * min(batch_size, len(columns)) * prod(columns.x.shape[1:])
    on = compile == "on" or (compile == "auto" and (gradients >= _AUTO_GRADIENTS or work >= _AUTO_WORK))
    return lambda size: on and size == min(batch_size, len(columns))


def _graph(programs: Any, density: Unconstrained, z: Tensor, batch: tuple[Tensor, ...], key: Any) -> Gradient:
    """Returns the gradient as a compiled graph, if it can be compiled."""

    def whole(z: Tensor, beta: Tensor, *batch: Tensor) -> list[Tensor]:
        at, slope = gradient_of(density, z, beta, *batch)
        return [*at, slope]

    run = kept(programs, whole, (z, z.new_zeros(()), *batch), key, "annealed importance sampling")

    def gradient(z: Tensor, beta: Tensor) -> tuple[Densities, Tensor]:
        start, ratio, slope = run(z, beta, *batch)
        return Densities(start, ratio), slope

    return gradient


class _Summary(NamedTuple):
    """What the weights of one batch say of each datum (B,); see `Annealed`."""

    log_mean: Float64[Tensor, " B"]
    error: Float64[Tensor, " B"]
    ess: Float64[Tensor, " B"]
    spread: Float64[Tensor, " B"]
    acceptance: Float64[Tensor, " B"]


def _summary(run: Run) -> _Summary:
    K = len(run.log_w)
    log_mean = run.log_w.logsumexp(0) - log(K)
    share = run.log_w.softmax(0)
    ess = 1 / share.square().sum(0)
    if K == 1:
        unknown = torch.full_like(log_mean, nan)
        return _Summary(log_mean, unknown, ess, unknown, run.acceptance)
    error = (K * share).std(0) / sqrt(K)
    return _Summary(log_mean, error, ess, run.log_w.std(0), run.acceptance)


class _Curve:
    """Sums over data, at each β, of the rate, the distortion, and their squares."""

    def __init__(self, path: Annealing) -> None:
        self.beta = path.betas(path.temperatures)
        self.sums: Tensor | None = None

    def of_batch(self) -> Callable[[Weighted], None]:
        """Returns what adds the chains of a further batch, temperature by temperature."""
        at = iter(range(len(self.beta)))

        def add(chains: Weighted) -> None:
            log_Z = chains.log_w.logsumexp(0) - log(len(chains.log_w))
            share, log_lik = chains.log_w.softmax(0), chains.ratio.to(torch.float64)
            distortion = -torch.where(share > 0, share * log_lik, 0.0).sum(0)
            rate = -chains.beta * distortion - log_Z
            if self.sums is None:
                self.sums = log_Z.new_zeros(len(self.beta), 4)
            self.sums[next(at)] += torch.stack([rate, rate.square(), distortion, distortion.square()]).sum(1)

        return add

    def result(self, n: int) -> RateDistortion:
        """Returns the means over n data, with their standard errors."""
        assert self.sums is not None  # data are never empty
        rate, rate2, distortion, distortion2 = (self.sums / n).T
        freedom = n - 1 if n > 1 else nan

        def error(first: Tensor, second: Tensor) -> Tensor:
            return ((second - first.square()).clamp(min=0) / freedom).sqrt()

        beta = self.beta.to(rate.device)
        return RateDistortion(beta, rate, error(rate, rate2), distortion, error(distortion, distortion2), n)


class _Progress:
    """Tells how many of the moves are done, at most a hundred times."""

    def __init__(self, what: str, path: Annealing, N: int, batch_size: int, directions: int) -> None:
        of_batch = moves_of_preliminary(path.temperatures) + directions * (path.temperatures + 1)
        self.what, self.total, self.done = what, of_batch * ceil(N / batch_size), 0
        self.leapfrog = path.leapfrog

    def moved(self) -> None:
        """Counts a move."""
        if self.done == 0:
            tell_progress(self.what, 0, self.total)
        self.done += 1
        if self.done * 100 // self.total > (self.done - 1) * 100 // self.total:
            tell_progress(self.what, self.done, self.total)
