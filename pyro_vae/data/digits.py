"""The 8×8 digits of scikit-learn."""

from __future__ import annotations

from typing import final

import torch
from torch.distributions import constraints

from pyro_vae.data.splits import Binarize, Data, Split, Splits, make_splits
from pyro_vae.view import View


@final
class Digits(Data):
    """The 1,797 handwritten digits of scikit-learn, 8×8 pixels that are counts 0..16. Nothing is downloaded.

    Args:
        binarize: none keeps the counts; dynamic and fixed draw pixels with probability count/16.
        valid: number of validation images.
        test: number of test images.
        split_seed: seed of the division into train, validation and test.
        labelled: how many training labels a model is told that learns from some, of each class as many.
        label_seed: seed of the choice of these.
    """

    def __init__(
        self,
        binarize: Binarize = "none",
        valid: int = 200,
        test: int = 297,
        split_seed: int = 0,
        labelled: int | None = None,
        label_seed: int = 0,
    ) -> None:
        self.binarize, self.valid, self.test, self.split_seed = binarize, valid, test, split_seed
        self.labelled, self.label_seed = labelled, label_seed

    def load(self) -> Splits:
        """Reads the digits: x is ``(N, 1, 8, 8)``."""
        from sklearn.datasets import load_digits  # noqa: PLC0415  (two seconds of import that only these data need)

        images, labels = load_digits(return_X_y=True)
        x, y = torch.from_numpy(images).float().reshape(-1, 1, 8, 8), torch.from_numpy(labels).long()
        return make_splits(
            Split(x, y),
            valid=self.valid,
            test=self.test,
            binarize=self.binarize,
            split_seed=self.split_seed,
            support=constraints.integer_interval(0, 16),
            view=View(ink=True),
            labelled=self.labelled,
            label_seed=self.label_seed,
        )
