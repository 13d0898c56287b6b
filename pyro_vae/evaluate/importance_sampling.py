"""log p(x) by importance sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import log, prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from pyro_vae.compilation import Compile, Compiled, NotCompiledError, compiled
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

logger = logging.getLogger("pyro_vae")


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

    def log_weights(*batch: Tensor, k: int, tell: Callable[[int], None] | None = None) -> Tensor:
        """Returns the log weights of k new particles (k, B)."""
        drawn = []
        for start in range(0, k, chunk):
            draws = particles(model, guide, *batch, K=min(chunk, k - start), max_plate_nesting=max_plate_nesting)
            drawn.append(draws.log_w)
            if tell:
                tell(draws.log_w.numel())
        return torch.cat(drawn)

    found: list[Evidence] = []
    sizes = {"batch_size": batch_size, "K": K}
    tell(0)
    with telling_memory(**sizes), evaluating(programs, device, seed, "log p(x)"), library_path():
        full: Callable[..., Tensor] | None = None
        if compile == "on" or (compile == "auto" and K * N * pixels >= _AUTO_WORK):
            key = most, chunk, max_plate_nesting, precision
            full = _compiled(programs, partial(log_weights, k=most), columns.first(batch_size).tensors, key)
        for batch in columns.batches(batch_size):
            B = len(batch[0])
            weights = Weights(K, batch[0])
            for start in range(0, K, most):
                if full and K - start >= most and min(batch_size, N) == B:
                    weights.add(full(*batch))
                    tell(most * B)
                else:
                    weights.add(log_weights(*batch, k=min(most, K - start), tell=tell))
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


_graphs: WeakKeyDictionary[nn.Module, dict[Any, Compiled]] = WeakKeyDictionary()


def _compiled(
    programs: Any, function: Callable[..., Tensor], batch: tuple[Tensor, ...], key: Any
) -> Callable[..., Tensor]:
    """Returns the function, for batches of these shapes, as one compiled graph.

    If it cannot be compiled, the function itself is returned and the reason is logged. The graphs of a module are kept from
    call to call, as long as what they hold as constants stays the same.
    """
    key = (key, *((each.shape, each.dtype, each.device) for each in batch))

    def whole(_swapped: Sequence[Tensor], _held: Sequence[Tensor], *batch: Tensor) -> list[Tensor]:
        return [function(*batch)]

    kept = _graphs.get(programs, {}) if isinstance(programs, nn.Module) else {}
    if key not in kept or kept[key].stale():
        try:
            kept[key] = compiled(programs, whole, [], batch, {})
        except NotCompiledError as reason:
            logger.warning("log p(x) is computed eagerly: %s", reason)
            return function
        _graphs[programs] = kept
    run = kept[key]
    return lambda *batch: run(*batch)[0]
