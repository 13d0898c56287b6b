"""Context managers that set a state of the process or of a module, and put it back at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn


@contextmanager
def seeded(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seeds the random numbers of the CPU and of ``device`` by a hash of ``key``, and puts back their state at the end.

    Args:
        device: the device that the work inside runs on.
        *key: the seed, and what the numbers are for. Two uses of one seed share no numbers, since their keys differ.
    """
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


_rebuilding: ContextVar[bool] = ContextVar("rebuilding", default=False)


@contextmanager
def rebuilding() -> Iterator[None]:
    """Tells the parts that are built inside that a saved model is rebuilt, and gets its weights from a file."""
    token = _rebuilding.set(True)
    try:
        yield
    finally:
        _rebuilding.reset(token)


def is_rebuilt() -> bool:
    """Whether a saved model is rebuilt here, so that weights from elsewhere need not be read."""
    return _rebuilding.get()


@contextmanager
def mode(programs: Any, training: bool) -> Iterator[None]:
    """Puts a module into training or evaluation mode and back. Programs that are no module have no mode."""
    module = programs if isinstance(programs, nn.Module) else nn.Module()
    was = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(was)
