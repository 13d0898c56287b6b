"""Learning-rate schedules: any of `torch.optim.lr_scheduler`, moved on after each epoch or after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from pyro_vae.evaluate import Terms

ScheduleFactory = Callable[[Optimizer], LRScheduler]
MovesBy = Literal["auto", "epoch", "step"]


class BurdaSchedule(LambdaLR):
    """Learning rate lr · 10^(-i/7) for 3^i epochs, i = 0, 1, ... (Burda et al. 2016, section 5; there i ≤ 7: 3280 epochs).

    Args:
        optimizer: the optimizer, filled in by the program.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, self.factor)

    @staticmethod
    def factor(epoch: int) -> float:
        """10^(-i/7) for the stage i that holds an epoch counted from 0: stage i ends after (3^(i+1) - 1)/2 epochs."""
        stage = 0
        while epoch >= (3 ** (stage + 1) - 1) // 2:
            stage += 1
        return float(10 ** (-stage / 7))


class MovingSchedule:
    """A schedule that is moved on at the right moments.

    Args:
        scheduler: PyTorch's schedule; None keeps the rate constant.
        by: when it moves. "auto" asks the schedule's own attribute ``moves_by``; without one, schedules that PyTorch documents
            as moving after each batch (OneCycleLR, CyclicLR) move by the step, and all others by the epoch.
        steps: number of steps that lie ahead.

    Raises:
        ValueError: the schedule ends before training does, or waits for validation data within an epoch.
    """

    def __init__(self, scheduler: LRScheduler | None, by: MovesBy, steps: int) -> None:
        self.scheduler = scheduler
        if by == "auto":
            by = getattr(scheduler, "moves_by", "step" if isinstance(scheduler, CyclicLR | OneCycleLR) else "epoch")
        self.by_step = by == "step"
        name, total = type(scheduler).__name__, getattr(scheduler, "total_steps", None)
        if self.by_step and isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                f"schedule_by: {name} watches the validation loss, which comes once an epoch: choose epoch"
            )
        if self.by_step and total is not None and total < steps:
            raise ValueError(
                f"schedule: {name} ends after total_steps = {total} steps, and training takes {steps}: give it "
                f"--schedule.total_steps {steps}"
            )

    def after_step(self) -> None:
        """Moves a schedule that moves by the step."""
        if self.scheduler and self.by_step:
            self.scheduler.step()

    def after_epoch(self, valid: Terms) -> None:
        """Moves a schedule that moves by the epoch. One that watches a loss is told minus the validation bound."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(-valid.bound)
        elif self.scheduler and not self.by_step:
            self.scheduler.step()
