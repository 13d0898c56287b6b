"""The folder of a comparison: finished cells, tables and figures."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from math import nan
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from pyro_vae.app.comparisons.names import file_name
from pyro_vae.app.console import StopRequest
from pyro_vae.app.table import Blocks
from pyro_vae.data import Splits
from pyro_vae.estimators import Estimator
from pyro_vae.evaluate import Mean
from pyro_vae.files import digest, from_json, read_text, read_yaml, tensor_digest, to_json, write_whole
from pyro_vae.kinds import shortened
from pyro_vae.models import Model
from pyro_vae.runs import Run
from pyro_vae.training import Training

EstimatorFactory = Callable[[int], Estimator]
_FORM = 2
"""Raised where cells of all kinds come to hold other numbers: older ones are then computed anew."""
_OF, _FILES, _DIGEST = "computed from", "files", "sha256"
"""What a cell holds beside its numbers: digests of what it was computed from, of the files of its run, and of itself."""
_KEY, _ABOUT = "key", "about"
"""And its names, and what it alone was computed from, as JSON."""


class ComparisonFolder:
    """The finished cells of a comparison, each in a file of its own: what is there is not computed again.

    A cell says by a digest what it was computed from: the options, the data and the class that it is of. One that was computed
    from anything else is never taken for it. It is moved into the folder ``older``, and the cell is computed anew.

    Args:
        folder: the folder of the comparison. None names it after the options, so that the same command goes on where it was cut
            off, and a command with other options begins anew.
        name: the beginning of the folder's name, where the folder is named here.
        config: the resolved options, in YAML.
        grid: the names of the options that list the cells. A command with more of these goes on in the same folder.
        given: what the cells are computed from beside the options, such as a digest of the data.

    Raises:
        ValueError: the folder holds cells of other options, or a damaged file; the message says which, and what to do.
    """

    def __init__(
        self, folder: Path | None, name: str, config: str, grid: Set[str], given: Mapping[str, Any] | None = None
    ) -> None:
        options = yaml.safe_load(config)
        fixed = {key: value for key, value in options.items() if key not in {*grid, "out", "device"}}
        self.folder = folder or Path("runs") / f"{name}-{digest(fixed)[:8]}"
        self._common = {"form": _FORM, "options": fixed, **(given or {})}
        self.moved: list[str] = []
        """Files of cells that were moved into ``older``."""
        kept = self.folder / "config.yaml"
        if kept.is_file():
            _check_options(kept, fixed)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"out: {self.folder} exists and holds no comparison; choose another folder")
        for each in ("cells", "figures"):
            (self.folder / each).mkdir(parents=True, exist_ok=True)
        paths = sorted((self.folder / "cells").glob("*.json"))
        self._finished = {path: self._read(path, len(paths) - 1) for path in paths}
        write_whole(kept, config.encode())

    def get(self, *key: object, of: Any = None) -> dict[str, Any] | None:
        """A finished cell, or None.

        Args:
            key: the names of the cell.
            of: what this cell is computed from, beside what all have in common, as plain data.
        """
        path = self._path(*key)
        cell = self._finished.get(path)
        if cell is None or cell.get(_OF) == self._digest(of):
            return cell
        self._move(path)
        del self._finished[path]
        return None

    def put(self, cell: Mapping[str, Any], *key: object, of: Any = None) -> dict[str, Any]:
        """Keeps a finished cell, in one move, and returns it as it was written.

        Args:
            cell: its numbers, as plain data.
            key: the names of the cell.
            of: what it was computed from, as for `get`.
        """
        run = self.run_folder(*key)
        files = {each.relative_to(run).as_posix(): _sha256(each) for each in sorted(run.rglob("*")) if each.is_file()}
        told = {_KEY: [str(each) for each in key], _ABOUT: to_json(of)}
        whole = from_json(to_json({**cell, **told, _OF: self._digest(of), _FILES: files}))
        text = to_json(whole | {_DIGEST: digest(whole)})
        write_whole(self._path(*key), text.encode())
        cell = self._finished[self._path(*key)] = _numbers(text)
        return cell

    def finished(self, name: str, of: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The finished cells whose first name is this one, by their second.

        Args:
            name: the first name.
            of: what they must have been computed from; they may have been from more.
        """
        found: dict[str, dict[str, Any]] = {}
        for cell in self._finished.values():
            key, about = cell.get(_KEY, []), from_json(cell.get(_ABOUT, "null"))
            if len(key) != 2 or key[0] != name or not isinstance(about, dict) or cell.get(_OF) != self._digest(about):
                continue
            if all(about.get(each) == value for each, value in of.items()):
                found[key[1]] = cell
        return found

    def run_folder(self, *key: object) -> Path:
        """The run folder of a cell."""
        return self.folder / "runs" / file_name(*key)

    def new_run(self, config: str, *key: object) -> Run:
        """An empty run folder for a cell. What a cut left of the cell is removed."""
        folder = self.run_folder(*key)
        shutil.rmtree(folder, ignore_errors=True)
        return Run(folder, config)

    def table(
        self, name: str, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], keys: int = 1
    ) -> Blocks:
        """Writes rows as ``<name>.csv`` (every key) and ``<name>.md`` (the columns), and returns the latter for the screen.

        A mean has its error in the CSV file in columns of its own.

        Args:
            name: the name of the files.
            title: the title.
            columns: the keys that are shown, the most important first.
            rows: the rows.
            keys: how many of the first columns name a row.
        """
        flat = [_flat(row) for row in rows]
        with (self.folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)
        shown = [[_shown(row[column]) for column in columns] for row in rows]
        lines = [" | ".join(each.replace("|", "\\|") for each in row) for row in (columns, *shown)]
        lines.insert(1, " | ".join("---" if i < keys else "---:" for i in range(len(columns))))
        text = "\n".join(f"| {line} |" for line in lines)
        (self.folder / f"{name}.md").write_text(f"{title}\n\n{text}\n", encoding="utf-8")
        return Blocks(title, columns, shown, keys)

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a figure as ``figures/<name>.png``."""
        figure.savefig(self.folder / "figures" / f"{name}.png")

    def left_out(self, console: Console, reasons: Mapping[str, str], found: bool) -> None:
        """Says which cells were left out, and why, on the screen and in ``left_out.csv``; and which were moved away.

        Raises:
            ValueError: nothing else was found.
        """
        if not found:
            cell, reason = next(iter(reasons.items()))
            raise ValueError(f"nothing can be compared here. {cell}: {reason}")
        for cell, reason in reasons.items():
            console.print(f"Left out: {cell}: {reason}", soft_wrap=True)
        with (self.folder / "left_out.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(reasons.items())
        if self.moved:
            console.print(
                f"Computed anew: {', '.join(self.moved)}. The cells of this name were of another version, or were computed "
                f"from other data or options, and are now in {self.folder / 'older'}.",
                soft_wrap=True,
            )

    def _path(self, *key: object) -> Path:
        return self.folder / "cells" / f"{file_name(*key)}.json"

    def _digest(self, of: Any) -> str:
        return digest({**self._common, "cell": of})

    def _read(self, path: Path, others: int) -> dict[str, Any]:
        """A cell, if it and all files of its run are as they were written.

        Args:
            path: its file.
            others: how many other cells there are, for a message.

        Raises:
            ValueError: one is not; the message names it and the way out.
        """
        way_out = (
            f"Delete {path} and give the same command again: this cell is computed anew, the others ({others}) are kept"
        )
        try:
            text = read_text(path)
            cell = from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}). {way_out}") from error
        if not isinstance(cell, dict):
            raise ValueError(f"{path}: damaged: it holds no cell. {way_out}")
        if not {_OF, _DIGEST} & cell.keys():
            return cell  # of an older version, which `get` does not take
        whole = {name: value for name, value in cell.items() if name != _DIGEST}
        if cell.get(_DIGEST) != digest(whole) or text != to_json(cell):
            raise ValueError(f"{path}: damaged: it does not hold what was written (its digest is another). {way_out}")
        for name, written in cell[_FILES].items():
            file = self.folder / "runs" / path.stem / name
            if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file():
                raise ValueError(f"{file}: this file of a finished cell is missing. {way_out}")
            if _sha256(file) != written:
                raise ValueError(f"{file}: damaged or changed: its digest is not the one of its cell. {way_out}")
        return _numbers(text)

    def _move(self, path: Path) -> None:
        """Moves a cell and its run away. Their names get a number for the content, so that no two are the same."""
        older = self.folder / "older"
        older.mkdir(exist_ok=True)
        name = f"{path.stem}-{_sha256(path)[:8]}"
        run = self.folder / "runs" / path.stem
        if run.is_dir() and not (older / name).exists():
            run.rename(older / name)
        path.replace(older / f"{name}.json")
        self.moved.append(path.stem)


def _numbers(text: str) -> dict[str, Any]:
    """What stands in a cell, with NaN for a number that is missing, and without its digest."""
    numbers: dict[str, Any] = from_json(text, null=nan)
    del numbers[_DIGEST]
    return numbers


def _check_options(kept: Path, fixed: Mapping[str, Any]) -> None:
    """Checks that a comparison has these options.

    Raises:
        ValueError: its file is damaged, or has others.
    """
    way_out = f"Delete {kept} and give the same command again: finished cells are kept"
    try:
        before = read_yaml(kept)
    except ValueError as error:
        raise ValueError(f"{error}. {way_out}") from error
    if not isinstance(before, dict):
        raise ValueError(f"{kept}: damaged: it holds no options. {way_out}")
    if changed := [key for key, value in fixed.items() if before.get(key) != value]:
        key = changed[0]
        raise ValueError(
            f"out: {kept.parent} holds a comparison with other options ({key}: there {_short(before.get(key))}, here "
            f"{_short(fixed[key])}); choose another folder"
        )


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


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a CSV file."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mean):
            flat |= {key: value.mean, f"{key} ±": value.reach}
        else:
            flat[key] = value
    return flat


def _shown(value: Any) -> str:
    """A number in three digits, four where it is in the hundreds; 2.5e4 in place of 2.5e+04."""
    if not isinstance(value, float):
        return str(value)
    if 100 <= abs(value) < 1000:
        return f"{value:.1f}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _short(value: Any) -> str:
    return shortened(to_json(value))
