"""Arguments of a wrong kind are told where they are given: which argument, what was expected, what came, what to do.

Types of arguments are read from their annotations. Only kinds are checked, and only of plain annotations (a number, a class,
one of several): sizes, ranges and whatever an annotation cannot say is the business of what is called.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
LARGEST = {int: 2**53, float: torch.finfo(torch.float32).max}
"""The largest numbers that are taken: whole numbers that every float64 holds, and what float32 holds."""
_SEQUENCES = (list, tuple, Sequence)
_NAMED = {
    "Splits": "Splits (training, validation and test data)", "Programs": "a Pyro model and guide, such as a VAE",
    "Columns": "Columns", "Dims": "Dims", "PathLike": "a path", "TrainingPlan": "a TrainingPlan",
}  # fmt: skip
"""What is expected, by the name of its class."""
_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a finite number", bool: "True or False", str: "text", Path: "a path", Tensor: "a tensor",
    np.ndarray: "a NumPy array", types.NoneType: "None",
}  # fmt: skip


class WrongKindError(TypeError, ValueError):
    """An argument is of a wrong kind."""


def takes(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function check the kinds of its arguments at each call.

    Raises (when called):
        WrongKindError: an argument is of a wrong kind; the message names it.
    """
    signature = inspect.signature(function)
    open_ended = [
        name for name, each in signature.parameters.items() if each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    owner = function.__qualname__.removesuffix(".__init__")
    read: list[dict[str, Any]] = []

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(isinstance(each, np.bool_ | np.integer | np.floating) for each in (*args, *kwargs.values())):
            positional, named = map(of_python, args), {name: of_python(each) for name, each in kwargs.items()}
            return checking(*positional, **named)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            made = function.__qualname__.endswith(".__init__") and args
            check_names(kwargs, signature, type(args[0]).__name__ if made else owner)
            return function(*args, **kwargs)  # which tells what is missing
        if not read:  # annotations may name what is defined later in its module
            hints = get_type_hints(function)
            read.append({name: hints[name] for name in hints if name not in open_ended})
        require(given, read[0], owner)
        return function(*args, **kwargs)

    return checking


def check_names(given: Iterable[str], signature: inspect.Signature, owner: str) -> None:
    """Checks the names of arguments.

    Args:
        given: the names.
        signature: what is called with them.
        owner: what is called, for messages.

    Raises:
        TypeError: there is no such argument; the message has the one that may be meant, or all.
    """
    parameters = signature.parameters.values()
    known = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    known = [name for name in known if name != "self"]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    for name in given:
        if name not in known:
            raise TypeError(f"{owner}: there is no argument {name!r}{meant(name, known)}")


def meant(name: str, known: Sequence[str]) -> str:
    """Which of the known names may be meant, or all of them, as the end of a message."""
    same = [each for each in known if each.lower() == name.lower()]
    near = same or [each for each in known if name and each.startswith(name)] or get_close_matches(name, known, n=2)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; there are {', '.join(known)}"


def names_checked(cls: type[T]) -> type[T]:
    """Makes the constructor of a dataclass say which field may be meant by a name that is none."""
    init: Any = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        check_names(kwargs, signature, cls.__name__)
        init(self, *args, **kwargs)

    setattr(cls, "__init__", checking)  # noqa: B010  (mypy knows no other constructor of a class)
    return cls


def of_python(value: Any) -> Any:
    """A number of NumPy as one of Python, which PyTorch's functions take; other values as they are."""
    return value.item() if isinstance(value, np.bool_ | np.integer | np.floating) else value


def settle(fields: Any) -> None:
    """Makes numbers of NumPy in a frozen dataclass Python's own."""
    for name, value in vars(fields).items():
        object.__setattr__(fields, name, of_python(value))


def require(given: Mapping[str, Any], hints: Mapping[str, Any], owner: str) -> None:
    """Checks the kinds of several arguments.

    Args:
        given: the values by name.
        hints: the types by name. Names without one are not checked.
        owner: what is called, for messages.

    Raises:
        WrongKindError: a value is of a wrong kind.
    """
    for name, value in given.items():
        hint = hints.get(name)
        if hint is not None and not fits(value, hint):
            raise wrong_kind(f"{owner}: {name}", value, hint)


def wrong_kind(where: str, value: Any, hint: Any) -> WrongKindError:
    """The error that tells of a value that is not of the kind that an annotation names.

    Args:
        where: the argument, for the message.
        value: what came.
        hint: the annotation.
    """
    return WrongKindError(f"{where}: expected {words(hint)}, got {shown(value)}{_advice(value, hint)}")


def fits(value: Any, hint: Any) -> bool:  # noqa: PLR0911  (a line for each kind)
    """Whether a value is of the kind that an annotation names. What an annotation leaves open fits."""
    origin, inner = get_origin(hint), get_args(hint)
    kind = origin or hint
    if kind in (Any, object):
        return True
    if kind in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if kind is Annotated:
        return fits(value, inner[0])
    if kind is Literal:
        return any(value is each or (type(value) is type(each) and value == each) for each in inner)
    if kind is type:
        return isinstance(value, type) and (not inner or not isinstance(inner[0], type) or issubclass(value, inner[0]))
    if kind is Callable:
        made = (types.NoneType if inner[1] is None else inner[1]) if inner else Any
        if isinstance(value, type) and isinstance(made, type) and made not in (Any, object):
            return issubclass(value, made)
        return callable(value) and (made is Any or not isinstance(value, nn.Module))
    if hint is None or kind is types.NoneType:
        return value is None
    if hasattr(hint, "array_type"):  # a shape annotation
        return isinstance(value, hint.array_type)
    return fits_class(value, kind, inner) if isinstance(kind, type) else True


def fits_class(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether a value is of a class, as far as Python's numbers, paths and sequences are concerned."""
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool | np.bool_)
        return isinstance(value, torch.SymInt | torch.SymFloat) or bool(
            number and abs(value) <= LARGEST[kind]
        )  # no NaN is
    if kind in (Path, os.PathLike):
        return isinstance(value, str | os.PathLike)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and (len(inner) < 2 or all(fits(each, inner[1]) for each in value.values()))
    if kind in _SEQUENCES:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        hint = inner[0] if inner and (kind is not tuple or inner[-1] is ...) else Any
        return listed and (hint is Any or all(fits(each, hint) for each in value))
    # A class has the methods of its objects, and is none of them.
    return not isinstance(value, type) and isinstance(value, kind)


def words(hint: Any) -> str:  # noqa: PLR0911
    """An annotation in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(each) for each in inner))
    if origin is Annotated:
        return words(inner[0])
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is type and inner and isinstance(inner[0], type):
        return f"a class derived from {inner[0].__name__}"
    if origin is Callable:
        made = inner[1] if inner else Any
        named = isinstance(made, type) and made not in (Any, object, types.NoneType)
        return f"a class or a function that makes {_with_article(made.__name__)}" if named else "a function"
    if hasattr(hint, "array_type"):
        return words(hint.array_type)
    kind = origin or hint
    if kind in _SEQUENCES:
        plural = {int: "whole numbers", float: "numbers", str: "texts"}
        return f"a list of {plural[inner[0]]}" if inner and inner[0] in plural else "a list"
    name: str = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind) or _NAMED.get(name) or _with_article(name)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value, briefly."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, Tensor | np.ndarray):
        what = "a tensor" if isinstance(value, Tensor) else "a NumPy array"
        return f"{what} of shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return shortened(repr(value))
    name = type(value).__name__
    return f"an object of {type(value).__module__.partition('.')[0]}'s {name}" if _is_foreign(value) else f"a {name}"


def shortened(text: str, most: int = 60) -> str:
    """A text, cut where it has this many letters or more."""
    return text if len(text) < most else f"{text[: most - 3]}..."


def _is_foreign(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] not in ("builtins", "pyro_vae")


def _advice(value: Any, hint: Any) -> str:  # noqa: PLR0911
    """What to do, where that is known."""
    asked = [getattr(each, "array_type", each) for each in (hint, *get_args(hint))]
    names = {getattr(each, "__name__", "") for each in asked}
    if isinstance(value, int | float) and not isinstance(value, bool) and LARGEST[float] < abs(value) < inf:
        return ": that is too large"
    if isinstance(value, type) and names & {"Programs", "Model", "Estimator", "Prior", "Guide", "Likelihood", "Data"}:
        return f": make an object of it, {value.__name__}(...)"
    if "Splits" in names:
        if type(value).__name__ in ("Split", "Tensor", "ndarray", "list", "tuple"):
            made = "data" if type(value).__name__ == "Split" else "Split(x)"
            return f": divide it into training, validation and test data by make_splits({made}, valid=..., test=...)"
        if hasattr(value, "load"):
            return ": read them first, by its load()"
        return (
            ": data are held in memory as one tensor (N, ...), and batches are made of it; divide that into training, "
            "validation and test data by pyro_vae.data.make_splits(Split(x), valid=..., test=...)"
        )
    if "TrainingPlan" in names and isinstance(value, Mapping):
        return ": give its fields by name, fit(programs, data, **plan), or make a TrainingPlan(**plan)"
    if "Split" in names and isinstance(value, Tensor | np.ndarray) and Tensor not in asked:
        return ": Split(x) makes one of it"
    if get_origin(hint) is Callable and isinstance(
        value, get_args(hint)[1] if isinstance(get_args(hint)[1], type) else ()
    ):
        return ": give what makes it, such as its class or functools.partial of that"
    if Tensor in asked:
        if isinstance(value, np.ndarray):
            return ": torch.from_numpy(x).float() makes one of it"
        if hasattr(value, "to_numpy"):
            return ": torch.from_numpy(x.to_numpy()).float() makes one of it"
        if isinstance(value, list | tuple | int | float):
            return ": torch.tensor(x) makes one of it"
    return ""
