"""The file of a model's weights: tensors, the sizes of the model, and digests that tell whether anything has changed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from pyro_vae.files import from_json, read_tensors, tensor_digest, write_whole
from pyro_vae.parts import SMALLEST_SCALE, Dims

logger = logging.getLogger("pyro_vae")
_SIZES, _DIGEST = "pyro_vae", "sha256"
"""The entry of the file's metadata, one alone since several stand in any order, and the digest in it."""
_FORMAT = 2
"""Files since this format carry digests; those before it do not say their format."""
_ADDRESSES = 2**48
"""How many bytes a processor of 64 bits can address. Training data were in memory, with a byte for each number at least."""
_OLD = {"latent", "x_shape", "classes", "x_scale", "data", "epoch"}
"""What files without digests say."""


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        tensors: the model's state and the estimator's, by name.
        dims: the model's sizes. The training data are a tensor without values.
        slots: the digest of the description that belongs to these weights; None in files of older versions.
    """

    tensors: dict[str, Tensor]
    dims: Dims
    slots: str | None


def write_weights(file: Path, tensors: Mapping[str, Tensor], dims: Dims, epoch: int | None, slots: str) -> None:
    """Writes weights in one move, so that a cut leaves the old ones.

    Args:
        file: the file.
        tensors: the model's state and the estimator's, by name.
        dims: the model's sizes.
        epoch: the epoch that they are of, if they are of one.
        slots: the digest of the model's description.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    sizes = {"latent": dims.latent, "x_shape": dims.x_shape, "classes": dims.classes, "x_scale": dims.x_scale}
    sizes |= {"standardized": dims.standardized, "missing": dims.missing}
    kept = sizes | {"data": dims.train_size, "epoch": epoch, "format": _FORMAT, "slots": slots}
    text = json.dumps(kept | {_DIGEST: tensor_digest(kept, state)}, allow_nan=False)
    write_whole(file, to_bytes(state, metadata={_SIZES: text}))


def read_weights(file: Path) -> Weights:
    """Reads weights, and checks their digest and every size.

    Raises:
        ValueError: the file is damaged, or it is not from such a run.
    """
    try:
        metadata, tensors = read_tensors(file)
    except ValueError as error:
        raise ValueError(f"damaged, or not from such a run ({error})") from error
    if (text := metadata.get(_SIZES)) is None:
        raise ValueError("these are weights, but not of a run of pyro_vae")
    kept = _parsed(text)
    found = kept.pop(_DIGEST, None)
    if found is not None:
        if found != tensor_digest(kept, tensors) or text != json.dumps(kept | {_DIGEST: found}):
            raise ValueError("damaged: the weights are not those that were written (their digest is another)")
        _check_format(kept)
    elif kept.keys() - _OLD:
        raise ValueError("damaged: the digest is missing")
    else:
        logger.warning("%s is of an older version, without a digest: damage to it would not be seen", file)
    return Weights(tensors, _dims(kept), kept.get("slots"))


def _parsed(text: str) -> dict[str, Any]:
    try:
        kept = from_json(text)
    except ValueError as error:
        raise ValueError(f"damaged: its sizes are no JSON ({error})") from error
    if not isinstance(kept, dict):
        raise ValueError("damaged: its sizes have no names")
    return kept


def _check_format(kept: Mapping[str, Any]) -> None:
    """Checks that a file with a digest says all that this version writes.

    Raises:
        ValueError: it does not; the message names what is missing.
    """
    if not _is_size(kept.get("format")) or kept["format"] != _FORMAT:
        raise ValueError(
            f"of a version of pyro_vae that this one cannot read: format: expected {_FORMAT}, got {kept.get('format')!r}"
        )
    if missing := sorted((_OLD | {"standardized", "slots"}) - kept.keys()):
        raise ValueError(f"damaged, or not from such a run: {', '.join(missing)} is missing")
    if not isinstance(kept["slots"], str):
        raise ValueError(f"damaged, or not from such a run: slots: expected a digest, got {kept['slots']!r}")


def _dims(kept: Mapping[str, Any]) -> Dims:
    """The sizes of a saved model, each checked. What its parts took from the training data is among the weights.

    Raises:
        ValueError: a size is missing, or is none; the message names it.
    """
    shape = kept.get("x_shape")
    fits = {
        "latent": _is_size(kept.get("latent")),
        "x_shape": isinstance(shape, list) and len(shape) > 0 and all(map(_is_size, shape)),
        **{name: kept.get(name) is None or _is_size(kept[name]) for name in ("data", "classes", "epoch")},
        "x_scale": _is_scale(kept.get("x_scale", 1.0)),
        **{name: isinstance(kept.get(name, False), bool) for name in ("standardized", "missing")},
    }
    for name, fit in fits.items():
        if not fit:
            expected = {
                "x_shape": "sizes of at least 1",
                "x_scale": f"a finite number of at least {SMALLEST_SCALE:.2g}",
                **dict.fromkeys(("standardized", "missing"), "true or false"),
            }
            what = expected.get(name, "a whole number of at least 1")
            raise ValueError(f"damaged, or not from such a run: {name}: expected {what}, got {kept.get(name)!r}")
    if (kept.get("data") or 1) * prod(kept["x_shape"]) > _ADDRESSES:
        raise ValueError(
            f"damaged, or not from such a run: data: {kept['data']!r} data of {shape} numbers fit in no memory"
        )
    return Dims(
        kept["latent"],
        tuple(kept["x_shape"]),
        classes=kept.get("classes"),
        x_scale=kept.get("x_scale", 1.0),
        train_size=kept.get("data"),
        standardized=kept.get("standardized", False),
        missing=kept.get("missing", False),
    ).without_values()


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63  # PyTorch's sizes


def _is_scale(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and SMALLEST_SCALE <= value <= sys.float_info.max
    )
