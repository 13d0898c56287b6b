"""What the commands share on the screen: errors in one line, a stop request, the device, a progress bar."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pyro_vae.scopes import NotEnoughMemoryError, is_out_of_memory, telling_progress


def screen() -> Console:
    """Returns the screen. What is in square brackets is text, such as a list of widths, and no style."""
    return Console(highlight=False, markup=False)


def fail(message: str, status: int = 1) -> NoReturn:
    """Prints an error for a person and ends."""
    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(status)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turns the errors that the library raises for wrong input into one message without a traceback."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = str(error) if isinstance(error, NotEnoughMemoryError) else "out of memory"
        fail(f"{told}. Fewer test data (test_images) and smaller networks need less memory too.")
    except (ValueError, OSError, ArithmeticError) as error:
        fail(re.split(r"\n\s*Trace Shapes:", str(error))[0])  # Pyro appends its trace to what a part raises


_QUIET = 60.0
"""After how many seconds an evaluation that goes on says so, where no bar is drawn."""


class StopRequest:
    """The first Ctrl-C only asks to stop, so that nothing is cut in the middle of a write; the second one interrupts.

    SIGTERM, which schedulers of clusters send before they kill, asks for the same. Use it as a context, and call `check` where
    stopping is safe.

    Attributes:
        made: whether it was asked to stop.
        status: the exit status that belongs to who asked.
    """

    def __init__(self) -> None:
        self.made, self.status = False, 130

    def __enter__(self) -> StopRequest:
        """Takes Ctrl-C and SIGTERM over."""
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, before in self._before.items():
            signal.signal(number, before)

    @property
    def hurried(self) -> bool:
        """Whether a scheduler asked, which kills soon."""
        return self.status == 128 + signal.SIGTERM

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.made and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.made, self.status = True, 128 + number

    def check(self) -> None:
        """Raises KeyboardInterrupt if it was asked to stop."""
        if self.made:
            raise KeyboardInterrupt


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        device = torch.device("meta")  # no device of ours either
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {name} was asked for, and PyTorch sees {torch.cuda.device_count()} CUDA devices here"
        )
    return device


class _TimeLeft(ProgressColumn):
    """Time left at the mean pace so far."""

    def render(self, task: Task) -> Text:
        """Draws it."""
        if not task.completed or task.elapsed is None or task.total is None:
            return Text("")
        left = round(task.elapsed * (task.total - task.completed) / task.completed)
        return Text(f"{left // 60}:{left % 60:02d} left", style="cyan")


class _Bound(ProgressColumn):
    """The bound so far, in the field ``live``."""

    def render(self, task: Task) -> Text:
        """Draws it."""
        live = task.fields.get("live")
        return Text("" if live is None else f"bound {live:.2f} nats")


class _Evaluation:
    """Shows how far a long evaluation is: a bar of its own, and off a terminal a line each minute.

    Args:
        console: the screen.
        bar: the bars.
    """

    def __init__(self, console: Console, bar: Progress) -> None:
        self.console, self.bar = console, bar
        self.task: TaskID | None = None
        self.began = self.told = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Is told where the evaluation stands."""
        now = time.perf_counter()
        if done == 0:
            self._end()  # of one that an error ended
            self.task, self.began, self.told = self.bar.add_task(f"evaluating {what}", total=total), now, now
        if self.task is not None:
            self.bar.update(self.task, completed=done)
        if done >= total:
            self._end()
        elif not self.console.is_terminal and now - self.told >= _QUIET:
            self.told, left = now, round((now - self.began) * (total - done) / done)
            self.console.print(
                f"Evaluating {what}: {100 * done / total:.0f} % done, about {left // 60}:{left % 60:02d} left"
            )

    def _end(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """Bars with a description, live text and the time left, one of them for evaluations that are long.

    Off a terminal they draw nothing, and a long evaluation prints a line each minute.
    """
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), _Bound(), TimeElapsedColumn(), _TimeLeft()]
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar, telling_progress(_Evaluation(console, bar)):
        yield bar
