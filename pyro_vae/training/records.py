"""What training tells: a record of each epoch, and where it stands inside an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pyro_vae.evaluate import Terms


@dataclass(frozen=True)
class Epoch:
    """One epoch's record.

    Attributes:
        epoch: from 1.
        train: means over the training data while the weights moved.
        valid: means over the validation data at the epoch's end, with the same random numbers at each epoch.
        lr: the learning rate at the beginning of the epoch, that of w where φ has another.
        seconds: wall time of the epoch.
    """

    epoch: int
    train: Terms
    valid: Terms
    lr: float
    seconds: float


class Progress(NamedTuple):
    """Where training stands inside an epoch: steps done of all, and the epoch's bound so far (nats per datum)."""

    epoch: int
    step: int
    steps: int
    bound: float
