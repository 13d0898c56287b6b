"""Reading what a run wrote down while it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pyro_vae.evaluate import Terms
from pyro_vae.files import from_json, read_text
from pyro_vae.training import Epoch, Watch

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
        watched = {name: row[name] for name in get_args(Watch) if name in row}
        return Epoch(int(row["epoch"]), **terms, lr=float(row["lr"]), seconds=float(row["seconds"]), watched=watched)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{place}: damaged: it holds no record of an epoch ({type(error).__name__}: {error})"
        ) from error
