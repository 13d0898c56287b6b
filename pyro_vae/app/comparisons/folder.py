"""The folder of a comparison: finished cells, tables and figures; and the names of what is compared."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from inspect import signature
from math import nan
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pyro_vae.app.console import StopRequest
from pyro_vae.estimators import Estimator
from pyro_vae.files import from_json, to_json
from pyro_vae.models import Model
from pyro_vae.runs import Run
from pyro_vae.training import Training

EstimatorFactory = Callable[[int], Estimator]


class ComparisonFolder:
    """The finished cells of a comparison, each in a file of its own: what is there is not computed again.

    Args:
        folder: the folder of the comparison. None names it after the options, so that the same command goes on where it was cut
            off, and a command with other options begins anew.
        name: the beginning of the folder's name, where the folder is named here.
        config: the resolved options, in YAML.
        grid: the names of the options that list the cells. A command with more of these goes on in the same folder.

    Raises:
        ValueError: the folder holds cells of other options.
    """

    def __init__(self, folder: Path | None, name: str, config: str, grid: set[str]) -> None:
        options = yaml.safe_load(config)
        fixed = {key: value for key, value in options.items() if key not in grid | {"out", "device"}}
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = folder or Path("runs") / f"{name}-{digest}"
        kept = self.folder / "config.yaml"
        if kept.is_file():
            before = yaml.safe_load(kept.read_text())
            changed = [key for key, value in fixed.items() if before.get(key) != value]
            if changed:
                key = changed[0]
                raise ValueError(
                    f"out: {self.folder} holds a comparison with other options ({key}: there {_short(before.get(key))}, here "
                    f"{_short(fixed[key])}); choose another folder"
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"out: {self.folder} exists and holds no comparison; choose another folder")
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        (self.folder / "figures").mkdir(exist_ok=True)
        kept.write_text(config)

    def get(self, *key: object) -> dict[str, Any] | None:
        """A finished cell, or None."""
        path = self._path(*key)
        cell: dict[str, Any] | None = from_json(path.read_text(), null=nan) if path.is_file() else None
        return cell

    def put(self, cell: dict[str, Any], *key: object) -> None:
        """Keeps a finished cell, in one move."""
        path = self._path(*key)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(to_json(cell))
        unfinished.replace(path)

    def run_folder(self, *key: object) -> Path:
        """The run folder of a cell."""
        return self.folder / "runs" / file_name(*key)

    def new_run(self, config: str, *key: object) -> Run:
        """An empty run folder for a cell. What a cut left of the cell is removed."""
        folder = self.run_folder(*key)
        shutil.rmtree(folder, ignore_errors=True)
        return Run(folder, config)

    def table(self, name: str, title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
        """Writes rows as ``<name>.csv`` (every key) and ``<name>.md`` (the columns), and returns the latter for the screen."""
        with (self.folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True
        )
        lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(' --- ' for _ in columns)}|"]
        for column in columns:
            table.add_column(column, no_wrap=True, justify="left" if column == columns[0] else "right")
        for row in rows:
            shown = [_shown(row[column]) for column in columns]
            table.add_row(*shown)
            lines.append(f"| {' | '.join(shown)} |")
        (self.folder / f"{name}.md").write_text(f"{title}\n\n" + "\n".join(lines) + "\n")
        return table

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a figure as ``figures/<name>.png``."""
        figure.savefig(self.folder / "figures" / f"{name}.png")

    def _path(self, *key: object) -> Path:
        return self.folder / "cells" / f"{file_name(*key)}.json"


def keep_epochs(records: Training, model: Model, run: Run, stop: StopRequest) -> float:
    """Trains to the end and keeps each epoch in the run folder; returns the seconds that training took."""
    seconds = 0.0
    for record in records:
        seconds += record.seconds
        run.record(record, model, records.estimator.state)
        stop.check()
    return seconds


def file_name(*key: object) -> str:
    """A name for a cell's file or folder."""
    name = re.sub(r"[^\w.,=()+-]", "_", "-".join(str(each) for each in key))
    return name if len(name) <= 120 else f"{name[:110]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def label(described: str | dict[str, Any]) -> str:
    """The name of a described class for tables: with the options that are not the class's own, ``IWAE(stl=True)``."""
    path, options = class_and_options(described)
    defaults = signature(resolve_name(path)).parameters
    name = path.rpartition(".")[2] if path.startswith("pyro_vae.") else path
    own = [f"{key}={_value(value)}" for key, value in options.items() if not _is_default(value, defaults[key].default)]
    return f"{name}({', '.join(own)})" if own else name


def _value(value: Any) -> str:
    return label(value) if isinstance(value, dict) and "class_path" in value else str(value)


def _is_default(value: Any, default: Any) -> bool:
    """Whether an option has its class's own default: itself, or, of a class, that class without options of its own."""
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(value, dict) and "class_path" in value and isinstance(default, type):
        return label(value) == default.__name__
    return bool(value == default)


def class_and_options(described: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The import path of a described class, and its options."""
    return (
        (described, {}) if isinstance(described, str) else (described["class_path"], described.get("init_args") or {})
    )


def run_config(described: dict[str, Any], left_out: set[str], one: dict[str, Any]) -> str:
    """What ``train`` would be told for one cell: the options of the comparison, but for its own, and those of the cell."""
    kept = {
        name: value for name, value in described.items() if name not in left_out | {"print_config", "out", "device"}
    }
    return yaml.safe_dump(kept | one, sort_keys=False)


def labels(described: Sequence[str | dict[str, Any]], option: str) -> list[str]:
    """The names of several described classes.

    Raises:
        ValueError: none, or one twice.
    """
    names = [label(each) for each in described]
    if not names:
        raise ValueError(f"{option}: expected at least one")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{option}: {', '.join(sorted(twice))} stands there twice")
    return names


def left_out(console: Console, reasons: dict[str, str], found: bool) -> None:
    """Says which cells were left out, and why; raises ValueError if nothing else was found."""
    if not found:
        cell, reason = next(iter(reasons.items()))
        raise ValueError(f"nothing can be compared here. {cell}: {reason}")
    for cell, reason in reasons.items():
        console.print(f"Left out: {cell}: {reason}", soft_wrap=True)


def check_numbers(numbers: Sequence[int], option: str, least: int) -> None:
    """Raises ValueError if there is no number, one below ``least``, or one twice."""
    if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
        raise ValueError(f"{option}: expected different numbers of at least {least}, got {numbers}")


def _shown(value: Any) -> str:
    """A number in three digits, four where it is in the hundreds; 2.5e4 in place of 2.5e+04."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if 100 <= abs(value) < 1000 else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.3g}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
