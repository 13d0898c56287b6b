"""Which weights a training ends with: the last ones, those of the best epoch, or an average of many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from pyro_vae.training.alike import check_alike
from pyro_vae.training.plan import Keep, TrainingPlan


class Kept:
    """The weights of the best epoch by its validation bound, and their average, beside those that move.

    Args:
        plan: how the model is trained.
        leaves: the parameters.
        buffers: the buffers of the programs' module.
        steps: the number of steps that lie ahead.
    """

    def __init__(self, plan: TrainingPlan, leaves: Sequence[Tensor], buffers: Sequence[Tensor], steps: int) -> None:
        self.plan, self.leaves, self.buffers, self.steps = plan, list(leaves), list(buffers), steps
        self.bound, self.epoch = float("-inf"), 0
        """The best validation bound (nats per datum), and its epoch."""
        self.best: list[Tensor] = []
        self.average: list[Tensor] = []
        self.averaged = 0
        """How many weights the average is of."""
        self._mix = get_ema_multi_avg_fn(plan.average_decay) if plan.average == "ema" else get_swa_multi_avg_fn()

    @property
    def wants_best(self) -> bool:
        """Whether the best weights are of interest: otherwise no copy of them is made."""
        return self.plan.keep == "best" or self.plan.patience is not None

    @torch.no_grad()
    def after_step(self, done: int) -> None:
        """Takes the weights after a step, of which so many were taken, into the average."""
        if self.plan.average is None or (
            self.plan.average == "tail" and done <= (1 - self.plan.average_tail) * self.steps
        ):
            return
        if not self.averaged:
            self.average = [leaf.detach().clone() for leaf in self.leaves]
        else:
            self._mix(self.average, [leaf.detach() for leaf in self.leaves], self.averaged)
        self.averaged += 1

    def after_epoch(self, epoch: int, bound: float) -> None:
        """Looks at an epoch's validation bound, which may be the best so far."""
        if not bound > self.bound:
            return
        self.bound, self.epoch = bound, epoch
        if self.wants_best:
            self.best = [tensor.detach().clone() for tensor in (*self.leaves, *self.buffers)]

    def is_over(self, epoch: int) -> bool:
        """Whether the patience is at its end after this epoch."""
        return self.plan.patience is not None and epoch - self.epoch >= self.plan.patience

    def put(self) -> Keep:
        """Puts the weights that the plan wants in place, and says which they are. Without an average, the last ones stay."""
        if self.plan.keep == "best" and self.best:
            _copy([*self.leaves, *self.buffers], self.best)
            return "best"
        if self.plan.keep == "average" and self.averaged:
            _copy(self.leaves, self.average)
            return "average"
        return "last"

    @contextmanager
    def average_in_place(self) -> Iterator[None]:
        """Has the averaged weights in place inside; there must be some."""
        with torch.no_grad():
            before = [leaf.detach().clone() for leaf in self.leaves]
            _copy(self.leaves, self.average)
        try:
            yield
        finally:
            _copy(self.leaves, before)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        names = ("bound", "epoch", "best", "average", "averaged")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state.

        Raises:
            TypeError: something in it is of another kind.
        """
        best = [*self.leaves, *self.buffers] if state["best"] else []
        average = self.leaves if state["averaged"] else []
        check_alike(state, self.state() | {"best": best, "average": average}, "kept")
        device = self.leaves[0].device
        for name in self.state():
            value = state[name]
            setattr(self, name, [each.to(device) for each in value] if isinstance(value, list) else value)


@torch.no_grad()
def _copy(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def check_average(plan: TrainingPlan, programs: Any) -> None:
    """Raises ValueError if weights of these programs cannot be averaged."""
    if plan.average is None or not isinstance(programs, nn.Module):
        return
    if any(isinstance(each, _BatchNorm) for each in programs.modules()):
        raise ValueError(
            "average: the running statistics of batch normalization belong to the last weights, and not to an average of them: "
            "choose another normalization, or keep the best weights (keep: best)"
        )
