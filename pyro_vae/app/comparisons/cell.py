"""What the comparisons share beside their folder: digests of data, the training of a cell, and what its run is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from torch import Tensor

from pyro_vae.app.console import StopRequest
from pyro_vae.data import Splits
from pyro_vae.files import tensor_digest
from pyro_vae.models import Model
from pyro_vae.runs import Run
from pyro_vae.training import Training


def data_digest(splits: Splits) -> str:
    """A digest of data: another file of the same name makes another comparison."""
    tensors: dict[str, Tensor] = {}
    for name in ("train", "valid", "test"):
        split = getattr(splits, name)
        tensors[f"{name}.x"] = split.x.cpu()
        if split.labels is not None:
            tensors[f"{name}.labels"] = split.labels.cpu()
    return tensor_digest({"dynamic": splits.train.dynamic, "standardize": splits.standardize}, tensors)


def keep_epochs(records: Training, model: Model, run: Run, stop: StopRequest) -> float:
    """Trains to the end and keeps each epoch in the run folder; returns the seconds that training took."""
    seconds = 0.0
    for record in records:
        seconds += record.seconds
        run.follow(record, model, records)
        stop.check()
    run.conclude(model, records)
    return seconds


def run_config(described: dict[str, Any], left_out: set[str], one: dict[str, Any]) -> str:
    """What ``train`` would be told for one cell: the options of the comparison, but for its own, and those of the cell."""
    kept = {
        name: value for name, value in described.items() if name not in left_out | {"print_config", "out", "device"}
    }
    return yaml.safe_dump(kept | one, sort_keys=False)


def check_numbers(numbers: Sequence[int], option: str, least: int) -> None:
    """Raises ValueError if there is no number, one below ``least``, or one twice."""
    if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
        raise ValueError(f"{option}: expected different numbers of at least {least}, got {numbers}")
