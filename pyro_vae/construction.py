"""Descriptions become objects: the reverse of `pyro_vae.description`, by the types of the arguments that they are given to.

A description is plain data, as a run's ``config.yaml`` has it. A value becomes an object only where the type of the argument
asks for one, and only of a class or function that fits that type and that `Trust.find` finds:

==================================== ====================================================================
type of the argument                 what a description of it may name
==================================== ====================================================================
a class C                            a subclass of C: an object of it is made
``Callable[[...], C]``               a subclass of C, or a trusted function that is annotated to return one
``type[C]``                          a subclass of C: the class itself
``Callable[[...], Any or a number]`` a function of ``torch.nn.init``, or a trusted one
without annotation                   what fits the argument's default: a part, or a class of parts
any other                            nothing: a ``class_path`` in it is an error
==================================== ====================================================================
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from functools import partial
from inspect import Parameter, isabstract, signature
from math import isfinite
from pathlib import Path
from types import FunctionType, NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from pyro_vae.description import Described, called_by
from pyro_vae.kinds import LARGEST, shortened
from pyro_vae.trust import Named, Trust, UntrustedError

_FILLING = "torch.nn.init"
"""The module of the functions that fill a tensor, which are named where such a function is asked for."""
_TRANSFORMS = "torchvision.transforms"
"""The package of the classes whose objects change an item of a data set."""
_NONE = object()
"""Stands for a default that is not there."""


def make(given: Any, hint: Any, where: str, trust: Trust, default: Any = _NONE) -> Any:
    """The value of an argument, from its description.

    Args:
        given: the description, plain data.
        hint: the type of the argument; ``Parameter.empty`` where it has no annotation.
        where: the argument, for messages, such as ``"guide.network"``.
        trust: the modules that may be named.
        default: the argument's default, if it has one.

    Raises:
        UntrustedError: the description names a class or a function that it must not name. Nothing was imported or called.
        ValueError: the description does not fit the type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    kind = origin or hint
    made: Any = None
    if given is None and (default is None or hint is NoneType):
        pass
    elif origin is Annotated:
        made = make(given, inner[0], where, trust, default)
    elif origin in (Union, types.UnionType):
        made = _one_of(given, inner, where, trust)
    elif origin is Literal:
        made = _plain(given, given in inner, f"one of {', '.join(map(str, inner))}", where)
    elif kind is Callable:
        taken, returned = inner or ([], Any)
        made = _factory(given, taken if isinstance(taken, list) else [], returned, where, trust)
    elif kind is type:
        made = _class(given, inner[0] if inner else object, where, trust)
    elif isinstance(kind, type) and kind not in (Any, object, Parameter.empty):
        made = _of_class(given, kind, inner, where, trust)
    else:
        made = _untyped(given, where, trust, default)
    return made


def options(called: Callable[..., Any], given: Any, skip: int, where: str, trust: Trust) -> dict[str, Any]:
    """The arguments of a class or a function, from the description of its options.

    Args:
        called: the class or function.
        given: its options by name.
        skip: how many of its first arguments a program fills in. They are no options.
        where: the place of the description, for messages.
        trust: the modules that may be named.

    Raises:
        UntrustedError: an option names what it must not name.
        ValueError: an option is unknown or missing, or does not fit its type.
    """
    name = called.__name__
    given = _plain(given, isinstance(given, Mapping), f"the options of {name} by name", where)
    parameters = list(signature(called).parameters.values())
    named = {each.name: each for each in parameters[skip:] if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    open_ended = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
    unknown = [option for option in given if option not in named]
    filled_in = {each.name for each in parameters[:skip]}
    if unknown and (not open_ended or filled_in & set(unknown)):
        raise ValueError(f"{where or name}: {name} has no option {unknown[0]!r}; it has {', '.join(named) or 'none'}")
    if missing := [option for option, each in named.items() if each.default is Parameter.empty and option not in given]:
        raise ValueError(f"{where or name}: {name} needs the option {missing[0]!r}")
    hints = _hints(called)
    return {
        option: make(
            value,
            hints.get(option, Parameter.empty),
            f"{where}.{option}" if where else option,
            trust,
            named[option].default if option in named else _NONE,
        )
        for option, value in given.items()
    }


def _hints(called: Callable[..., Any]) -> dict[str, Any]:
    """The types of all arguments; those of a class also of the classes that it hands further arguments on to."""
    functions = (
        [vars(each)["__init__"] for each in reversed(called.__mro__) if "__init__" in vars(each)]
        if isinstance(called, type)
        else [called]
    )
    hints: dict[str, Any] = {}
    for function in functions:
        try:
            hints |= get_type_hints(function)
        except (NameError, TypeError, AttributeError):  # an annotation that has no meaning at run time is none
            hints |= {
                name: hint for name, hint in getattr(function, "__annotations__", {}).items() if isinstance(hint, type)
            }
    return hints


def _one_of(given: Any, kinds: tuple[Any, ...], where: str, trust: Trust) -> Any:
    """A value of the first type that it fits."""
    if given is None and NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    errors: list[ValueError] = []
    for kind in kinds:
        try:
            return make(given, kind, where, trust)
        except ValueError as error:
            errors.append(error)
    raise next((error for error in errors if isinstance(error, UntrustedError)), errors[0])


def _of_class(given: Any, kind: type, inner: tuple[Any, ...], where: str, trust: Trust) -> Any:
    """A value of a class: a number, text, a collection, or an object that is described."""
    if issubclass(kind, Mapping):
        given = _plain(given, isinstance(given, Mapping), "values by name", where)
        hint = inner[1] if len(inner) == 2 else Any
        return {key: make(value, hint, f"{where}.{key}", trust) for key, value in given.items()}
    if issubclass(kind, list | tuple | set | frozenset) or kind.__module__ == "collections.abc":
        return _collection(given, kind, inner, where, trust)
    if kind in (bool, int, float, str) or issubclass(kind, Path | Enum):
        return _simple(given, kind, where)
    if isinstance(given, Mapping) and "class_path" not in given and trust.defines(kind):
        return kind(**options(kind, given, 0, where, trust))
    called, chosen = _named(given, kind, where, trust)
    return called(**options(called, chosen, 0, where, trust))


def _collection(given: Any, kind: type, inner: tuple[Any, ...], where: str, trust: Trust) -> Any:
    given = _plain(given, isinstance(given, list | tuple), "a list", where)
    hints = list(inner) if kind is tuple and inner and ... not in inner else [inner[0] if inner else Any] * len(given)
    if len(hints) != len(given):
        raise ValueError(f"{where}: expected {len(hints)} values, got {len(given)}")
    made = [make(value, hint, f"{where}[{i}]", trust) for i, (value, hint) in enumerate(zip(given, hints, strict=True))]
    return kind(made) if kind in (tuple, set, frozenset) else made


_TEXTS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _simple(given: Any, kind: type, where: str) -> Any:
    """A number, text, a path, or a member of an enumeration."""
    if issubclass(kind, Path):
        return kind(_plain(given, isinstance(given, str), "a path", where))
    if issubclass(kind, Enum):
        names = kind.__members__
        return kind[_plain(given, isinstance(given, str) and given in names, f"one of {', '.join(names)}", where)]
    if kind is float and isinstance(given, str):  # YAML 1.1 takes 1e-3 for text
        with suppress(ValueError):
            given = float(given)
    if kind is float and isinstance(given, float) and not isfinite(given):
        raise ValueError(f"{where}: expected a finite number, got {given}")
    if kind is int and isinstance(given, int) and abs(given) > LARGEST[int]:
        raise ValueError(f"{where}: expected a whole number up to 2^53, got {shortened(repr(given), 80)}")
    fits = isinstance(given, int | float if kind is float else kind) and (kind is bool or not isinstance(given, bool))
    return _plain(given, fits, _TEXTS[kind], where)


def _class(given: Any, base: Any, where: str, trust: Trust) -> type:
    found, chosen = _named(given, base, where, trust)
    if chosen or not isinstance(found, type):
        raise ValueError(f"{where}: expected the import path of a class, got {shortened(repr(given), 80)}")
    return found


def _factory(given: Any, taken: list[Any], returned: Any, where: str, trust: Trust) -> Callable[..., Any]:
    """A function of these arguments: a class or a function that returns what is asked for, with its options filled in."""
    returned = get_origin(returned) or returned  # of Dataset[Any], the class
    if isinstance(returned, type) and returned not in (Any, object, NoneType, bool, int, float, str, Tensor):
        found, chosen = _named(given, returned, where, trust)
    else:
        found, chosen = _function(given, taken == [Tensor], where, trust)
        if isinstance(found, type):
            made: Callable[..., Any] = found(**options(found, chosen, 0, where, trust))
            return made
    return partial(found, **options(found, chosen, len(taken), where, trust)) if chosen else found


def _named(given: Any, base: Any, where: str, trust: Trust) -> tuple[Named, Any]:
    """The class that a description names, a subclass of the base, or a function that returns one; and its options."""
    expected = f"a {base.__name__}" if isinstance(base, type) else f"{base}"
    path, chosen = _spec(given, expected, where)
    found = _find(path if "." in path else _path_of_name(path, base, trust), expected, where, trust)
    returns = _hints(found).get("return") if isinstance(found, FunctionType) else found
    if not (isinstance(returns, type) and isinstance(base, type) and issubclass(returns, base)):
        raise UntrustedError(f"{where}: {path} is not allowed here: expected {expected}, and it is none")
    if isinstance(found, type) and isabstract(found):
        raise ValueError(f"{where}: {path} is abstract: name a class that is derived from it")
    return found, chosen


def _function(given: Any, fills: bool, where: str, trust: Trust) -> tuple[Named, Any]:
    """The function that a description names, or a class whose objects are called as one; and its options."""
    expected = f"a function of {_FILLING} whose name ends in _" if fills else "a function of a module of your own"
    path, chosen = _spec(given, expected, where)
    found = _find(path, expected, where, trust)
    name = found.__name__
    filling = fills and found.__module__ == _FILLING and name.endswith("_") and not name.startswith("_")
    own = trust.owns(found.__module__) and (isinstance(found, FunctionType) or hasattr(found, "__call__"))  # noqa: B004
    transform = isinstance(found, type) and found.__module__.startswith(f"{_TRANSFORMS}.")
    if not ((filling and isinstance(found, FunctionType)) or transform or own):
        raise UntrustedError(f"{where}: {path} is not allowed here: expected {expected}")
    return found, chosen


def _find(path: str, expected: str, where: str, trust: Trust) -> Named:
    try:
        return trust.find(path)
    except UntrustedError as error:
        raise UntrustedError(f"{where}: {error}. Expected here: {expected}") from error.__cause__
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error.__cause__


def _path_of_name(name: str, base: Any, trust: Trust) -> str:
    """The import path of the only known subclass of that name; the name itself, if there is none."""
    found, below = set(), [base] if isinstance(base, type) else []
    while below:
        each = below.pop()
        below += type.__subclasses__(each)
        if each.__name__ == name and trust.defines(each):
            found.add(f"{each.__module__}.{each.__qualname__}")
    return found.pop() if len(found) == 1 else name


def _spec(given: Any, expected: str, where: str) -> tuple[str, Any]:
    """The import path and the options in a description."""
    if isinstance(given, str):
        return given, {}
    fits = isinstance(given, Mapping) and isinstance(given.get("class_path"), str)
    given = _plain(given, fits, f"{expected}, by class_path and init_args", where)
    if unknown := given.keys() - {"class_path", "init_args", "dict_kwargs"}:
        raise UntrustedError(f"{where}: a description has class_path and init_args, and no {min(map(str, unknown))}")
    chosen = given.get("init_args") or {}
    more = given.get("dict_kwargs") or {}
    return given["class_path"], {**chosen, **more} if isinstance(chosen, Mapping) and isinstance(
        more, Mapping
    ) else chosen


def _untyped(given: Any, where: str, trust: Trust, default: Any) -> Any:
    """A value of any type: plain data, or a part where the default is one or makes one."""
    cls = called_by(default)
    part = cls if isinstance(cls, type) else type(default)
    if issubclass(part, Described) and isinstance(given, str | Mapping) and (cls or "class_path" in given):
        base = next(each for each in reversed(part.__mro__) if issubclass(each, Described) and each is not Described)
        found, chosen = _named(given, base, where, trust)
        skip = len(part.filled_in & set(signature(found).parameters))
        chosen = options(found, chosen, skip if cls else 0, where, trust)
        return partial(found, **chosen) if cls else found(**chosen)
    _without_classes(given, where)
    return given


def _without_classes(given: Any, where: str) -> None:
    """Checks that no class is named in plain data.

    Raises:
        UntrustedError: one is.
    """
    if isinstance(given, Mapping):
        if "class_path" in given:
            raise UntrustedError(
                f"{where}: {shortened(repr(given['class_path']), 80)} is not allowed here: no class can be named here"
            )
        for key, each in given.items():
            _without_classes(each, f"{where}.{key}")
    elif isinstance(given, list | tuple):
        for number, each in enumerate(given):
            _without_classes(each, f"{where}[{number}]")


def _plain(given: Any, fits: bool, expected: str, where: str) -> Any:
    if not fits:
        raise ValueError(
            f"{where}: expected {expected}, got {'null, which is nothing' if given is None else shortened(repr(given), 80)}"
        )
    return given
