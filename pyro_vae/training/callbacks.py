"""Callbacks: objects that are told of each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pyro_vae.estimators.base import overridable
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
