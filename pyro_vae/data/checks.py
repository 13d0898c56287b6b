"""What is checked of data before training and evaluation: their shape, their labels, and that the model can score them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data.columns import Columns
from pyro_vae.data.labels import UNKNOWN
from pyro_vae.missing import Marginal, observed_values
from pyro_vae.parts import Dims, Rescaled, check_batch
from pyro_vae.stored import rows_of_block
from pyro_vae.traces import Observation, observations

_BATCH = 1000


def check_shape(programs: Any, x: Tensor) -> None:
    """Checks that data are a batch of what a model was built for, if the programs say by ``dims`` what that is.

    Raises:
        ValueError: they are of another shape, or one datum without the dimension of the batch.
    """
    if isinstance(dims := getattr(programs, "dims", None), Dims):
        check_batch(x, dims.x_shape)


def check_labels(programs: Any, columns: Columns) -> None:
    """Checks that the model knows all labels.

    Raises:
        ValueError: it does not.
    """
    classes, y = getattr(programs, "classes", None), columns.y
    told = columns.tensors[columns.inputs.index("labelled")] if "labelled" in columns.inputs else None
    if told is not None and classes and not told.is_meta and not bool(((told >= UNKNOWN) & (told < classes)).all()):
        raise ValueError(
            f"labelled: expected labels 0..{classes - 1}, and -1 where there is none, got {told.min()} to {told.max()}"
        )
    if y is not None and classes and not y.is_meta and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"y: expected labels 0..{classes - 1}, got {y.min()} to {y.max()}")


def check_columns(programs: Any, columns: Columns, name: str = "") -> None:
    """Checks the shape and the labels, and, at each observed site, its own observed value where a mask says it exists.

    The model runs on one datum, and on all where a site observes something else than an argument as it is.

    Args:
        programs: a model and a guide, in evaluation mode.
        columns: data.
        name: which data these are, such as "training", for messages.

    Raises:
        ValueError: the data are of another shape than those of the model, or the model cannot score a value; the message names
            the data, the site, the values and the support.
    """
    check_shape(programs, columns.x)
    check_labels(programs, columns)
    if columns.x.is_meta:
        return  # no values, which could be wrong
    which = f"the {name} data" if name else "the data"
    batch = columns.take(slice(0, 1))
    size = min(_BATCH, rows_of_block(columns.x)) if columns.stored else _BATCH
    found = observations(programs.model, *batch)
    # A site that observes an argument as it is, without a mask, needs no run of the model for each batch.
    plain = {
        site: place
        for site, each in found.items()
        for place, given in enumerate(batch)
        if each.value is given and not each.masks
    }
    for site, place in plain.items():
        _require_batch(found[site], columns.tensors[place], site)
        for values in columns.batches(size):
            _require(found[site], values[place], site, which)
    if plain.keys() != found.keys():
        for values in columns.batches(size):
            for site, each in observations(programs.model, *values).items():
                if site not in plain:
                    _require(each, each.value, site, which)


def _require_batch(observation: Observation, value: Tensor, site: str) -> None:
    """Raises ValueError if one datum has more dimensions at the site than all data together, which would be broadcast."""
    event = tuple(observation.distribution.event_shape)
    if value.dim() <= len(event):
        sizes = ", ".join(map(str, event))
        raise ValueError(
            f"a batch of data is expected, (N, {sizes}) as site {site!r} observes them, got shape {tuple(value.shape)}: of one "
            f"datum give x[None]"
        )


def _require(observation: Observation, value: Tensor, site: str, which: str) -> None:
    """Raises ValueError if the distribution at the site cannot score the value."""
    scored = observation.scored(value)
    if bool(scored.all()):
        return
    base, standardized, missing = _base(observation.distribution)
    kind = type(base).__name__.lstrip("_")
    there, inner = observed_values(value), value.isnan()
    held = f"values from {there.min():g} to {there.max():g}" if there.numel() else "no value"
    if value.dim() > scored.dim():
        inner = inner.flatten(scored.dim()).any(-1)
    if not missing and inner.shape == scored.shape and bool((inner & ~scored).any()):
        raise ValueError(
            f"{which} hold {held} and missing ones (NaN) that {kind} at site {site!r} cannot score: build the model for such "
            f"data, by data.dims(...) or Dims(..., missing=True), or mask them in a model of your own"
        )
    message = f"{which} hold {held} that {kind} at site {site!r} cannot score: its support is {base.support}"
    if bool(there.isinf().any()):
        raise ValueError(f"{message}, and {int(there.isinf().sum())} values are infinite")
    message += getattr(base.support, "advice", "")
    if standardized:
        message += " and the data are standardized: give make_splits, or --data, standardize=false"
    if base.support is constraints.boolean and bool((value >= 0).all()):
        message += (
            ". Gray pixels and counts have no probability under it: binarize the data (binarize: dynamic draws the pixels anew "
            "at each use, fixed draws them once; --data.binarize on the command line), or choose a likelihood for such values"
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
