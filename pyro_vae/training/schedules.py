"""Learning-rate schedules: any of `torch.optim.lr_scheduler`, moved on after each epoch or after each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from inspect import signature
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from pyro_vae.description import called_by
from pyro_vae.evaluate import Terms
from pyro_vae.training.alike import check_alike, is_known

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

    A schedule that has to know how long training is, and was not told (an option ``total_steps``), is told.

    Args:
        factory: makes PyTorch's schedule; None keeps the rate constant.
        optimizer: the optimizer whose rates move.
        by: when it moves. "auto" asks the schedule's class for an attribute ``moves_by``; without one, schedules that PyTorch
            documents as moving after each batch (OneCycleLR, CyclicLR) move by the step, and all others by the epoch.
        epochs: number of epochs that lie ahead.
        steps: number of steps that lie ahead.

    Raises:
        ValueError: the schedule's options are wrong, it ends before training does, or it waits for validation data within an
            epoch.
    """

    def __init__(
        self, factory: ScheduleFactory | None, optimizer: Optimizer, by: MovesBy, epochs: int, steps: int
    ) -> None:
        self.optimizer = optimizer
        kind = called_by(factory)
        moves = {"epoch": epochs, "step": steps}
        self.scheduler = _made(factory, kind, optimizer, moves[_moves_by(kind, by)]) if factory else None
        by = _moves_by(type(self.scheduler), by)  # also of a schedule that a lambda made
        self.by_step = by == "step"
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if not min(rates) >= 0:
            raise ValueError(f"schedule: {type(self.scheduler).__name__} begins with a learning rate of {min(rates):g}")
        name, total = type(self.scheduler).__name__, getattr(self.scheduler, "total_steps", None)
        if self.by_step and isinstance(self.scheduler, ReduceLROnPlateau):
            raise ValueError(
                f"schedule_by: {name} watches the validation loss, which comes once an epoch: choose epoch"
            )
        if total is not None and total < moves[by]:
            raise ValueError(
                f"schedule: {name} ends after total_steps = {total}, and it is moved {moves[by]} times: leave total_steps out, "
                f"or give at least {moves[by]}"
            )

    def state(self) -> dict[str, Any] | None:
        """What the schedule keeps from move to move."""
        return self.scheduler.state_dict() if self.scheduler else None

    def restore(self, state: Any) -> None:
        """Goes on from a state. Counters, which a file holds as dictionaries, become counters again.

        Raises:
            TypeError: something in it is of another kind.
        """
        check_alike(state, {} if self.scheduler else None, "schedule")
        if self.scheduler:
            if is_known(self.scheduler):  # another version of PyTorch may keep more or less
                kinds = self.scheduler.state_dict()
                state = {name: value for name, value in state.items() if name in kinds}
                check_alike(state, {name: kinds[name] for name in state}, "schedule")
            own = vars(self.scheduler)
            # The optimizer took its steps in another process; PyTorch would warn that the schedule moves before it does.
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
            self.scheduler.load_state_dict(
                {name: Counter(value) if isinstance(own.get(name), Counter) else value for name, value in state.items()}
            )

    def after_step(self) -> None:
        """Moves a schedule that moves by the step."""
        if self.scheduler and self.by_step:
            _move(self.scheduler)

    def after_epoch(self, valid: Terms) -> None:
        """Moves a schedule that moves by the epoch. One that watches a loss is told minus the validation bound."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(-valid.bound)
        elif self.scheduler and not self.by_step:
            _move(self.scheduler)


def check_schedule(factory: ScheduleFactory, optimizer: Optimizer, by: MovesBy, epochs: int) -> None:
    """Tries a schedule that moves by the epoch on an optimizer of its own, and moves it once, where its class is PyTorch's.

    One that moves by the step has to know the number of steps, and so the data.

    Raises:
        ValueError: its options are wrong.
    """
    if _moves_by(called_by(factory), by) == "step":
        return
    made = MovingSchedule(factory, optimizer, by, epochs, epochs)
    if type(made.scheduler).__module__.startswith("torch."):  # one of a user may do more in a step than a step
        optimizer.step()  # PyTorch warns of a schedule that moves before the optimizer does
        made.after_epoch(Terms(0.0, 0.0, 0.0))


def _move(scheduler: LRScheduler) -> None:
    try:
        scheduler.step()
    except ArithmeticError as error:
        raise ValueError(f"schedule: {type(scheduler).__name__} cannot move with its options ({error})") from error


def _moves_by(kind: Any, by: MovesBy) -> Literal["epoch", "step"]:
    """When a schedule of a class moves."""
    if by != "auto":
        return by
    of_steps = isinstance(kind, type) and issubclass(kind, CyclicLR | OneCycleLR)
    found: Literal["epoch", "step"] = getattr(kind, "moves_by", "step" if of_steps else "epoch")
    return found


def _made(factory: Callable[..., LRScheduler], kind: Any, optimizer: Optimizer, moves: int) -> LRScheduler:
    """The schedule, told how often it will be moved if it asks for that and was not told."""
    given = getattr(factory, "keywords", {})
    asks = kind is not None and "total_steps" in signature(kind).parameters
    told = any(given.get(name) is not None for name in ("total_steps", "epochs"))
    try:
        return factory(optimizer, total_steps=moves) if asks and not told else factory(optimizer)
    except (TypeError, ValueError, NotImplementedError, ArithmeticError) as error:
        raise ValueError(f"schedule: {error or type(error).__name__}") from error
