"""How a program of this project begins and ends. It imports nothing that takes time, so that it is there before all else is.

While modules are imported and options are read, nothing has begun that a signal could damage: it ends the program at once. From
there on `pyro_vae.app.console` takes signals over.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any

from pyro_vae.app import server

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a program to end: of Ctrl-C, of a scheduler or ``kill``, and of a terminal that is closed."""


def heard() -> list[signal.Signals]:
    """The signals to listen to: all but that of a closed terminal where somebody wants it ignored, as ``nohup`` does."""
    return [each for each in SIGNALS if each in SIGNALS[:2] or signal.getsignal(each) != signal.SIG_IGN]


def run(module: str) -> None:
    """Imports a module and runs its ``main``, as the program of this process, whose signals it takes for good.

    Args:
        module: the import path of the module.
    """
    for each in heard():
        signal.signal(each, end_at_once)
    sys.unraisablehook = _unraisable
    status: int | None = None
    try:
        try:
            if server.are_wanted(sys.argv[1:]):
                server.begin()
            import_module(module).main()
        finally:
            server.end()
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        _tell("Stopped.")
    except OSError as error:
        status = 1
        _tell(f"error: {said(error)}")
    if status is not None:
        close_output()
        sys.exit(status)


def end_at_once(number: int, _: FrameType | None = None) -> None:
    """Ends the process with a line. It handles signals while nothing is being computed or written."""
    server.end()
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: the signal came in the middle of a print
        sys.stdout.flush()
    _tell("Stopped.")
    os._exit(128 + number)


def said(error: OSError) -> str:
    """What an error of the system says to a person: without its number, and with the file if there is one."""
    if isinstance(error, BrokenPipeError):
        return "what is printed is no longer read: the program ends, and what is saved is kept"
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


def close_output() -> None:
    """Lets all that is still printed vanish, where nobody reads it: Python would complain once more at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _tell(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _unraisable(told: Any) -> None:
    """Ends the process where Ctrl-C came in code whose errors Python only prints, as when an object is removed."""
    if issubclass(told.exc_type, KeyboardInterrupt):
        end_at_once(signal.SIGINT)
    sys.__unraisablehook__(told)


def main() -> None:
    """The program ``pyro-vae``."""
    run("pyro_vae.app.commands")
