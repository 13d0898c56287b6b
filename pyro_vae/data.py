"""Real data, held in memory on one device and batched by index.

A data set is one class with one method, `Data.load`, that returns `Splits`: train, validation and test. Which images go where
and how they are binarized is seeded apart from the run's seed: two runs with other seeds are judged on the same test set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.base import Dims, Shape
from pyro_vae.programs import Programs, given, takes_labels

Binarize = Literal["dynamic", "fixed", "none"]
"""dynamic: training pixels are drawn anew each time they are used; fixed: once; none: gray values stay.

Validation and test are drawn once in both cases. The two differ by about 2 nats on MNIST and must not be compared.
"""

Pixels = Literal["dynamic", "fixed", "none", "levels"]
"""Of images with 256 gray levels: also levels, 0..255."""

_BINARIZE_SEED = 20160901
"""Of every binarization that is drawn once: the same test set for every run."""


@dataclass(frozen=True, eq=False)
class Split:
    """Data of one kind, on one device.

    Attributes:
        x: data ``(N, *x_shape)``; probabilities in [0, 1] where `dynamic`.
        labels: classes ``(N,)``, or None.
        dynamic: each use of a datum draws its pixels anew.
        labeled: programs are given the labels too (see `Split.given_to`).
    """

    x: Tensor
    labels: Tensor | None = None
    dynamic: bool = False
    labeled: bool = False

    def __len__(self) -> int:
        """N."""
        return len(self.x)

    def to(self, device: torch.device) -> Split:
        """The same split on another device."""
        return replace(self, x=self.x.to(device), labels=None if self.labels is None else self.labels.to(device))

    def given_to(self, programs: Programs) -> Split:
        """The same split as these programs take it: x alone, or x and the labels where their model has an argument ``y``.

        Raises:
            ValueError: they take labels, and there are none.
        """
        labeled = takes_labels(programs)
        if labeled and self.labels is None:
            raise ValueError(f"{type(programs).__name__} is given labels y with the data, and these data have none")
        return self if labeled == self.labeled else replace(self, labeled=labeled)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """What programs are called with, of all data: x, and the labels where they take them."""
        return given(self.x, self.labels if self.labeled else None)

    def take(self, index: Tensor | slice, columns: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """What programs are called with, of some data; pixels are drawn by the global random numbers where `dynamic`.

        Args:
            index: which data.
            columns: of all data; these by default.
        """
        x, *labels = (column[index] for column in columns or self.columns)
        return torch.bernoulli(x) if self.dynamic else x, *labels

    def first(self, n: int) -> Split:
        """The first n data."""
        return replace(self, x=self.x[:n], labels=None if self.labels is None else self.labels[:n])

    def order(self) -> Tensor:
        """The indices of all data in random order, drawn on the CPU, so that it is the same on every device."""
        return torch.randperm(len(self)).to(self.x.device)

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """All data once, in their order, ``size`` at a time; the last batch holds what is left."""
        yield from (self.take(slice(start, start + size)) for start in range(0, len(self), size))


class Splits(NamedTuple):
    """Train, validation and test data of one data set.

    Attributes:
        train: what is fitted.
        valid: what is watched.
        test: what is reported.
        support: the values that a datum may take.
    """

    train: Split
    valid: Split
    test: Split
    support: Constraint

    @property
    def x_shape(self) -> Shape:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    def dims(self, latent: int) -> Dims:
        """The sizes that parts are built for, with the training data and their mean."""
        x = self.train.x.cpu()
        scale = max(1.0, x.abs().max().item())
        return Dims(latent, self.x_shape, x.mean(0), x, self.train.dynamic, self.classes, scale)

    @property
    def classes(self) -> int | None:
        """How many classes there are, if every datum has a label of 0, 1, ..."""
        found = [split.labels for split in (self.train, self.valid, self.test) if split.labels is not None]
        if len(found) < 3 or any(labels.is_floating_point() or bool((labels < 0).any()) for labels in found):
            return None
        return 1 + max(int(labels.max()) for labels in found)

    def to(self, device: torch.device) -> Splits:
        """The same splits on another device."""
        return Splits(self.train.to(device), self.valid.to(device), self.test.to(device), self.support)

    def given_to(self, programs: Programs) -> Splits:
        """The same splits as these programs take them (see `Split.given_to`)."""
        train, valid, test = (split.given_to(programs) for split in (self.train, self.valid, self.test))
        return Splits(train, valid, test, self.support)


class Data(ABC):
    """A data set: its options are its constructor's arguments."""

    @abstractmethod
    def load(self) -> Splits:
        """Reads the data into memory, on the CPU.

        Raises:
            ValueError: data that cannot be used; the message says which and why.
            OSError: files that cannot be read; the message says where to put them.
        """


@final
class Digits(Data):
    """The 1,797 handwritten digits of scikit-learn, 8×8 pixels that are counts 0..16; nothing is downloaded.

    Args:
        binarize: none keeps the counts; dynamic and fixed draw pixels with probability count/16.
        valid: number of validation images.
        test: number of test images.
        split_seed: seed of the division into train, validation and test.
    """

    def __init__(self, binarize: Binarize = "none", valid: int = 200, test: int = 297, split_seed: int = 0) -> None:
        self.binarize, self.valid, self.test, self.split_seed = binarize, valid, test, split_seed

    def load(self) -> Splits:
        """Reads the digits: x is ``(N, 1, 8, 8)``."""
        images, labels = load_digits(return_X_y=True)
        x, y = torch.from_numpy(images).float().reshape(-1, 1, 8, 8), torch.from_numpy(labels).long()
        train, test = _hold_out(Split(x, y), self.test, "test", self.split_seed)
        return _finish(train, test, self.binarize, self.valid, self.split_seed, constraints.integer_interval(0, 16))


class _Torchvision(Data):
    """MNIST's format: 60,000 and 10,000 gray images of 28×28 pixels."""

    _name: str

    def __init__(
        self, root: Path = Path("data"), binarize: Pixels = "dynamic", valid: int = 10_000, split_seed: int = 0
    ) -> None:
        self.root, self.binarize, self.valid, self.split_seed = Path(root), binarize, valid, split_seed

    @final
    def load(self) -> Splits:
        """Reads the images, after a download where they are absent: x is ``(N, 1, 28, 28)``."""
        train, test = (self._read(train) for train in (True, False))
        if self.binarize == "levels":
            train, test = (replace(split, x=(255 * split.x).round()) for split in (train, test))
            return _finish(train, test, "none", self.valid, self.split_seed, constraints.integer_interval(0, 255))
        return _finish(train, test, self.binarize, self.valid, self.split_seed, constraints.unit_interval)

    def _read(self, train: bool) -> Split:
        from torchvision import datasets  # noqa: PLC0415  (a second of import that only these data sets need)

        try:
            source = getattr(datasets, self._name)(self.root, train=train, download=True)
            images, labels = source.data, source.targets
            if images.dim() != 3 or len(images) != len(labels) or not len(images):
                raise ValueError(f"{tuple(images.shape)} images and {tuple(labels.shape)} labels")
        except Exception as error:  # the readers raise anything: assertions, struct and network errors
            folder, reason = self.root / self._name / "raw", " ".join(str(error).split())
            raise OSError(
                f"{self._name} could be neither read from {folder} nor downloaded ({reason}). Put its four files "
                f"(train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte) there, "
                f"or name the folder above {self._name} with --data.root"
            ) from error
        return Split(images.float().div(255).unsqueeze(1), labels.long())


@final
class MNIST(_Torchvision):
    """MNIST: 60,000 training and 10,000 test images of digits, 28×28 pixels in [0, 1].

    Args:
        root: folder above ``MNIST/raw``; the files are downloaded there where they are absent.
        binarize: dynamic draws training pixels anew at each use; fixed once; none keeps the gray values in [0, 1]; levels keeps
            them as whole numbers 0..255.
        valid: number of training images held out for validation.
        split_seed: seed of that choice.
    """

    _name = "MNIST"

    def __init__(
        self, root: Path = Path("data"), binarize: Pixels = "dynamic", valid: int = 10_000, split_seed: int = 0
    ) -> None:
        super().__init__(root, binarize, valid, split_seed)


@final
class FashionMNIST(_Torchvision):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28×28 pixels in [0, 1].

    Args:
        root: folder above ``FashionMNIST/raw``; the files are downloaded there where they are absent.
        binarize: dynamic draws training pixels anew at each use; fixed once; none keeps the gray values in [0, 1]; levels keeps
            them as whole numbers 0..255.
        valid: number of training images held out for validation.
        split_seed: seed of that choice.
    """

    _name = "FashionMNIST"

    def __init__(
        self, root: Path = Path("data"), binarize: Pixels = "dynamic", valid: int = 10_000, split_seed: int = 0
    ) -> None:
        super().__init__(root, binarize, valid, split_seed)


@final
class Arrays(Data):
    """Your own data: a ``.npy`` file with an array ``(N, ...)``, or a ``.npz`` file with arrays ``x`` and ``labels``.

    Args:
        path: the file.
        binarize: dynamic and fixed take values in [0, 1] as probabilities of a pixel being 1; none keeps the values.
        valid: number of data for validation.
        test: number of data for the test.
        split_seed: seed of the division into train, validation and test.
    """

    def __init__(
        self, path: Path, binarize: Binarize = "none", valid: int = 1000, test: int = 1000, split_seed: int = 0
    ) -> None:
        self.path, self.binarize, self.valid, self.test, self.split_seed = Path(path), binarize, valid, test, split_seed

    def load(self) -> Splits:
        """Reads the file: x is ``(N, ...)``, in float32."""
        arrays = _read_numpy(self.path)
        x = _tensor(arrays, "x", self.path).float()
        if x.dim() < 2 or x.numel() == 0:
            raise ValueError(f"{self.path}: expected an array (N, ...) of N data, got shape {tuple(x.shape)}")
        if not (finite := x.isfinite()).all():
            raise ValueError(f"{self.path}: {int((~finite).sum())} of {x.numel()} values are NaN or infinite")
        labels = _tensor(arrays, "labels", self.path) if "labels" in arrays else None
        if labels is not None and bool((labels == labels.round()).all()):
            labels = labels.long()  # classes, whatever type they were saved in
        if labels is not None and labels.shape != x.shape[:1]:
            raise ValueError(
                f"{self.path}: expected one label for each of {len(x)} data, got shape {tuple(labels.shape)}"
            )
        train, test = _hold_out(Split(x, labels), self.test, "test", self.split_seed)
        return _finish(train, test, self.binarize, self.valid, self.split_seed, support_of(x))


def support_of(x: Tensor) -> Constraint:
    """The narrowest of {0, 1}, counts 0..max, [0, 1] and the real numbers that holds all values."""
    low, high = x.min().item(), x.max().item()
    if low >= 0 and bool((x == x.round()).all()):
        return constraints.boolean if high <= 1 else constraints.integer_interval(0, int(high))
    return constraints.unit_interval if low >= 0 and high <= 1 else constraints.real


def _finish(train: Split, test: Split, binarize: Binarize, valid: int, seed: int, support: Constraint) -> Splits:
    """Holds out the validation data and binarizes."""
    if binarize not in ("dynamic", "fixed", "none"):
        raise ValueError(f"binarize: expected dynamic, fixed or none, got {binarize!r}")
    train, held_out = _hold_out(train, valid, "valid", seed)
    if binarize == "none":
        return Splits(train, held_out, test, support)
    train, held_out, test = (_as_probabilities(split, support) for split in (train, held_out, test))
    train = replace(train, dynamic=True) if binarize == "dynamic" else _binarized(train)
    return Splits(train, _binarized(held_out), _binarized(test), constraints.boolean)


def _hold_out(split: Split, size: int, name: str, seed: int) -> tuple[Split, Split]:
    """Divides into what is left and ``size`` data drawn by ``seed``, each in the order of the source."""
    if not 1 <= size < len(split):
        raise ValueError(f"{name}: expected between 1 and {len(split) - 1} of {len(split)} data, got {size}")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))

    def part(index: Tensor) -> Split:
        index = index.sort().values
        return Split(split.x[index], None if split.labels is None else split.labels[index])

    return part(order[:-size]), part(order[-size:])


def _as_probabilities(split: Split, support: Constraint) -> Split:
    """Counts 0..n divided by n; values in [0, 1] as they are."""
    upper = getattr(support, "upper_bound", 1)
    low, high = split.x.min().item(), split.x.max().item()
    if low < 0 or (support is constraints.real and high > 1):
        raise ValueError(f"binarize: expected values in [0, 1] or counts, got values from {low:g} to {high:g}")
    return replace(split, x=split.x / upper)


def _binarized(split: Split) -> Split:
    """The pixels drawn once, the same in every run."""
    return replace(split, x=torch.bernoulli(split.x, generator=torch.Generator().manual_seed(_BINARIZE_SEED)))


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npy or .npz file; nothing is unpickled."""
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except Exception as error:  # np.load raises what the zip and header readers raise
        raise ValueError(f"{path}: not a readable .npy or .npz file of numbers ({error})") from error
    if "x" not in arrays and len(arrays) == 1:
        arrays = {"x": next(iter(arrays.values()))}
    if "x" not in arrays:
        raise ValueError(f"{path}: expected an array named x, got {sorted(arrays)}")
    return arrays


def _tensor(arrays: dict[str, np.ndarray], name: str, path: Path) -> Tensor:
    if arrays[name].dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected numbers in {name}, got {arrays[name].dtype}")
    array = arrays[name]
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
