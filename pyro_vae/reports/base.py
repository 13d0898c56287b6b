"""What a metric and a picture are given, and what they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from torch import Tensor

from pyro_vae.data import Columns, Split, Splits, columns_for
from pyro_vae.kinds import require
from pyro_vae.traces import Programs, inputs_of
from pyro_vae.training import Epoch, TrainingPlan

if TYPE_CHECKING:  # a second of import that only pictures need
    from matplotlib.figure import Figure

    from pyro_vae.figures import Look


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, and what is known of it.

    Attributes:
        model: the model and the guide, with the weights that are reported.
        data: training, validation and test data, on the model's device.
        plan: how it was trained.
        records: a record of each epoch.
        test_particles: K of the estimate of log p(x).
        test_images: how many test data that estimate is taken over, counted from the first.
    """

    model: Programs
    data: Splits
    plan: TrainingPlan
    records: Sequence[Epoch]
    test_particles: int = 1000
    test_images: int = 1000

    def __post_init__(self) -> None:
        """Checks the kinds of the fields."""
        require(vars(self), get_type_hints(Trained), "Trained")

    def test(self, n: int | None = None) -> Columns:
        """The test data, or the first n of them, as the model is called with them."""
        columns = self.columns(self.data.test)
        return columns if n is None else columns.first(n)

    def counted(self, n: int) -> str:
        """How the table says that a number is taken over the first n test data."""
        return f"all {n}" if n == len(self.data.test) else f"first {n}"

    def columns(self, split: Split) -> Columns:
        """A split, as the model is called with it."""
        return columns_for(self.model, split)

    @property
    def log_px(self) -> str:
        """What log p(x) is called: of a model that is given labels, log p(x|y)."""
        return f"log p(x|{self.given})" if self.given else "log p(x)"

    @property
    def noun(self) -> str:
        """What several data are called."""
        return self.data.view.noun(self.data.x_shape)

    @property
    def given(self) -> str:
        """What the model is given beside the data, as it is written behind a bar: "y" for labels, or nothing."""
        return given_to(self.model)

    def labels(self, n: int) -> Tensor | None:
        """The labels of the first n test data, if there are any, also for a model that is not given labels."""
        return None if self.data.test.labels is None else self.data.test.labels[:n]

    @cached_property
    def look(self) -> Look:
        """How pictures draw data: as images, lines or columns, and over which range of values."""
        from pyro_vae.figures import look_of  # noqa: PLC0415  (matplotlib)

        return look_of(self.data)


def given_to(model: Programs) -> str:
    """What a model is given beside the data: "y" for labels, or nothing."""
    return ",".join(name for name in inputs_of(model) if name not in ("x", "labelled"))


class Row(NamedTuple):
    """A row of the final table: a quantity, its value with its error, and the data that it is taken over."""

    quantity: str
    value: str
    data: str


class Measured(NamedTuple):
    """What a metric found.

    Attributes:
        rows: rows for the final table.
        values: values for result.json.
        notices: what cannot be trusted, and what helps, in sentences.
        each: values of each of the first test data, by name; `evaluate` keeps them as a table.
        figures: figures by the name of their file.
    """

    rows: Sequence[Row]
    values: dict[str, Any]
    notices: Sequence[str] = ()
    each: Mapping[str, Tensor] = {}
    figures: Mapping[str, Figure] = {}


class Metric(ABC):
    """A quantity of a trained model. A metric of your own is one class: ``--metrics "[TestBound, my_metrics.Mine]"``."""

    @abstractmethod
    def measure(self, trained: Trained) -> Measured:
        """Measures it on the test data."""


class Picture(ABC):
    """A figure of a trained model. One of your own is one class: ``--figures "[Samples, my_pictures.Mine]"``."""

    @abstractmethod
    def draw(self, trained: Trained) -> dict[str, Figure]:
        """The figures by the name of their file. It is empty where a picture has nothing to show."""
