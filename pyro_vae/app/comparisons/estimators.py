"""Compares estimators: their gradients at a frozen state, or the models that they end in.

    pyro-vae compare-estimators gradients
    pyro-vae compare-estimators gradients --run runs/mine --estimators '[IWAE, my_file.Mine]' --particles [1,10]
    pyro-vae compare-estimators training --estimators '[ELBO, IWAE]' --particles [5,50] --seeds [0,1,2]

Finished cells are kept in a folder: the same command goes on where it was cut off.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_vae.app.comparisons.gradients import check_gradients, gradients
from pyro_vae.app.comparisons.grid import Comparison
from pyro_vae.app.comparisons.run import run_command
from pyro_vae.app.comparisons.training import LEFT_OUT, check_training, training
from pyro_vae.app.options import choose, program

JOBS: dict[str, tuple[Callable[..., Comparison], frozenset[str], Callable[[Mapping[str, Any]], None]]] = {
    "gradients": (gradients, frozenset({"test_particles", "test_images"}), check_gradients),
    "training": (training, LEFT_OUT, check_training),
}


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Compares estimators: their gradients at a frozen state, or what training ends in."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    called = prog or program()
    name, rest = choose({name: job for name, (job, *_) in JOBS.items()}, words, "job", called)
    job, left_out, check = JOBS[name]
    run_command(job, rest, left_out, f"{called} {name}", check)
