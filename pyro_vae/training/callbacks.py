"""Callbacks: objects that are told of each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import exp
from typing import Any, final

import torch

from pyro_vae.kinds import takes
from pyro_vae.parts import overridable
from pyro_vae.relaxed import LEAST, MOST, Temperature
from pyro_vae.scopes import modules_of
from pyro_vae.traces import Programs
from pyro_vae.training.records import Epoch


class Callback(ABC):
    """An object that is told of each epoch, for example to log it or to look at the weights.

    On the command line it is ``--callbacks "[my_file.Mine]"``; with options, an element of the list is
    ``{class_path: my_file.Mine, init_args: {every: 5}}``.
    """

    @abstractmethod
    def on_epoch(self, record: Epoch, programs: Programs) -> None:
        """Is called after each epoch, with the weights of that epoch in place."""

    @overridable
    def state_dict(self) -> Any:
        """What the callback needs to go on from a checkpoint: numbers, text, lists, dictionaries and tensors; or None."""
        return None

    @overridable
    def load_state_dict(self, state: Any) -> None:
        """Goes on from what `state_dict` gave."""
        del state  # by default nothing is kept


@final
class LowerTemperature(Callback):
    """Lowers the temperatures of relaxed latents after each epoch: λ becomes λ exp(-rate), down to a least one.

    It is the schedule of Jang, Gu and Poole 2017 ("Categorical reparameterization with Gumbel-softmax"), by the epoch. It moves
    the temperatures of prior and guide that are not learned. The bound is then that of another model after each epoch, so that
    bounds of different epochs cannot be compared, and the best epoch by them means little.

    Args:
        rate: by how much log λ falls after each epoch.
        least: the temperature below which none is lowered.

    Raises:
        ValueError: the rate is negative, or the least temperature is not between 0.001 and 1,000; or, after an epoch, the
            model has no temperature that could be lowered.
    """

    @takes
    def __init__(self, rate: float = 0.03, least: float = 0.1) -> None:
        if rate < 0:
            raise ValueError(f"rate: expected at least 0, got {rate}")
        if not LEAST <= least <= MOST:
            raise ValueError(f"least: expected a temperature from {LEAST:g} to {MOST:g}, got {least}")
        self.rate, self.least = rate, least

    def on_epoch(self, record: Epoch, programs: Programs) -> None:
        """Lowers each temperature once."""
        del record
        every = [each for top in modules_of(programs) for each in top.modules() if isinstance(each, Temperature)]
        if not (fixed := [each.value for each in every if not each.learned]):
            raise ValueError(
                "LowerTemperature: the model has no temperature that could be lowered: use relaxed latents"
            )
        with torch.no_grad():
            for value in fixed:
                value.copy_(torch.minimum(value, (value * exp(-self.rate)).clamp(min=self.least)))
