"""Data of your own, from a file of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.splits import Binarize, Data, Split, Splits, make_splits
from pyro_vae.view import Shown, View

_EXACT = 2**24
"""The largest whole number up to which float32 holds every whole number."""
_LOST = 1e-3
"""The largest rounding error of a number of x in float32 that is accepted, as a share of its standard deviation."""
_CHANNELS = 4
"""The largest number of channels that is recognized behind the pixels."""


@final
class Arrays(Data):
    """Your own data: a ``.npy`` file with an array ``(N, ...)``, or a ``.npz`` file with arrays ``x`` and ``labels``.

    Args:
        path: the file.
        binarize: dynamic and fixed take values in [0, 1] as probabilities of a pixel being 1; none keeps the values.
        valid: number of data for validation.
        test: number of data for the test.
        split_seed: seed of the division into train, validation and test.
        standardize: whether networks and likelihoods see each number of x with its training mean subtracted and divided by its
            standard deviation. What is reported stays log p(x) of the data as they are. By default real numbers are
            standardized unless they are images.
        channels: where the channels of images and signals are: first, ``(N, C, H, W)``, or last, ``(N, H, W, C)``. By default
            they are first, and data that look as if they were last are refused.
        kind: what pictures show: image, signal or table; auto tells it by the shape of a datum.
        ink: pictures draw large values dark, as in handwriting; otherwise light, as in photographs.
    """

    def __init__(
        self,
        path: Path,
        binarize: Binarize = "none",
        valid: int = 1000,
        test: int = 1000,
        split_seed: int = 0,
        standardize: bool | None = None,
        channels: Literal["first", "last"] | None = None,
        kind: Shown = "auto",
        ink: bool = False,
    ) -> None:
        self.path, self.binarize, self.valid, self.test, self.split_seed = Path(path), binarize, valid, test, split_seed
        self.standardize, self.channels, self.kind, self.ink = standardize, channels, kind, ink

    def load(self) -> Splits:
        """Reads the file: x is ``(N, ...)``, in float32.

        Raises:
            ValueError: the file cannot be read, holds no finite numbers, or float32 would lose what its numbers say.
        """
        arrays = _read_numpy(self.path)
        x = _channels_first(_numbers(arrays["x"], "x", self.path), self.channels, self.path)
        if x.ndim < 2 or x.size == 0:
            raise ValueError(f"{self.path}: expected an array (N, ...) of N data, got shape {x.shape}")
        if x.dtype.kind == "f" and not (finite := np.isfinite(x)).all():
            raise ValueError(f"{self.path}: {int((~finite).sum())} of {x.size} values are NaN or infinite")
        labels = _labels(arrays["labels"], len(x), self.path) if "labels" in arrays else None
        return make_splits(
            Split(_float32(x, self.path), labels),
            valid=self.valid,
            test=self.test,
            binarize=self.binarize,
            split_seed=self.split_seed,
            standardize=self.standardize,
            view=View(self.kind, ink=self.ink),
        )


def _labels(array: np.ndarray, N: int, path: Path) -> Tensor:
    """The labels: whole numbers where all are whole, whatever type they were saved in.

    Raises:
        ValueError: there is not one finite label for each datum, or one is too large.
    """
    labels = _numbers(array, "labels", path)
    if labels.shape != (N,):
        raise ValueError(f"{path}: expected one label for each of {N} data, got shape {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(f"{path}: {int((~np.isfinite(labels)).sum())} of {N} labels are NaN or infinite")
    if np.abs(labels.astype(np.float64)).max() > 2.0**53:
        raise ValueError(f"{path}: expected labels up to 2^53, got {labels.max()}: number the classes 0, 1, ...")
    if (labels == np.round(labels)).all():
        return torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(labels.astype(np.float64))


def _channels_first(x: np.ndarray, channels: Literal["first", "last"] | None, path: Path) -> np.ndarray:
    """Returns x with its channels before its pixels.

    Raises:
        ValueError: x has no channels, or it was not said where they are and they seem to be last.
    """
    if channels not in (None, "first", "last"):
        raise ValueError(f"channels: expected first or last, got {channels!r}")
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


def _float32(x: np.ndarray, path: Path) -> Tensor:
    """Returns x in float32, in which networks compute.

    Raises:
        ValueError: numbers that differ would become the same, or would overflow; the message names the place in a datum.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = x.astype(np.float32)
    if np.array_equal(single, x) and (x.dtype.kind not in "iu" or np.abs(single).max() <= _EXACT):
        return torch.from_numpy(single)
    wide, exact = single.astype(np.float64).reshape(len(x), -1), x.astype(np.float64).reshape(len(x), -1)
    with np.errstate(over="ignore"):
        error, spread, size = np.abs(wide - exact).max(0), exact.std(0), np.abs(exact).max(0)
    whole = (exact == np.round(exact)).all(0)
    lost = (whole & (size > _EXACT)) | (error > np.where(whole, 0.5, _LOST * spread)) | ~np.isfinite(error)
    constant = (exact == exact[0]).all(0) & np.isfinite(error) & ~whole
    lost &= ~constant
    if lost.any():
        at = int(lost.argmax())
        place = ", ".join(str(i) for i in np.unravel_index(at, x.shape[1:]))
        distinct, left = len(np.unique(exact[:, at])), len(np.unique(wide[:, at]))
        raise ValueError(
            f"{path}: float32, in which networks compute, cannot hold {int(lost.sum())} of the {lost.size} numbers of a datum: "
            f"x[:, {place}] has values from {exact[:, at].min():.10g} to {exact[:, at].max():.10g}, and its {distinct} "
            f"different values would become {left}. Subtract an offset from it, divide it, or take its logarithm, and save it "
            f"again"
        )
    return torch.from_numpy(single)


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npy or .npz file; nothing is unpickled."""
    if path.suffix.lower() not in (".npy", ".npz") and path.is_file():
        raise ValueError(
            f"{path}: expected a .npy or .npz file. Save the numbers of another file with numpy: "
            f'numpy.savez("data.npz", x=numbers, labels=labels)'
        )
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


def _numbers(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Returns the array, if it is made of numbers.

    Raises:
        ValueError: it is not.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected numbers in {name}, got {array.dtype}")
    return array
