"""Reading and writing the text files of this project: YAML that stays small, and JSON that every reader takes.

JSON has no NaN and no infinity. In its place stands ``null``, which readers of tables take for a missing number, and beside it,
under the same name and ``_missing``, the reason: ``{"error": null, "error_missing": "one datum has no standard error"}``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyro_vae.stored import blocks

if TYPE_CHECKING:  # a second of import that only figures need
    from matplotlib.figure import Figure

LARGEST = 100_000
"""The largest number of values in a YAML file, those of aliases counted wherever they stand. A run has about a hundred."""
MISSING = "_missing"
"""What the name ends in under which the reason for a null stands."""
UNFINISHED = ".unfinished"
"""What the name of a file ends in that is being written, and is left behind where the program is killed meanwhile."""


class NotWrittenError(OSError):
    """A file cannot be written, as where a disk is full. The message names it."""


def read_text(path: Path) -> str:
    """The text of a file, without the mark of its encoding that some editors put at its beginning.

    Raises:
        ValueError: it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        if error.object[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path}: saved in UTF-16: save it in UTF-8") from None
        raise ValueError(
            f"{path}: damaged, or not saved in UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}): save "
            f"it in UTF-8"
        ) from None


def read_yaml(path: Path) -> Any:
    """The plain data in a YAML file: numbers, text, lists and dictionaries, and never an object of another kind.

    Raises:
        ValueError: it is no such file, or its aliases stand for more than `LARGEST` values.
    """
    text = read_text(path)
    try:
        if not bounded(yaml.compose(text, Loader=yaml.SafeLoader)):
            raise ValueError(f"{path}: its aliases (&, *) stand for more than {LARGEST} values")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: damaged, or no YAML ({' '.join(str(error).split())})") from error
    except RecursionError:
        raise ValueError(f"{path}: damaged: its lists stand in each other without end") from None


def bounded(node: yaml.Node | None) -> bool:
    """Whether YAML stands for no more than `LARGEST` values: its aliases may be of lists that hold each other."""
    return _size(node, {}) <= LARGEST


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """The number of values below a node. The nodes of a cycle count as too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = LARGEST + 1
        children = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = min(1 + sum(_size(child, known) for child in children), LARGEST + 1)
    return known[id(node)]


def to_json(value: Any, indent: int | None = None) -> str:
    """Plain data, arrays and tensors among them, as JSON.

    A NaN or an infinity becomes null, and under its name and ``_missing`` stands what it was, unless a reason stands there.
    """
    return json.dumps(_written(value), indent=indent, allow_nan=False)


def from_json(text: str, null: Any = None) -> Any:
    """Plain data from JSON.

    Args:
        text: the JSON.
        null: what stands for a null; NaN, where only numbers can be missing.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return _read(json.loads(text, parse_constant=_refused), null)
    except RecursionError:
        raise ValueError("its lists stand in each other without end") from None


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one move, so that a cut, of the program or of the power, leaves the old one or the new one.

    Raises:
        NotWrittenError: it cannot be written; the old one is left as it was.
    """
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:  # Ctrl-C among them
        with suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            raise _not_written(path, error) from error
        raise
    if os.name == "posix":  # the new name in its folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a CSV file in one move, as `write_whole` does."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(path, text.getvalue().encode())


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as a PNG file in one move, as `write_whole` does."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    write_whole(path, file.getvalue())


def append_line(path: Path, line: str) -> None:
    """Adds a line at the end of a file. Where it cannot be written whole, nothing of it stays.

    Raises:
        NotWrittenError: it cannot be written.
    """
    before = path.stat().st_size if path.is_file() else None
    try:
        with path.open("ab") as file:
            file.write(f"{line}\n".encode())
    except OSError as error:
        with suppress(OSError):
            if before is not None:
                os.truncate(path, before)
            elif path.is_file():
                path.unlink()
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> NotWrittenError:
    return NotWrittenError(error.errno, f"{path} cannot be written: {error.strerror}; what stood there before is kept")


def digest(value: Any) -> str:
    """The SHA-256 of plain data, in which the order of keys does not matter."""
    return hashlib.sha256(json.dumps(_named(value), sort_keys=True).encode()).hexdigest()


def tensor_digest(kept: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of plain data, and of the names, dtypes, shapes and bytes of tensors on the CPU.

    Data that are not in memory are read block by block, and have the digest that they would have there.
    """
    found = hashlib.sha256(json.dumps(kept).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"\n{name!r} {value.dtype} {tuple(value.shape)}\n".encode())
        for block in blocks(value):
            found.update(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file of safetensors, on the CPU. Nothing is unpickled.

    Raises:
        ValueError: it is no such file, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(str(error)) from error


def _written(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, dict):
        written = {}
        for key, each in value.items():
            written[key] = _written(each)
            if _is_missing(each := _plain(each)):
                written.setdefault(f"{key}{MISSING}", f"it is {_name(each)}")
        return written
    if isinstance(value, list | tuple):
        return [_written(each) for each in value]
    return None if _is_missing(value) else value


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray | torch.Tensor) else value


def _named(value: Any) -> Any:
    """Plain data in which NaN and infinities, which are different values, have different names."""
    if isinstance(value, dict):
        return {key: _named(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_named(each) for each in value]
    return _name(value) if _is_missing(value) else value


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and not isfinite(value)


def _name(value: float) -> str:
    return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _refused(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _read(value: Any, null: Any) -> Any:
    if isinstance(value, dict):
        return {key: _read(each, null) for key, each in value.items()}
    if isinstance(value, list):
        return [_read(each, null) for each in value]
    return null if value is None else value
