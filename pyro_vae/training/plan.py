"""A training plan: everything that decides how a model is trained, apart from the model and the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor

from pyro_vae.compilation import Compile
from pyro_vae.estimators import ELBO, Estimator, Objective
from pyro_vae.kinds import names_checked, require, settle, shown
from pyro_vae.precision import Precision
from pyro_vae.training.callbacks import Callback
from pyro_vae.training.optimizers import OptimizerFactory, check_optimizer
from pyro_vae.training.schedules import MovesBy, ScheduleFactory, check_schedule

Keep = Literal["last", "best", "average"]
"""The weights that a training ends with."""
Averaging = Literal["ema", "tail"]


@names_checked
@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained.

    Args:
        epochs: Passes over the training data.
        batch_size: Data per step. The last batch of an epoch holds what is left. A single datum that is left goes into the
            batch before, since batch normalization cannot be trained on one.
        estimator: The bound on log p(x) that is maximized, and its gradient.
        objective: What is optimized in place of the bound, by weights of its terms. The bound itself is reported in any case.
        optimizer: The optimizer of w and φ.
        lr_phi: The learning rate of the guide's parameters φ. By default that of the optimizer, which is the model's.
        schedule: A learning-rate schedule. By default the rate is constant. One that watches a loss (ReduceLROnPlateau) is told
            minus the validation bound.
        schedule_by: When the schedule moves: after each epoch or after each step. auto moves OneCycleLR and CyclicLR by the
            step, as PyTorch documents them, and the others by the epoch.
        e_steps: Steps on φ alone, in turn with m_steps on w alone (an EM-style schedule). By default each step moves both.
        m_steps: Steps on w alone.
        clip_norm: The largest norm of the gradient by all parameters. A larger one is scaled down to it. By default none is.
        compile: Whether the step, and the estimate of log p(x), become one compiled graph: on, off, or auto, where the work
            ahead (5,000 steps or more) outweighs the 10 to 40 seconds that compiling takes. What cannot be compiled runs
            eagerly, and a line says why.
        precision: fp32, or bf16: the networks' matrix products in bfloat16, all else in float32. What is reported at the end is
            evaluated in float32.
        seed: The seed of the first weights, the order of the data and the noise. The division of the data has a seed of its
            own.
        patience: Epochs without a better validation bound after which training ends. By default it goes on to the last one.
        keep: The weights that training ends with: last, best (of the epoch with the best validation bound), or average.
        average: Weights are averaged over steps, beside training: ema (exponentially), or tail (the mean over the last steps).
            By default they are not.
        average_decay: What an exponential average keeps of itself in a step.
        average_tail: The share of all steps, at the end, that a mean over the tail is taken over.
        callbacks: A list of objects that are told of each epoch, such as "[my_file.Mine]".

    Raises:
        ValueError: a number is out of its range, or a field is of a wrong kind.
    """

    epochs: int = 60
    batch_size: int = 50
    estimator: Estimator = ELBO()  # noqa: RUF009  (a run has a copy of its own)
    objective: Objective = Objective()  # noqa: RUF009  (it cannot change)
    optimizer: OptimizerFactory = torch.optim.Adam
    lr_phi: float | None = None
    schedule: ScheduleFactory | None = None
    schedule_by: MovesBy = "auto"
    e_steps: int = 0
    m_steps: int = 0
    clip_norm: float | None = None
    compile: Compile = "auto"
    precision: Precision = "fp32"
    seed: int = 0
    patience: int | None = None
    keep: Keep = "last"
    average: Averaging | None = None
    average_decay: float = 0.999
    average_tail: float = 0.25
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, kind in (("compile", Compile), ("precision", Precision), ("schedule_by", MovesBy), ("keep", Keep)):
            *others, last = get_args(kind)
            if not isinstance(given := getattr(self, name), str) or given not in (*others, last):
                raise ValueError(f"{name}: expected {', '.join(others)} or {last}, got {shown(given)}")
        settle(self)
        require(vars(self), get_type_hints(TrainingPlan), "TrainingPlan")
        if self.epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {self.epochs}")
        if min(self.e_steps, self.m_steps) < 0 or (self.e_steps > 0) != (self.m_steps > 0):
            raise ValueError(
                f"e_steps and m_steps: expected both 0 or both at least 1, got {self.e_steps} and {self.m_steps}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.lr_phi is not None and not self.lr_phi >= 0:
            raise ValueError(f"lr_phi: expected a learning rate of at least 0, got {self.lr_phi}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm: expected a norm above 0, got {self.clip_norm}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience: expected at least 1 epoch, got {self.patience}")
        if self.keep == "average" and self.average is None:
            raise ValueError("keep: average weights are kept where there are some: choose average ema or tail")
        if not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay: expected a number between 0 and 1, got {self.average_decay}")
        if not 0 < self.average_tail <= 1:
            raise ValueError(f"average_tail: expected a share above 0 and up to 1, got {self.average_tail}")

    def check(self) -> None:
        """Checks the options of the optimizer and of the schedule, as far as that needs no data.

        Raises:
            ValueError: one is wrong.
        """
        optimizer = check_optimizer(self.optimizer)
        if self.schedule is not None:
            check_schedule(self.schedule, optimizer, self.schedule_by, self.epochs)

    def steps(self, size: int) -> int:
        """Number of steps in an epoch of this many training data.

        Raises:
            ValueError: a batch is larger than that, or smaller than 1.
        """
        if not 1 <= self.batch_size <= size:
            advice = ": give a smaller one" if self.batch_size > size else ""
            raise ValueError(
                f"batch_size: expected between 1 and the {size} training data, got {self.batch_size}{advice}"
            )
        return -(-size // self.batch_size) - self._leaves_one(size)

    def batches(self, order: Tensor) -> list[Tensor]:
        """The batches of an epoch, `steps` of them, of data in this order."""
        found = list(order.split(self.batch_size))
        if self._leaves_one(len(order)):
            *found, last, one = found
            found.append(torch.cat([last, one]))
        return found

    def _leaves_one(self, size: int) -> bool:
        """Whether batches of the same size leave a single datum over."""
        return 1 < self.batch_size < size and size % self.batch_size == 1

    def phase(self, step: int) -> str:
        """Which parameters the step moves, counted from 0 over the whole run: "both", or in turn "E" (φ) and "M" (w)."""
        if not self.e_steps:
            return "both"
        return "E" if step % (self.e_steps + self.m_steps) < self.e_steps else "M"
