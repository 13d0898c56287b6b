"""Evaluation: log p(x) by importance sampling, and means with their standard errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import log, prod, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from pyro_vae.data import Split
from pyro_vae.particles import draw_latents, library_path, observed, particles
from pyro_vae.programs import Programs, mode, seeded

_CHUNK = 2**20
"""Numbers in the largest temporary, particles × data × pixels: small enough for a processor's cache."""


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


def log_px(
    programs: Programs, split: Split, K: int, *, batch_size: int = 100, max_plate_nesting: int = 1, seed: int = 0
) -> Float64[Tensor, " N"]:
    """Log p(x) of each datum by importance sampling from the guide: log (1/K) Σ_k w_k, in nats.

    This is L_K of Burda et al. 2016 (equation 8), a lower bound in expectation that rises to log p(x) with K. Particles come
    in chunks and their weights are summed on the way (streaming logsumexp): memory does not grow with K.

    Args:
        programs: a `VAE`, or any Pyro ``model(x)`` and ``guide(x)``.
        split: N data, on the device of the programs.
        K: number of particles.
        batch_size: data at a time.
        max_plate_nesting: number of plate dimensions the programs use.
        seed: of the particles.

    Raises:
        ValueError: K below 1.
    """
    if K < 1:
        raise ValueError(f"K: expected at least 1 particle, got {K}")
    estimates: list[Tensor] = []
    with _evaluating(programs, split.x.device, seed, "log p(x)"), library_path():
        for x in split.batches(batch_size):
            most = max(1, _CHUNK // (len(x) * prod(x.shape[1:])))
            total = x.new_full((len(x),), -torch.inf, dtype=torch.float64)
            for start in range(0, K, most):
                draws = particles(
                    programs.model, programs.guide, x, K=min(most, K - start), max_plate_nesting=max_plate_nesting
                )
                total = torch.logaddexp(total, draws.log_w.logsumexp(0).to(torch.float64))
            estimates.append(total - log(K))
    return torch.cat(estimates)


def reconstruct(programs: Programs, x: Tensor, seed: int = 0) -> Tensor:
    """E[x'|t] at one draw t ~ q(t|x,φ) for each datum: the mean of the model's first observed site, shape of x."""
    with _evaluating(programs, x.device, seed, "images"):
        return _mean_image(programs, x, draw_latents(programs.guide, x))


def sample(programs: Programs, x: Tensor, n: int, seed: int = 0) -> Tensor:
    """E[x|t] at n draws t ~ p(t). Of x only the shape of a datum and the device are used."""
    with _evaluating(programs, x.device, seed, "images"):
        return _mean_image(programs, torch.zeros_like(x[:1]).expand(n, *x.shape[1:]), {})


def encode(programs: Programs, x: Tensor, site: str = "t", seed: int = 0) -> Tensor:
    """One draw t ~ q(t|x,φ) for each datum ``(N, d)``: together, draws of the aggregate posterior."""
    with _evaluating(programs, x.device, seed, "images"):
        return draw_latents(programs.guide, x)[site]


def decode(programs: Programs, t: Tensor, x: Tensor, site: str = "t") -> Tensor:
    """E[x|t] for latents t ``(N, d)``. Of x only the shape of a datum is used."""
    with _evaluating(programs, x.device, "images"):
        return _mean_image(programs, torch.zeros_like(x[:1]).expand(len(t), *x.shape[1:]), {site: t})


@contextmanager
def _evaluating(programs: Programs, device: torch.device, *key: int | str) -> Iterator[None]:
    """No gradient, evaluation mode, and random numbers of their own."""
    with torch.no_grad(), seeded(device, *key), mode(programs, training=False):
        yield


def _mean_image(programs: Programs, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    image: Tensor = next(iter(observed(programs.model, x, values=values).values())).mean
    return image
