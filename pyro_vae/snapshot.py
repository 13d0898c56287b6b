"""What Python objects hold at one moment, so that a later change is seen.

A compiled graph keeps as constants whatever was no input when it was traced: a temperature that is a plain attribute, the mode
of a module, a number in a configuration, a global variable that a method reads. A `Snapshot` is taken before tracing, and says
later whether any of these has changed.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_DEPTH = 3
"""How many objects inside objects are looked into."""
_MISSING = object()


class Written(NamedTuple):
    """A place that changed: its name, the value that it had, and the value that it has."""

    where: str
    before: Any
    now: Any


class _Space(NamedTuple):
    """The names of one object: their place, the mapping itself, the values by name, and copies of those that can change."""

    where: str
    live: Mapping[Any, Any]
    values: dict[Any, Any]
    copies: dict[Any, Any]


class _Check(NamedTuple):
    """A place, and a function that says whether it is as it was."""

    where: str
    unchanged: Callable[[], bool]


class Snapshot:
    """What objects held when this was made, beside the values of the parameters and buffers of modules.

    It follows the attributes of modules and of their submodules, the containers and the user's own objects in them, and the
    class attributes, global variables and closures that the methods of a user's own classes read.

    Args:
        objects: the objects by name. The names of places begin with it, unless it is empty.
        without: names of attributes of these objects that may change.
    """

    def __init__(self, objects: Mapping[str, Any], without: frozenset[str] = frozenset()) -> None:
        self._spaces: list[_Space] = []
        self._checks: list[_Check] = []
        self._free: set[str] = set()
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # an object that is followed stays alive, so that its id stays its own
        for name, each in objects.items():
            self._free |= {_join(name, attribute) for attribute in without}
            self._enter(each, name, _DEPTH)

    def changed(self) -> str | None:
        """Returns the name of a place that differs now, or None."""
        for space in self._spaces:
            if not _same(space.live, space.copies):
                for written in self._written(space):
                    return written.where
        for check in self._checks:
            if not check.unchanged() and check.where not in self._free:
                return check.where
        return None

    def put_back(self) -> list[Written]:
        """Gives the attributes the values that they had, and returns those that had changed."""
        found = []
        for space in self._spaces:
            for written in list(self._written(space)):
                found.append(written)
                name = next(name for name in {**space.values, **space.live} if _join(space.where, name) == written.where)
                if isinstance(space.live, dict):
                    if written.before is _MISSING:
                        del space.live[name]
                        continue
                    space.live[name] = written.before
                    _refill(written.before, space.copies[name])
        found += [
            Written(check.where, None, None)
            for check in self._checks
            if check.where not in self._free and not check.unchanged()
        ]
        return found

    def leave_free(self, where: str) -> None:
        """Lets a place change from now on."""
        self._free.add(where)

    def _written(self, space: _Space) -> Iterator[Written]:
        for name in {**space.copies, **space.live}:
            before, now = space.copies.get(name, _MISSING), space.live.get(name, _MISSING)
            replaced = before is not now and (isinstance(before, Tensor) or isinstance(now, Tensor))
            if replaced or not _same(before, now):
                where = _join(space.where, name)
                if where not in self._free:
                    yield Written(where, space.values.get(name, _MISSING), now)

    def _enter(self, value: Any, where: str, depth: int) -> None:
        """Follows one object: a module, or an object with attributes."""
        if id(value) in self._seen or depth == 0:
            return
        self._seen.add(id(value))
        self._kept.append(value)
        self._classes(type(value), depth)
        live = vars(value)
        own = {"_parameters", "_buffers", "_modules"} if isinstance(value, nn.Module) else set()
        for name in own & live.keys():
            held, names = live[name], _names(live[name])
            self._checks.append(_Check(_join(where, name), lambda held=held, names=names: _names(held) == names))  # type: ignore[misc]
        for name, child in live.get("_modules", {}).items() if own else ():
            if child is not None:
                self._enter(child, _join(where, name), _DEPTH)
        skipped = {name for name in live if _join(where, name) in self._free}
        copies = {
            name: each if name in own or name in skipped else self._copy(each, live, name, _join(where, name), depth)
            for name, each in live.items()
        }
        self._spaces.append(_Space(where, live, dict(live), copies))

    def _copy(self, value: Any, holder: Any, key: Any, where: str, depth: int) -> Any:
        """A copy of what can change in place, and follows what is inside."""
        if isinstance(value, Tensor):
            version = _version(value)
            self._checks.append(_Check(where, lambda: _at(holder, key) is value and _version(value) == version))
        elif isinstance(value, np.ndarray):
            kept = value.copy()
            self._checks.append(_Check(where, lambda: bool(np.array_equal(value, kept))))
        elif type(value) in (list, set, dict) or isinstance(value, dict):
            if id(value) in self._seen:
                return value
            self._seen.add(id(value))
            self._kept.append(value)
            if isinstance(value, dict):
                return {
                    name: self._copy(each, value, name, f"{where}[{name!r}]", depth)
                    for name, each in list(value.items())
                }
            inside = [self._copy(each, value, i, f"{where}[{i}]", depth) for i, each in enumerate(value)]
            return set(inside) if isinstance(value, set) else inside
        elif type(value) is tuple:
            return tuple(self._copy(each, value, i, f"{where}[{i}]", depth) for i, each in enumerate(value))
        elif isinstance(value, FunctionType | MethodType):
            self._function(value.__func__ if isinstance(value, MethodType) else value, depth)
        elif isinstance(value, nn.Module) or (not isinstance(value, type) and _is_own(type(value)) and _has_names(value)):
            self._enter(value, where, depth - 1)
        return value

    def _classes(self, cls: type, depth: int) -> None:
        """Follows the class attributes of a user's own classes, and what their methods read."""
        for each in cls.__mro__:
            if id(each) in self._seen or not _is_own(each):
                continue
            self._seen.add(id(each))
            live = vars(each)
            copies = {name: self._copy(value, live, name, f"{each.__name__}.{name}", depth) for name, value in live.items()}
            self._spaces.append(_Space(each.__name__, live, dict(live), copies))

    def _function(self, function: Any, depth: int) -> None:
        """Follows the global variables and the closure that a user's own function reads."""
        if id(function) in self._seen or not _is_own(function):
            return
        self._seen.add(id(function))
        names, code = function.__globals__, function.__code__
        for name in sorted(_read(code) & names.keys()):
            self._watch(lambda names=names, name=name: names.get(name, _MISSING), f"{function.__module__}.{name}", depth)  # type: ignore[misc]
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._watch(lambda cell=cell: _content(cell), f"{function.__qualname__}'s {name}", depth)  # type: ignore[misc]

    def _watch(self, read: Callable[[], Any], where: str, depth: int) -> None:
        """Follows what a function returns."""
        value = read()
        copy = self._copy(value, None, None, where, depth)
        if isinstance(value, Tensor):  # its own check cannot look where it stands
            self._checks.pop()
            version = _version(value)
            self._checks.append(_Check(where, lambda: read() is value and _version(value) == version))
        elif not isinstance(value, type(torch)) and not isinstance(value, type):
            self._checks.append(_Check(where, lambda: _same(read(), copy)))


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal. What cannot be compared, such as arrays, is not."""
    if one is other:
        return True
    try:
        return bool(one == other)
    except Exception:  # a user's own comparison may raise anything
        return False


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None for tensors that do not count it."""
    return None if tensor.is_inference() else tensor._version


def _at(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except (KeyError, IndexError):
        return _MISSING


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not filled yet
        return _MISSING


def _names(held: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The names of a module's tensors, and which of them are missing; of submodules, the submodules too."""
    return [(name, id(value) if isinstance(value, nn.Module) else value is None) for name, value in held.items()]


def _has_names(value: Any) -> bool:
    return isinstance(getattr(value, "__dict__", None), dict)


def _is_own(value: Any) -> bool:
    """Whether a class or function is a user's own. Those of installed packages and of this one do not change between two steps."""
    name = str(getattr(value, "__module__", "builtins"))
    return name.partition(".")[0] not in ("builtins", "pyro_vae") and not _is_installed(name)


@cache
def _is_installed(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    return module != "__main__" and (file is None or file.startswith(_INSTALLED))


def _read(code: CodeType) -> set[str]:
    """The names that code reads, with the code inside it."""
    return set(code.co_names).union(*(_read(each) for each in code.co_consts if isinstance(each, CodeType)))


def _refill(value: Any, copy: Any) -> None:
    """Gives a container the contents of its copy."""
    if isinstance(value, list):
        value[:] = copy
    elif isinstance(value, dict | set) and value is not copy:
        value.clear()
        value.update(copy)
