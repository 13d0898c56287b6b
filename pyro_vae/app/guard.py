"""jsonargparse, which reads the words of a command line, finds classes by the rule of `pyro_vae.trust` alone.

It imports whatever a word or a file names where a class can stand, and only then looks what it has got. All such imports go
through one function of its own. Inside `guarded` that function asks `Trust.find`; outside, for other programs in the same
process, it is as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jsonargparse

from pyro_vae.trust import Trust, UntrustedError

_trust: ContextVar[Trust | None] = ContextVar("trust", default=None)
_IMPORT = "import_object"


class _StoppedError(BaseException):
    """Carries the reason through jsonargparse, which would take an ordinary exception for a value of another type."""

    def __init__(self, path: str, reason: UntrustedError) -> None:
        super().__init__(str(reason))
        self.path, self.reason = path, reason


class NotAllowedError(ValueError):
    """A command line or a configuration names what it must not name.

    Attributes:
        path: the import path.
    """

    def __init__(self, path: str, reason: UntrustedError) -> None:
        super().__init__(str(reason))
        self.path = path


@contextmanager
def guarded(trust: Trust) -> Iterator[None]:
    """Inside, jsonargparse imports and finds only what may be named.

    Raises:
        NotAllowedError: something else is named. It was not imported.
    """
    token = _trust.set(trust)
    try:
        yield
    except _StoppedError as stopped:
        raise NotAllowedError(stopped.path, stopped.reason) from None
    finally:
        _trust.reset(token)


def _guard(original: Callable[..., Any]) -> Callable[..., Any]:
    def import_object(name: Any, *args: Any, **kwargs: Any) -> Any:
        """Finds what an import path stands for."""
        trust = _trust.get()
        from_code = kwargs.get("check_path") is False  # a path that no value gave
        if trust is None or from_code or not isinstance(name, str) or "." not in name:
            return original(name, *args, **kwargs)  # what is no import path is an error, which it tells
        try:
            return trust.find(name)
        except UntrustedError as reason:
            raise _StoppedError(name, reason) from None
        except ValueError as error:
            raise ImportError(str(error)) from error

    return import_object


def _install() -> None:
    """Puts the guard into every module of jsonargparse that imports what a value names.

    Raises:
        ImportError: this version of jsonargparse imports in another way. Better no command line than one without the guard.
    """
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "jsonargparse"]
    places = [module for module in modules if hasattr(module, _IMPORT)]
    if not {"jsonargparse._util", "jsonargparse._typehints"} <= {module.__name__ for module in places}:
        raise ImportError(
            f"jsonargparse {jsonargparse.__version__} imports in a way that this version of pyro_vae does not know"
        )
    guard = _guard(getattr(sys.modules["jsonargparse._util"], _IMPORT))
    for module in places:
        setattr(module, _IMPORT, guard)


_install()
