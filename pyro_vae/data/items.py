"""Items of a map-style data set of PyTorch as data."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items

from pyro_vae.data.exactness import may_lose, narrowed, require_exact_in_blocks
from pyro_vae.data.numbers import Channels, as_data, as_labels
from pyro_vae.data.splits import Binarize, Data, Split, Splits, make_splits
from pyro_vae.stored import Stored, spans
from pyro_vae.view import Shown, View

_TOGETHER = 64
"""How many items a worker reads at a time."""


@final
class Dataset(Data):
    """A map-style data set of PyTorch (``torch.utils.data.Dataset``), also one of torchvision or of your own.

    An item is x, an array or a tensor of numbers, or a pair of x and a label. What an item draws at random depends on its index
    alone, so that an item is the same at each use and whatever number of workers reads it.

    Args:
        of: the class of the data set, by its import path, with its options.
        binarize: dynamic and fixed take values in [0, 1] as probabilities of a pixel being 1; none keeps the values.
        valid: number of data for validation.
        test: number of data for the test.
        split_seed: seed of the division into train, validation and test.
        standardize: whether parts see standardized data; by default where x is made of real numbers and is no image.
        channels: where the channels of images and signals are: first, last, or none.
        kind: what pictures show: image, signal or table; auto tells it by the shape of a datum.
        ink: pictures draw large values dark, as in handwriting; otherwise light, as in photographs.
        in_memory: whether all items are read once and kept in memory; otherwise they are read at each use.
        workers: number of processes that read items; with 0 this one does.
        labelled: how many training labels a model is told that learns from some, of each class as many.
        label_seed: seed of the choice of these.

    Raises:
        ValueError: there are to be fewer than no workers.
    """

    def __init__(
        self,
        of: Callable[[], Items[Any]],
        binarize: Binarize = "none",
        valid: int = 1000,
        test: int = 1000,
        split_seed: int = 0,
        standardize: bool | None = None,
        channels: Channels | None = None,
        kind: Shown = "auto",
        ink: bool = False,
        in_memory: bool = True,
        workers: int = 0,
        labelled: int | None = None,
        label_seed: int = 0,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers: expected at least 0, got {workers}")
        self.of, self.binarize, self.valid, self.test, self.split_seed = of, binarize, valid, test, split_seed
        self.standardize, self.channels, self.kind, self.ink = standardize, channels, kind, ink
        self.in_memory, self.workers = in_memory, workers
        self.labelled, self.label_seed = labelled, label_seed

    def load(self) -> Splits:
        """Reads the items: x is ``(N, ...)``, in the default dtype. Without ``in_memory``, items are read when they are used.

        Raises:
            ValueError: the data set cannot be made or is empty, or an item cannot be read, is of another shape than the first,
                or is no x and no pair (x, label); the message has its index.
        """
        rows = ItemRows(_made(self.of), self.workers)
        if self.in_memory:
            array, labels = np.empty(rows.shape, dtype=rows.kind), list[float]()
            for start, part, given in rows.parts(torch.arange(rows.shape[0])):
                array[start : start + len(part)] = part
                labels += given
            x = as_data(array, source=rows.name)
        else:
            labels = [label for _, _, given in rows.parts(torch.arange(rows.shape[0])) for label in given]
            if may_lose(rows.kind):
                require_exact_in_blocks(rows.blocks, rows.name)
            x = Stored(rows)
        y = as_labels(np.asarray(labels), f"{rows.name}: labels") if rows.labeled else None
        return make_splits(
            Split(x, y),
            valid=self.valid,
            test=self.test,
            binarize=self.binarize,
            split_seed=self.split_seed,
            standardize=self.standardize,
            channels=self.channels,
            view=View(self.kind, (), self.ink),
            labelled=self.labelled,
            label_seed=self.label_seed,
        )


def _made(of: Callable[[], Items[Any]]) -> Items[Any]:
    """The data set, with a length and items by their index.

    Raises:
        ValueError: it cannot be made, is no such data set, or is empty.
    """
    name = getattr(getattr(of, "func", of), "__name__", "of")
    try:
        made = of()
    except Exception as error:  # a data set may be a user's own, which raises anything
        raise ValueError(f"of: {name} cannot be made ({type(error).__name__}: {error})") from error
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise ValueError(
            f"of: expected a data set whose items have an index, with __len__ and __getitem__, and {name} has none"
        )
    if not len(made):
        raise ValueError(f"of: {name} is empty")
    return made


class ItemRows:
    """The items of a data set as rows (see `pyro_vae.stored.Source`).

    Args:
        items: the data set.
        workers: number of processes that read items.

    Raises:
        ValueError: the first item cannot be read, or is no x and no pair (x, label).
    """

    def __init__(self, items: Items[Any], workers: int) -> None:
        self.name, self.dtype = type(items).__name__, torch.get_default_dtype()
        self.reader = _Reader(items, None)
        first = self._checked(self.reader[0])
        self.kind, self.labeled = first[0].dtype, first[1] is not None
        self.shape = (len(items), *first[0].shape)  # type: ignore[arg-type]
        self.reader = _Reader(items, (first[0].shape, first[0].dtype, self.labeled))
        self._order = _Order()
        self._loader = DataLoader(
            self.reader,
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=_as_list,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        )

    def read(self, index: Tensor) -> Tensor:
        """Returns the x of items."""
        return torch.from_numpy(narrowed(self._raw(index))).to(self.dtype)

    def parts(self, index: Tensor) -> Iterator[tuple[int, np.ndarray, list[Any]]]:
        """Items in this order, some at a time: the place of the first of them, their x, and their labels, if they have any.

        Raises:
            ValueError: one cannot be read, or is of another form than the first.
        """
        self._order.index, done = index.tolist(), 0
        for part in self._loader:
            read = [self._checked(each) for each in part]
            yield done, np.stack([x for x, _ in read]), [label for _, label in read if label is not None]
            done += len(read)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in their order and in their own type, some at a time."""
        size = int(np.prod(self.shape[1:])) * self.kind.itemsize
        yield from (self._raw(torch.arange(span.start, span.stop)) for span in spans(self.shape[0], size))

    def _raw(self, index: Tensor) -> np.ndarray:
        found = np.empty((len(index), *self.shape[1:]), dtype=self.kind)
        for start, part, _ in self.parts(index):
            found[start : start + len(part)] = part
        return found

    def _checked(self, read: _Read | str) -> _Read:
        if isinstance(read, str):
            raise ValueError(f"{self.name}: {read}")
        return read


_Read = tuple[np.ndarray, float | int | None]
"""x and the label of an item."""


class _Order:
    """The indices of the items that are read next, some at a time."""

    index: list[int] = []  # noqa: RUF012  (only ever replaced)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.index[start : start + _TOGETHER] for start in range(0, len(self.index), _TOGETHER))


class _Reader(Items[Any]):
    """The items of a data set as arrays, or what is wrong with one, in a sentence: an error would lose its words on its way.

    Args:
        items: the data set.
        form: the shape and the type of each x, and whether there are labels; None before they are known.
    """

    def __init__(self, items: Items[Any], form: tuple[tuple[int, ...], np.dtype, bool] | None) -> None:
        self.items, self.form = items, form

    def __getitem__(self, i: int) -> _Read | str:
        try:
            item = _item(self.items, i)
        except Exception as error:  # a data set may be a user's own, which raises anything
            return f"item {i} cannot be read ({type(error).__name__}: {error})"
        x, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        x = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf" or not x.ndim or not x.size:
            found = (
                f"an array of {x.dtype} and shape {x.shape}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"
            )
            image = ": give the data set transform=torchvision.transforms.ToTensor()" if hasattr(x, "getbands") else ""
            return f"item {i} is {found}; expected x, an array or a tensor of numbers, or a pair (x, label){image}"
        if label is not None:
            label = label.detach().cpu().numpy() if isinstance(label, Tensor) else label
            label = label.item() if isinstance(label, np.generic | np.ndarray) and label.size == 1 else label
            if not isinstance(label, int | float):
                return f"the label of item {i} is a {type(label).__name__}; expected a number"
        if self.form and (x.shape, x.dtype, label is not None) != self.form:
            shape, kind, labeled = self.form
            told = [f"{list(s)} of {k}{' with a label' if has else ''}" for s, k, has in
                    ((x.shape, x.dtype, label is not None), (shape, kind, labeled))]  # fmt: skip
            return f"item {i} is {told[0]}, and item 0 is {told[1]}: all items must be alike"
        return x, label


def _item(items: Items[Any], i: int) -> Any:
    """An item, whose random numbers depend on its index alone; the states of the generators are afterwards as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (what data sets may use)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(i)
        random.seed(i)
        np.random.seed(i % 2**32)  # noqa: NPY002
        try:
            return items[i]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _as_list(batch: list[Any]) -> list[Any]:
    return batch
