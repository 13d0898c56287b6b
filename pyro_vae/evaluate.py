"""Evaluation: log p(x) by importance sampling, and means with their standard errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import log, prod, sqrt
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from pyro_vae.base import Shape
from pyro_vae.compiled import NotCompiledError, compiled
from pyro_vae.data import Split
from pyro_vae.particles import draw_latents, library_path, observed, particles
from pyro_vae.programs import Programs, given, mode, seeded
from pyro_vae.steps import Compile, Precision, logger, networks_in

_CHUNK = 2**20
"""Numbers in the largest temporary, particles × data × pixels: small enough for a processor's cache."""
_PARTS = 4
"""Chunks in one compiled graph, which share what does not depend on the particles: the encoder and the prior."""
_AUTO_WORK = 2**31
"""Particles × data × pixels from which on a compiled chunk saves more time than compiling takes."""


class Mean(NamedTuple):
    """A mean over data with its standard error (the sample standard deviation over √n), and n."""

    mean: float
    error: float
    n: int

    def __str__(self) -> str:
        """For a table: mean ± standard error."""
        return f"{self.mean:.2f} ± {self.error:.2f}"


def mean(values: Tensor) -> Mean:
    """Mean and standard error of independent values (N,), summed in float64. One value has no error (NaN)."""
    values, n = values.to(torch.float64), len(values)
    return Mean(values.mean().item(), values.std().item() / sqrt(n) if n > 1 else float("nan"), n)


def bits_per_dim(log_px: Tensor, x_shape: Shape) -> Tensor:
    """-log p(x) / (D log 2) of each datum (N,), D the number of pixels: bits that a code takes. For discrete x alone."""
    return -log_px / (prod(x_shape) * log(2))


def log_px(
    programs: Programs,
    split: Split,
    K: int,
    *,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    seed: int = 0,
    compile: Compile = "auto",
    precision: Precision = "fp32",
) -> Float64[Tensor, " N"]:
    """Log p(x) of each datum by importance sampling from the guide: log (1/K) Σ_k w_k, in nats.

    This is L_K of Burda et al. 2016 (equation 8), a lower bound in expectation that rises to log p(x) with K. Particles come
    in chunks and their weights are summed on the way (streaming logsumexp, in float64): memory does not grow with K.

    Args:
        programs: a `VAE`, or any Pyro ``model(x)`` and ``guide(x)``.
        split: N data, on the device of the programs.
        K: number of particles.
        batch_size: data at a time.
        max_plate_nesting: number of plate dimensions the programs use.
        seed: of the particles.
        compile: whether a chunk is compiled; auto: where the work is large.
        precision: of the networks' matrix products.

    Raises:
        ValueError: K below 1.
    """
    if K < 1:
        raise ValueError(f"K: expected at least 1 particle, got {K}")
    pixels, N, split = prod(split.x.shape[1:]), len(split), split.given_to(programs)
    chunk = max(1, _CHUNK // (min(batch_size, N) * pixels))
    most = min(K, _PARTS * chunk)

    def log_sum(*batch: Tensor, k: int) -> Tensor:
        """Log Σ w over k new particles (B,)."""
        sums = []
        for start in range(0, k, chunk):
            with networks_in(precision, split.x.device):
                K = min(chunk, k - start)
                draws = particles(programs.model, programs.guide, *batch, K=K, max_plate_nesting=max_plate_nesting)
            sums.append(draws.log_w.logsumexp(0).to(torch.float64))
        return torch.stack(sums).logsumexp(0)

    estimates: list[Tensor] = []
    with _evaluating(programs, split.x.device, seed, "log p(x)"), library_path():
        full: Callable[..., Tensor] = partial(log_sum, k=most)
        if compile == "on" or (compile == "auto" and K * N * pixels >= _AUTO_WORK):
            key = most, chunk, max_plate_nesting, precision
            full = _compiled(programs, full, tuple(column[:batch_size] for column in split.columns), key)
        for batch in split.batches(batch_size):
            B = len(batch[0])
            total = batch[0].new_full((B,), -torch.inf, dtype=torch.float64)
            for start in range(0, K, most):
                whole = K - start >= most and min(batch_size, N) == B
                part = full(*batch) if whole else log_sum(*batch, k=min(most, K - start))
                total = torch.logaddexp(total, part)
            estimates.append(total - log(K))
    return torch.cat(estimates)


_graphs: WeakKeyDictionary[nn.Module, dict[Any, Callable[..., list[Tensor]]]] = WeakKeyDictionary()


def _compiled(
    programs: Any, function: Callable[..., Tensor], batch: tuple[Tensor, ...], key: Any
) -> Callable[..., Tensor]:
    """The function of a batch of these shapes as one graph, or itself, with a line that says why.

    A module's graphs are kept: its weights may change where they are, and are part of the key should they move.
    """
    state = [*programs.parameters(), *programs.buffers()] if isinstance(programs, nn.Module) else []
    shapes = [(each.shape, each.dtype, each.device) for each in batch]
    key = (key, *shapes, *((tensor.data_ptr(), tensor.dtype) for tensor in state))

    def whole(_swapped: Sequence[Tensor], _held: Sequence[Tensor], *batch: Tensor) -> list[Tensor]:
        return [function(*batch)]

    kept = _graphs.get(programs, {}) if state else {}
    if key not in kept:
        try:
            kept[key] = compiled(programs, whole, [], batch, {})
        except NotCompiledError as reason:
            logger.warning("log p(x) is computed eagerly: %s", reason)
            return function
        _graphs[programs] = kept
    run = kept[key]
    return lambda *batch: run(*batch)[0]


def reconstruct(programs: Programs, x: Tensor, seed: int = 0, *, y: Tensor | None = None) -> Tensor:
    """E[x'|t] at one draw t ~ q(t|x,φ) for each datum: the mean of the model's first observed site, shape of x.

    Here and below, y are labels ``(N,)``, for programs that take them; it is a ValueError if there are not N, or one is none of
    the model's.
    """
    batch = _checked(programs, x, y)
    with _evaluating(programs, x.device, seed, "images"):
        return _mean_image(programs, batch, draw_latents(programs.guide, *batch))


def sample(programs: Programs, x: Tensor, n: int, seed: int = 0, *, y: Tensor | None = None) -> Tensor:
    """E[x|t] at n draws t ~ p(t). Of x only the shape of a datum and the device are used."""
    batch = _checked(programs, torch.zeros_like(x[:1]).expand(n, *x.shape[1:]), y)
    with _evaluating(programs, x.device, seed, "images"):
        return _mean_image(programs, batch, {})


def encode(programs: Programs, x: Tensor, site: str = "t", seed: int = 0, *, y: Tensor | None = None) -> Tensor:
    """One draw t ~ q(t|x,φ) for each datum ``(N, d)``: together, draws of the aggregate posterior."""
    batch = _checked(programs, x, y)
    with _evaluating(programs, x.device, seed, "images"):
        return draw_latents(programs.guide, *batch)[site]


def active_units(
    programs: Programs, split: Split, site: str = "t", threshold: float = 0.01, draws: int = 20, seed: int = 0
) -> Tensor:
    """Which latents are in use ``(d,)``: those with Var_x E_q[t_j|x] above a threshold (Burda et al. 2016, section 5.1).

    For guides of any kind, without a mean in closed form: the covariance over x of two means over ``draws`` independent draws
    each has that variance as its expectation.

    Args:
        programs: a model and a guide.
        split: N data, at least two.
        site: the latent.
        threshold: their paper's.
        draws: in each of the two means.
        seed: of the draws.
    """
    return variance_of_means(programs, split, site, draws, seed) > threshold


def variance_of_means(programs: Programs, split: Split, site: str = "t", draws: int = 20, seed: int = 0) -> Tensor:
    """Var_x E_q[t_j|x] ``(d,)``, without bias from the noise of the draws (see `active_units`)."""
    halves: list[list[Tensor]] = [[], []]
    with _evaluating(programs, split.x.device, seed, "active units"):
        for batch in split.given_to(programs).batches(1000):
            for half in halves:
                half.append(torch.stack([draw_latents(programs.guide, *batch)[site] for _ in range(draws)]).mean(0))
    one, other = (torch.cat(half).double() for half in halves)
    return ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (len(one) - 1)


def decode(programs: Programs, t: Tensor, x: Tensor, site: str = "t", *, y: Tensor | None = None) -> Tensor:
    """E[x|t] for latents t ``(N, d)``. Of x only the shape of a datum is used."""
    batch = _checked(programs, torch.zeros_like(x[:1]).expand(len(t), *x.shape[1:]), y)
    with _evaluating(programs, x.device, "images"):
        return _mean_image(programs, batch, {site: t})


@contextmanager
def _evaluating(programs: Programs, device: torch.device, *key: int | str) -> Iterator[None]:
    """No gradient, evaluation mode, and random numbers of their own."""
    with torch.no_grad(), seeded(device, *key), mode(programs, training=False):
        yield


def _checked(programs: Programs, x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    """What the programs are called with, if there is a label of theirs for each datum."""
    classes = getattr(programs, "classes", None)
    if y is not None and len(y) != len(x):
        raise ValueError(f"y: expected a label for each of {len(x)} data, got {len(y)}")
    if y is not None and classes and not y.is_meta and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"y: expected labels 0..{classes - 1}, got {y.min()} to {y.max()}")
    return given(x, y)


def _mean_image(programs: Programs, batch: tuple[Tensor, ...], values: dict[str, Tensor]) -> Tensor:
    image: Tensor = next(iter(observed(programs.model, *batch, values=values).values())).mean
    return image
