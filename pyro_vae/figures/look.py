"""How the data of a run are drawn: the same range and the same shades for data, reconstructions and samples."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill

import torch

from pyro_vae.data import Splits
from pyro_vae.data.view import Kind

MISSING = "#e377c2"
"""The color of values that are missing: a pink that no gray image has."""


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


def look_of(data: Splits) -> Look:
    """Returns how these data are drawn.

    The range is that of the support where it has two ends, as 0 and 1 or 0 and the largest count, and otherwise goes from
    the smallest to the largest value of the training data. Values that are missing or infinite are left out of it.
    """
    low, high = (getattr(data.support, end, None) for end in ("lower_bound", "upper_bound"))
    if data.support.is_discrete and low is None and high is None:
        low, high = 0, 1  # of PyTorch's discrete constraints the booleans alone have no bounds
    if low is None or high is None:
        x = data.train.x
        finite = x.isfinite()
        low, high = torch.where(finite, x, torch.inf).min().item(), torch.where(finite, x, -torch.inf).max().item()
    low, high = float(low), float(high)
    if not low < high:  # constant data, or none at all
        low, high = (low, low + 1) if torch.tensor(low).isfinite() else (0.0, 1.0)
    return Look(data.view.kind_of(data.x_shape), low, high, data.view.ink, data.view.columns)
