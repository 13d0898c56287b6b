"""Context managers that set a state of the process or of a module, and put it back at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getclosurevars, unwrap
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin


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


@contextmanager
def mode(programs: Any, training: bool) -> Iterator[None]:
    """Puts the programs' modules into training or evaluation mode, and puts back the own mode of each submodule at the end.

    In evaluation mode, all submodules are. For training, a module that is in training mode already stays as it is, with all
    inside: what its user put into evaluation mode there, such as a pretrained network with frozen batch normalization, stays in
    evaluation mode. A module that is in evaluation mode as a whole, as a loaded model is, is put into training mode as a whole.

    Args:
        programs: a module, or programs that use modules (see `modules_of`).
        training: whether the modules are trained.
    """
    tops = modules_of(programs)
    was = {each: each.training for top in tops for each in top.modules()}
    for top in tops:
        if not (training and top.training):
            top.train(training)
    try:
        yield
    finally:
        for each, before in was.items():
            each.training = before


@contextmanager
def unmoved(programs: Any) -> Iterator[None]:
    """Puts back the values of all buffers at the end, such as the running statistics of batch normalization.

    Buffers that a lazy module has not made yet are left out.
    """
    buffers = [
        buffer for top in modules_of(programs) for buffer in top.buffers() if not isinstance(buffer, UninitializedTensorMixin)
    ]
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in zip(buffers, before, strict=True):
                buffer.copy_(kept)


def modules_of(programs: Any) -> list[nn.Module]:
    """Returns the modules that programs use: themselves, or, for plain functions and objects, the modules that these refer to.

    These are the owners of methods, attributes, and the global variables and closures that a function reads.
    """
    if isinstance(programs, nn.Module):
        return [programs]
    found: dict[nn.Module, None] = {}
    attributes = vars(programs).values() if hasattr(programs, "__dict__") else ()
    for each in (*attributes, getattr(programs, "model", None), getattr(programs, "guide", None)):
        function = unwrap(each) if callable(each) else each
        values = [each, getattr(function, "__self__", None)]
        function = getattr(function, "__func__", function)
        if isinstance(function, FunctionType):
            read = getclosurevars(function)
            values += [*read.nonlocals.values(), *read.globals.values()]
        found |= {value: None for value in values if isinstance(value, nn.Module)}
    return list(found)
