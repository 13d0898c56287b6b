"""Data in the form that programs are called with: one tensor for each of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.stored import Stored, blocks, selected


@dataclass(frozen=True, eq=False)
class Columns:
    """What programs are called with, of N data: one tensor for each of their inputs, with N leading.

    Training and evaluation turn a `Split` into this once, at their entrance, and index it from there on. Of data that are not
    in memory (see `pyro_vae.stored`), the rows that are taken are read then.

    Attributes:
        tensors: one for each input, in the order in which programs take them.
        inputs: the names of the inputs, such as ``("x", "y")``.
        dynamic: x holds probabilities, and each use of a datum draws its pixels anew.
    """

    tensors: tuple[Tensor, ...]
    inputs: tuple[str, ...] = ("x",)
    dynamic: bool = False

    def __len__(self) -> int:
        """The number N of data."""
        return len(self.tensors[0])

    @property
    def x(self) -> Tensor:
        """The data ``(N, *x_shape)``."""
        return self.tensors[self.inputs.index("x")]

    @property
    def y(self) -> Tensor | None:
        """The labels ``(N,)``, where programs are given them."""
        return self.tensors[self.inputs.index("y")] if "y" in self.inputs else None

    def take(self, index: Tensor | slice, tensors: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """What programs are called with for some of the data. Where `dynamic`, pixels are drawn by the global random numbers.

        Args:
            index: which data.
            tensors: tensors to index in place of those held here (a compiled graph gives its own inputs).
        """
        taken = [column[index] for column in tensors or self.tensors]
        if self.dynamic:
            place = self.inputs.index("x")
            taken[place] = torch.bernoulli(taken[place])
        return tuple(taken)

    def first(self, n: int) -> Columns:
        """The first n data."""
        return replace(self, tensors=tuple(selected(column, slice(0, n)) for column in self.tensors))

    def in_memory(self) -> Columns:
        """The same data with all of their rows in memory."""
        return (
            replace(self, tensors=tuple(torch.cat(list(blocks(column))) for column in self.tensors))
            if self.stored
            else self
        )

    @property
    def stored(self) -> bool:
        """Whether there are data that are not in memory."""
        return any(isinstance(column, Stored) for column in self.tensors)

    def for_graph(self, index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Tensors in memory, and the indices into them that give these data: what a compiled graph has as its inputs.

        Of data in memory it is all of them, and the indices as they are. Of others it is the rows of the batch alone.
        """
        if not self.stored:
            return self.tensors, index
        return tuple(column[index] for column in self.tensors), torch.arange(len(index), device=index.device)

    def order(self) -> Tensor:
        """The indices of all data in random order, drawn on the CPU, so that it is the same on every device."""
        return torch.randperm(len(self)).to(self.tensors[0].device)

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """All data once, in their order, ``size`` at a time. The last batch holds what is left."""
        yield from (self.take(slice(start, start + size)) for start in range(0, len(self), size))
