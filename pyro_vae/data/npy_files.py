"""A ``.npy`` file whose rows are read when they are taken, for data that do not fit into memory.

Rows are read from the file and not through a map of it into memory: what was read leaves memory at once, and a file that became
shorter is told in words, where a map would end the process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.exactness import may_lose, narrowed, require_exact_in_blocks
from pyro_vae.kinds import WrongKindError
from pyro_vae.stored import Stored, spans

_SHARE = 4
"""Data are read into memory where there is room for so many copies, which reading and dividing them takes for a while."""


def is_too_large(path: Path) -> bool:
    """Whether data in a file are read row by row if nothing was said: they take more than a quarter of the memory."""
    if path.suffix.lower() != ".npy":
        return False
    try:
        array = _header(path)
    except ValueError:
        return False  # whoever reads it whole tells what is wrong, if anything is
    return array.size * torch.get_default_dtype().itemsize * _SHARE > _memory()


def stored(path: Path) -> Stored:
    """Data ``(N, ...)`` of a ``.npy`` file in the default dtype, whose rows are read when they are taken.

    Raises:
        ValueError: the file is no such file, or its rows do not stand one after another in it; or the default dtype would lose
            what its numbers say.
        WrongKindError: these are no numbers.
    """
    if path.suffix.lower() != ".npy":
        raise ValueError(
            f"in_memory: {path} cannot be read row by row, which only a .npy file can: save the data by np.save, or leave "
            f"in_memory out"
        )
    array = _header(path)
    if array.dtype.kind not in "biuf":
        raise WrongKindError(f"{path}: expected numbers in x, got {array.dtype}")
    if array.ndim < 2 or not array.size:
        raise ValueError(f"{path}: expected an array (N, ...) of N data, got shape {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{path}: the numbers of a datum do not stand side by side in it (it is in Fortran's order), so that it cannot be "
            f"read row by row: save it by np.save(path, np.ascontiguousarray(x)), or read it into memory (in_memory: true)"
        )
    rows = NpyRows(path, array.shape, array.dtype, array.offset)
    if may_lose(array.dtype):
        require_exact_in_blocks(rows.blocks, str(path))
    return Stored(rows)


class NpyRows:
    """The rows of a ``.npy`` file (see `pyro_vae.stored.Source`).

    The file stays open, so that it is the same if another takes its place.

    Args:
        path: the file.
        shape: the shape of the array in it.
        kind: the type of its numbers.
        offset: where they begin.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], kind: np.dtype, offset: int) -> None:
        self.path, self.shape, self.kind, self.offset = path, shape, kind, offset
        self.dtype = torch.get_default_dtype()
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._found = self._state()

    def read(self, index: Tensor) -> Tensor:
        """Returns rows.

        Raises:
            ValueError: the file was changed since it was opened.
        """
        return torch.from_numpy(narrowed(self._raw(index.numpy()))).to(self.dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in their order and in the type of the file, some at a time."""
        yield from (self._raw(np.arange(span.start, span.stop)) for span in spans(self.shape[0], self._size))

    @property
    def _size(self) -> int:
        """The number of bytes of a row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.kind.itemsize

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def _raw(self, index: np.ndarray) -> np.ndarray:
        """Rows in the type of the file. Those that stand one after another are read together."""
        if self._state() != self._found:
            raise ValueError(f"{self.path}: the file was changed while it is in use: begin again with the new one")
        found = np.empty((len(index), *self.shape[1:]), dtype=self.kind)
        bytes_of = found.reshape(-1).view(np.uint8).data
        ends = [*(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
        start = 0
        for end in ends:
            self._fill(bytes_of[start * self._size : end * self._size], self.offset + int(index[start]) * self._size)
            start = end
        return found

    def _fill(self, place: memoryview, at: int) -> None:
        while len(place):
            number = os.preadv(self._file, [place], at)
            if not number:
                raise ValueError(f"{self.path}: the file ends before its last row")
            place, at = place[number:], at + number


def _header(path: Path) -> np.memmap:
    """The array in a file, of which nothing but the header is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ``.npy`` file of numbers.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except Exception as error:  # what the readers of headers raise
        raise ValueError(f"{path}: not a readable .npy file of numbers ({error})") from error
    if not isinstance(found, np.memmap):
        raise ValueError(f"{path}: not a readable .npy file of numbers")
    return found


def _memory() -> int:
    """The memory of this machine, or that of the container, in bytes."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(found, int(text)) if text.isdigit() else found
