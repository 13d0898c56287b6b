"""Callbacks: objects that are told of each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
