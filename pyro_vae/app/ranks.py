"""The processes of one training, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pyro_vae.app.start import SIGNALS
from pyro_vae.together import LostError, Together

_STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` puts into the environment."""
_TOLD = "the first process has told an error"
_PATIENCE = timedelta(seconds=5)
"""How long another process waits for the first one to tell an error that both have."""


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, if it did.

    The first one is heard, writes and prints for all; the others end with it.

    Raises:
        ConnectionError: they do not find each other.
    """
    size = int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _STARTED) else 1
    if size == 1:
        yield
        return
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if rank:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (until the process ends)
    try:
        store, rank, size = next(rendezvous("env://"))
        # After a restart the store still holds the addresses of the processes before, which would be called in vain.
        store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
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
        ValueError: there are fewer GPUs.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if Together.now() and device.type == "cuda" and here > torch.cuda.device_count():
        raise ValueError(
            f"device: torchrun started {here} processes here, and PyTorch sees {torch.cuda.device_count()} CUDA devices: start "
            f"as many (--nproc_per_node), or give --device cpu"
        )
