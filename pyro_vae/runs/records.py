"""Reading what a run wrote down while it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.evaluate import Terms
from pyro_vae.files import from_json, read_text
from pyro_vae.training import Epoch

METRICS = "metrics.jsonl"
"""The file of a run that has a line for each epoch."""


def read_records(folder: Path) -> list[Epoch]:
    """The records of a run's epochs; none where it has no such file, as after `save`.

    A last line that a cut left unfinished is left out.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    lines = read_text(path).split("\n")
    return [_epoch(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1)]


def _epoch(line: str, place: str) -> Epoch:
    """One record.

    Raises:
        ValueError: the line holds none.
    """
    try:
        row: dict[str, Any] = from_json(line, null=float("nan"))
        terms = {name: Terms(*(float(row[name][key]) for key in Terms._fields)) for name in ("train", "valid")}
        return Epoch(epoch=int(row["epoch"]), lr=float(row["lr"]), seconds=float(row["seconds"]), **terms)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{place}: damaged: it holds no record of an epoch ({type(error).__name__}: {error})"
        ) from error
