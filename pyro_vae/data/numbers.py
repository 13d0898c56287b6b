"""Numbers as data: read into tensors, and refused where a tensor would lose what they say, or where they are no data.

Files and arrays go the same way (`Arrays` and `Split` both use these functions), so that both are refused alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_vae.kinds import WrongKindError

Channels = Literal["first", "last", "none"]
"""Where the channels of images and signals are."""

_LOST = 1e-3
"""The largest rounding error of a number of x that is accepted, as a share of its standard deviation."""
_FEW = 10
"""With fewer data than this, the standard deviation of a number may be small by chance, and may be as small as the error."""
_NO_SPREAD = 16 * np.finfo(np.float64).eps
"""A standard deviation below this share of the value is what rounding in float64 makes of a constant."""
_BLOCK = 2**22
"""How many numbers are compared at a time, which bounds the memory."""
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
    dtype = torch.get_default_dtype()
    narrow = np.float64 if dtype == torch.float64 else np.float32
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = np.ascontiguousarray(array, dtype=narrow)
    if not array.ndim:
        raise ValueError(f"{source}: expected an array (N, ...) of N data, got a single number")
    if array.dtype.kind != "f" or array.dtype.itemsize > found.dtype.itemsize:
        _require_exact(array, found, names, source)
    if np.shares_memory(found, array):
        found = found.copy()
    return torch.from_numpy(found).to(dtype)


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


def _require_exact(array: np.ndarray, found: np.ndarray, names: Sequence[str], source: str) -> None:
    """Raises ValueError if what was found in the narrow type is not what the array says."""
    largest = float(2 / np.finfo(found.dtype).eps)  # up to here, the type holds every whole number
    whole_type = array.dtype.kind in "biu"
    with np.errstate(invalid="ignore"):
        same = np.array_equal(found, array, equal_nan=not whole_type)
    if same and (not whole_type or float(np.abs(found).max(initial=0)) <= largest):
        return
    rows, narrow = array.reshape(len(array), -1), found.reshape(len(array), -1)
    columns = rows.shape[1]
    step = max(1, _BLOCK // max(1, len(rows)))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        parts = [_lost(rows[:, at : at + step], narrow[:, at : at + step], largest) for at in range(0, columns, step)]
    lost, error, spread = (np.concatenate(each) for each in zip(*parts, strict=True))
    if not lost.any():
        return
    at = int(lost.argmax())
    there = np.isfinite(rows[:, at])
    values = rows[:, at][there]
    distinct, left = len(np.unique(values)), len(np.unique(narrow[:, at][there]))
    others = " others" if left == distinct else ""
    what = f"its {distinct} different values would become {left}{others}"
    if not np.isfinite(error[at]):
        what += ", of which some would be infinite"
    elif error[at] > 0:
        what += f", rounded by up to {error[at]:.3g}"
        what += f" where their standard deviation is {spread[at]:.3g}" if 0 < spread[at] < np.inf else ""
    raise ValueError(
        f"{source}: {found.dtype}, in which networks compute, cannot hold {int(lost.sum())} of the {lost.size} numbers of a "
        f"datum: {place(at, array.shape[1:], names)} has values from {values.min():.10g} to {values.max():.10g}, and {what}. "
        f"Subtract an offset from it, divide it, or take its logarithm first"
    )


def _lost(array: np.ndarray, found: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each column loses what its numbers say, its largest rounding error, and its standard deviation."""
    exact = array.astype(np.promote_types(array.dtype, np.float64))
    wide = found.astype(exact.dtype)
    finite = np.isfinite(exact)
    # The first value that is there in place of those that are not changes no range. Their spread is taken without them.
    first = np.where(finite.any(0), exact[finite.argmax(0), np.arange(exact.shape[1])], 0.0)
    spread = exact.std(0) if finite.all() else np.nan_to_num(_spread(exact, finite))
    exact, wide = (np.where(finite, each, first) for each in (exact, wide))
    wide = np.where(finite, wide, first.astype(found.dtype))
    error, size = np.abs(wide - exact).max(0), np.abs(exact).max(0)
    # Large floats are all whole, which says nothing about numbers that no integer type holds.
    whole = (exact == np.round(exact)).all(0) & (size <= 2.0**64)
    accepted = np.where(whole, 0.5, spread if len(exact) < _FEW else _LOST * spread)
    lost = (whole & (size > largest)) | (error > accepted) | ~np.isfinite(error)
    constant = (exact.max(0) - exact.min(0) <= _NO_SPREAD * size) & np.isfinite(error) & ~whole
    return lost & ~constant, error, spread


def _spread(exact: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """The standard deviation of the finite numbers of each column."""
    number = np.maximum(finite.sum(0), 1)
    mean = np.where(finite, exact, 0.0).sum(0) / number
    return np.asarray(np.sqrt(np.where(finite, exact - mean, 0.0).__pow__(2).sum(0) / number))


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
    if not x.is_floating_point() or x.is_meta or bool(x.isfinite().all()):
        return 0
    rows = x.reshape(len(x), -1)
    if (infinite := rows.isinf()).any():
        where = place(int(infinite.any(0).to(torch.uint8).argmax()), tuple(x.shape[1:]), names)
        raise ValueError(f"{source}: {int(infinite.sum())} of {x.numel()} values are infinite, the first in {where}")
    missing = rows.isnan()
    if (never := missing.all(0)).any():
        at = int(never.to(torch.uint8).argmax())
        advice = f' (--data.leave_out "[{names[at]}]")' if names else ""
        raise ValueError(
            f"{source}: {int(never.sum())} of {len(never)} numbers of a datum are missing (NaN) in all data: "
            f"{place(at, tuple(x.shape[1:]), names)} has no value, since all of it is missing: leave it out{advice}"
        )
    return int(missing.all(1).sum())


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
        return x.unsqueeze(1)
    sizes = "×".join(str(size) for size in x.shape[1:])
    if channels == "last":
        if x.dim() < 3:
            raise ValueError(f"channels: data of shape {tuple(x.shape[1:])} have no channels")
        return x.movedim(-1, 1).contiguous()
    if channels is None and x.dim() > 2 and x.shape[-1] <= _CHANNELS < min(x.shape[1:-1]):
        raise ValueError(
            f'channels: data of {sizes} seem to have their {x.shape[-1]} channels last: channels="last" (--data.channels last) '
            f'moves them to the front, as x.movedim(-1, 1) does, and channels="first" (--data.channels first) keeps the order'
        )
    return x


def place(at: int, shape: tuple[int, ...], names: Sequence[str] = ()) -> str:
    """A number of a datum, as a message names it."""
    if names:
        return f"column {names[at]!r}"
    return f"x[:, {', '.join(str(i) for i in np.unravel_index(at, shape))}]" if shape else "it"
