"""Context managers that set a state of the process or of a module, and put it back at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import getclosurevars, unwrap
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def seeded(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seeds the random numbers of the CPU and of ``device`` by a hash of ``key``, and puts back their state at the end.

    Args:
        device: the device that the work inside runs on.
        *key: the seed, and what the numbers are for. Two uses of one seed share no numbers, since their keys differ.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        reseed(device, *key)
        yield


def reseed(device: torch.device, *key: int | str) -> None:
    """Seeds random numbers as `seeded` does, within such a scope, which puts back their state at its end."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


_listener: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def telling_progress(listener: Callable[[str, int, int], None]) -> Iterator[None]:
    """Has the evaluations inside tell how far they are.

    Args:
        listener: a function that is called with what is evaluated, how much of it is done, and how much there is.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_progress(what: str, done: int, total: int) -> None:
    """Tells whoever listens (see `telling_progress`) how far an evaluation is."""
    if listener := _listener.get():
        listener(what, done, total)


_may_be_given_up: ContextVar[bool] = ContextVar("may_be_given_up", default=False)
_asked: ContextVar[Callable[[], None] | None] = ContextVar("asked", default=None)
_NOTHING_MOVED = "Nothing had moved."


@contextmanager
def may_be_given_up() -> Iterator[None]:
    """Says that what is done inside takes long and may be given up at any moment, since it moves nothing that anybody keeps."""
    token = _may_be_given_up.set(True)
    try:
        if check := _asked.get():
            check()
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(_NOTHING_MOVED)
        raise
    finally:
        _may_be_given_up.reset(token)


@contextmanager
def giving_up(check: Callable[[], None]) -> Iterator[None]:
    """Gives up inside what may be given up, where somebody has asked for it before it began.

    Args:
        check: raises a KeyboardInterrupt if somebody has.
    """
    token = _asked.set(check)
    try:
        yield
    finally:
        _asked.reset(token)


def can_give_up() -> bool:
    """Whether an interruption now would come where all may be given up."""
    return _may_be_given_up.get()


def had_moved_nothing(stop: KeyboardInterrupt) -> bool:
    """Whether an interruption came where nothing had moved (see `may_be_given_up`)."""
    return _NOTHING_MOVED in getattr(stop, "__notes__", ())


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

    Buffers that have no values, or that a lazy module has not made yet, are left out.
    """
    found = [buffer for top in modules_of(programs) for buffer in top.buffers()]
    buffers = [buffer for buffer in found if not (is_lazy(buffer) or buffer.is_meta)]
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in zip(buffers, before, strict=True):
                if not torch.equal(buffer, kept):  # one that did not move may be needed by somebody's backward pass
                    buffer.copy_(kept)


@contextmanager
def still(programs: Any, device: torch.device, *key: int | str) -> Iterator[None]:
    """Runs programs in evaluation mode, with random numbers of their own (see `seeded`). Nothing moves."""
    with seeded(device, *key), mode(programs, training=False), unmoved(programs):
        yield


@contextmanager
def evaluating(programs: Any, device: torch.device, *key: int | str) -> Iterator[None]:
    """Is `still`, and without a gradient."""
    with torch.no_grad(), still(programs, device, *key):
        yield


class NotEnoughMemoryError(MemoryError):
    """Raised if memory runs out; the message says what to lower."""


@contextmanager
def telling_memory(**sizes: int) -> Iterator[None]:
    """Says what to lower where memory runs out.

    Args:
        **sizes: the sizes that memory grows with, by the name of what sets each.

    Raises:
        NotEnoughMemoryError: there is not enough memory.
    """
    try:
        yield
    except NotEnoughMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        named = " or ".join(f"{name} (it is {size:,})" for name, size in sizes.items() if size > 1)
        raise NotEnoughMemoryError(f"out of memory: lower {named or 'the sizes of the networks'}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up. PyTorch has a class for it on CUDA alone."""
    signs = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


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
