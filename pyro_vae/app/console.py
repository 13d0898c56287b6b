"""What the commands share on the screen: errors in one line, a stop request, the device, a progress bar."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pyro_vae.app.start import close_output, heard, said
from pyro_vae.scopes import NotEnoughMemoryError, can_give_up, giving_up, is_out_of_memory, telling_progress


class _Screen(Console):
    """A screen that says so where nobody reads it, as in ``pyro-vae train | head``."""

    def on_broken_pipe(self) -> None:
        """Ends the program."""
        self.quiet = True
        close_output()
        fail(said(BrokenPipeError()))


def screen() -> Console:
    """Returns the screen. What is in square brackets is text, such as a list of widths, and no style."""
    return _Screen(highlight=False, markup=False)


def fail(message: str, status: int = 1) -> NoReturn:
    """Prints an error for a person and ends."""
    with suppress(OSError):  # of a terminal that was closed
        Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(status)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Ends a command with one message, without a traceback: after wrong input, and where somebody or something stops it.

    Inside, the signals that ask it to end raise `Stopped`.
    """
    try:
        with stopping():
            yield
    except KeyboardInterrupt as stop:
        with suppress(OSError):
            screen().print("Stopped.")
        raise SystemExit(status_of(stop)) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = str(error) if isinstance(error, NotEnoughMemoryError) else "out of memory"
        fail(f"{told}. Fewer test data (test_images) and smaller networks need less memory too.")
    except BrokenPipeError as error:
        close_output()
        fail(said(error))
    except OSError as error:
        fail(said(error))
    except (ValueError, ArithmeticError) as error:
        fail(re.split(r"\n\s*Trace Shapes:", str(error))[0])  # Pyro appends its trace to what a part raises


@contextmanager
def stopping() -> Iterator[None]:
    """Inside, the signals that ask a program to end raise `Stopped`."""
    with _hearing(_stop):
        yield


class Stopped(KeyboardInterrupt):
    """Raised where a signal asks to end.

    Attributes:
        status: the exit status that belongs to it.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of a command that was stopped."""
    return stop.status if isinstance(stop, Stopped) else 128 + signal.SIGINT


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextmanager
def _hearing(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has the signals that ask to end call a function, and gives them back at the end."""
    before = {number: signal.signal(number, handler) for number in heard()}
    try:
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)


_QUIET = 60.0
"""After how many seconds an evaluation that goes on says so, where no bar is drawn."""


class StopRequest:
    """The first Ctrl-C only asks to stop, so that nothing is cut in the middle of a write; the second one interrupts.

    SIGTERM, which schedulers of clusters send before they kill, and a terminal that is closed ask for the same. Use it as a
    context, and call `check` where stopping is safe. Before the first call there is nothing that a cut could damage, and the
    first one interrupts; so it does while something is compiled, which may be given up at any moment.

    Attributes:
        made: whether it was asked to stop.
        status: the exit status that belongs to who asked.
    """

    def __init__(self) -> None:
        self.made, self.status = False, 128 + int(signal.SIGINT)
        self._begun, self._scopes = False, ExitStack()

    def __enter__(self) -> StopRequest:
        """Takes the signals over."""
        self._scopes.enter_context(giving_up(self._check))
        self._scopes.enter_context(_hearing(self._ask))
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        self._scopes.close()

    @property
    def hurried(self) -> bool:
        """Whether somebody asked who kills soon: a scheduler, or who closed the terminal."""
        return self.status != 128 + signal.SIGINT

    def _ask(self, number: int, _: FrameType | None) -> None:
        hurry = self.made and number == signal.SIGINT
        self.made, self.status = True, 128 + number
        if hurry or not self._begun or can_give_up():
            raise Stopped(number)

    def check(self) -> None:
        """Raises `Stopped` if it was asked to stop."""
        self._begun = True
        self._check()

    def _check(self) -> None:
        if self.made:
            raise Stopped(self.status - 128)


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
