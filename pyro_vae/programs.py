"""What is trained and evaluated, and the state that it runs in: random numbers, training or evaluation mode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_vae.particles import Program


@runtime_checkable
class Programs(Protocol):
    """What is trained and evaluated: a Pyro model and a Pyro guide, both called with x. A `VAE` is one.

    Where the model has an argument ``y``, both are called with the labels too, ``model(x, y)`` and ``guide(x, y)``.
    """

    @property
    def model(self) -> Program:
        """p(t) p(x|t,w)."""

    @property
    def guide(self) -> Program:
        """q(t|x,φ)."""


def takes_labels(programs: Programs) -> bool:
    """Whether programs are called with labels too: their model has an argument ``y`` that can be given by its place."""
    model: Any = programs.model
    parameter = signature(model.forward if isinstance(model, nn.Module) else model).parameters.get("y")
    return parameter is not None and parameter.kind is parameter.POSITIONAL_OR_KEYWORD


def given(x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    """What programs are called with: data, and their labels if there are any."""
    return (x,) if y is None else (x, y)


@contextmanager
def seeded(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seeds the random numbers of the CPU and of ``device`` by a hash of ``key``, and puts back their state at the end.

    The key says what the numbers are for, so that two uses of one seed share none of them.
    """
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def mode(programs: Any, training: bool) -> Iterator[None]:
    """Puts a module into training or evaluation mode and back; other programs have no mode."""
    if not isinstance(programs, nn.Module):
        with nullcontext():
            yield
        return
    was = programs.training
    programs.train(training)
    try:
        yield
    finally:
        programs.train(was)
