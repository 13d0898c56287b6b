"""What the commands share on the screen: errors in one line, a stop request, the device, a progress bar."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from pyro_vae.scopes import NotEnoughMemoryError, is_out_of_memory


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


class StopRequest:
    """The first Ctrl-C only asks to stop, so that nothing is cut in the middle of a write; the second one interrupts.

    Use it as a context, and call `check` where stopping is safe.
    """

    def __init__(self) -> None:
        self.made = False

    def __enter__(self) -> StopRequest:
        """Takes Ctrl-C over."""
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives Ctrl-C back."""
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            signal.default_int_handler(number, frame)
        self.made = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
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


def progress_bar(console: Console) -> Progress:
    """A bar with a description, its live text and the time left. Off a terminal it draws nothing."""
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), _Bound(), TimeElapsedColumn(), _TimeLeft()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
