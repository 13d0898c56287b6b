"""Whether numbers stay what they are in the type that networks compute in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

_LOST = 1e-3
"""The largest rounding error of a number of x that is accepted, as a share of its standard deviation."""
_FEW = 10
"""With fewer data than this, the standard deviation of a number may be small by chance, and may be as small as the error."""
_NO_SPREAD = 16 * np.finfo(np.float64).eps
"""A standard deviation below this share of the value is what rounding in float64 makes of a constant."""
_BLOCK = 2**22
"""How many numbers are compared at a time, which bounds the memory."""


def narrowed(array: np.ndarray) -> np.ndarray:
    """Returns numbers in the type that networks compute in, or, where NumPy has none like it, in float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, dtype=_narrow())


def may_lose(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type have to be looked at, since `narrowed` may change them."""
    return dtype.kind != "f" or dtype.itemsize > _narrow().itemsize


def _narrow() -> np.dtype[Any]:
    return np.dtype(np.float64 if torch.get_default_dtype() == torch.float64 else np.float32)


def require_exact(array: np.ndarray, found: np.ndarray, names: Sequence[str], source: str) -> None:
    """Checks that numbers say the same in the narrow type.

    Args:
        array: the numbers ``(N, ...)``.
        found: the same in the narrow type.
        names: the names of columns, for messages.
        source: what messages begin with.

    Raises:
        ValueError: they do not; the message names the place in a datum.
    """
    if _is_same(array, found):
        return
    rows, narrow = array.reshape(len(array), -1), found.reshape(len(array), -1)
    columns = rows.shape[1]
    step = max(1, _BLOCK // max(1, len(rows)))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        parts = [_lost(rows[:, at : at + step], narrow[:, at : at + step]) for at in range(0, columns, step)]
    lost, error, spread = (np.concatenate(each) for each in zip(*parts, strict=True))
    if lost.any():
        at = int(lost.argmax())
        _refuse(rows[:, at], lost, error, spread, place(at, array.shape[1:], names), source)


def require_exact_in_blocks(read: Callable[[], Iterable[np.ndarray]], source: str) -> None:
    """Checks the same of numbers that do not fit into memory.

    Args:
        read: gives all of them, in blocks of rows, as often as it is called.
        source: what messages begin with.

    Raises:
        ValueError: they do not say the same in the narrow type.
    """
    if all(_is_same(block, narrowed(block)) for block in read()):
        return
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        lost, error, spread = _lost_in_blocks(read())
    if lost.any():
        at = int(lost.argmax())
        values = np.concatenate([block.reshape(len(block), -1)[:, at] for block in read()])
        shape = next(iter(read())).shape[1:]
        _refuse(values, lost, error, spread, place(at, shape), source)


def _is_same(array: np.ndarray, found: np.ndarray) -> bool:
    whole_type = array.dtype.kind in "biu"
    with np.errstate(invalid="ignore"):
        same = np.array_equal(found, array, equal_nan=not whole_type)
    return same and (not whole_type or float(np.abs(found).max(initial=0)) <= _largest())


def _largest() -> float:
    """Up to here, the narrow type holds every whole number."""
    return float(2 / np.finfo(_narrow()).eps)


def _refuse(
    column: np.ndarray, lost: np.ndarray, error: np.ndarray, spread: np.ndarray, where: str, source: str
) -> NoReturn:
    """Raises ValueError about the first number of a datum that is lost, of which these are the values."""
    at = int(lost.argmax())
    values = column[np.isfinite(column)]
    distinct, left = len(np.unique(values)), len(np.unique(narrowed(values)))
    others = " others" if left == distinct else ""
    what = f"its {distinct} different values would become {left}{others}"
    if not np.isfinite(error[at]):
        what += ", of which some would be infinite"
    elif error[at] > 0:
        what += f", rounded by up to {error[at]:.3g}"
        what += f" where their standard deviation is {spread[at]:.3g}" if 0 < spread[at] < np.inf else ""
    raise ValueError(
        f"{source}: {_narrow()}, in which networks compute, cannot hold {int(lost.sum())} of the {lost.size} numbers of a "
        f"datum: {where} has values from {values.min():.10g} to {values.max():.10g}, and {what}. "
        f"Subtract an offset from it, divide it, or take its logarithm first"
    )


def _lost(array: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each column loses what its numbers say, its largest rounding error, and its standard deviation."""
    exact = array.astype(np.promote_types(array.dtype, np.float64))
    wide = found.astype(exact.dtype)
    finite = np.isfinite(exact)
    # The first value that is there in place of those that are not changes no range. Their spread is taken without them.
    first = np.where(finite.any(0), exact[finite.argmax(0), np.arange(exact.shape[1])], 0.0)
    spread = exact.std(0) if finite.all() else np.nan_to_num(_spread(exact, finite))
    exact, wide = (np.where(finite, each, first) for each in (exact, wide))
    wide = np.where(finite, wide, first.astype(found.dtype))
    error, whole = np.abs(wide - exact).max(0), (exact == np.round(exact)).all(0)
    return _is_lost(exact.min(0), exact.max(0), error, whole, spread, len(exact)), error, spread


def _lost_in_blocks(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_lost` returns, of all columns of numbers that come in blocks of rows."""
    low, high, error, mean, squares, number = (np.zeros(1) for _ in range(6))
    low, high, whole, N = low + np.inf, high - np.inf, np.ones(1, dtype=bool), 0
    for block in blocks:
        rows = block.reshape(len(block), -1)
        exact = rows.astype(np.promote_types(rows.dtype, np.float64))
        finite, gap = np.isfinite(exact), np.abs(narrowed(rows).astype(exact.dtype) - exact)
        N += len(rows)
        low = np.minimum(low, np.where(finite, exact, np.inf).min(0))
        high = np.maximum(high, np.where(finite, exact, -np.inf).max(0))
        error = np.maximum(error, np.where(finite, gap, 0.0).max(0))
        whole = whole & (~finite | (exact == np.round(exact))).all(0)
        new = finite.sum(0)
        total, center = np.maximum(number + new, 1), np.where(finite, exact, 0.0).sum(0) / np.maximum(new, 1)
        away, step = np.where(finite, exact - center, 0.0), np.where(new > 0, center - mean, 0.0)
        # The means and squares of two sets of numbers are joined as in Chan et al. 1983.
        squares = squares + (away * away).sum(0) + step * step * number * new / total
        mean, number = mean + step * new / total, number + new
    spread = np.nan_to_num(np.sqrt(squares / np.maximum(number, 1)))
    low, high = (np.where(number > 0, end, 0.0) for end in (low, high))
    return _is_lost(low, high, error, whole, spread, N), error, spread


def _is_lost(
    low: np.ndarray, high: np.ndarray, error: np.ndarray, whole: np.ndarray, spread: np.ndarray, N: int
) -> np.ndarray:
    """Whether each column of N numbers in a range loses what they say, by its largest rounding error."""
    size = np.maximum(np.abs(low), np.abs(high))
    # Large floats are all whole, which says nothing about numbers that no integer type holds.
    whole = whole & (size <= 2.0**64)
    accepted = np.where(whole, 0.5, spread if N < _FEW else _LOST * spread)
    lost = (whole & (size > _largest())) | (error > accepted) | ~np.isfinite(error)
    constant = (high - low <= _NO_SPREAD * size) & np.isfinite(error) & ~whole
    return np.asarray(lost & ~constant)


def _spread(exact: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """The standard deviation of the finite numbers of each column."""
    number = np.maximum(finite.sum(0), 1)
    mean = np.where(finite, exact, 0.0).sum(0) / number
    return np.asarray(np.sqrt(np.where(finite, exact - mean, 0.0).__pow__(2).sum(0) / number))


def place(at: int, shape: tuple[int, ...], names: Sequence[str] = ()) -> str:
    """A number of a datum, as a message names it."""
    if names:
        return f"column {names[at]!r}"
    return f"x[:, {', '.join(str(i) for i in np.unravel_index(at, shape))}]" if shape else "it"
