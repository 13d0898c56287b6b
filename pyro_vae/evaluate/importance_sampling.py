"""log p(x) by importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, prod

import torch
from jaxtyping import Float64
from torch import Tensor

from pyro_vae.compilation import Compile, kept
from pyro_vae.data import DataLike, columns_for
from pyro_vae.evaluate.evidence import Evidence, Weights
from pyro_vae.kinds import takes
from pyro_vae.missing import check_seen
from pyro_vae.parts import Shape
from pyro_vae.precision import Precision, in_precision
from pyro_vae.scopes import evaluating, tell_progress, telling_memory
from pyro_vae.traces import Programs, library_path, particles

_CHUNK = 2**20
"""The size of the largest temporary tensor, particles × data × pixels. It is small enough for a processor's cache."""
_TOGETHER = 4
"""The number of chunks in one compiled graph, which share what does not depend on particles: encoder and prior."""
_AUTO_WORK = 2**31
"""The least work, particles × data × pixels, for which a compiled chunk saves more time than compiling takes."""


@takes
def bits_per_dim(log_px: Tensor, x_shape: Shape) -> Tensor:
    """Returns -log p(x) / (D log 2) of each datum (N,), where D is the number of dimensions.

    It is the number of bits per dimension that a code takes, and has this meaning for discrete x alone.
    """
    return -log_px / (prod(x_shape) * log(2))


@takes
def evidence(
    programs: Programs,
    data: DataLike,
    K: int,
    *,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    seed: int = 0,
    compile: Compile = "auto",
    precision: Precision = "fp32",
) -> Evidence:
    """Returns log p(x) of each datum by importance sampling from the guide, and how far it can be trusted.

    The estimate is log (1/K) Σ_k w_k, in nats: L_K of Burda et al. 2016 (equation 8), a lower bound in expectation that rises
    to log p(x) as K grows. Where values of x are missing (NaN), it is log p of the others (see `pyro_vae.missing`).
    Particles are drawn in chunks, and no weights are kept but the largest, whose number grows as √K (see `Evidence`).

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        data: N data, on the device of the programs.
        K: the number of particles.
        batch_size: the number of data at a time.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of the particles.
        compile: whether a chunk is compiled; "auto" compiles where the work is large.
        precision: the precision of the networks' matrix products.

    Raises:
        ValueError: K is below 1, or values of the data are missing and the model was not built for such data.
    """
    if K < 1:
        raise ValueError(f"K: expected at least 1 particle, got {K}")
    columns = columns_for(programs, data)
    N, pixels, device = len(columns), prod(columns.x.shape[1:]), columns.x.device
    chunk = max(1, _CHUNK // (min(batch_size, N) * pixels))
    most = min(K, _TOGETHER * chunk)
    model, guide = (in_precision(program, precision) for program in (programs.model, programs.guide))

    done = 0

    def tell(new: int) -> None:
        nonlocal done
        done += new
        tell_progress("log p(x)", done, N * K)

    def log_weights(*batch: Tensor, k: int, tell: Callable[[int], None] | None = None) -> list[Tensor]:
        """Returns the log weights of k new particles (k, B), as the one tensor of a list."""
        drawn = []
        for start in range(0, k, chunk):
            draws = particles(model, guide, *batch, K=min(chunk, k - start), max_plate_nesting=max_plate_nesting)
            drawn.append(draws.log_w)
            if tell:
                tell(draws.log_w.numel())
        return [torch.cat(drawn)]

    found: list[Evidence] = []
    sizes = {"batch_size": batch_size, "K": K}
    tell(0)
    with telling_memory(**sizes), evaluating(programs, device, seed, "log p(x)"), library_path():
        full: Callable[..., list[Tensor]] | None = None
        if compile == "on" or (compile == "auto" and K * N * pixels >= _AUTO_WORK):
            key = most, chunk, max_plate_nesting, precision
            full = kept(
                programs, partial(log_weights, k=most), columns.first(batch_size).in_memory().tensors, key, "log p(x)"
            )
        for batch in columns.batches(batch_size):
            B = len(batch[0])
            weights = Weights(K, batch[0])
            for start in range(0, K, most):
                if full and K - start >= most and min(batch_size, N) == B:
                    (log_w,) = full(*batch)
                    tell(most * B)
                else:
                    (log_w,) = log_weights(*batch, k=min(most, K - start), tell=tell)
                weights.add(log_w)
            found.append(weights.found())
    joined = Evidence.join(found)
    check_seen(joined.log_px, columns.x)
    return joined


@takes
def log_px(
    programs: Programs,
    data: DataLike,
    K: int,
    *,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    seed: int = 0,
    compile: Compile = "auto",
    precision: Precision = "fp32",
) -> Float64[Tensor, " N"]:
    """Returns log p(x) of each datum by importance sampling, in nats: `evidence` without its diagnostics, which see."""
    found = evidence(
        programs,
        data,
        K,
        batch_size=batch_size,
        max_plate_nesting=max_plate_nesting,
        seed=seed,
        compile=compile,
        precision=precision,
    )
    return found.log_px
