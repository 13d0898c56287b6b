"""Descriptions of objects as plain data: the path of the class and the options that the object was made with.

`pyro_vae.save` writes such descriptions into ``config.yaml``, and `pyro_vae.load` builds the same objects from them.
The form is that of the command line: ``{"class_path": "pyro_vae.guides.DiagonalNormal", "init_args": {...}}``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from types import FunctionType
from typing import Any, get_type_hints

import numpy as np
import torch

from pyro_vae.kinds import WrongKindError, check_names, require


@dataclass(frozen=True)
class Undescribed:
    """Stands in a description for a value that has no import path, such as a lambda or a class inside a function.

    Attributes:
        value: the value as Python prints it.
    """

    value: str


class Described:
    """A base class whose objects remember the options that they were made with.

    Attributes:
        made_with: the arguments of the constructor by name, as plain data. Those that a program fills in (sizes, shapes,
            and modules that are described by themselves) are left out.
    """

    made_with: dict[str, Any]
    filled_in: frozenset[str] = frozenset({"dims", "in_shape", "out_shape"})
    """Names of the arguments that a program fills in, and that are therefore no options."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the constructor of a new subclass remember its arguments."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _remembering(cls.__init__)  # type: ignore[method-assign]

    def described(self) -> dict[str, Any]:
        """Returns the class and the options of this object."""
        return {"class_path": path_of(type(self)), "init_args": self.made_with}


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    """Returns the constructor, which now first records its arguments, unless a subclass has recorded its own.

    In classes of this project it also checks the kinds of the arguments.
    """
    parameters = signature(init)
    hints: dict[str, Any] = {}

    @functools.wraps(init)
    def remember(self: Described, *args: Any, **kwargs: Any) -> None:
        outermost = "made_with" not in vars(self)
        if outermost:
            try:
                given = parameters.bind(self, *args, **kwargs).arguments
            except TypeError:  # the call is wrong, and the constructor itself tells how
                check_names(kwargs, parameters, type(self).__name__)
                given = {}
            if init.__module__.partition(".")[0] == "pyro_vae":
                hints.update(hints or get_type_hints(init))
                require(given, hints, type(self).__name__)
            vars(self)["made_with"] = _options(type(self), init, given)
        vars(self).setdefault(_BEGUN, set()).add(remember)
        try:
            init(self, *args, **kwargs)
        except AttributeError as error:
            if outermost:
                _check_begun(self, error)
            raise
        if outermost:
            _check_begun(self)
            del vars(self)[_BEGUN]

    return remember


_BEGUN = "_begun"
"""The attribute that holds, while an object is made, which constructors were called."""


def _check_begun(made: Described, error: Exception | None = None) -> None:
    """Raises WrongKindError if a class did not call the constructor of the base class that it is derived from."""
    begun, name = vars(made)[_BEGUN], type(made).__name__
    for base in type(made).__mro__[1:]:
        init = vars(base).get("__init__")
        if issubclass(base, Described) and base is not Described and init and init not in begun:
            needed = ", ".join(list(signature(init).parameters)[1:])
            raise WrongKindError(
                f"{name}: its __init__ must call that of {base.__name__}: begin it with super().__init__({needed})"
            ) from error


def _options(cls: type[Described], init: Callable[..., None], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options of a constructor as plain data: those that are given, and the defaults of the others.

    The defaults are included, so that an object that is built from its description later is the same.
    """
    options: dict[str, Any] = {}
    for name, parameter in list(signature(init).parameters.items())[1:]:  # without self
        if parameter.kind is Parameter.VAR_KEYWORD:
            options |= {key: describe(each) for key, each in given.get(name, {}).items()}
            continue
        value = given.get(name, parameter.default)
        if name in cls.filled_in or value is Parameter.empty or isinstance(value, torch.nn.Module):
            continue
        described = describe(value)
        if name in given or not undescribed(described):
            options[name] = described
    return options


def describe(value: Any) -> Any:
    """Returns a value as plain data.

    Classes and functions become import paths, a class of `Described` objects together with its default options. A
    value without an import path becomes `Undescribed`.
    """
    for kinds, plain in _PLAIN:
        if isinstance(value, kinds):
            return plain(value)
    if isinstance(value, partial) and (called := called_by(value)):
        return _made(called, value.keywords)
    if isinstance(value, type | FunctionType) and _is_importable(value):
        return _made(value, {}) if isinstance(value, type) and issubclass(value, Described) else path_of(value)
    return Undescribed(repr(value))


_PLAIN: list[tuple[Any, Callable[[Any], Any]]] = [
    (np.generic, lambda value: value.item()),  # first, since NumPy's numbers are Python's too
    ((type(None), bool, int, float, str), lambda value: value),
    (Path, str),
    ((list, tuple), lambda value: [describe(each) for each in value]),
    (Mapping, lambda value: {str(key): describe(each) for key, each in value.items()}),
    (Described, lambda value: value.described()),
]


def _made(made: type | FunctionType, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of the object that a class or a function makes from these arguments."""
    if isinstance(made, type) and issubclass(made, Described):
        return {"class_path": path_of(made), "init_args": _options(made, made.__init__, given)}
    return {"class_path": path_of(made), "init_args": describe(given)}


def called_by(factory: Any) -> type | FunctionType | None:
    """The class or function behind a factory: itself, or what a partial calls whose other arguments are all named.

    jsonargparse makes objects by functions of its own, which are given the class: then it is the class. It is None where there
    is no such class or function, or where it has no import path.
    """
    if not isinstance(factory, partial):
        called = [factory]
    elif getattr(factory.func, "__module__", "").partition(".")[0] == "jsonargparse":
        called = [each for each in factory.args if isinstance(each, type)]
    else:
        called = [] if factory.args else [factory.func]
    found = called[0] if len(called) == 1 else None
    return found if isinstance(found, type | FunctionType) and _is_importable(found) else None


def undescribed(description: Any, where: str = "") -> list[str]:
    """Returns the places in a description without plain data, such as ``"guide.network: <function <lambda> ...>"``."""
    if isinstance(description, Undescribed):
        return [f"{where}: {description.value}"]
    if isinstance(description, Mapping):
        inner = ((key, each) for key, each in description.items())
    elif isinstance(description, list):
        inner = ((str(number), each) for number, each in enumerate(description))
    else:
        return []
    prefix = f"{where}." if where else ""
    return [found for key, each in inner for found in undescribed(each, where if key == "init_args" else prefix + key)]


def path_of(thing: type | FunctionType) -> str:
    """Returns the shortest import path of a class or a function.

    An example is ``pyro_vae.priors.Normal``, a class that a module below ``pyro_vae.priors`` defines.
    """
    packages = thing.__module__.split(".")
    for length in range(1, len(packages)):
        module = sys.modules.get(".".join(packages[:length]))
        if getattr(module, thing.__qualname__, None) is thing:
            return f"{'.'.join(packages[:length])}.{thing.__qualname__}"
    return f"{thing.__module__}.{thing.__qualname__}"


def _is_importable(thing: type | FunctionType) -> bool:
    found: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing
