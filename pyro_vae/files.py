"""Reading and writing the text files of this project: YAML that stays small, and JSON without NaN.

JSON has no NaN and no infinity. They are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which
`from_json` turns back, as Python's ``float`` does.
"""

from __future__ import annotations

import hashlib
import json
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import yaml

LARGEST = 100_000
"""The largest number of values in a YAML file, those of aliases counted wherever they stand. A run has about a hundred."""
_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
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
        if _size(yaml.compose(text, Loader=yaml.SafeLoader), {}) > LARGEST:
            raise ValueError(f"{path}: its aliases (&, *) stand for more than {LARGEST} values")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: damaged, or no YAML ({error})") from error
    except RecursionError:
        raise ValueError(f"{path}: damaged: its lists stand in each other without end") from None


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
    """Plain data as JSON, with NaN and infinities as strings."""
    return json.dumps(_written(value), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """Plain data from what `to_json` wrote.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return _read(json.loads(text))
    except RecursionError:
        raise ValueError("its lists stand in each other without end") from None


def digest(value: Any) -> str:
    """The SHA-256 of plain data, in which the order of keys does not matter."""
    return hashlib.sha256(json.dumps(_written(value), sort_keys=True).encode()).hexdigest()


def _written(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _written(each) for key, each in value.items()}
    return [_written(each) for each in value] if isinstance(value, list | tuple) else value


def _read(value: Any) -> Any:
    if isinstance(value, str):
        return _NUMBERS.get(value, value)
    if isinstance(value, dict):
        return {key: _read(each) for key, each in value.items()}
    return [_read(each) for each in value] if isinstance(value, list) else value
