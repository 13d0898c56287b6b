"""What Python objects hold at one moment, so that a later change is seen.

A compiled graph keeps as constants whatever was no input when it was traced: a temperature that is a plain attribute, the mode
of a module, a number in a configuration, a global variable that a method reads. A `Snapshot` is taken before tracing, and says
later whether any of these is another one.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cache, partial
from operator import call, itemgetter
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

MISSING = object()
"""The value of a name that is not there."""
_TENSORS = ("_parameters", "_buffers")
"""Attributes of a module that hold its tensors by name. Their values are no concern of a snapshot."""
_CONTAINERS = frozenset(vars(nn.Module())) - {"training", *_TENSORS}
"""Attributes that every module has. They stay the same objects, and what is in them may change, such as hooks."""
_MOST = 1000
"""The largest container that is looked into. Larger ones hold data."""
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class Written(NamedTuple):
    """A place that changed: its name, the value that it had, and the value that it has. Either may be `MISSING`."""

    where: str
    before: Any
    now: Any


class _Space(NamedTuple):
    """A container, or the attributes of an object, as they are, and what they held.

    Attributes:
        where: the name of the place.
        live: the container itself.
        values: a copy of it.
        kept: what has to be equal to its contents. Of a dict, some names may be left out.
    """

    where: str
    live: Any
    values: Any
    kept: Any


class Snapshot:
    """What objects held when this was made, beside the values of tensors.

    It follows the attributes of modules and of their submodules, the containers and the user's own objects in them, and the
    class attributes, global variables and closures that the methods of a user's own classes read.

    Args:
        objects: the objects by name. The names of places begin with it, unless it is empty.
        free: names of attributes of these objects that may change.
    """

    def __init__(self, objects: Mapping[str, Any], free: Set[str] = frozenset()) -> None:
        self._spaces: list[_Space] = []
        self._reads: list[tuple[str, Callable[[], dict[str, Any]], dict[str, Any]]] = []
        self._tensors: list[dict[str, Any]] = []
        self._seen: dict[int, Any] = {}  # it keeps them alive, so that an id stays that of one object
        for name, each in objects.items():
            self._object(each, name, free)
        self._prepare()

    def changed(self) -> str | None:
        """Returns the name of a place that is another one now, or None. It takes microseconds."""
        try:
            same = (
                self._kept == list(map(call, self._getters, self._dicts))
                and self._kept_lists == self._lists
                and not any(self._empty)
                and sum(map(len, self._counted)) == self._count
            )
        except Exception:  # a name is gone, or what stands there has its own rule of comparison
            same = False
        if not same:
            return next((each.where for each in self._written()), "the number of parameters and buffers")
        return next((each.where for each in self._read_anew()), None) if self._reads else None

    def put_back(self) -> list[Written]:
        """Gives objects and containers what they held, and returns what had changed."""
        found = list(self._written())
        for _, live, values, kept in self._spaces:
            if isinstance(live, dict):
                for name in kept.keys() | (live.keys() - values.keys()):
                    if name not in values:
                        del live[name]
                    elif live.get(name, MISSING) is not values[name]:
                        live[name] = values[name]
            elif not _equal(kept, live):
                live.clear()
                (live.update if isinstance(live, set) else live.extend)(values)
        return [*found, *self._read_anew()]

    def leave_free(self, where: str) -> None:
        """Lets a place change from now on."""
        for space in self._spaces:
            for name in [*space.kept] if isinstance(space.kept, dict) else ():
                if _join(space.where, name) == where:
                    del space.kept[name]
        self._prepare()

    def _prepare(self) -> None:
        """Lays out what `changed` compares, for speed: all in a few expressions, in which an object is equal to itself."""
        watched = [space for space in self._spaces if isinstance(space.kept, dict) and space.kept]
        self._getters = [itemgetter(*space.kept) for space in watched]
        self._dicts = [space.live for space in watched]
        self._kept = [get(space.kept) for get, space in zip(self._getters, watched, strict=True)]
        self._empty = [each for each in (*self._tensors, *(space.live for space in self._spaces)) if not each]
        lists = [space for space in self._spaces if not isinstance(space.kept, dict) and space.values]
        self._lists, self._kept_lists = [space.live for space in lists], [space.kept for space in lists]
        self._counted = [*self._dicts, *filter(None, self._tensors)]
        self._count = sum(map(len, self._counted))

    def _written(self) -> Iterator[Written]:
        for where, live, values, kept in self._spaces:
            if isinstance(kept, dict):
                for name in [*kept, *(live.keys() - values.keys())]:
                    if not _equal(kept.get(name, MISSING), now := live.get(name, MISSING)):
                        yield Written(_join(where, name), values.get(name, MISSING), now)
            elif not _equal(kept, live):
                yield Written(where, values, live.copy())

    def _object(self, value: Any, where: str, free: Set[str] = frozenset()) -> None:
        """Follows the attributes of an object, and its class."""
        self._class(type(value))
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._tensors += [vars(value)[name] for name in _TENSORS]
            for name in _CONTAINERS & vars(value).keys():
                self._form(vars(value)[name], where, name)
            free = free | _CONTAINERS | {*_TENSORS, "made_with"}  # how it was made is a note for files
        self._space(vars(value), where, free)

    def _space(self, live: Any, where: str, free: Set[str] = frozenset()) -> None:
        """Follows a container, or the attributes of an object."""
        if id(live) in self._seen or len(live) > _MOST:
            return
        self._seen[id(live)] = live
        if isinstance(live, dict):
            kept: Any = {name: self._form(each, where, name) for name, each in live.items() if name not in free}
        else:
            kept = live.copy() if isinstance(live, set) else [self._form(each, where, i) for i, each in enumerate(live)]
        self._spaces.append(_Space(where, live, live.copy(), kept))

    def _form(self, value: Any, where: str, name: Any) -> Any:
        """What is equal to a value as long as that is the same, whatever rule of comparison it has. Follows what is inside."""
        where = where if name == "_modules" else _join(where, name)
        if isinstance(value, Tensor):
            return _Same(value)
        if isinstance(value, np.ndarray):
            return _SameNumbers(value)
        if type(value) is tuple:
            return tuple(self._form(each, where, i) for i, each in enumerate(value))
        if isinstance(value, dict | list | set):
            self._space(value, where)
        elif isinstance(value, FunctionType | MethodType | staticmethod | classmethod | property):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, nn.Module | SimpleNamespace) or (_is_own(type(value)) and hasattr(value, "__dict__")):
            self._object(value, where)
        return value

    def _class(self, cls: type) -> None:
        """Follows the class attributes of a user's own classes, and what their methods read."""
        for each in cls.__mro__:
            if id(each) not in self._seen and _is_own(each):
                self._seen[id(each)] = each
                self._read(each.__name__, partial(dict, vars(each)))

    def _function(self, function: Any) -> None:
        """Follows the global variables and the closure that a user's own function reads."""
        function = function.fget if isinstance(function, property) else getattr(function, "__func__", function)
        if id(function) in self._seen or not isinstance(function, FunctionType) or not _is_own(function):
            return
        self._seen[id(function)] = function
        names, spaces = _names_in(function.__code__), [function.__globals__]
        spaces += [vars(m) for name in names if _is_own(m := spaces[0].get(name)) and isinstance(m, ModuleType)]
        for space in spaces:
            self._read(space["__name__"], partial(_some, space, sorted(names & space.keys())))
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self._read(function.__qualname__, lambda: {name: _content(cell) for name, cell in cells.items()})

    def _read(self, where: str, read: Callable[[], dict[str, Any]]) -> None:
        """Follows what a function returns, by name."""
        self._reads.append((where, read, {name: self._form(value, where, name) for name, value in read().items()}))

    def _read_anew(self) -> Iterator[Written]:
        for where, read, kept in self._reads:
            if not _equal(kept, now := read()):
                for name in {**kept, **now}:
                    if not _equal(kept.get(name, MISSING), now.get(name, MISSING)):
                        yield Written(_join(where, name), kept.get(name, MISSING), now.get(name, MISSING))


class _Same:
    """Is equal to one object alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        """Whether it is that object."""
        return other is self.value

    __hash__ = None  # type: ignore[assignment]


class _SameNumbers(_Same):
    """Is equal to one array alone, as long as nobody writes into it."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.kept = value.copy()

    def __eq__(self, other: object) -> bool:
        """Whether it is that array, with the same numbers."""
        return super().__eq__(other) and bool(np.array_equal(self.kept, self.value))

    __hash__ = None


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are equal. Those that cannot be compared, such as tables, are not, unless they are one object."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False


def _some(space: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: space.get(name, MISSING) for name in names}


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not filled yet
        return MISSING


def _is_own(value: Any) -> bool:
    """Whether a class, function or module is a user's own. Those of installed packages and of this one do not change."""
    name = getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] not in ("builtins", "pyro_vae") and not _is_installed(name)


@cache
def _is_installed(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    return module != "__main__" and (file is None or file.startswith(_INSTALLED))


def _names_in(code: CodeType) -> set[str]:
    """The names that code reads, with the code inside it."""
    return set(code.co_names).union(*(_names_in(each) for each in code.co_consts if isinstance(each, CodeType)))
