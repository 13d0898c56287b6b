"""What training tells: a record of each epoch, and where it stands inside an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
        watched: what else was asked for, by its name, as plain data (see `pyro_vae.training.watch`).
    """

    epoch: int
    train: Terms
    valid: Terms
    lr: float
    seconds: float
    watched: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data, with what was watched beside the rest: a line of metrics.jsonl."""
        return {
            "epoch": self.epoch,
            "train": self.train._asdict(),
            "valid": self.valid._asdict(),
            "lr": self.lr,
            "seconds": self.seconds,
            **self.watched,
        }


class Progress(NamedTuple):
    """Where training stands inside an epoch: steps done of all, and the epoch's bound so far (nats per datum)."""

    epoch: int
    step: int
    steps: int
    bound: float
