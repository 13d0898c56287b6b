"""The processes of one training, as ``torchrun`` starts them."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from pyro_vae.app.start import SIGNALS
from pyro_vae.together import LostError, Together

_STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` puts into the environment."""
_TOLD = "the first process has told an error"
_PATIENCE = timedelta(seconds=5)
"""How long another process waits for the first one to tell an error that both have."""


def _started() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not all(name in os.environ for name in _STARTED):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _store(timeout: timedelta = default_pg_timeout) -> Store:
    """What all processes see.

    Raises:
        RuntimeError: they do not find each other.
    """
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    # After a restart the store still holds the addresses of the processes before, which would be called in vain.
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def first_tells() -> Iterator[None]:
    """Inside, all processes read the same words; what is wrong with them, and help, is told by the first one alone."""
    rank, size = _started()
    if size == 1:
        yield
        return
    told = io.StringIO()
    try:
        with ExitStack() as aside:
            if rank:
                aside.enter_context(redirect_stderr(told))
                aside.enter_context(redirect_stdout(io.StringIO()))
            yield
    except SystemExit as stop:
        if stop.code:
            if rank:  # torchrun ends the others when one has ended
                _ignore_signals()
            with suppress(RuntimeError):
                store = _store(_PATIENCE)
                if not rank:
                    store.set(_TOLD, "yes")
                elif _is_told(store):
                    raise
            sys.stderr.write(told.getvalue())
        raise


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, if it did.

    The first one is heard, writes and prints for all; the others end with it.

    Raises:
        ConnectionError: they do not find each other.
    """
    rank, size = _started()
    if size == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if rank:
        _ignore_signals()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (until the process ends)
    try:
        store = _store()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        told = str(error).partition("\n")[0]
        raise ConnectionError(f"torchrun: the {size} processes do not find each other: {told}") from error
    try:
        yield
    except LostError:
        if rank:
            sys.exit(1)  # the first one says so, or it is the one that is gone
        raise
    except (ValueError, ArithmeticError, OSError):
        if rank and _is_told(store):
            sys.exit(1)
        if not rank:
            store.set(_TOLD, "yes")
        raise
    finally:
        dist.destroy_process_group()
    if rank:  # the first one evaluates: nothing that Python does at its end may disturb it
        sys.stderr.flush()
        os._exit(0)


def _ignore_signals() -> None:
    """Leaves it to the first process to hear signals."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _is_told(store: Store) -> bool:
    """Whether the first process tells an error, so that the same one need not be told again."""
    with suppress(RuntimeError):  # it does not: the error is that of this process alone
        store.wait([_TOLD], _PATIENCE)
        return True
    return False


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process goes ahead, as to download data, and the others follow."""
    together = Together.now()
    if together and together.rank:
        together.agree(False)
    yield
    if together and not together.rank:
        together.agree(False)


def check_device(device: torch.device) -> None:
    """Checks that each process of this machine has a GPU of its own.

    Raises:
        ValueError: there are fewer GPUs, or one was named for all processes.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here == 1 or device.type != "cuda" or not Together.now():
        return
    if device.index is not None:
        raise ValueError(
            f"device: {device} would put the {here} processes that torchrun started here on one card: give --device cuda, and "
            f"each process takes the card of its local rank"
        )
    if here > torch.cuda.device_count():
        raise ValueError(
            f"device: torchrun started {here} processes here, and PyTorch sees {torch.cuda.device_count()} CUDA devices: start "
            f"as many (--nproc_per_node), or give --device cpu"
        )
