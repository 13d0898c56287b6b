"""What is checked before training begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data import Columns, Splits, columns_for
from pyro_vae.missing import Marginal, observed_values
from pyro_vae.parts import Rescaled
from pyro_vae.scopes import mode
from pyro_vae.traces import Observation, Programs, observations

_BATCH = 1000


def check_support(programs: Programs, data: Splits) -> None:
    """Checks that the model can score all data: at each observed site its own observed value, where a mask says it exists.

    Args:
        programs: a model and a guide.
        data: training, validation and test data.

    Raises:
        ValueError: a split holds values that the model cannot score; the message names the split, the site and the range.
    """
    for name, split in (("training", data.train), ("validation", data.valid), ("test", data.test)):
        columns = columns_for(programs, split)
        # Evaluation mode and no gradient: nothing that a module keeps, such as a running statistic, moves here.
        with torch.no_grad(), mode(programs, training=False):
            _check(programs, columns, name)


def _check(programs: Programs, columns: Columns, name: str) -> None:
    batch = columns.take(slice(0, 1))
    found = observations(programs.model, *batch)
    # A site that observes an argument as it is, without a mask, needs no run of the model for each batch.
    plain = {
        site: place
        for site, each in found.items()
        for place, given in enumerate(batch)
        if each.value is given and not each.masks
    }
    for site, place in plain.items():
        for values in columns.batches(_BATCH):
            _require(found[site], values[place], site, name)
    if plain.keys() != found.keys():
        for values in columns.batches(_BATCH):
            for site, each in observations(programs.model, *values).items():
                if site not in plain:
                    _require(each, each.value, site, name)


def _require(observation: Observation, value: Tensor, site: str, name: str) -> None:
    """Raises ValueError if the distribution at the site cannot score the value."""
    scored = observation.scored(value)
    if bool(scored.all()):
        return
    base, standardized, missing = _base(observation.distribution)
    kind = type(base).__name__.lstrip("_")
    there, inner = observed_values(value), value.isnan()
    if value.dim() > scored.dim():
        inner = inner.flatten(scored.dim()).any(-1)
    if not missing and inner.shape == scored.shape and bool((inner & ~scored).any()):
        raise ValueError(
            f"the {name} data hold values from {there.min():g} to {there.max():g} and missing ones (NaN) that {kind} at site "
            f"{site!r} cannot score: build the model for such data, by data.dims(...) or Dims(..., missing=True), or mask them "
            f"in a model of your own"
        )
    message = (
        f"the {name} data hold values from {there.min():g} to {there.max():g} that {kind} at site {site!r} "
        f"cannot score: its support is {base.support}"
    )
    message += getattr(base.support, "advice", "")
    if standardized:
        message += " and the data are standardized: give make_splits, or --data, standardize=false"
    if base.support is constraints.boolean and bool((value >= 0).all()):
        message += (
            ". Gray pixels have no probability under it: binarize the data (binarize: dynamic draws the pixels anew at "
            "each use, fixed draws them once), or choose a likelihood for such values"
        )
    raise ValueError(message)


def _base(distribution: Any) -> tuple[Any, bool, bool]:
    """The innermost distribution, whether it describes standardized data, and whether values may be missing."""
    standardized = missing = False
    while hasattr(distribution, "base_dist"):
        standardized |= isinstance(distribution, Rescaled)
        missing |= isinstance(distribution, Marginal)
        distribution = distribution.base_dist
    return distribution, standardized, missing
