"""What the comparisons share beside their folder: digests of data, the training of a cell, and what its run is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from pyro_vae.app.comparisons.grid import Tell
from pyro_vae.app.console import StopRequest
from pyro_vae.data import Splits
from pyro_vae.files import tensor_digest
from pyro_vae.models import Model
from pyro_vae.runs import Run
from pyro_vae.training import Progress, Training
from pyro_vae.training.checkpoint import Every

ELSEWHERE = frozenset({"print_config", "out", "device", "jobs", "executor"})
"""Options of a comparison that say where it is computed and kept, and change nothing in its numbers."""


def data_digest(splits: Splits) -> str:
    """A digest of data: another file of the same name makes another comparison."""
    tensors: dict[str, Tensor] = {}
    for name in ("train", "valid", "test"):
        split = getattr(splits, name)
        tensors[f"{name}.x"] = split.x.cpu()
        if split.labels is not None:
            tensors[f"{name}.labels"] = split.labels.cpu()
    return tensor_digest({"dynamic": splits.train.dynamic, "standardize": splits.standardize}, tensors)


def following(tell: Tell, what: str, stop: StopRequest, epochs: int) -> Callable[[Progress], None]:
    """What a training of so many epochs calls at its steps: it tells how far it is, and ends where that was asked for."""

    def on_step(now: Progress) -> None:
        stop.check()
        tell(now.step / now.steps, f"{what}, epoch {now.epoch}/{epochs}", now.bound)

    return on_step


def new_run(folder: Path, config: str) -> Run:
    """An empty run folder for a cell. What a cut left of the cell is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    return Run(folder, config)


def trained(
    begin: Callable[[], tuple[Model, Training]], folder: Path, config: str, stop: StopRequest
) -> tuple[Model, Run, float]:
    """Trains a cell to the end, from where it was cut if it was, and keeps each epoch in its run folder.

    Args:
        begin: makes the model and its training.
        folder: the run folder.
        config: the options of the run.
        stop: who may ask to end.

    Returns:
        The model, its run, and the seconds that training took.
    """
    model, records = begin()
    try:
        run = Run(folder, config, again=True)
        records.keep(run.checkpoint, Every("minute"))
        seconds = sum(record.seconds for record in run.before(records.done))
    except (ValueError, FileExistsError):  # what was left there is of something else, or damaged
        run, seconds = new_run(folder, config), 0.0
        model, records = begin()
        records.keep(run.checkpoint, Every("minute"))
    for record in records:
        seconds += record.seconds
        run.follow(record, model, records)
        if stop.made:
            records.save()
        stop.check()
    run.conclude(model, records)
    return model, run, seconds


def run_config(described: dict[str, Any], left_out: set[str], one: dict[str, Any]) -> str:
    """What ``train`` would be told for one cell: the options of the comparison, but for its own, and those of the cell."""
    kept = {name: value for name, value in described.items() if name not in left_out | {*ELSEWHERE}}
    return yaml.safe_dump(kept | one, sort_keys=False)


def check_numbers(numbers: Sequence[int], option: str, least: int) -> None:
    """Raises ValueError if there is no number, one below ``least``, or one twice."""
    if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
        raise ValueError(f"{option}: expected different numbers of at least {least}, got {numbers}")
