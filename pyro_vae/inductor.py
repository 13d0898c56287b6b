"""Inductor: a traced graph becomes a compiled function. Its cache is shared, and its compilers run in threads."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.scopes import may_be_given_up, seeded


class NotCompiledError(Exception):
    """Raised if a function cannot be compiled; the message says why."""


def by_inductor(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """Compiles a traced graph and runs it once, so that a missing compiler is found here.

    Inductor keeps what it compiled in a folder that all processes of a user share. A file that a killed process left there half
    written fails for ever after, so a second try is made in a new folder.

    Raises:
        NotCompiledError: it cannot be compiled.
    """
    options: dict[str, Any] = {"fallback_random": True}
    if inputs[0].is_cuda:
        options["triton.cudagraphs"] = True
    for cache in (nullcontext, _new_cache):
        copied = GraphModule(graph, deepcopy(graph.graph))  # the compiler changes what it is given
        try:
            with cache(), torch.no_grad(), seeded(inputs[0].device, "compile"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # caused by Inductor itself
                with may_be_given_up():
                    run: Callable[..., list[Tensor]] = torch._inductor.compile(copied, list(inputs), options=options)
                run(*inputs)
                return run
        except KeyboardInterrupt:
            _end_compilers()
            raise
        except Exception as error:  # a compiler may raise anything
            reason = error
    raise NotCompiledError(f"compiling failed: {first_line(reason)}") from reason


def _end_compilers() -> None:
    """Ends the compilers that Inductor runs in threads, and those that wait, since Python waits for them at its end.

    A compiler that is asked to end removes what it had begun to write. Where the system does not say which processes these are,
    those that run already end by themselves.
    """
    from torch._inductor.utils import clear_inductor_caches  # noqa: PLC0415  (seconds of import that nothing else needs)

    with suppress(AttributeError, KeyError):  # of another version, or none has begun
        pools = sys.modules["torch._inductor.async_compile"].AsyncCompile.pool
        if pools.cache_info().currsize:
            pool = pools()
            pools.cache_clear()
            pool.shutdown(wait=False, cancel_futures=True)
            for thread in pool._threads:
                with suppress(OSError):  # it has ended, or so has its compiler
                    children = Path(f"/proc/self/task/{thread.native_id}/children").read_text().split()
                    for each in children:
                        os.kill(int(each), signal.SIGTERM)
    clear_inductor_caches()  # what was begun here would be waited for in vain


_folders: list[TemporaryDirectory[str]] = []
"""Caches of second tries. They are removed when the process ends, since a kernel may be read when it is first needed."""


@contextmanager
def _new_cache() -> Iterator[None]:
    """Lets Inductor work in a new folder."""
    from torch._inductor.utils import clear_inductor_caches  # noqa: PLC0415  (seconds of import that only a failure needs)

    _folders.append(TemporaryDirectory(prefix="pyro_vae-", ignore_cleanup_errors=True))
    folder, names = Path(_folders[-1].name), ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict(zip(names, (str(folder / "inductor"), str(folder / "triton")), strict=True)))
    clear_inductor_caches()  # what was read from the other folder
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        clear_inductor_caches()


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"
