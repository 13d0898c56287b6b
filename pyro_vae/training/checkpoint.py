"""Checkpoints: one file with everything that a training needs to go on as if it had never been cut.

Random numbers are functions of the seed, the epoch and the step, so that none need keeping. The file holds tensors and JSON in
the format of safetensors; nothing in it is unpickled. It is written beside the old one and moved into its place, so that at any
moment one whole checkpoint is there.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from pyro_vae._version import version
from pyro_vae.files import read_tensors, tensor_digest, write_whole

_ENTRY, _DIGEST, _FORMAT = "pyro_vae_checkpoint", "sha256", 1
_TENSOR, _TUPLE, _FLOAT, _PAIRS = "tensor", "tuple", "float", "pairs"
"""What plain JSON has not: each is a dictionary with this one key."""
ANEW = "Delete this file, and the training begins anew"
"""What helps where a checkpoint is of no use."""
_UNITS = {"step": None, "epoch": None, "second": 1.0, "minute": 60.0, "hour": 3600.0}


class NotKeptError(ValueError):
    """Raised if something that a training holds cannot be written down; the message says what."""


class Every:
    """How often a checkpoint is written.

    Args:
        text: "10 minutes", "500 steps", "2 epochs", "epoch", or a number of any of seconds, minutes, hours, steps and epochs.

    Raises:
        ValueError: it is none of these.
    """

    def __init__(self, text: str) -> None:
        form = r"\s*(\d+(?:\.\d+)?)?\s*(step|epoch|second|minute|hour)s?\s*"
        found = re.fullmatch(form, text)
        number = float(found[1] or 1) if found else 0.0
        if not found or number <= 0 or (_UNITS[found[2]] is None and not number.is_integer()):
            raise ValueError(f"checkpoint_every: expected such as '10 minutes', '500 steps' or 'epoch', got {text!r}")
        self.number, self.unit = number, found[2]
        self.written = time.monotonic()

    def step(self, done: int) -> bool:
        """Whether one is due after a step, of which so many were taken in the whole training."""
        if self.unit == "step":
            return done % int(self.number) == 0
        seconds = _UNITS[self.unit]
        return seconds is not None and time.monotonic() - self.written >= self.number * seconds

    def wrote(self) -> None:
        """Is told that one was written."""
        self.written = time.monotonic()

    def epoch(self, done: int) -> bool:
        """Whether one is due after an epoch."""
        if self.unit == "epoch":
            return done % int(self.number) == 0
        return self.unit != "step" and self.step(done)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint in one move.

    Args:
        path: its file.
        state: numbers, text, lists, tuples, dictionaries and tensors.

    Raises:
        NotKeptError: there is something else in it.
        OSError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    kept = {"format": _FORMAT, "state": _packed(state, "state", tensors)}
    text = json.dumps(kept | {_DIGEST: tensor_digest(kept, tensors)}, allow_nan=False)
    write_whole(path, to_bytes(tensors, metadata={_ENTRY: text}))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `write_checkpoint` wrote; tensors are on the CPU.

    Raises:
        ValueError: the file is damaged, or no checkpoint, or of another version.
    """
    try:
        metadata, tensors = read_tensors(path)
        if _ENTRY not in metadata:
            raise ValueError("it is no checkpoint")
        kept = json.loads(metadata[_ENTRY])
        digest = kept.pop(_DIGEST)
        if kept.get("format") != _FORMAT:
            raise ValueError(f"it is of a version that this one cannot read: format {kept.get('format')!r}")
        if digest != tensor_digest(kept, tensors):
            raise ValueError("it does not hold what was written (its digest is another)")
        state = _unpacked(kept["state"], tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or no checkpoint of a training: {error}. {ANEW}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: damaged, or no checkpoint of a training: it has no names. {ANEW}")
    return state


def surroundings(device: torch.device) -> dict[str, Any]:
    """What rounding depends on beside the training itself."""
    return {
        "pyro_vae": version,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON for a value. Tensors are put aside, each under a name of its own."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, list):
        return [_packed(each, f"{place}[{i}]", tensors) for i, each in enumerate(value)]
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(each, f"{place}[{i}]", tensors) for i, each in enumerate(value)]}
    if isinstance(value, Mapping):
        pairs = [
            [_packed(key, place, tensors), _packed(each, f"{place}.{key}", tensors)] for key, each in value.items()
        ]
        return {_PAIRS: pairs}
    raise NotKeptError(f"{place} is a {type(value).__name__}, which cannot be written down")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == _TENSOR:
            return tensors[inner]
        if kind == _FLOAT:
            return float(inner)
        if kind == _TUPLE:
            return tuple(_unpacked(inner, tensors))
        return {_unpacked(key, tensors): _unpacked(each, tensors) for key, each in inner}
    return value
