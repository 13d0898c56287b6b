"""The folder of a comparison: finished cells, tables and figures."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from math import nan
from pathlib import Path
from typing import Any

import yaml
from filelock import BaseFileLock, FileLock, Timeout
from matplotlib.figure import Figure
from rich.console import Console

from pyro_vae.app.comparisons.cell import ELSEWHERE
from pyro_vae.app.comparisons.names import file_name
from pyro_vae.app.console import screen
from pyro_vae.app.table import Blocks
from pyro_vae.estimators import Estimator
from pyro_vae.evaluate import Mean
from pyro_vae.files import (
    UNFINISHED,
    digest,
    from_json,
    read_text,
    read_yaml,
    to_json,
    write_figure,
    write_table,
    write_whole,
)
from pyro_vae.kinds import shortened
from pyro_vae.runs.run import CHECKPOINT

EstimatorFactory = Callable[[int], Estimator]
_FORM = 2
"""Raised where cells of all kinds come to hold other numbers: older ones are then computed anew."""
_OF, _FILES, _DIGEST = "computed from", "files", "sha256"
"""What a cell holds beside its numbers: digests of what it was computed from, of the files of its run, and of itself."""
_KEY, _ABOUT = "key", "about"
"""And its names, and what it alone was computed from, as JSON."""
_CLAIMS = ".claims"
"""The folder of the locks by which processes claim cells."""
REASON = "left out"
"""What a cell holds in place of numbers, where it could not be computed."""


class ComparisonFolder:
    """The finished cells of a comparison, each in a file of its own: what is there is not computed again.

    A cell says by a digest what it was computed from: the options, the data and the class that it is of. One that was computed
    from anything else is never taken for it. It is moved into the folder ``older``, and the cell is computed anew; so is one
    that is damaged. What cannot be computed, as where training diverges, is a cell that holds the reason.

    Args:
        folder: the folder of the comparison. None names it after the options, so that the same command goes on where it was cut
            off, and a command with other options begins anew.
        name: the beginning of the folder's name, where the folder is named here.
        config: the resolved options, in YAML.
        grid: the names of the options that list the cells. A command with more of these goes on in the same folder.
        given: what the cells are computed from beside the options, such as a digest of the data.

    Raises:
        ValueError: the folder holds cells of other options, or no comparison; the message says what to do.
        OSError: the folder cannot be made.
    """

    def __init__(
        self, folder: Path | None, name: str, config: str, grid: Collection[str], given: Mapping[str, Any] | None = None
    ) -> None:
        options = yaml.safe_load(config)
        fixed = {key: value for key, value in options.items() if key not in {*grid, *ELSEWHERE}}
        self.folder = folder or Path("runs") / f"{name}-{digest(fixed)[:8]}"
        self._common = {"form": _FORM, "options": fixed, **(given or {})}
        self.moved: list[str] = []
        """Files of cells that were moved into ``older``."""
        self.reasons: dict[str, str] = {}
        """Why each cell that cannot be computed is left out, by what it is called."""
        _check_place(self.folder)
        for each in ("cells", "figures", _CLAIMS):
            try:
                (self.folder / each).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(f"out: {self.folder} cannot be made ({error.strerror})") from error
        with self.alone():
            self._finished = self._opened(self.folder / "config.yaml", config)

    def _opened(self, kept: Path, config: str) -> dict[Path, dict[str, Any]]:
        """The finished cells. The file of the options is written anew."""
        fixed = self._common["options"]
        damage = _check_options(kept, fixed) if kept.is_file() else f"{kept} is missing"
        finished = self._read_all()
        if finished and damage:
            if not any(map(self._fits, finished.values())):
                raise ValueError(
                    f"out: {self.folder} holds a comparison with other options or data ({damage}); choose another folder"
                )
            screen().print(
                f"{damage}. It is written anew: finished cells say themselves what they are of.", soft_wrap=True
            )
        write_whole(kept, config.encode())
        return finished

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process that works in this folder moves cells away, or writes tables."""
        lock = self._lock("all")
        with _locking(self.folder):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def claim(self, *key: object) -> BaseFileLock | None:
        """Claims a cell, so that no other process computes it meanwhile. None where another one has claimed it.

        A claim is a lock of the file system: it is made in one step, and one that a dead process left behind is free again. A
        cell that another process finished meanwhile is finished here too from now on.
        """
        lock, path = self._lock(file_name(*key)), self._path(*key)
        with _locking(self.folder):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return None
        self._finished.pop(path, None)  # others may have moved it away since, or computed it anew
        if path.is_file():
            self._take(path, self._finished)
        return lock

    def _lock(self, name: str) -> BaseFileLock:
        return FileLock(self.folder / _CLAIMS / f"{name}.lock", fallback_to_soft=False)

    def finished_cell(self, *key: object, of: Any = None) -> dict[str, Any] | None:
        """A finished cell, or None, where it was not computed or is of something else."""
        cell = self._finished.get(self._path(*key))
        return cell if cell and cell.get(_OF) == self._digest(of) else None

    def get(self, *key: object, of: Any = None) -> dict[str, Any] | None:
        """A finished cell, or None. One of something else is moved away, so that a claim must be held.

        Args:
            key: the names of the cell.
            of: what this cell is computed from, beside what all have in common, as plain data.
        """
        path, cell = self._path(*key), self.finished_cell(*key, of=of)
        if cell is None and path in self._finished:
            self._move(path)
            self.moved.append(path.stem)
            del self._finished[path]
        return cell

    def put(self, cell: Mapping[str, Any], *key: object, of: Any = None) -> dict[str, Any]:
        """Keeps a finished cell, in one move, and returns it as it was written.

        Args:
            cell: its numbers, as plain data.
            key: the names of the cell.
            of: what it was computed from, as for `get`.
        """
        run = self.run_folder(*key)
        written = [each for each in sorted(run.rglob("*")) if each.is_file() and each.name != CHECKPOINT]
        files = {each.relative_to(run).as_posix(): _sha256(each) for each in written}
        told = {_KEY: [str(each) for each in key], _ABOUT: to_json(of)}
        whole = from_json(to_json({**cell, **told, _OF: self._digest(of), _FILES: files}))
        text = to_json(whole | {_DIGEST: digest(whole)})
        write_whole(self._path(*key), text.encode())
        (run / CHECKPOINT).unlink(missing_ok=True)  # nothing goes on from it any more
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
            key = cell.get(_KEY, [])
            if len(key) == 2 and key[0] == name and self._fits(cell):
                about = from_json(cell[_ABOUT])
                if isinstance(about, dict) and all(about.get(each) == value for each, value in of.items()):
                    found[key[1]] = cell
        return found

    def run_folder(self, *key: object) -> Path:
        """The run folder of a cell."""
        return self.folder / "runs" / file_name(*key)

    def adopt(self, files: Mapping[str, bytes], *key: object) -> None:
        """Writes the files of a cell's run, which was made elsewhere.

        Args:
            files: their contents, by their paths in the run folder.
            key: the names of the cell.
        """
        folder = self.run_folder(*key)
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, content)

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
        write_table(self.folder / f"{name}.csv", [list(flat[0]), *([row[key] for key in flat[0]] for row in flat)])
        shown = [[_shown(row[column]) for column in columns] for row in rows]
        lines = [" | ".join(each.replace("|", "\\|") for each in row) for row in (columns, *shown)]
        lines.insert(1, " | ".join("---" if i < keys else "---:" for i in range(len(columns))))
        text = "\n".join(f"| {line} |" for line in lines)
        text += "".join(f"\n\nLeft out: {cell}: {reason}" for cell, reason in self.reasons.items())
        write_whole(self.folder / f"{name}.md", f"{title}\n\n{text}\n".encode())
        return Blocks(title, columns, shown, keys)

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a figure as ``figures/<name>.png``."""
        write_figure(self.folder / "figures" / f"{name}.png", figure)

    def left_out(self, console: Console, found: bool, others: Mapping[str, str] | None = None) -> None:
        """Says which cells were left out, and why, on the screen and in ``left_out.csv``; and which were moved away.

        Args:
            console: the screen.
            found: whether there is anything else.
            others: what else was left out, which the same command tries again.

        Raises:
            ValueError: nothing else was found.
        """
        reasons, kept = {**self.reasons, **(others or {})}, self.folder / "cells"
        write_table(self.folder / "left_out.csv", reasons.items())
        again = (
            f"What was left out is not tried again: to try it, delete its file in {kept}, and give the same command."
        )
        if not found:
            cell, reason = next(iter(reasons.items()))
            raise ValueError(f"nothing can be compared here. {cell}: {reason}" + (f"\n{again}" if self.reasons else ""))
        for cell, reason in reasons.items():
            console.print(f"Left out: {cell}: {reason}", soft_wrap=True)
        if self.reasons:
            console.print(again, soft_wrap=True)
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

    def _fits(self, cell: Mapping[str, Any]) -> bool:
        """Whether a cell was computed from what all have in common here."""
        about = cell.get(_ABOUT)
        return isinstance(about, str) and bool(cell.get(_OF) == self._digest(from_json(about)))

    def _read_all(self) -> dict[Path, dict[str, Any]]:
        """The finished cells by their files. A damaged one is moved away, and told at once: its numbers are computed anew."""
        found: dict[Path, dict[str, Any]] = {}
        for path in sorted((self.folder / "cells").glob("*.json")):
            self._take(path, found)
        return found

    def _take(self, path: Path, found: dict[Path, dict[str, Any]]) -> None:
        """Adds the cell in a file to those that are finished, or moves it away if it is damaged."""
        try:
            found[path] = self._read(path)
        except ValueError as error:
            moved = self._move(path)
            screen().print(f"{error}. This cell was moved to {moved}, and is computed anew.", soft_wrap=True)

    def _read(self, path: Path) -> dict[str, Any]:
        """A cell, if it and all files of its run are as they were written.

        Raises:
            ValueError: one is not; the message names it.
        """
        try:
            text = read_text(path)
            cell = from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error})") from error
        if not isinstance(cell, dict):
            raise ValueError(f"{path}: damaged: it holds no cell")
        if not {_OF, _DIGEST} & cell.keys():
            return cell  # of an older version, which `get` does not take
        whole = {name: value for name, value in cell.items() if name != _DIGEST}
        if cell.get(_DIGEST) != digest(whole) or text != to_json(cell):
            raise ValueError(f"{path}: damaged: it does not hold what was written (its digest is another)")
        for name, written in cell[_FILES].items():
            file = self.folder / "runs" / path.stem / name
            if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file():
                raise ValueError(f"{file}: this file of a finished cell is missing")
            if _sha256(file) != written:
                raise ValueError(f"{file}: damaged or changed: its digest is not the one of its cell")
        return _numbers(text)

    def _move(self, path: Path) -> Path:
        """Moves a cell and its run away, and returns where. The name gets a number for the content, so that none is lost."""
        older = self.folder / "older"
        older.mkdir(exist_ok=True)
        name, run = f"{path.stem}-{_sha256(path)[:8]}", self.folder / "runs" / path.stem
        moved = next(
            place
            for place in (older / (f"{name}-{number}" if number else name) for number in count())
            if not place.exists() and not place.with_name(f"{place.name}.json").exists()
        )
        if run.is_dir():
            run.rename(moved)
        return path.replace(moved.with_name(f"{moved.name}.json"))


def _numbers(text: str) -> dict[str, Any]:
    """What stands in a cell, with NaN for a number that is missing, and without its digest."""
    numbers: dict[str, Any] = from_json(text, null=nan)
    del numbers[_DIGEST]
    return numbers


def _check_place(folder: Path) -> None:
    """Raises ValueError if there is something else than a comparison, or one that was cut, where its folder is to be."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {folder} is a file; choose another folder")
    if folder.is_dir() and (names := {each.name for each in folder.iterdir() if not each.name.endswith(UNFINISHED)}):
        cells = folder / "cells"
        was_cut = names <= {"cells", "figures", _CLAIMS} and not (cells.is_dir() and any(cells.iterdir()))
        if not was_cut and "config.yaml" not in names and not any(cells.glob("*.json")):
            raise ValueError(f"out: {folder} exists and holds no comparison; choose another folder")


def _check_options(kept: Path, fixed: Mapping[str, Any]) -> str:
    """Checks that a comparison has these options. Returns what is wrong with their file, or nothing.

    Raises:
        ValueError: it has others.
    """
    try:
        before = read_yaml(kept)
    except ValueError as error:
        return str(error)
    if not isinstance(before, dict):
        return f"{kept}: damaged: it holds no options"
    if changed := [key for key, value in fixed.items() if before.get(key) != value]:
        key = changed[0]
        raise ValueError(
            f"out: {kept.parent} holds a comparison with other options ({key}: there {_short(before.get(key))}, here "
            f"{_short(fixed[key])}); choose another folder"
        )
    return ""


@contextmanager
def _locking(folder: Path) -> Iterator[None]:
    """Tells where a file system has no locks.

    Raises:
        ValueError: it has none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        raise ValueError(
            f"out: the file system of {folder} has no locks (flock), by which processes share cells out; choose a folder on "
            f"another one"
        ) from error


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
