"""Options that take a class: which classes fill them, and which options these classes have."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import Parameter, isabstract, signature
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch


class Slot(NamedTuple):
    """An option that takes a class, which has options of its own.

    Attributes:
        base: what the class is derived from.
        filled_in: how many of the first arguments of the class a program fills in.
        listed: whether the option takes a list of classes.
    """

    base: type
    filled_in: int = 0
    listed: bool = False

    def known(self, refused: bool = False) -> dict[str, type]:
        """The classes of this project and of its libraries that fill the slot, by name.

        Args:
            refused: whether those are among them that training refuses, which says why.
        """
        found: dict[str, type] = {}
        below = [self.base]
        while below:
            each = below.pop()
            below += type.__subclasses__(each)
            named = not each.__name__.startswith("_") and not isabstract(each) and each is not self.base
            named = named and (refused or not _takes_closure(each))
            if named and each.__module__.split(".")[0] in ("pyro_vae", "torch"):
                found[each.__name__] = each
        return dict(sorted(found.items()))


def slot_of(hint: Any) -> Slot | None:
    """What kind of class an option of this type takes; None for plain values."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType, Annotated):
        return next((slot for each in inner if (slot := slot_of(each))), None)
    if origin is Callable:
        taken, returned = inner or ([], Any)
        slot = slot_of(get_origin(returned) or returned)
        return slot and slot._replace(filled_in=len(taken) if isinstance(taken, list) else 0)
    if isinstance(origin, type) and issubclass(origin, Sequence) and inner:
        slot = slot_of(inner[0])
        return slot and slot._replace(listed=True)
    plain = not isinstance(hint, type) or not _is_ours(hint) or hint in (torch.Tensor, torch.device, torch.dtype)
    return None if plain else Slot(hint)


def options_of(called: Callable[..., Any], filled_in: int = 0) -> dict[str, tuple[Any, Any]] | None:
    """The options of a class or a function, each with its type and its default; None where it takes any."""
    try:
        parameters = list(signature(called).parameters.values())[filled_in:]
    except (TypeError, ValueError):
        return None
    if any(each.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL) for each in parameters):
        return None
    hints: dict[str, Any] = {}
    with suppress(NameError, TypeError, AttributeError):  # an annotation that has no meaning at run time is none
        hints = get_type_hints(called.__init__ if isinstance(called, type) else called)  # type: ignore[misc]
    return {each.name: (hints.get(each.name), each.default) for each in parameters}


def _takes_closure(kind: type) -> bool:
    """Whether this is an optimizer that evaluates the loss itself, which training refuses."""
    closure = signature(kind.step).parameters.get("closure") if issubclass(kind, torch.optim.Optimizer) else None
    return closure is not None and closure.default is Parameter.empty


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] in ("pyro_vae", "torch", "pyro")
