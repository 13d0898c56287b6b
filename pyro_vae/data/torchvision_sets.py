"""Data sets that torchvision downloads and reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, final

from torch.distributions import constraints

from pyro_vae.data.splits import Data, Split, Splits, make_splits
from pyro_vae.view import View

Pixels = Literal["dynamic", "fixed", "none", "levels"]
"""What becomes of 256 gray levels: binarized (see `pyro_vae.data.splits.Binarize`), kept in [0, 1], or kept as 0..255."""


class _MNISTFormat(Data):
    """A data set in the format of MNIST: 60,000 training and 10,000 test images, 28×28 gray pixels in [0, 1].

    Args:
        root: folder above ``<name>/raw``; the files are downloaded there where they are absent.
        binarize: dynamic draws training pixels anew at each use; fixed draws them once; none keeps the gray values in [0, 1];
            levels keeps them as whole numbers 0..255.
        valid: number of training images held out for validation.
        split_seed: seed of that choice.
        labelled: how many training labels a model is told that learns from some, of each class as many.
        label_seed: seed of the choice of these.
    """

    _name: str

    def __init__(
        self,
        root: Path = Path("data"),
        binarize: Pixels = "dynamic",
        valid: int = 10_000,
        split_seed: int = 0,
        labelled: int | None = None,
        label_seed: int = 0,
    ) -> None:
        self.root, self.binarize, self.valid, self.split_seed = Path(root), binarize, valid, split_seed
        self.labelled, self.label_seed = labelled, label_seed

    @final
    def load(self) -> Splits:
        """Reads the images, after a download where they are absent: x is ``(N, 1, 28, 28)``."""
        train, test = (self._read(train) for train in (True, False))
        told: dict[str, Any] = {"labelled": self.labelled, "label_seed": self.label_seed}
        if self.binarize != "levels":
            return make_splits(
                train,
                valid=self.valid,
                test=test,
                binarize=self.binarize,
                split_seed=self.split_seed,
                support=constraints.unit_interval,
                view=View(ink=True),
                **told,
            )
        train, test = (replace(split, x=(255 * split.x).round()) for split in (train, test))
        levels = constraints.integer_interval(0, 255)
        view = View(ink=True)
        return make_splits(
            train, valid=self.valid, test=test, split_seed=self.split_seed, support=levels, view=view, **told
        )

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
class MNIST(_MNISTFormat):
    """MNIST: 60,000 training and 10,000 test images of digits, 28×28 pixels in [0, 1]."""

    _name = "MNIST"


@final
class FashionMNIST(_MNISTFormat):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28×28 pixels in [0, 1]."""

    _name = "FashionMNIST"
