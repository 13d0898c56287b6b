"""What is checked before training begins."""

from __future__ import annotations

import torch
from torch import nn

from pyro_vae.data import Splits, columns_of
from pyro_vae.data.checks import check_columns
from pyro_vae.scopes import mode
from pyro_vae.traces import Programs
from pyro_vae.training.plan import TrainingPlan


def check_support(programs: Programs, data: Splits) -> None:
    """Checks that the model can score all data (see `pyro_vae.data.checks.check_columns`).

    Args:
        programs: a model and a guide.
        data: training, validation and test data.

    Raises:
        ValueError: a split holds values that the model cannot score, or data of another shape; the message names the split,
            the site and the range.
    """
    for name, split in (("training", data.train), ("validation", data.valid), ("test", data.test)):
        # Evaluation mode and no gradient: nothing that a module keeps, such as a running statistic, moves here.
        with torch.no_grad(), mode(programs, training=False):
            check_columns(programs, columns_of(programs, split), name)


def check_can_share(programs: Programs, plan: TrainingPlan, size: int) -> None:
    """Checks that a batch can be shared out.

    Raises:
        ValueError: the training needs the whole batch in one place, or there are fewer data in a batch than processes.
    """
    if plan.batch_size < size:
        raise ValueError(
            f"batch_size: expected at least one datum for each of the {size} processes, got {plan.batch_size}"
        )
    if plan.objective.free_nats:
        raise ValueError(
            "objective: free_nats compares the mean KL of a whole batch, which no process has where several train together: "
            "train in one process"
        )
    modules = programs.modules() if isinstance(programs, nn.Module) else ()
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training for each in modules):
        raise ValueError(
            "batch normalization needs the whole batch, which no process has where several train together: train in one "
            "process, or use another normalization"
        )
