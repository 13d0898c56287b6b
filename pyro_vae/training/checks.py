"""What is checked before training begins."""

from __future__ import annotations

import torch

from pyro_vae.data import Splits, columns_of
from pyro_vae.data.checks import check_columns
from pyro_vae.scopes import mode
from pyro_vae.traces import Programs


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
