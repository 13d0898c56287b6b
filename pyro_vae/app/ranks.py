"""The processes of one training, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pyro_vae.app.start import SIGNALS
from pyro_vae.together import LostError


@contextmanager
def joined() -> Iterator[int]:
    """Joins the processes that ``torchrun`` started, if it did, and yields the number of this one, or 0.

    The first one is heard, writes and prints for all; the others end with it.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        yield 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if rank:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (until the process ends)
    store, rank, size = next(rendezvous("env://"))
    # After a restart the store still holds the addresses of the processes before, which would be called in vain.
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield rank
    except LostError:
        if rank:
            sys.exit(1)  # the first one says so, or it is the one that is gone
        raise
    finally:
        dist.destroy_process_group()
