"""Numbers as data: read into tensors, and refused where a tensor would lose what they say, or where they are no data.

Files and arrays go the same way (`Arrays` and `Split` both use these functions), so that both are refused alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.exactness import may_lose, narrowed, place, require_exact
from pyro_vae.kinds import WrongKindError
from pyro_vae.missing import facts_of
from pyro_vae.stored import Stored, blocks, changed

Channels = Literal["first", "last", "none"]
"""Where the channels of images and signals are."""

_CHANNELS = 4
"""The largest number of channels that is recognized behind the pixels."""
_LARGEST_LABEL = 2**53
"""From here on, float64 does not hold every whole number: 2^53 itself may have been 2^53 + 1 in a file."""


def as_data(array: np.ndarray, names: Sequence[str] = (), source: str = "x of the data") -> Tensor:
    """Returns an array of numbers ``(N, ...)`` as a tensor in the default dtype, in which networks compute.

    Args:
        array: the numbers; NaN and infinite ones stay as they are, and masked ones become NaN.
        names: the names of columns, for messages.
        source: what messages begin with.

    Raises:
        WrongKindError: these are no numbers.
        ValueError: numbers that differ would become the same, or would overflow; the message names the place in a datum.
    """
    if array.dtype.kind not in "biuf":
        raise WrongKindError(f"{source}: expected numbers in x, got {array.dtype}")
    if isinstance(array, np.ma.MaskedArray):
        wide = np.promote_types(array.dtype, np.float64)
        array = np.ma.filled(array.astype(wide), np.nan) if np.ma.is_masked(array) else array.data
    found = narrowed(array)
    if not array.ndim:
        raise ValueError(f"{source}: expected an array (N, ...) of N data, got a single number")
    if may_lose(array.dtype):
        require_exact(array, found, names, source)
    if np.shares_memory(found, array):
        found = found.copy()
    return torch.from_numpy(found).to(torch.get_default_dtype())


def check_whole(x: Tensor, source: str = "x of the data") -> None:
    """Checks that the default dtype holds whole numbers, which tensors may come as.

    Raises:
        WrongKindError: these are no real numbers.
        ValueError: it does not, and the message names the place in a datum; or this is a single number.
    """
    if x.is_complex():
        raise WrongKindError(f"{source}: expected real numbers in x, got {x.dtype}")
    if not x.dim():
        raise ValueError(f"{source}: expected an array (N, ...) of N data, got a single number")
    if not x.is_floating_point() and x.dtype != torch.bool and x.element_size() > 2 and not x.is_meta and x.numel():
        as_data(x.cpu().numpy(), source=source)


def check_data(x: Tensor, names: Sequence[str] = (), source: str = "x of the data") -> int:
    """Checks that data are finite and that each number of a datum is observed somewhere.

    Args:
        x: the data ``(N, ...)``.
        names: the names of columns, for messages.
        source: what messages begin with.

    Returns:
        How many data have no value, since all of theirs are missing.

    Raises:
        ValueError: a value is infinite, or a number of a datum is missing (NaN) in all data; the message names the place.
        WrongKindError: these are no real numbers.
    """
    check_whole(x, source)
    if x.dim() < 1 or x.numel() == 0:
        raise ValueError(f"{source}: expected an array (N, ...) of N data, got shape {tuple(x.shape)}")
    if not x.is_floating_point() or x.is_meta or _is_finite(x):
        return 0
    number, empty = 0, 0
    anywhere, never = torch.zeros((2, x.shape[1:].numel()), dtype=torch.bool, device=x.device)
    never = ~never
    for rows in blocks(x):
        infinite, missing = rows.reshape(len(rows), -1).isinf(), rows.reshape(len(rows), -1).isnan()
        number, empty = number + int(infinite.sum()), empty + int(missing.all(1).sum())
        anywhere, never = anywhere | infinite.any(0), never & missing.all(0)
    if number:
        where = place(int(anywhere.to(torch.uint8).argmax()), tuple(x.shape[1:]), names)
        raise ValueError(f"{source}: {number} of {x.numel()} values are infinite, the first in {where}")
    if never.any():
        at = int(never.to(torch.uint8).argmax())
        advice = f' (--data.leave_out "[{names[at]}]")' if names else ""
        raise ValueError(
            f"{source}: {int(never.sum())} of {len(never)} numbers of a datum are missing (NaN) in all data: "
            f"{place(at, tuple(x.shape[1:]), names)} has no value, since all of it is missing: leave it out{advice}"
        )
    return empty


def _is_finite(x: Tensor) -> bool:
    if isinstance(x, Stored):
        return facts_of(x).missing == facts_of(x).infinite == 0
    return bool(x.isfinite().all())


def check_labels(labels: np.ndarray | Tensor, source: str = "labels of the data") -> None:
    """Checks that labels are finite, and that int64 and float64 hold each of them.

    Raises:
        WrongKindError: these are no real numbers.
        ValueError: one is NaN, infinite or too large.
    """
    if isinstance(labels, np.ma.MaskedArray) and labels.mask.any():
        raise ValueError(f"{source}: {int(labels.mask.sum())} of {labels.size} labels are masked")
    if isinstance(labels, Tensor):
        if labels.is_meta:
            return
        labels = (labels.double() if labels.is_floating_point() else labels).detach().cpu().numpy()
    if labels.dtype.kind not in "biuf":
        raise WrongKindError(f"{source}: expected numbers in labels, got {labels.dtype}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(f"{source}: {int((~np.isfinite(labels)).sum())} of {labels.size} labels are NaN or infinite")
    if labels.dtype.kind in "iuf" and labels.size:
        low, high = labels.min(), labels.max()
        if high >= _LARGEST_LABEL or low <= -_LARGEST_LABEL:
            worst = high if high >= _LARGEST_LABEL else low
            raise ValueError(
                f"{source}: expected labels up to 2^53 - 1, got {worst}: number the classes 0, 1, ..., since not every larger "
                f"number is held exactly"
            )


def as_labels(array: np.ndarray, source: str = "labels of the data") -> Tensor:
    """Returns an array of labels as a tensor: whole numbers in int64, real numbers in the default dtype.

    Raises:
        WrongKindError: these are no numbers.
        ValueError: one is NaN, infinite or too large, or different labels would become the same.
    """
    check_labels(array, source)
    if array.dtype.kind == "f":
        return as_data(array, source=source)
    return torch.from_numpy(array.astype(np.int64))


def moved_channels(x: Tensor, channels: Channels | None) -> Tensor:
    """Returns data with their channels before their pixels.

    Args:
        x: the data ``(N, ...)``.
        channels: where their channels are; with none, data without channels get one. None is first, and refuses data that seem
            to have them last.

    Raises:
        ValueError: x has no channels, or it was not said where they are and they seem to be last.
    """
    if channels not in (None, *get_args(Channels)):
        raise ValueError(f"channels: expected first, last or none, got {channels!r}")
    if channels == "none":
        return changed(x, lambda rows: rows.unsqueeze(1))
    sizes = "×".join(str(size) for size in x.shape[1:])
    if channels == "last":
        if x.dim() < 3:
            raise ValueError(f"channels: data of shape {tuple(x.shape[1:])} have no channels")
        return changed(x, lambda rows: rows.movedim(-1, 1).contiguous())
    if channels is None and x.dim() > 2 and x.shape[-1] <= _CHANNELS < min(x.shape[1:-1]):
        raise ValueError(
            f'channels: data of {sizes} seem to have their {x.shape[-1]} channels last: channels="last" (--data.channels last) '
            f'moves them to the front, as x.movedim(-1, 1) does, and channels="first" (--data.channels first) keeps the order'
        )
    return x
