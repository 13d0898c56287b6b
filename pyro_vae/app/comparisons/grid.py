"""What a comparison consists of: its cells, where they are computed, and what is told of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pyro_vae.app.comparisons.folder import ComparisonFolder

Key = tuple[str, ...]
Numbers = Mapping[str, Any]
"""What a cell holds, as plain data."""
Tell = Callable[[float, str, float | None], None]
"""Is told how far a cell is: the share that is done, what is being done, and the bound so far."""


@dataclass(frozen=True)
class Machines:
    """Where the cells of a comparison are computed.

    Args:
        jobs: How many cells are computed at once, each in a process of its own; the cores are shared out between them.
        executor: processes (on this machine), or ray (on a cluster of Ray: that of the environment variable RAY_ADDRESS, or a
            local one).
    """

    jobs: int = 1
    executor: Literal["processes", "ray"] = "processes"

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            ValueError: nothing is to be computed at once.
        """
        if self.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {self.jobs}")


@dataclass(frozen=True)
class Cell:
    """A cell of a comparison.

    Args:
        key: its names, which are those of its files.
        shown: what it is called on the screen.
        of: what it alone is computed from, as plain data.
        work: how long it takes, beside the other cells, in any unit.
        compute: computes its numbers. It is given the folder of its run, which it may make, and whom it tells how far it is.
        line: what is said of it once it is computed, given its numbers.
    """

    key: Key
    shown: str
    of: Any
    work: float
    compute: Callable[[Path, Tell], Numbers]
    line: Callable[[Numbers], str]


@dataclass(frozen=True)
class Comparison:
    """A comparison, as it is computed and told.

    Args:
        name: the beginning of the name of its folder, where ``out`` names none.
        out: its folder.
        machines: where its cells are computed.
        cells: its cells, those first that are computed first.
        grid: the names of the options that list the cells.
        given: what all cells are computed from beside the options, such as a digest of the data.
        report: writes tables and figures, and prints what they say. It is given the folder, and the numbers of each cell that
            there are.
    """

    name: str
    out: Path | None
    machines: Machines
    cells: Sequence[Cell]
    grid: Collection[str]
    given: Mapping[str, Any]
    report: Callable[[ComparisonFolder, Mapping[Key, Numbers]], None] = field(repr=False)
