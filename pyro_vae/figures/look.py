"""How the data of a run are drawn: the same range and the same shades for data, reconstructions and samples."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data import Splits
from pyro_vae.kinds import takes
from pyro_vae.stored import blocks, held
from pyro_vae.view import Kind

MISSING = "#e377c2"
"""The color of values that are missing: a pink that no gray image has."""

_BYTE = 255
"""Levels up to this are drawn over their whole range: cameras and files use all of it."""
_OUTLYING = 1e-3
"""The share of the values at either end of the data that may be outliers."""
_ENOUGH = 1_000_000
"""The number of values that tell the range."""
_MANY = 4
"""Of data that are not in memory, so many times that number are read."""


@dataclass(frozen=True)
class Look:
    """How data are drawn.

    Attributes:
        kind: image, signal or table.
        low: the value at the lower end of the range.
        high: the value at the upper end of the range.
        ink: large values are drawn dark.
        columns: the names of a table's columns; none if they have no names.
    """

    kind: Kind = "image"
    low: float = 0.0
    high: float = 1.0
    ink: bool = False
    columns: tuple[str, ...] = ()

    @property
    def noun(self) -> str:
        """What several data are called."""
        return "images" if self.kind == "image" else "data"

    def name(self, j: int) -> str:
        """The name of column j, counted from 0, in lines that fit above a panel."""
        return literal(fill(self.columns[j], 30)) if j < len(self.columns) else f"$x_{{{j + 1}}}$"


def literal(name: str) -> str:
    """A name from data as text, which matplotlib would read as mathematics between two dollar signs."""
    return name.replace("$", r"\$")


@takes
def look_of(data: Splits) -> Look:
    """Returns how these data are drawn.

    The range is that of the support where it has two ends, as 0 and 1 or 0 and the largest count, and otherwise goes from
    the smallest to the largest value of the training data. Values that are missing or infinite are left out of it. In images
    without a range of their own, as those of 16 bits, a few bright pixels would leave all others dark: where all but a
    thousandth of the values at either end lie in less than half of the range, they are the range. Of data that are not in
    memory, evenly chosen ones with some millions of values tell this.
    """
    kind = data.view.kind_of(data.x_shape)
    low, high = (getattr(data.support, end, None) for end in ("lower_bound", "upper_bound"))
    if data.support.is_discrete and low is None and high is None:
        low, high = 0, 1  # of PyTorch's discrete constraints the booleans alone have no bounds
    if low is None or high is None:
        low, high = torch.inf, -torch.inf
        for x in blocks(data.train.x):
            finite = x.isfinite()
            low = min(low, torch.where(finite, x, torch.inf).min().item())
            high = max(high, torch.where(finite, x, -torch.inf).max().item())
    low, high = float(low), float(high)
    if kind == "image" and (data.support is constraints.real or high - low > _BYTE):
        low, high = _without_outliers(data.train.x, low, high)
    if not low < high:  # constant data, or none at all
        low, high = (low, low + 1) if torch.tensor(low).isfinite() else (0.0, 1.0)
    return Look(kind, low, high, data.view.ink, data.view.columns)


def _without_outliers(x: Tensor, low: float, high: float) -> tuple[float, float]:
    """The range of all but a thousandth of the values at either end, where it is less than half of a given range."""
    if (whole := held(x)) is None:
        whole = x[:: max(1, x.numel() // (_MANY * _ENOUGH))]
    values = whole[whole.isfinite()].cpu().numpy()
    if not len(values):
        return low, high
    inner = np.percentile(values[:: 1 + len(values) // _ENOUGH], [100 * _OUTLYING, 100 - 100 * _OUTLYING])
    narrow = 0 < inner[1] - inner[0] < (high - low) / 2
    return (float(inner[0]), float(inner[1])) if narrow else (low, high)
