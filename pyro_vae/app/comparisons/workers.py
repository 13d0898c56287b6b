"""Who computes cells: this process, or several on this machine, each of which has the same options and data.

All are contexts, which end them; they are given one cell after the other by `give`, and `wait` returns what came of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import torch

from pyro_vae.app.comparisons.grid import Cell
from pyro_vae.app.comparisons.order import Ended, Order, attempt
from pyro_vae.app.console import stopping
from pyro_vae.app.server import begin, context, unheard

Told = Callable[[int, float, str, float | None], None]
"""Is told how far a cell is, which its number names first."""


class Here:
    """This process, which computes a cell when it is waited for."""

    def __init__(self, cells: Sequence[Cell], told: Told) -> None:
        self.cells, self.told = cells, told
        self._given: tuple[int, Path] | None = None

    @property
    def free(self) -> bool:
        """Whether no cell was given."""
        return self._given is None

    def give(self, number: int, folder: Path) -> None:
        """Takes a cell."""
        self._given = number, folder

    def wait(self, seconds: float) -> Sequence[Ended]:  # noqa: ARG002
        """Computes it."""
        assert self._given
        (number, folder), self._given, told = self._given, None, self.told
        numbers = attempt(self.cells[number], folder, lambda *far: told(number, *far))
        return [Ended(number, numbers)]  # what an error held on to is free by now

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be ended."""


class _Process:
    """A process that computes cells, at the other end of a pipe."""

    def __init__(self, order: Order, rank: int) -> None:
        here = context()
        self.rank, self.number = rank, -1
        self.pipe, theirs = here.Pipe()
        self.process: BaseProcess = here.Process(target=_serve, args=(theirs, order, rank))  # type: ignore[attr-defined]
        # Ctrl-C reaches all processes of a terminal: this one hears it, and ends the others.
        begin()
        with unheard():
            self.process.start()
        theirs.close()

    def died(self) -> str:
        """How the process ended."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"the process that computed it ended with status {code}"
        name = signal.Signals(-code).name
        memory = ", as where memory runs out" if name == "SIGKILL" else ""
        return f"the process that computed it was ended by {name}{memory}"


class Processes:
    """Several processes on this machine.

    Args:
        order: what they compute.
        size: how many cells are computed at once.
        told: whom they tell how far they are.
    """

    def __init__(self, order: Order, size: int, told: Told) -> None:
        self.order, self.size, self.told = order, size, told
        self._busy: list[_Process] = []
        self._idle: list[_Process] = []

    @property
    def free(self) -> bool:
        """Whether one more cell can be given."""
        return len(self._busy) < self.size

    def give(self, number: int, folder: Path) -> None:
        """Gives a cell to a process that waits, or to a new one."""
        self._idle = [each for each in self._idle if each.process.is_alive()]
        ranks = {each.rank for each in (*self._busy, *self._idle)}
        worker = self._idle.pop() if self._idle else _Process(self.order, min({*range(self.size)} - ranks))
        self._busy.append(worker)
        worker.number = number
        with suppress(BrokenPipeError):  # it died just now, which `wait` finds
            worker.pipe.send((number, folder.absolute()))

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Waits until a process has something to tell."""
        ended = []
        ready = connection.wait([each.pipe for each in self._busy], seconds)
        for worker in [each for each in self._busy if each.pipe in ready]:
            try:
                told = worker.pipe.recv()
            except (EOFError, OSError):
                self._busy.remove(worker)
                ended.append(Ended(worker.number, None, worker.died()))
                continue
            if isinstance(told, str):  # an error that no cell is to blame for
                raise ValueError(told)
            if isinstance(told, Ended):
                self._busy.remove(worker)
                self._idle.append(worker)
                ended.append(told)
            else:
                self.told(*told)
        return ended

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all processes: those that wait for a cell, and those that somebody wants stopped."""
        every = [*self._busy, *self._idle]
        for worker in every:
            worker.pipe.close()
            worker.process.terminate()
        end = time.monotonic() + 5
        for worker in every:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.is_alive():  # a compilation does not hear
                worker.process.kill()
                worker.process.join()


def _serve(pipe: connection.Connection, order: Order, rank: int) -> None:
    """Computes cells in a process of its own, until the other end of the pipe is closed."""
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(order.threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    try:
        comparison = order.read_again()
        last = 0.0
        while True:
            number, folder = pipe.recv()

            def tell(share: float, what: str, bound: float | None, number: int = number) -> None:
                nonlocal last
                if (now := time.monotonic()) - last > 0.1:
                    last = now
                    pipe.send((number, share, what, bound))

            with stopping():
                numbers = attempt(comparison.cells[number], folder, tell)
            pipe.send(Ended(number, dict(numbers)))
    except (EOFError, BrokenPipeError):
        return
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except (ValueError, OSError, RuntimeError) as error:
        pipe.send(str(error))


def _end_with_parent() -> None:
    """Ends this process when the one that began it is gone, since nobody takes its cells any more."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
