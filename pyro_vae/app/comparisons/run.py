"""How a comparison is called, and how its cells are computed: finished ones are kept where it is cut off."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from filelock import BaseFileLock
from rich.progress import Progress

from pyro_vae.app.comparisons.folder import REASON, ComparisonFolder
from pyro_vae.app.comparisons.grid import Cell, Comparison, Key, Machines, Numbers
from pyro_vae.app.comparisons.on_ray import OnRay
from pyro_vae.app.comparisons.order import Order, made_from
from pyro_vae.app.comparisons.workers import Here, Processes, Told
from pyro_vae.app.console import failing_clearly, progress_bar, screen, status_of

console = screen()
Workers = Here | Processes | OnRay
_AT_ONCE = "at once"
"""How many cells were computed at once when this one was."""
_PAUSE = 0.5
"""Seconds between two looks at what other processes have finished."""


def run_command(
    command: Callable[..., Comparison],
    arguments: Sequence[str] | None,
    left_out: Set[str],
    prog: str | None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Reads the options of a comparison and runs it.

    Args:
        command: the comparison.
        arguments: the words of its command line; by default those of this process.
        left_out: fields of its specifications that are no options of it.
        prog: how the command is called, for messages.
        check: a function that raises ValueError if an argument, by name, is out of its range, called before data are read.
    """
    words = tuple(sys.argv[1:] if arguments is None else arguments)
    order = Order(command, words, frozenset(left_out), prog, check)
    with failing_clearly():
        comparison, config = order.read()
        try:
            compare(comparison, config, order)
        except KeyboardInterrupt as stop:
            console.print("Stopped. Finished cells are kept: the same command goes on from them.")
            raise SystemExit(status_of(stop)) from None


def compare(comparison: Comparison, config: str, order: Order) -> None:
    """Computes the cells of a comparison that are not finished, and tells what all of them say.

    Args:
        comparison: the comparison.
        config: its resolved options, in YAML.
        order: how another process reads them.
    """
    cells = ComparisonFolder(comparison.out, comparison.name, config, comparison.grid, comparison.given)
    machines = comparison.machines
    with progress_bar(console) as bar:
        grid = _Grid(comparison.cells, cells, bar)
        grid.collect()
        if grid.waiting:
            size = min(machines.jobs, len(grid.waiting))
            threads = max(1, torch.get_num_threads() // size) if machines.executor == "processes" else 1
            order = replace(order, made_from=made_from(comparison, config), threads=threads)
            try:
                with _workers(machines, order, comparison.cells, size, grid.told) as workers:
                    grid.compute(workers, size)
            finally:
                grid.release()  # once nobody writes into their folders any more
    with cells.alone():
        cells.left_out(console, bool(grid.found), grid.died)
        try:
            comparison.report(cells, grid.found)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            # A digest says that a cell's file is whole, and not that this program wrote it.
            raise ValueError(
                f"{cells.folder}: a finished cell does not hold what the report needs ({type(error).__name__}: {error}): move "
                f"the files of its folder cells away to compute them again"
            ) from error
        if any(numbers.get(_AT_ONCE, 1) > 1 for numbers in grid.found.values()):
            console.print("Times are of cells that were computed at once with others, which slows each of them.")


def _workers(machines: Machines, order: Order, cells: Sequence[Cell], size: int, told: Told) -> Workers:
    """Who computes the cells."""
    if machines.executor == "ray":
        return OnRay(order, size)
    return Processes(order, size, told) if size > 1 else Here(cells, told)


class _Grid:
    """The cells of a comparison while they are computed.

    Args:
        grid: the cells.
        folder: their folder.
        bar: where their progress is drawn.
    """

    def __init__(self, grid: Sequence[Cell], folder: ComparisonFolder, bar: Progress) -> None:
        self.grid, self.folder, self.bar, self.size = grid, folder, bar, 1
        self.waiting = list(range(len(grid)))
        """Numbers of the cells that are neither finished nor being computed here."""
        self.found: dict[Key, Numbers] = {}
        self.died: dict[str, str] = {}
        """Cells whose process died, and how. The same command tries them again."""
        self._claims: dict[int, BaseFileLock] = {}
        self._shares: dict[int, float] = {}
        self._asked: dict[int, float] = {}
        """When it was last tried to claim a cell that another process has claimed."""
        self._task = bar.add_task("", total=sum(cell.work for cell in grid))

    def collect(self) -> None:
        """Takes the cells that are finished already."""
        for number in [*self.waiting]:
            cell = self.grid[number]
            if (numbers := self.folder.finished_cell(*cell.key, of=cell.of)) is not None:
                self._ended(number, numbers)

    def compute(self, workers: Workers, size: int) -> None:
        """Computes those that are not, but for those that other processes compute, which are waited for.

        Args:
            workers: who computes them.
            size: how many at once.
        """
        told, self.size = False, size
        while self.waiting or self._claims:
            for number in [*self.waiting]:
                if not workers.free:
                    break
                if time.monotonic() - self._asked.get(number, -_PAUSE) >= _PAUSE:
                    self._begin(number, workers)
            if self._claims:
                for number, numbers, reason, files in workers.wait(_PAUSE):
                    self._keep(number, numbers, reason, files)
            elif self.waiting:
                if not told:
                    names = ", ".join(self.grid[number].shown for number in self.waiting)
                    console.print(f"Waiting for cells that other processes compute: {names}", soft_wrap=True)
                told = True
                time.sleep(_PAUSE)

    def release(self) -> None:
        """Gives up the claims of cells that were not finished."""
        for claim in self._claims.values():
            claim.release()

    def told(self, number: int, share: float, what: str, bound: float | None) -> None:
        """Draws how far a cell is."""
        self._shares[number] = share
        others = len(self._claims) - 1
        self._draw(description=f"{what}, and {others} more" if others > 0 else what, live=bound)

    def _begin(self, number: int, workers: Workers) -> None:
        """Claims a cell and gives it to a worker, unless another process computes it or has finished it."""
        cell = self.grid[number]
        claim = self.folder.claim(*cell.key)
        if claim is None:
            self._asked[number] = time.monotonic()
            return
        numbers = self.folder.get(*cell.key, of=cell.of)
        if numbers is not None:
            claim.release()
            self._ended(number, numbers)
            return
        self.waiting.remove(number)
        self._claims[number] = claim
        workers.give(number, self.folder.run_folder(*cell.key))
        self.told(number, 0.0, cell.shown, None)

    def _keep(self, number: int, numbers: Numbers | None, reason: str, files: Mapping[str, bytes] | None) -> None:
        """Keeps what came of a cell."""
        cell = self.grid[number]
        if numbers is None:
            self.died[cell.shown] = reason
        else:
            if files is not None:
                self.folder.adopt(files, *cell.key)
            kept = self.folder.put({**numbers, _AT_ONCE: self.size}, *cell.key, of=cell.of)
            self._ended(number, kept)
            if REASON not in kept:
                console.print(cell.line(kept))
        self._claims.pop(number).release()

    def _ended(self, number: int, numbers: Numbers) -> None:
        """Counts a cell as finished."""
        cell = self.grid[number]
        if number in self.waiting:
            self.waiting.remove(number)
        self._shares[number] = 1.0
        self._draw()
        if REASON in numbers:
            self.folder.reasons[cell.shown] = numbers[REASON]
        else:
            self.found[cell.key] = numbers

    def _draw(self, **shown: Any) -> None:
        done = sum(self.grid[number].work * share for number, share in self._shares.items())
        self.bar.update(self._task, completed=done, **shown)
