"""What is checked before training begins."""

from __future__ import annotations

from torch.distributions import constraints

from pyro_vae.data import Splits, columns_for
from pyro_vae.traces import Programs, observed


def check_support(programs: Programs, data: Splits) -> None:
    """Checks that the model can score all data.

    Args:
        programs: a model and a guide.
        data: training, validation and test data.

    Raises:
        ValueError: a split holds values that the model cannot score; the message names the split, the site and the range.
    """
    for name, split in (("training", data.train), ("validation", data.valid), ("test", data.test)):
        columns = columns_for(programs, split)
        for site, distribution in observed(programs.model, *columns.take(slice(0, 1))).items():
            place = columns.inputs.index("x")
            if all(bool(distribution.support.check(batch[place]).all()) for batch in columns.batches(1000)):
                continue
            low, high = columns.x.min().item(), columns.x.max().item()
            base = distribution
            while hasattr(base, "base_dist"):
                base = base.base_dist
            message = (
                f"the {name} data hold values from {low:g} to {high:g} that {type(base).__name__} at site {site!r} "
                f"cannot score: its support is {base.support}"
            )
            message += getattr(base.support, "advice", "")
            if base.support is constraints.boolean and low >= 0:
                message += (
                    ". Gray pixels have no probability under it: binarize the data (binarize: dynamic draws the pixels anew at "
                    "each use, fixed draws them once), or choose a likelihood for such values"
                )
            raise ValueError(message)
