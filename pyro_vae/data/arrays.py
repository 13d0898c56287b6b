"""Data of your own, from a table or from a file of arrays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.csv_files import TEXTS, Reading, listed
from pyro_vae.data.splits import Binarize, Data, Split, Splits, make_splits
from pyro_vae.data.tables import PARQUETS, is_table, read_table
from pyro_vae.view import LONGEST_ROW, Shown, View

logger = logging.getLogger("pyro_vae")
Channels = Literal["first", "last", "none"]
"""Where the channels of images and signals are in a file."""

_EXACT = 2**24
"""The largest whole number up to which float32 holds every whole number."""
_LOST = 1e-3
"""The largest rounding error of a number of x in float32 that is accepted, as a share of its standard deviation."""
_HELD_OUT = 1000
"""How many data are held out by default, each for validation and for the test, where as many are left for training."""
_CHANNELS = 4
"""The largest number of channels that is recognized behind the pixels."""


@final
class Arrays(Data):
    """Your own data: a table in CSV or Parquet, a ``.npy`` file of an array ``(N, ...)``, or a ``.npz`` file of several arrays.

    A CSV file may be compressed (``.csv.gz``). A row is a datum, and the names of its columns are kept for pictures. In a
    ``.npz`` file the data are the array ``x``. Nothing is unpickled.

    An empty cell, or NaN, is a missing value: the model is then one of the observed values (see `pyro_vae.missing`).

    Args:
        path: the file.
        binarize: dynamic and fixed take values in [0, 1] as probabilities of a pixel being 1; none keeps the values.
        valid: number of data for validation. The default is 1,000; of fewer than 3,000 data, a fifth of them.
        test: number of data for the test, with the same default.
        split_seed: seed of the division into train, validation and test.
        standardize: whether networks and likelihoods see each number of x with its training mean subtracted and divided by its
            standard deviation. What is reported stays log p(x) of the data as they are. By default real numbers are
            standardized unless they are images.
        channels: where the channels of images and signals are: first, ``(N, C, H, W)``, or last, ``(N, H, W, C)``. With none,
            data without channels, ``(N, L)`` or ``(N, H, W)``, get one. By default they are first, and data that look as if
            they were last are refused.
        kind: what pictures show: image, signal or table; auto tells it by the shape of a datum.
        ink: pictures draw large values dark, as in handwriting; otherwise light, as in photographs.
        labels: the column, or the array of a ``.npz`` file, that has a label for each datum. Whole numbers stay as they are;
            texts become classes 0, 1, ... in alphabetical order, and pictures show the texts. By default the one that is
            called labels, if there is one.
        columns: the columns of a table that are data; by default all but the labels and those that are left out.
        leave_out: the columns of a table that are not data.
        separator: what stands between the cells of a CSV file, such as ";" or tab; by default its first lines tell it.
        decimal: the decimal point in a CSV file.
        header: whether the first row of a CSV file has the names of the columns; by default it tells it.
        missing: texts that stand for a missing value in a table, such as '["-", "-999"]', beside the empty cell, NA, N/A, #N/A,
            NaN, NULL, None and ?, which are read as missing in any case.
    """

    def __init__(
        self,
        path: Path,
        binarize: Binarize = "none",
        valid: int | None = None,
        test: int | None = None,
        split_seed: int = 0,
        standardize: bool | None = None,
        channels: Channels | None = None,
        kind: Shown = "auto",
        ink: bool = False,
        labels: str | None = None,
        columns: Sequence[str] | None = None,
        leave_out: Sequence[str] = (),
        separator: str | None = None,
        decimal: Literal[".", ","] = ".",
        header: bool | None = None,
        missing: Sequence[str] = (),
    ) -> None:
        self.path, self.binarize, self.valid, self.test, self.split_seed = Path(path), binarize, valid, test, split_seed
        self.standardize, self.channels, self.kind, self.ink = standardize, channels, kind, ink
        self.reading = Reading(columns, tuple(leave_out), labels, separator, decimal, header, tuple(missing))

    def load(self) -> Splits:
        """Reads the file: x is ``(N, ...)``, in float32.

        Raises:
            ValueError: the file cannot be read, holds no finite numbers, or float32 would lose what its numbers say.
        """
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, and no file: name a file in it")
        if is_table(self.path):
            table = read_table(self.path, self.reading)
            array, given, names = table.x, table.labels, table.names
        else:
            array, given = _read_numpy(self.path, self.reading)
            names = ()
        x = _channels_first(_numbers(array, "x", self.path), self.channels, self.path)
        if x.ndim < 2 or x.size == 0:
            raise ValueError(f"{self.path}: expected an array (N, ...) of N data, got shape {x.shape}")
        _check_finite(x, names, self.path)
        labels, classes = (None, ()) if given is None else _labels(given, len(x), self.path)
        shown = names if x.ndim == 2 and (not names or table.named or len(names) <= LONGEST_ROW) else ()
        data = Split(_float32(x, names, self.path), labels)
        self._tell_binarized(data.x)
        return make_splits(
            data,
            valid=_held_out(len(data)) if self.valid is None else self.valid,
            test=_held_out(len(data)) if self.test is None else self.test,
            binarize=self.binarize,
            split_seed=self.split_seed,
            standardize=self.standardize,
            view=View(self.kind, shown, self.ink, classes),
        )

    def _tell_binarized(self, x: Tensor) -> None:
        """Says what whole numbers are divided by, where they are to be probabilities."""
        if self.binarize != "none" and (largest := x.max().item()) > 1:
            logger.warning(
                "%s: binarize: its numbers, which go up to %g, are divided by %g, and a 1 is drawn with the result as its "
                "probability. --data.binarize none keeps the numbers, for a likelihood of counts",
                self.path,
                largest,
                largest,
            )


def _held_out(N: int) -> int:
    """The number of data that are held out by default, each for validation and for the test."""
    return _HELD_OUT if N >= 3 * _HELD_OUT else max(1, N // 5)


def _check_finite(x: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Raises ValueError, which names the place, if a value is infinite or a number is missing in all data."""
    if x.dtype.kind != "f":
        return
    rows = x.reshape(len(x), -1)
    if (infinite := np.isinf(rows)).any():
        place = _place(int(infinite.any(0).argmax()), x.shape[1:], names)
        raise ValueError(f"{path}: {int(infinite.sum())} of {x.size} values are infinite, the first in {place}")
    if (never := np.isnan(rows).all(0)).any():
        place, advice = _place(int(never.argmax()), x.shape[1:], names), "save the data without it"
        if names:
            advice = f'leave it out by --data.leave_out "[{names[int(never.argmax())]}]"'
        raise ValueError(f"{path}: {place} has no value, since all of it is missing: {advice}")
    if empty := int(np.isnan(rows).all(1).sum()):
        logger.warning("%s: %d of %d data have no value, so that their log p(x) is 0", path, empty, len(x))


def _place(at: int, shape: tuple[int, ...], names: Sequence[str]) -> str:
    """A number of a datum, as a message names it."""
    if names:
        return f"column {names[at]!r}"
    return f"x[:, {', '.join(str(i) for i in np.unravel_index(at, shape))}]"


def _labels(array: np.ndarray, N: int, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """The labels, and the names of classes, if they are texts.

    They are whole numbers where all are whole, whatever type they were saved in.

    Raises:
        ValueError: there is not one finite label for each datum, or one is too large.
    """
    if array.dtype.kind == "U" and array.shape == (N,):
        classes, codes = np.unique(array, return_inverse=True)
        return torch.from_numpy(codes.astype(np.int64)), tuple(classes.tolist())
    labels = _numbers(array, "labels", path)
    if labels.shape != (N,):
        raise ValueError(f"{path}: expected one label for each of {N} data, got shape {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(f"{path}: {int((~np.isfinite(labels)).sum())} of {N} labels are NaN or infinite")
    if np.abs(labels.astype(np.float64)).max() > 2.0**53:
        raise ValueError(f"{path}: expected labels up to 2^53, got {labels.max()}: number the classes 0, 1, ...")
    if (labels == np.round(labels)).all():
        return torch.from_numpy(labels.astype(np.int64)), ()
    return torch.from_numpy(labels.astype(np.float64)), ()


def _channels_first(x: np.ndarray, channels: Channels | None, path: Path) -> np.ndarray:
    """Returns x with its channels before its pixels.

    Raises:
        ValueError: x has no channels, or it was not said where they are and they seem to be last.
    """
    if channels not in (None, *get_args(Channels)):
        raise ValueError(f"channels: expected first, last or none, got {channels!r}")
    if channels == "none":
        return np.expand_dims(x, 1)
    if channels == "last":
        if x.ndim < 3:
            raise ValueError(f"channels: {path} has data of shape {x.shape[1:]}, which have no channels")
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))
    if channels is None and x.ndim > 2 and x.shape[-1] <= _CHANNELS < min(x.shape[1:-1]):
        sizes = "×".join(str(size) for size in x.shape[1:])
        raise ValueError(
            f"{path}: data of {sizes} seem to have their {x.shape[-1]} channels last: --data.channels last moves them to the "
            f"front, --data.channels first keeps the order"
        )
    return x


def _float32(x: np.ndarray, names: Sequence[str], path: Path) -> Tensor:
    """Returns x in float32, in which networks compute.

    Raises:
        ValueError: numbers that differ would become the same, or would overflow; the message names the place in a datum.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = x.astype(np.float32)
    if np.array_equal(single, x, equal_nan=x.dtype.kind == "f") and (
        x.dtype.kind not in "iu" or np.abs(single).max() <= _EXACT
    ):
        return torch.from_numpy(single)
    wide, exact = single.astype(np.float64).reshape(len(x), -1), x.astype(np.float64).reshape(len(x), -1)
    # The first value that is there in place of missing ones changes no range. Their spread is then taken without them.
    missing = np.isnan(exact)
    first = exact[(~missing).argmax(0), np.arange(exact.shape[1])]
    with np.errstate(over="ignore"):
        spread = np.nanstd(exact, 0) if missing.any() else exact.std(0)
        wide, exact = (
            np.where(missing, values, each) for values, each in ((first.astype(np.float32), wide), (first, exact))
        )
        error, size = np.abs(wide - exact).max(0), np.abs(exact).max(0)
    # Large floats are all whole, which says nothing about numbers that no integer type holds.
    whole = (exact == np.round(exact)).all(0) & (size <= 2.0**64)
    lost = (whole & (size > _EXACT)) | (error > np.where(whole, 0.5, _LOST * spread)) | ~np.isfinite(error)
    constant = (exact == exact[0]).all(0) & np.isfinite(error) & ~whole
    lost &= ~constant
    if lost.any():
        at = int(lost.argmax())
        place = _place(at, x.shape[1:], names)
        distinct, left = len(np.unique(exact[:, at])), len(np.unique(wide[:, at]))
        raise ValueError(
            f"{path}: float32, in which networks compute, cannot hold {int(lost.sum())} of the {lost.size} numbers of a datum: "
            f"{place} has values from {exact[:, at].min():.10g} to {exact[:, at].max():.10g}, and its {distinct} "
            f"different values would become {left}. Subtract an offset from it, divide it, or take its logarithm, and save it "
            f"again"
        )
    return torch.from_numpy(single)


def _read_numpy(path: Path, how: Reading) -> tuple[np.ndarray, np.ndarray | None]:
    """The data and the labels, if there are any, of a .npy or .npz file; nothing is unpickled."""
    if path.suffix.lower() not in (".npy", ".npz") and path.is_file():
        raise ValueError(
            f"{path}: expected a table ({', '.join((*TEXTS, *PARQUETS))}; texts also compressed, .gz, .bz2 or .xz), or a "
            f".npy or .npz file. Save other data as CSV"
        )
    if replace(how, labels=None) != Reading():
        raise ValueError(
            f"{path}: columns, leave_out, separator, decimal, header and missing are options of tables, and this file is none"
        )
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except Exception as error:  # np.load raises what the zip and header readers raise
        raise ValueError(f"{path}: not a readable .npy or .npz file of numbers ({error})") from error
    if how.labels is not None and how.labels not in arrays:
        raise ValueError(f"{path}: there is no array {how.labels!r} of labels in it, but {sorted(arrays)}")
    labels = arrays.pop(how.labels or "labels", None) if len(arrays) > 1 or how.labels else None
    if "x" not in arrays and len(arrays) == 1:
        arrays = {"x": next(iter(arrays.values()))}
    if left := sorted(arrays.keys() - {"x"}):
        logger.warning(
            "%s: of its arrays only x is read, and not %s. --data.labels %s takes one as labels",
            path,
            listed(left),
            left[0],
        )
    if "x" not in arrays:
        raise ValueError(f"{path}: expected an array named x, got {sorted(arrays)}")
    return arrays["x"], labels


def _numbers(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Returns the array, if it is made of numbers.

    Raises:
        ValueError: it is not.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected numbers in {name}, got {array.dtype}")
    return array
