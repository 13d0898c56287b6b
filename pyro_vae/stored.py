"""Data that do not fit into memory: a tensor whose rows are read when they are taken.

A `Stored` has the shape, the type and the device of the tensor that it stands for, and no values. ``x[index]`` reads rows and
gives an ordinary tensor. What looks at all values goes over them in blocks (`blocks`). Any other operation is refused, since it
would read everything into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

BLOCK = 2**24
"""The size in bytes of a block that is read at a time. Data that are no larger are computed with as if they were in memory."""
HELD = 2**27
"""Selected rows up to this size in bytes, such as those that are held out for the test, are read into memory at once."""

Change = Callable[[Tensor], Tensor]
"""What is done with rows after they were read. It works on each row by itself."""
T = TypeVar("T")


@runtime_checkable
class Source(Protocol):
    """Where rows come from.

    Attributes:
        shape: the shape of all data, ``(N, ...)``.
        dtype: the type of the numbers of a row that was read.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, index: Tensor) -> Tensor:
        """Returns rows on the CPU.

        Args:
            index: which rows, in any order; whole numbers in 0..N-1, on the CPU.
        """


class Stored(Tensor):
    """Data ``(N, ...)`` whose rows are read from a source when they are taken.

    Args:
        source: where rows come from.
        index: which rows of the source these are; all of them by default.
        changes: what is done with rows that were read, one after another.
        device: where rows are placed.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    source: Source
    chosen: Tensor | None
    changes: tuple[Change, ...]
    remembered: dict[str, Any]

    @staticmethod
    def __new__(
        cls: type[Stored],
        source: Source,
        index: Tensor | None = None,
        changes: Sequence[Change] = (),
        device: torch.device | None = None,
    ) -> Stored:
        """Makes the tensor without values."""
        row = torch.empty((0, *source.shape[1:]), dtype=source.dtype)
        for change in changes:
            row = change(row)
        size = (source.shape[0] if index is None else len(index), *row.shape[1:])
        made: Stored = torch.Tensor._make_wrapper_subclass(
            cls, size, dtype=row.dtype, device=device or torch.device("cpu")
        )
        made.source, made.chosen, made.changes, made.remembered = source, index, tuple(changes), {}
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Says what it is, without values."""
        return f"Stored({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Refuses what would read everything.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"these data are not in memory, and {func.__name__.partition('.')[0]} would read all of them at once: take some of "
            f"them, x[index], or go over all of them by pyro_vae.stored.blocks(x), or read them into memory (in_memory: true)"
        )

    def __getitem__(self, key: Any) -> Tensor:
        """Reads rows: of a slice, of indices in any order, of a mask, or a single one."""
        if isinstance(key, int):
            return self[torch.tensor([range(len(self))[key]])][0]
        index = self._of(key)
        if self.chosen is not None:
            index = self.chosen[index]
        return self._changed(self.source.read(index)).to(self.device)

    def selected(self, key: Any) -> Stored:
        """The same rows as ``self[key]``, not yet read."""
        index = self._of(key)
        return Stored(self.source, index if self.chosen is None else self.chosen[index], self.changes, self.device)

    def changed(self, change: Change) -> Stored:
        """The data of which this is done with all rows that are read."""
        return Stored(self.source, self.chosen, (*self.changes, change), self.device)

    def to(self, *targets: Any) -> Stored:  # type: ignore[override]
        """The same data on another device, in another type, or both."""
        found = self
        for target in targets:
            if isinstance(target, torch.dtype):
                if target != found.dtype:
                    found = found.changed(_Cast(target))
            elif torch.device(target) != found.device:
                found = Stored(found.source, found.chosen, found.changes, torch.device(target))
        return found

    def cpu(self) -> Stored:  # type: ignore[override]
        """The same data, placed on the CPU when they are read."""
        return self.to("cpu")

    def detach(self) -> Stored:
        """The same data, which have no gradient."""
        return self

    def _of(self, key: Any) -> Tensor:
        """The places of rows."""
        if isinstance(key, slice):
            return torch.arange(*key.indices(len(self)))
        index = torch.as_tensor(key).cpu()
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        if index.dim() != 1:
            raise ValueError(
                f"index: of data that are not in memory, whole rows are taken, by a slice or a list; got {key}"
            )
        return torch.where(index < 0, index + len(self), index)

    def _changed(self, rows: Tensor) -> Tensor:
        for change in self.changes:
            rows = change(rows)
        return rows


class _Cast:
    """Gives rows another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.to(self.dtype)


def rows_of_block(x: Tensor) -> int:
    """How many rows of such data a block has."""
    return _rows(x.shape[1:].numel() * x.element_size())


def spans(n: int, size: int) -> Iterator[range]:
    """The places of n rows of so many bytes, those of one block after another."""
    step = _rows(size)
    return (range(start, min(start + step, n)) for start in range(0, n, step))


def _rows(size: int) -> int:
    """How many rows of so many bytes a block has."""
    return max(1, BLOCK // max(1, size))


def blocks(x: Tensor, rows: int | None = None) -> Iterator[Tensor]:
    """All data once, in their order: a tensor in memory as it is, and one that is not, block after block.

    Args:
        x: data ``(N, ...)``.
        rows: the number of rows of a block, also of a tensor in memory; by default what fits.
    """
    if isinstance(x, Stored):
        step = rows or rows_of_block(x)
        yield from (x[start : start + step] for start in range(0, len(x), step))
    elif rows is None:
        yield x
    else:
        yield from x.split(rows)


def held(x: Tensor) -> Tensor | None:
    """Returns data as a tensor in memory, if they are one or are no larger than a block; or None."""
    if not isinstance(x, Stored):
        return x
    return x[:] if len(x) <= rows_of_block(x) else None


def selected(x: Tensor, key: Any) -> Tensor:
    """Returns rows of data. Those of data that are not in memory are read if they are few, and else when they are taken."""
    if not isinstance(x, Stored):
        return x[key]
    found = x.selected(key)
    return found[:] if fits(found) else found


def fits(x: Tensor) -> bool:
    """Whether data are so few that all of them may be held in memory."""
    return x.numel() * x.element_size() <= HELD


def changed(x: Tensor, change: Change) -> Tensor:
    """Returns data of which the same is done with each row: now, or, if they are not in memory, whenever rows are read."""
    return x.changed(change) if isinstance(x, Stored) else change(x)


def once(x: Stored, name: str, compute: Callable[[], T]) -> T:
    """Returns what was computed of these data, which cannot change, or computes it."""
    if name not in x.remembered:
        x.remembered[name] = compute()
    found: T = x.remembered[name]
    return found
