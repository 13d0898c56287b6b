"""Data of your own, from a table or from a file of arrays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.csv_files import TEXTS, Reading, listed
from pyro_vae.data.npy_files import is_too_large, stored
from pyro_vae.data.numbers import Channels, as_data, check_data, check_labels
from pyro_vae.data.splits import Binarize, Data, Split, Splits, make_splits
from pyro_vae.data.tables import PARQUETS, is_table, read_table
from pyro_vae.missing import observed_ends
from pyro_vae.view import LONGEST_ROW, Shown, View

logger = logging.getLogger("pyro_vae")
_HELD_OUT = 1000
"""How many data are held out by default, each for validation and for the test, where as many are left for training."""


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
        in_memory: whether all data are read into memory. With false, rows of a ``.npy`` file are read when they are used, so
            that it may be larger than the memory. By default data are read into memory, unless they take more than a quarter
            of it.
        labelled: how many training labels a model is told that learns from some, of each class as many.
        label_seed: seed of the choice of these.
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
        in_memory: bool | None = None,
        labelled: int | None = None,
        label_seed: int = 0,
    ) -> None:
        self.path, self.binarize, self.valid, self.test, self.split_seed = Path(path), binarize, valid, test, split_seed
        self.standardize, self.channels, self.kind, self.ink = standardize, channels, kind, ink
        self.in_memory = in_memory
        self.labelled, self.label_seed = labelled, label_seed
        self.reading = Reading(columns, tuple(leave_out), labels, separator, decimal, header, tuple(missing))

    def load(self) -> Splits:
        """Reads the file: x is ``(N, ...)``, in the default dtype. Without ``in_memory``, rows are read when they are used.

        Raises:
            ValueError: the file cannot be read, holds no finite numbers, or the default dtype would lose what its
                numbers say.
        """
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, and no file: name a file in it")
        table = None
        if is_table(self.path) and self.in_memory is not False:
            table = read_table(self.path, self.reading)
            given, names = table.labels, table.names
            x = as_data(table.x, names, str(self.path))
        elif self._stays_in_file():
            _check_no_table(self.path, self.reading)
            given, names, x = None, (), stored(self.path)
            _check_labels_there(self.path, self.reading.labels, ["x"])
        else:
            array, given = _read_numpy(self.path, self.reading)
            names, x = (), as_data(array, (), str(self.path))
        if x.ndim < 2 or x.numel() == 0:
            raise ValueError(f"{self.path}: expected an array (N, ...) of N data, got shape {tuple(x.shape)}")
        if empty := check_data(x, names, str(self.path)):
            logger.warning("%s: %d of %d data have no value, so that their log p(x) is 0", self.path, empty, len(x))
        labels, classes = (None, ()) if given is None else _labels(given, len(x), self.path)
        shown = (
            names if x.ndim == 2 and (table is None or not names or table.named or len(names) <= LONGEST_ROW) else ()
        )
        data = Split(x, labels)
        self._tell_binarized(data.x)
        return make_splits(
            data,
            valid=_held_out(len(data)) if self.valid is None else self.valid,
            test=_held_out(len(data)) if self.test is None else self.test,
            binarize=self.binarize,
            split_seed=self.split_seed,
            standardize=self.standardize,
            channels=self.channels,
            view=View(self.kind, shown, self.ink, classes),
            labelled=self.labelled,
            label_seed=self.label_seed,
        )

    def _stays_in_file(self) -> bool:
        """Whether rows are read when they are used; tells so where that was not asked for."""
        if self.in_memory is None and is_too_large(self.path):
            logger.warning(
                "%s: it takes more than a quarter of the memory, so that its rows are read when they are used, which is "
                "slower. --data.in_memory true reads it whole",
                self.path,
            )
            return True
        return self.in_memory is False

    def _tell_binarized(self, x: Tensor) -> None:
        """Says what whole numbers are divided by, where they are to be probabilities."""
        if self.binarize != "none" and (largest := observed_ends(x)[1].item()) > 1:
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


def _labels(array: np.ndarray, N: int, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    """The labels, and the names of classes, if they are texts.

    They are whole numbers where all are whole, whatever type they were saved in.

    Raises:
        ValueError: there is not one finite label for each datum, or one is too large.
    """
    if array.dtype.kind == "U" and array.shape == (N,):
        classes, codes = np.unique(array, return_inverse=True)
        return torch.from_numpy(codes.astype(np.int64)), tuple(classes.tolist())
    check_labels(array, f"{path}: labels")
    if array.shape != (N,):
        raise ValueError(f"{path}: expected one label for each of {N} data, got shape {array.shape}")
    if (array == np.round(array)).all():
        return torch.from_numpy(array.astype(np.int64)), ()
    return torch.from_numpy(array.astype(np.float64)), ()


def _check_no_table(path: Path, how: Reading) -> None:
    if replace(how, labels=None) != Reading():
        raise ValueError(
            f"{path}: columns, leave_out, separator, decimal, header and missing are options of tables, and this file is none"
        )


def _check_labels_there(path: Path, labels: str | None, arrays: Sequence[str]) -> None:
    if labels is not None and labels not in arrays:
        raise ValueError(f"{path}: there is no array {labels!r} of labels in it, but {arrays}")


def _read_numpy(path: Path, how: Reading) -> tuple[np.ndarray, np.ndarray | None]:
    """The data and the labels, if there are any, of a .npy or .npz file; nothing is unpickled."""
    if path.suffix.lower() not in (".npy", ".npz") and path.is_file():
        raise ValueError(
            f"{path}: expected a table ({', '.join((*TEXTS, *PARQUETS))}; texts also compressed, .gz, .bz2 or .xz), or a "
            f".npy or .npz file. Save other data as CSV"
        )
    _check_no_table(path, how)
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except Exception as error:  # np.load raises what the zip and header readers raise
        raise ValueError(f"{path}: not a readable .npy or .npz file of numbers ({error})") from error
    _check_labels_there(path, how.labels, sorted(arrays))
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
