"""Training, validation and test data: what a data set is read into, and the helper that divides and binarizes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.data.checks import check_columns
from pyro_vae.data.columns import Columns
from pyro_vae.data.labels import choose_labelled, told_labels
from pyro_vae.data.numbers import Channels, as_data, as_labels, check_data, check_labels, check_whole, moved_channels
from pyro_vae.description import Described
from pyro_vae.kinds import names_checked, require, takes
from pyro_vae.missing import facts_of, has_missing, moments, observed_ends, observed_mean, observed_values
from pyro_vae.parts import Dims, Shape, floating
from pyro_vae.scopes import evaluating
from pyro_vae.stored import Stored, blocks, changed, fits, held, selected
from pyro_vae.traces import Programs, inputs_of
from pyro_vae.view import View

Binarize = Literal["dynamic", "fixed", "none"]
"""dynamic: training pixels are drawn anew each time they are used; fixed: once; none: gray values stay.

Validation and test data are drawn once in both cases. The two differ by about 2 nats on MNIST and must not be compared.
"""

_BINARIZE_SEED = 20160901
"""The seed of every binarization that is drawn once, so that all runs have the same test set."""


@names_checked
@dataclass(frozen=True, eq=False)
class Split:
    """Data of one kind, on one device.

    NumPy arrays become tensors: x in the default dtype, in which networks compute, and labels of whole numbers in int64.
    Numbers that this would change are refused. Tensors stay as they are; whole numbers are scored in the default dtype.

    Attributes:
        x: data ``(N, *x_shape)``; probabilities in [0, 1] where `dynamic`. NaN is a missing value.
        labels: classes ``(N,)``, or None.
        dynamic: each use of a datum draws its pixels anew.
        labelled: whether programs with the input "labelled" are told the label of each datum ``(N,)``, or None. The others are
            for measures of what they find out.
    """

    x: Tensor
    labels: Tensor | None = None
    dynamic: bool = False
    labelled: Tensor | None = None

    def __post_init__(self) -> None:
        """Takes NumPy arrays for tensors.

        Raises:
            WrongKindError: x or the labels are neither, or are no real numbers.
            ValueError: a tensor cannot hold the numbers of an array, or a label is NaN, infinite or too large.
        """
        for name, read in (("x", as_data), ("labels", as_labels)):
            if isinstance(array := getattr(self, name), np.ndarray):
                object.__setattr__(self, name, read(array))
        require(vars(self), get_type_hints(Split), "Split")
        check_whole(self.x)
        if self.labels is not None:
            check_labels(self.labels)

    def __len__(self) -> int:
        """The number N of data."""
        return len(self.x)

    def to(self, device: torch.device) -> Split:
        """The same split on another device."""
        labels, labelled = (None if each is None else each.to(device) for each in (self.labels, self.labelled))
        return replace(self, x=self.x.to(device), labels=labels, labelled=labelled)

    def first(self, n: int) -> Split:
        """The first n data."""
        labels, labelled = (None if each is None else each[:n] for each in (self.labels, self.labelled))
        return replace(self, x=selected(self.x, slice(0, n)), labels=labels, labelled=labelled)

    def columns(self, inputs: Sequence[str] = ("x",)) -> Columns:
        """The data as programs of these inputs are called with them.

        Args:
            inputs: the names that the programs declare (see `pyro_vae.traces.Programs`): "x" is the data, "y" the labels, and
                "labelled" those labels that programs are told, and -1 for the others, which are all where there are none.

        Raises:
            ValueError: the programs take labels and there are none, or they declare an input of another name.
        """
        known = {"x": self.x, "y": self.labels}
        if "labelled" in inputs:
            known["labelled"] = told_labels(self.x, self.labels, self.labelled)
        if unknown := [name for name in inputs if name not in known]:
            expected = ["x", "y", "labelled"]
            raise ValueError(f"inputs: expected names among {expected}, got {unknown}: data have no such column")
        tensors = [column for name in inputs if (column := known[name]) is not None]
        if len(tensors) < len(inputs):
            raise ValueError(
                "the model and the guide are given labels y with the data, and these data have none: Split(x, labels), or of a "
                "file --data.labels, give some"
            )
        for name, column in zip(inputs, tensors, strict=True):
            if name != "x" and len(column) != len(self.x):
                raise ValueError(f"{name}: expected a label for each of {len(self.x)} data, got {len(column)}")
        return Columns(tuple(tensors), tuple(inputs), self.dynamic)


DataLike = Tensor | np.ndarray | Split | Columns
"""What evaluation takes: a split, x alone, as a tensor or a NumPy array, or columns."""


class Splits(NamedTuple):
    """Train, validation and test data of one data set.

    Attributes:
        train: the data that a model is fitted to.
        valid: the data that it is watched on while it is trained.
        test: the data that the end is reported on.
        support: the values that a datum may take.
        standardize: whether parts see standardized data (see `pyro_vae.parts.Units`). The data themselves, and every
            number that is reported, stay in their own units.
        view: how the data are shown.
    """

    train: Split
    valid: Split
    test: Split
    support: Constraint
    view: View = View()
    standardize: bool = False

    @property
    def x_shape(self) -> Shape:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    def dims(self, latent: int) -> Dims:
        """The sizes that parts are built for, with the training data and their mean.

        Raises:
            ValueError: a datum is a single number, without a shape.
        """
        if not self.x_shape:
            raise ValueError(
                f"x: expected data of shape (N, ...), got a single number for each of {len(self.train)} data: x[:, None] makes "
                f"a column of them"
            )
        x = floating(self.train.x.cpu())
        x = x.to(torch.promote_types(x.dtype, torch.get_default_dtype()))  # parts are made in PyTorch's default type
        missing = self.missing
        if self.standardize:
            units = _units(x)
            mean = torch.zeros_like(units[0])
            return Dims(
                latent, self.x_shape, mean, x, classes=self.classes, standardized=True, x_units=units, missing=missing
            )
        scale = max(1.0, *(abs(end.item()) for end in observed_ends(x)))
        mean = observed_mean(x)
        return Dims(latent, self.x_shape, mean, x, self.train.dynamic, self.classes, scale, missing=missing)

    @property
    def missing(self) -> bool:
        """Whether a value is missing in one of the splits. All numbers that are reported are then of the observed values."""
        return any(has_missing(split.x) for split in (self.train, self.valid, self.test))

    @property
    def classes(self) -> int | None:
        """How many classes there are, if every datum has a label of 0, 1, ..."""
        found = [split.labels for split in (self.train, self.valid, self.test) if split.labels is not None]
        if len(found) < 3 or any(labels.is_floating_point() or bool((labels < 0).any()) for labels in found):
            return None
        return 1 + max(int(labels.max()) for labels in found)

    def to(self, device: torch.device) -> Splits:
        """The same splits on another device."""
        return self._replace(train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device))


class Data(Described, ABC):
    """A data set. Its options are the arguments of its constructor; `make_splits` does what most data sets need."""

    @abstractmethod
    def load(self) -> Splits:
        """Reads the data, on the CPU.

        Raises:
            ValueError: the data cannot be used; the message says which and why.
            OSError: files cannot be read; the message says where to put them.
        """


def x_of(data: DataLike) -> Tensor:
    """The data alone ``(N, *x_shape)``, without labels."""
    if isinstance(data, np.ndarray):
        return as_data(data)
    return data if isinstance(data, Tensor) else data.x


@takes
def columns_for(programs: Programs, data: DataLike) -> Columns:
    """Data as these programs are called with them, checked: the entrance of every evaluation.

    The model can then score all of them (see `pyro_vae.data.checks.check_columns`). Nothing moves, and no random number of
    the caller is used. The arguments and errors are those of `columns_of`, and of the check.
    """
    columns = columns_of(programs, data)
    with evaluating(programs, columns.x.device, "support"):
        check_columns(programs, columns)
    return columns


@takes
def columns_of(programs: Any, data: DataLike) -> Columns:
    """Data as these programs are called with them (see `pyro_vae.traces.Programs`).

    Args:
        programs: a Pyro model and guide that declare their inputs, or take x alone.
        data: a split; or x alone, a tensor or a NumPy array ``(N, *x_shape)``; or columns, which are taken as they are.

    Raises:
        ValueError: there are no data; the programs take labels, and there are none or not one for each datum; or the data have
            more digits than the parameters, such as float64 and float32.
        WrongKindError: these are no data.
    """
    if isinstance(data, Columns):
        return data
    if not len(x_of(data)):
        raise ValueError("data: expected at least one datum, got none")
    split = data if isinstance(data, Split) else Split(x_of(data))
    return replace(split, x=_in_type_of(programs, split.x)).columns(inputs_of(programs))


def _in_type_of(programs: Any, x: Tensor) -> Tensor:
    """x in the floating-point type of the programs' parameters, if that holds every number of x.

    Raises:
        ValueError: it does not.
    """
    own = programs.parameters() if isinstance(programs, nn.Module) else []
    found = {each.dtype for each in own if each.is_floating_point()}
    if len(found) != 1 or not x.is_floating_point() or x.dtype in found:
        return x
    (kind,) = found
    if torch.promote_types(x.dtype, kind) != kind:
        if not x.is_meta and kind == torch.get_default_dtype():
            as_data(x.detach().cpu().numpy(), source="x")  # which tells what the advice below would lose
        raise ValueError(
            f"x: the data are {x.dtype} and the model is {kind}: make them the same, by model.to(x.dtype) or x.to({kind})"
        )
    return x.to(kind)


@takes
def make_splits(
    data: Split,
    *,
    valid: int,
    test: int | Split,
    binarize: Binarize = "none",
    split_seed: int = 0,
    support: Constraint | None = None,
    standardize: bool | None = None,
    channels: Channels | None = None,
    view: View | None = None,
    labelled: int | None = None,
    label_seed: int = 0,
) -> Splits:
    """Divides data into training, validation and test data, and binarizes them if that is wanted.

    The seed of the division is not that of a run: two runs with other seeds are judged on the same test data.

    Args:
        data: all data, or, where the test data come apart, training and validation data. NaN is a missing value.
        valid: number of validation data, drawn at random.
        test: number of test data, drawn at random, or the test data themselves.
        binarize: dynamic and fixed draw each pixel with its value as the probability of a 1 (whole numbers 0..n are divided by
            n); dynamic draws the training pixels anew at each use.
        split_seed: seed of the division.
        support: the values that a datum may take; by default the narrowest support that holds the data (see `support_of`).
        standardize: whether parts see each number of x with its training mean subtracted and divided by its standard deviation.
            By default they do where x is made of real numbers, also of those in [0, 1], and is no image. What is reported stays
            a density of x. A likelihood on [0, 1], such as Beta, describes x itself in any case.
        channels: where the channels of images and signals are: first, ``(N, C, H, W)``, or last, ``(N, H, W, C)``, which moves
            them to the front. With none, data without channels, ``(N, L)`` or ``(N, H, W)``, get one. By default they are
            first, and data that look as if they were last are refused.
        view: how the data are shown; by default their shape tells it (see `pyro_vae.view.View`).
        labelled: how many labels of training data a model is told that learns from some (see `pyro_vae.models.SemiSupervised`);
            of each class as many, and none of validation and test data.
        label_seed: the seed of the choice of these.

    Raises:
        ValueError: there are fewer data than asked for, values are infinite, values that are missing or no probabilities are to
            be binarized, a number of x is missing in all data, the channels seem to be last, or test data are of another shape.
    """
    if binarize not in ("dynamic", "fixed", "none"):
        raise ValueError(f"binarize: expected dynamic, fixed or none, got {binarize!r}")
    view = view or View()
    data = _usable(data, channels, view)
    if isinstance(test, Split):
        test = _usable(test, channels, view, "test")
        if test.x.shape[1:] != data.x.shape[1:]:
            shapes = tuple(test.x.shape[1:]), tuple(data.x.shape[1:])
            raise ValueError(f"test: expected data of shape {shapes[1]}, as the others are, got {shapes[0]}")
    if binarize != "none" and any(isinstance(each, Split) and has_missing(each.x) for each in (data, test)):
        raise ValueError(
            "binarize: some values are missing (NaN), and pixels are drawn of known probabilities only: choose none"
        )
    support = support_of(data.x) if support is None else support
    train, held_out = (data, test) if isinstance(test, Split) else _hold_out(data, test, "test", split_seed)
    train, watched = _hold_out(train, valid, "valid", split_seed)
    real = support in (constraints.real, constraints.unit_interval) and binarize == "none"
    if standardize and not real:
        raise ValueError(
            "standardize: only real numbers are standardized, and these data are whole numbers or binarized: leave it out"
        )
    if binarize == "none":
        image = view.kind_of(tuple(data.x.shape[1:])) == "image"
        wanted = real and not image if standardize is None else standardize
        found = Splits(train, watched, held_out, support, view, wanted)
    else:
        train, watched, held_out = (_as_probabilities(split, support) for split in (train, watched, held_out))
        train = replace(train, dynamic=True) if binarize == "dynamic" else _binarized(train)
        found = Splits(train, _binarized(watched), _binarized(held_out), constraints.boolean, view)
    if labelled is None:
        return found
    marks = choose_labelled(found.train.labels, labelled, label_seed)
    none = [torch.zeros(len(each), dtype=torch.bool) for each in (watched, held_out)]
    return found._replace(
        train=replace(found.train, labelled=marks),
        valid=replace(found.valid, labelled=none[0]),
        test=replace(found.test, labelled=none[1]),
    )


def _units(x: Tensor) -> Tensor:
    """The mean and the standard deviation of the observed values of each number of x, computed in float64.

    A constant, and a number that is never observed, has the unit 1.
    """
    if (whole := held(x)) is None:
        count, mean, squares = moments(x)
        spread = (squares / count.clamp(min=1)).sqrt()
        return _without_constants(mean, spread).to(x.dtype)
    x = whole
    if has_missing(x):
        mean = x.double().nanmean(0).nan_to_num(nan=0.0)
        spread = (x.double() - mean).square().nanmean(0).nan_to_num(nan=0.0).sqrt()
    else:
        spread, mean = torch.std_mean(x.double(), 0, correction=0)
    return _without_constants(mean, spread).to(x.dtype)


def _without_constants(mean: Tensor, spread: Tensor) -> Tensor:
    """Both, where what rounding alone makes of a constant is no spread."""
    return torch.stack([mean, torch.where(spread <= 1e-6 * mean.abs(), 1.0, spread)])


@takes
def support_of(x: Tensor) -> Constraint:
    """The narrowest of {0, 1}, whole numbers 0..max, [0, 1] and the real numbers that holds all observed values."""
    if isinstance(x, Stored):
        found = facts_of(x)
        low, high, whole = found.low.item(), found.high.item(), found.whole
    else:
        x = observed_values(floating(x))
        low, high = x.min().item(), x.max().item()
        whole = low >= 0 and bool((x == x.round()).all())
    if low >= 0 and whole:
        return constraints.boolean if high <= 1 else constraints.integer_interval(0, int(high))
    return constraints.unit_interval if low >= 0 and high <= 1 else constraints.real


def _hold_out(split: Split, size: int, name: str, seed: int) -> tuple[Split, Split]:
    """Divides into what is left and ``size`` data drawn by ``seed``, each in the order of the source."""
    if len(split) < 2:
        raise ValueError(
            f"{name}: expected more data: those for training, validation and the test are at least one each, and there is "
            f"{len(split)} left to take {name} data and training data from"
        )
    if not 1 <= size < len(split):
        raise ValueError(
            f"{name}: expected between 1 and {len(split) - 1} of {len(split)} data, got {size}: valid and test, on the command "
            f"line --data.valid and --data.test, say how many of the data are held out"
        )
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))

    def chosen(index: Tensor) -> Split:
        index = index.sort().values
        return Split(selected(split.x, index), None if split.labels is None else split.labels[index])

    return chosen(order[:-size]), chosen(order[-size:])


def _usable(split: Split, channels: Channels | None, view: View, name: str = "x") -> Split:
    """The split with its channels first.

    Raises:
        ValueError: data are infinite, a number of x is missing in all of the data that models are trained on, the channels seem
            to be last, or there is not one label for each datum.
    """
    if name == "x":
        names = view.columns if split.x.dim() == 2 and len(view.columns) == split.x.shape[1] else ()
        check_data(split.x, names, name)
    elif infinite := sum(int(block.isinf().sum()) for block in blocks(split.x)):
        raise ValueError(f"{name}: {infinite} of {split.x.numel()} values are infinite")
    if split.labels is not None and len(split.labels) != len(split.x):
        raise ValueError(f"labels: expected one for each of {len(split.x)} data, got {len(split.labels)}")
    moved = moved_channels(split.x, channels)
    return split if moved is split.x else replace(split, x=moved)


def _as_probabilities(split: Split, support: Constraint) -> Split:
    """Whole numbers 0..n divided by n; values in [0, 1] as they are."""
    upper = getattr(support, "upper_bound", 1)
    x = floating(split.x)
    low, high = (end.item() for end in observed_ends(x))
    if low < 0 or (support is constraints.real and high > 1):
        raise ValueError(f"binarize: expected values in [0, 1] or counts, got values from {low:g} to {high:g}")
    return replace(split, x=changed(x, lambda rows: rows / upper))


def _binarized(split: Split) -> Split:
    """The pixels drawn once, the same in every run.

    Raises:
        ValueError: they would not fit into memory, where they are kept.
    """
    generator = torch.Generator().manual_seed(_BINARIZE_SEED)
    if isinstance(split.x, Stored) and not fits(split.x):
        raise ValueError(
            f"binarize: the pixels of {len(split)} data would be drawn once and kept in memory, which these do not fit into: "
            f"hold fewer out (valid, test), and choose dynamic, or draw the pixels into a file of 0 and 1 before"
        )
    return replace(split, x=torch.cat([torch.bernoulli(block, generator=generator) for block in blocks(split.x)]))
