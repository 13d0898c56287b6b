"""The settings of an optimizer's groups: what a schedule or a user may change between two steps.

A compiled step holds a setting as a constant until it changes. From then on it is an input of the graph: the optimizer is given
a `Setting`, a number that carries a tensor, and whatever it computes with that number is computed with the tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

Name = tuple[int, str, int | None]
"""A setting: the number of its group, its name, and its place if it is one of several numbers, such as β₂ of (β₁, β₂)."""


def settings_of(optimizer: Optimizer) -> dict[Name, Any]:
    """Returns all settings of an optimizer's groups but the learning rates, which are inputs of every graph."""
    found: dict[Name, Any] = {}
    for i, group in enumerate(optimizer.param_groups):
        for option, value in group.items():
            if option == "params":
                found[i, option, None] = tuple(map(id, value))
            elif option in ("lr", "initial_lr"):
                continue
            elif isinstance(value, tuple | list):
                found |= {(i, option, place): _plain(each) for place, each in enumerate(value)}
            else:
                found[i, option, None] = _plain(value)
    return found


def is_number(value: Any) -> bool:
    """Whether a setting can be an input of a graph."""
    return isinstance(value, float | int) and not isinstance(value, bool)


def sign(value: Any) -> int:
    """What the structure of an optimizer's step depends on: PyTorch's optimizers compare their numbers with zero alone."""
    return int(value > 0) - int(value < 0)


def with_settings(
    groups: Iterable[Mapping[str, Any]], values: Mapping[Name, Any], rates: Sequence[Any]
) -> list[dict[str, Any]]:
    """Returns groups with other numbers in the places of some settings, and with other learning rates."""
    found = []
    for i, (group, rate) in enumerate(zip(groups, rates, strict=True)):
        new = {**group, "lr": rate}
        for (number, option, place), value in values.items():
            if number != i:
                continue
            if place is None:
                new[option] = value
            else:
                new[option] = type(new[option])([*new[option][:place], value, *new[option][place + 1 :]])
        found.append(new)
    return found


def _plain(value: Any) -> Any:
    """A setting in a form that can be compared."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else (id(value), value._version)
    return value if isinstance(value, float | int | str | bool | None) else id(value)


class Setting(float):
    """A number that carries a tensor of that number, an input of a graph that is being traced.

    Arithmetic with it gives another `Setting`, or a tensor where the other operand is one. Comparisons use the number. Inside
    `composing`, PyTorch's functions use the tensor in its place.
    """

    tensor: Tensor

    def __new__(cls, value: float, tensor: Tensor) -> Setting:
        """Makes the number."""
        made = super().__new__(cls, value)
        made.tensor = tensor
        return made

    def __neg__(self) -> Setting:
        """Returns minus the number."""
        return Setting(-float(self), -self.tensor)


def _operation(name: str, reverse: bool) -> Callable[[Setting, Any], Any]:
    function = getattr(operator, name)
    ordered = (lambda one, other: function(other, one)) if reverse else function

    def operation(self: Setting, other: Any) -> Any:
        if isinstance(other, Tensor):
            return ordered(self.tensor.to(other.dtype), other)
        if not isinstance(other, float | int):
            return NotImplemented
        tensor = other.tensor if isinstance(other, Setting) else other
        return Setting(ordered(float(self), float(other)), ordered(self.tensor, tensor))

    return operation


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Setting, f"__{_name}__", _operation(_name, reverse=False))
    setattr(Setting, f"__r{_name}__", _operation(_name, reverse=True))


def powers(base: float | Tensor, exponents: Sequence[Tensor], shared: bool) -> list[Tensor]:
    """Returns an optimizer's β^step: as an exponential, and once where all parameters have taken as many steps.

    Inductor would compute the general power anew for every few elements of each parameter, which takes longer than the rest of
    the update; an exponential that several kernels use it computes once and keeps.
    """
    if not isinstance(base, Tensor) and base == 0:
        return [torch.zeros_like(exponent) for exponent in exponents]
    rate = base.log() if isinstance(base, Tensor) else log(base)

    def power(exponent: Tensor) -> Tensor:
        return torch.exp(exponent * rate).to(exponent.dtype)

    if not shared:
        return [power(exponent) for exponent in exponents]
    once = power(exponents[0])
    return [once.clone() for _ in exponents]


class composing(TorchFunctionMode):  # noqa: N801  (it is used as a context)
    """Composes operations that take numbers alone from operations that take tensors, where a `Setting` or a tensor is given.

    Args:
        shared: whether all parameters have taken as many steps.
    """

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls a function of PyTorch."""
        kwargs = kwargs or {}
        factors = [kwargs.get(name) for name in ("alpha", "value")]
        if not any(isinstance(each, Tensor) for each in factors) and not any(
            map(_has_setting, (*args, *kwargs.values()))
        ):
            return func(*args, **kwargs)
        name = func.__name__
        if not name.startswith("_foreach_"):
            return _composed(name, func, args, kwargs)
        if name == "_foreach_pow" and isinstance(args[0], Setting):
            return powers(args[0].tensor, args[1], self.shared)
        single = name.removeprefix("_foreach_")
        function = getattr(Tensor, single)
        lists = [each for each in args if isinstance(each, list | tuple)]
        return [
            _composed(
                single, function, tuple(each[i] if isinstance(each, list | tuple) else each for each in args), kwargs
            )
            for i in range(len(lists[0]))
        ]


def _has_setting(value: Any) -> bool:
    return isinstance(value, Setting) or (
        isinstance(value, list | tuple) and any(isinstance(each, Setting) for each in value)
    )


def _composed(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a function of one tensor, with tensors in the place of settings."""
    name, in_place = name.rstrip("_"), name.endswith("_")
    first = next((each for each in args if isinstance(each, Tensor) and each.is_floating_point()), None)
    if first is None:
        raise TypeError(f"{name} takes no tensor in the place of a number")

    def tensor(value: Any) -> Any:
        return value.tensor.to(first.dtype) if isinstance(value, Setting) else value

    if name in ("addcmul", "addcdiv"):
        value, *rest = (*args[3:], kwargs.get("value", 1))
        product = args[1] * args[2] if name == "addcmul" else args[1] / args[2]
        return (args[0].add_ if in_place else args[0].add)(product * tensor(value))
    if name in ("add", "sub") and "alpha" in kwargs:
        added = tensor(args[1]) * tensor(kwargs["alpha"])
        added = -added if name == "sub" else added
        return (args[0].add_ if in_place else args[0].add)(added)
    given = [tensor(each) for each in args]
    named = {key: tensor(each) for key, each in kwargs.items()}
    if name == "clamp":  # its ends are both numbers or both tensors
        given = [given[0], *(first.new_full((), each) if is_number(each) else each for each in given[1:])]
        named = {key: first.new_full((), each) if is_number(each) else each for key, each in named.items()}
    return function(*given, **named)
