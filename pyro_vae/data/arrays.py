"""Data of your own, from a file of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.splits import Binarize, Data, Split, Splits, make_splits
from pyro_vae.data.view import Shown, View


@final
class Arrays(Data):
    """Your own data: a ``.npy`` file with an array ``(N, ...)``, or a ``.npz`` file with arrays ``x`` and ``labels``.

    Args:
        path: the file.
        binarize: dynamic and fixed take values in [0, 1] as probabilities of a pixel being 1; none keeps the values.
        valid: number of data for validation.
        test: number of data for the test.
        split_seed: seed of the division into train, validation and test.
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
        kind: Shown = "auto",
        ink: bool = False,
    ) -> None:
        self.path, self.binarize, self.valid, self.test, self.split_seed = Path(path), binarize, valid, test, split_seed
        self.kind, self.ink = kind, ink

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
        return make_splits(
            Split(x, labels),
            valid=self.valid,
            test=self.test,
            binarize=self.binarize,
            split_seed=self.split_seed,
            view=View(self.kind, ink=self.ink),
        )


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
