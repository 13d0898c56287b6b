"""A cluster of Ray computes cells."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pyro_vae.app.comparisons.grid import Comparison
from pyro_vae.app.comparisons.order import Ended, Order, attempt
from pyro_vae.app.console import Stopped


class OnRay:
    """A cluster of Ray. The files of runs come back from there: the folder of the comparison need not be seen from it.

    Args:
        order: what is computed.
        size: how many cells are computed at once.

    Raises:
        ValueError: Ray is not installed, or there is no cluster where one was said to be.
    """

    def __init__(self, order: Order, size: int) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise ValueError("executor: Ray is not installed: pip install ray") from None
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
        except ConnectionError as error:
            raise ValueError(f"executor: no cluster of Ray answers: {error}") from None
        except SystemExit:
            raise Stopped(signal.SIGTERM) from None
        finally:
            signal.signal(signal.SIGTERM, before)  # Ray puts one there that ends with status 15, and no line
        self.ray, self.size = ray, size
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        options = {"num_cpus": order.threads, "num_gpus": gpus, "max_retries": 0}
        self._remote = ray.remote(**options)(_compute_elsewhere)
        self._order, self._place = ray.put(order), Path.cwd()
        self._running: dict[Any, int] = {}

    @property
    def free(self) -> bool:
        """Whether one more cell can be given."""
        return len(self._running) < self.size

    def give(self, number: int, folder: Path) -> None:  # noqa: ARG002
        """Sends a cell to the cluster."""
        self._running[self._remote.remote(self._order, number, self._place)] = number

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Waits until a cell ends."""
        ready, _ = self.ray.wait(list(self._running), num_returns=1, timeout=seconds)
        ended = []
        for each in ready:
            number = self._running.pop(each)
            try:
                found = self.ray.get(each)
            except self.ray.exceptions.RayTaskError as error:
                raise ValueError(f"on Ray: {error.cause}") from None
            except self.ray.exceptions.RayError as error:
                found = Ended(number, None, str(error).partition("\n")[0])
            ended.append(found)
        return ended

    def __enter__(self) -> OnRay:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what still runs."""
        for each in self._running:
            self.ray.cancel(each, force=True)
        self.ray.shutdown()


_read: dict[str, Comparison] = {}
"""The comparison that this process of Ray computes cells of: data are loaded once."""


def _compute_elsewhere(order: Order, number: int, place: Path) -> Ended:
    """Computes a cell in a process of Ray."""
    if place.is_dir():  # the same folder as on the machine that asks: of the same machine, or shared
        os.chdir(place)
    torch.set_num_threads(order.threads)
    if order.made_from not in _read:
        _read.clear()
        _read[order.made_from] = order.read_again()
    with tempfile.TemporaryDirectory() as kept:
        run = Path(kept) / "run"
        numbers = attempt(_read[order.made_from].cells[number], run, lambda *_: None)
        files = {each.relative_to(run).as_posix(): each.read_bytes() for each in run.rglob("*") if each.is_file()}
    return Ended(number, dict(numbers), files=files)
