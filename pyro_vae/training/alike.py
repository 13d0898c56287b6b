"""What a checkpoint holds must be of the kinds of what it is put into, since PyTorch takes anything and fails a step later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.kinds import shown
from pyro_vae.training.optimizers import make_optimizer

if TYPE_CHECKING:
    from pyro_vae.training.loop import Training


def check_alike(found: Any, own: Any, place: str) -> None:
    """Checks that a value is of the kind of another one.

    Tensors have one shape and dtype, lists one length, and dictionaries at least the same names. Numbers may be others; True,
    False, None and texts are settings, and are the same.

    Args:
        found: the value.
        own: the other one.
        place: where it stands, for the message.

    Raises:
        TypeError: it is of another kind; the message says where.
    """
    if isinstance(own, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (own.shape, own.dtype):
            got = f"one {_form(found)}" if isinstance(found, Tensor) else shown(found)
            raise TypeError(f"{place}: expected a tensor {_form(own)}, got {got}")
    elif isinstance(own, Mapping):
        if not isinstance(found, Mapping):
            raise TypeError(f"{place}: expected {', '.join(map(str, own)) or 'names and values'}, got {shown(found)}")
        for name, value in own.items():
            if name not in found:
                raise TypeError(f"{place}: {name} is missing")
            check_alike(found[name], value, f"{place}.{name}")
    elif isinstance(own, list | tuple):
        if type(found) is not type(own) or len(found) != len(own):
            raise TypeError(f"{place}: expected a {type(own).__name__} of {len(own)}, got {shown(found)}")
        for number, (one, other) in enumerate(zip(found, own, strict=True)):
            check_alike(one, other, f"{place}[{number}]")
    elif isinstance(own, int | float) and not isinstance(own, bool):
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise TypeError(f"{place}: expected a number, got {shown(found)}")
    elif type(found) is not type(own) or found != own:
        raise TypeError(f"{place}: expected {shown(own)}, got {shown(found)}")


def is_known(thing: Any) -> bool:
    """Whether an object is of a class of PyTorch or of this project. One of a user's own may keep what it wants."""
    return type(thing).__module__.partition(".")[0] in ("torch", "pyro_vae")


def restore_optimizer(training: Training, found: Any) -> None:
    """Gives an optimizer a state.

    Args:
        training: the training, whose optimizer has taken no step yet.
        found: what ``state_dict`` gave in another process.

    Raises:
        TypeError: it is of another kind.
        ValueError: there are other groups.
    """
    optimizer = training.optimizer
    own: Sequence[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    check_alike(found, {"state": {}, "param_groups": [{"params": group["params"]} for group in own]}, "optimizer")
    groups, state = found["param_groups"], found["state"]
    for number, (group, mine) in enumerate(zip(groups, own, strict=True)):
        known = {name: value for name, value in mine.items() if name in group}  # another version may have others
        check_alike(group, known, f"optimizer.param_groups[{number}]")
        if group["params"] != mine["params"]:
            raise ValueError(f"optimizer.param_groups[{number}]: it is of other parameters")
    places = {place for group in own for place in group["params"]}
    if not state.keys() <= places:
        raise ValueError("optimizer.state: it is of other parameters")
    groups = [mine | group for mine, group in zip(own, groups, strict=True)]
    if is_known(optimizer):
        _check_state(training, groups, state)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _in_order(optimizer)


def _check_state(training: Training, groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> None:
    """Checks an optimizer's state beside that of a twin after its first step, and takes a step of the twin with it.

    Args:
        training: the training.
        groups: the settings, in which a number may be out of its range.
        state: the state of each parameter.

    Raises:
        TypeError: the state is of another kind.
        ValueError: no step can be taken with it.
    """
    plan, leaves = training.plan, training.phases["both"]
    twins = [torch.zeros_like(leaf).requires_grad_() for leaf in leaves]
    of_w = len(training.phases["M"])
    twin = make_optimizer(plan.optimizer, twins[:of_w], twins[of_w:], plan.lr_phi)
    for group, own in zip(twin.param_groups, training.optimizer.param_groups, strict=True):
        group |= {name: value for name, value in own.items() if name != "params"}  # which a schedule may have moved
    _step(twin, twins)
    after = twin.state_dict()["state"]
    for place, each in state.items():
        check_alike(each, after.get(place, {}), f"optimizer.state[{place}]")
    used = [each for each, leaf in zip(twins, leaves, strict=True) if leaf.requires_grad]
    of_phi = [each for each, leaf in zip(twins[of_w:], leaves[of_w:], strict=True) if leaf.requires_grad]
    try:
        twin.load_state_dict(deepcopy({"state": state, "param_groups": groups}))
        for moved in (of_phi, used[: len(used) - len(of_phi)]) if plan.e_steps else (used,):
            _step(twin, moved)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        told = str(error).partition("\n")[0]
        raise ValueError(f"optimizer: no step can be taken from its state ({told})") from error


def _step(optimizer: torch.optim.Optimizer, leaves: Sequence[Tensor]) -> None:
    """Takes a step of some parameters with a gradient of zero."""
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _in_order(optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimizer's state the order in memory of its parameters, which PyTorch's fused optimizers take for granted."""
    for leaf, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == leaf.shape and value.stride() != leaf.stride():
                state[name] = torch.empty_like(leaf, dtype=value.dtype).copy_(value)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"
