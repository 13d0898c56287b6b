"""What every command is told beside the model and the plan: which data, where, and how the end is judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pyro_vae.app.console import pick_device
from pyro_vae.data import Data, Digits, Split, Splits


@dataclass(frozen=True)
class Setting:
    """On which data, where, and how the end is judged.

    Args:
        data: The data set.
        test_particles: K of the final estimate of log p(x) by importance sampling.
        test_images: How many test data the final estimate of log p(x) is taken over, counted from the first.
        device: auto (CUDA where there is one), cpu, cuda or cuda:<number>.
        out: The folder of the results. By default it lies in runs/. That of a run is named after the data and the time, that of
            a comparison after its options, so that the same command goes on where it was cut off.
    """

    data: Data = Digits()  # noqa: RUF009  (it cannot change)
    test_particles: int = 1000
    test_images: int = 1000
    device: str = "auto"
    out: Path | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: there is to be no particle, or there are to be no test data.
        """
        check_positive(test_particles=self.test_particles, test_images=self.test_images)

    @property
    def name(self) -> str:
        """The name of the data set."""
        return type(self.data).__name__

    @property
    def place(self) -> torch.device:
        """The device.

        Raises:
            ValueError: there is no such device here.
        """
        return pick_device(self.device)

    def test(self, splits: Splits, least: int) -> Split:
        """The test data that the end is judged on.

        Args:
            splits: the data, loaded.
            least: the smallest number of test data that can be judged on.

        Raises:
            ValueError: there are to be fewer test data than that.
        """
        if self.test_images < least:
            raise ValueError(f"test_images: expected at least {least}, got {self.test_images}")
        if len(splits.test) < least:
            raise ValueError(
                f"test: the differences compared here need at least {least} test data for their errors, and there are "
                f"{len(splits.test)}: hold more of them out, for example by --data.test"
            )
        return splits.test.first(self.test_images)


def check_positive(**numbers: int) -> None:
    """Raises ValueError if one of these numbers is below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
