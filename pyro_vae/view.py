"""How data are shown: as images, as signals, or as the columns of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from pyro_vae.kinds import require, shown
from pyro_vae.parts import Shape

Kind = Literal["image", "signal", "table"]
"""What a datum is to the eye: a picture, lines over time, or a row of numbers."""

Shown = Literal["auto", "image", "signal", "table"]
"""A kind, or auto: the shape of a datum tells it."""

LONGEST_ROW = 30
"""A vector of more numbers than this is taken for a signal: so many columns cannot be read."""

_MOST_CHANNELS = 4
"""An array of more lines than this is taken for an image: so many lines in one panel cannot be told apart."""


@dataclass(frozen=True)
class View:
    """How data are shown. Pictures and words depend on it, and what is chosen for images without being asked.

    Real numbers are standardized by default unless they are images, and images of levels, such as 0..255, have a likelihood of
    their own (see `pyro_vae.likelihoods.default_likelihood`).

    Attributes:
        kind: image, signal or table; auto tells it by the shape of a datum (see `kind_of`).
        columns: the names of a table's columns, if they have any.
        ink: large values are drawn dark, as in handwriting; otherwise light, as in photographs. Color images have no ink.
        classes: the names of the labels 0, 1, ..., if they have any.
    """

    kind: Shown = "auto"
    columns: tuple[str, ...] = ()
    ink: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the kind.

        Raises:
            ValueError: there is no such kind.
        """
        require({"columns": self.columns, "ink": self.ink}, get_type_hints(View), "View")
        if not isinstance(self.kind, str) or self.kind not in get_args(Shown):
            raise ValueError(f"kind: expected one of {', '.join(get_args(Shown))}, got {shown(self.kind)}")

    def kind_of(self, x_shape: Shape) -> Kind:
        """The kind of data of this shape.

        A vector of up to 30 numbers, or with names, is a row of a table; a longer one is a signal. An array (C, L) with
        C <= 4 < L is a signal of C channels, and any other array is an image. Images may be (H, W), (C, H, W), or
        (C, D, H, W), of which the middle slice is shown.
        """
        if self.kind != "auto":
            return self.kind
        if len(x_shape) < 2:
            return "table" if self.columns or sum(x_shape) <= LONGEST_ROW else "signal"
        if len(x_shape) == 2:
            return "signal" if x_shape[0] <= _MOST_CHANNELS < x_shape[1] else "image"
        return "image"

    def label(self, value: float) -> str:
        """What a label is called: by its name, if it has one."""
        named = float(value).is_integer() and 0 <= value < len(self.classes)
        return self.classes[int(value)] if named else f"{value:g}"

    def noun(self, x_shape: Shape) -> str:
        """What several data are called: images, or data."""
        return "images" if self.kind_of(x_shape) == "image" else "data"
