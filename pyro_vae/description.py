"""How an object was made, as plain data: the path of its class and the options that it was given.

`pyro_vae.save` writes such descriptions into ``config.yaml``, and `pyro_vae.load` builds the same objects from them. The form is
that of the command line: ``{"class_path": "pyro_vae.guides.DiagonalNormal", "init_args": {...}}``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch


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
        options: the arguments of the constructor by name, as plain data. Those that a program fills in (sizes, shapes, and
            modules that are described by themselves) are left out.
    """

    options: dict[str, Any]
    filled_in: frozenset[str] = frozenset({"dims", "in_shape", "out_shape"})
    """Names of the arguments that a program fills in, and that are therefore no options."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the constructor of a new subclass remember its arguments."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _remembering(cls.__init__)  # type: ignore[method-assign]

    def described(self) -> dict[str, Any]:
        """The class and the options of this object."""
        return {"class_path": path_of(type(self)), "init_args": self.options}


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    """The same constructor, which first notes its arguments, unless that of a subclass has noted its own."""
    parameters = signature(init)

    @functools.wraps(init)
    def remember(self: Described, *args: Any, **kwargs: Any) -> None:
        if "options" not in vars(self):
            try:
                given = parameters.bind(self, *args, **kwargs).arguments
            except TypeError:  # a wrong call: the constructor itself tells what is wrong
                given = {}
            own = list(given.items())[1:]  # without self
            vars(self)["options"] = {
                name: describe(value)
                for name, value in own
                if name not in self.filled_in and not isinstance(value, torch.nn.Module)
            }
        init(self, *args, **kwargs)

    return remember


def describe(value: Any) -> Any:
    """A value as plain data. Classes and functions become import paths; what has none becomes `Undescribed`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | torch.Size):
        return [describe(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): describe(each) for key, each in value.items()}
    if isinstance(value, partial) and not value.args:
        return {"class_path": describe(value.func), "init_args": describe(value.keywords)}
    if isinstance(value, Described):
        return value.described()
    if isinstance(value, type | FunctionType) and _is_importable(value):
        return path_of(value)
    return Undescribed(repr(value))


def undescribed(description: Any, where: str = "") -> list[str]:
    """The places in a description that hold no plain data, such as ``"guide.network: <function <lambda> ...>"``."""
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
    """The shortest import path of a class or a function: ``pyro_vae.priors.Normal``, though a module below defines it."""
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
