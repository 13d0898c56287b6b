"""The optimizer of w and φ, in two named groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
"""Makes an optimizer from groups of parameters, as the classes of `torch.optim` do."""


def make_optimizer(
    factory: OptimizerFactory, w: Sequence[Tensor], phi: Sequence[Tensor], lr_phi: float | None = None
) -> Optimizer:
    """The optimizer of both sides, in groups named "w" and "phi".

    Args:
        factory: makes it from the groups.
        w: parameters of the model.
        phi: parameters of the guide.
        lr_phi: learning rate of φ; by default that of w.

    Raises:
        ValueError: there are no parameters, the optimizer's options are wrong, or it needs what training does not give.
    """
    if not w and not phi:
        raise ValueError("model and guide use no parameters: nothing to train")
    if lr_phi is not None and not lr_phi >= 0:
        raise ValueError(f"lr_phi: expected a learning rate of at least 0, got {lr_phi}")
    check_optimizer(factory)
    groups: list[dict[str, Any]] = [{"params": list(w), "name": "w"}, {"params": list(phi), "name": "phi"}]
    if lr_phi is not None:
        groups[1]["lr"] = lr_phi
    try:
        optimizer = factory([group for group in groups if group["params"]])
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer: {error}") from error
    fuse(optimizer)
    return optimizer


def check_optimizer(factory: OptimizerFactory) -> Optimizer:
    """Tries an optimizer on a parameter of its own, and returns it.

    Raises:
        ValueError: its options are wrong, or it needs what training does not give.
    """
    parameter = nn.Parameter(torch.zeros(1, 1))
    try:
        probe = factory([{"params": [parameter], "name": "w"}])
        closure = signature(probe.step).parameters.get("closure")
        if closure is not None and closure.default is Parameter.empty:
            raise ValueError(
                f"{type(probe).__name__} evaluates the loss itself, several times in a step (its step takes a closure). A "
                f"bound has other random numbers at each evaluation: choose a stochastic optimizer, such as Adam"
            )
        if type(probe).__module__.startswith("torch."):  # one of a user may do more in a step than a step
            parameter.grad = torch.zeros(1, 1)
            probe.step()
        return probe
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"optimizer: {error}") from error


def fuse(optimizer: Optimizer) -> None:
    """Lets the optimizer update all parameters in one kernel, where its class has one and nobody chose otherwise."""
    for group in optimizer.param_groups:
        devices = {parameter.device.type for parameter in group["params"]}
        if group.get("fused", False) is None and not group.get("foreach") and devices <= {"cpu", "cuda"}:
            group["fused"] = True
