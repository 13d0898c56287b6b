"""How processes begin that compute cells. It imports nothing that takes time, so that they can begin before all else.

On Linux they are forked from a process of their own, which has imported what all of them need, has no threads that compute
and has not touched a GPU. It is begun with the program, and imports while the program reads its options. Elsewhere each
process begins anew.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path

_SHARED = ["pyro_vae.app.commands", "torch._dynamo", "sklearn.datasets"]
"""What each of the processes needs: the commands, what the first step of an optimizer imports, and the data by default."""
_SAFE = "PYTHONSAFEPATH"
"""Tells Python not to import from the folder that its user stands in."""


def context() -> BaseContext:
    """How processes begin here."""
    if sys.platform != "linux":
        return get_context("spawn")
    found = get_context("forkserver")
    found.set_forkserver_preload(_SHARED)
    return found


def are_wanted(words: Sequence[str]) -> bool:
    """Whether the words of a command line ask for processes on this machine. A file of options may do so too."""
    given = " ".join(words).replace("=", " ").split()
    return "ray" not in given and any(word == "--jobs" and number != "1" for word, number in pairwise(given))


def begin() -> None:
    """Begins the process that the others are forked from, where that is how they begin."""
    if context().get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver  # noqa: PLC0415  (Windows has none)

    before = os.environ.get(_SAFE)
    if not sys.path or Path(sys.path[0]).resolve() != Path.cwd():
        os.environ[_SAFE] = "1"  # no file there takes the place of a module, as in this process
    try:
        with unheard():
            forkserver.ensure_running()
    finally:
        os.environ.pop(_SAFE, None)
        if before is not None:
            os.environ[_SAFE] = before


def end() -> None:
    """Ends that process, which while it imports would hold on to the output of this one. Nothing of it is needed any more."""
    pid = getattr(getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def unheard() -> Iterator[None]:
    """A process that is started inside hears no Ctrl-C and no terminal that is closed; this one hears them afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415  (Windows has none)

    resource_tracker.ensure_running()  # its beginning would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
