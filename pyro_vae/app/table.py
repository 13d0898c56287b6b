"""Tables for the screen that lose nothing where it is narrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from pyro_vae.figures.layout import in_lines

_GAP = 2
"""The empty places between two columns."""


@dataclass(frozen=True)
class Blocks:
    """A table whose columns stand in several blocks below each other where the screen is too narrow for all.

    No number is cut. The columns that name a row stand in each block, and the first of these names is broken into lines if
    it is long.

    Attributes:
        title: the title.
        columns: the names of the columns, the most important first.
        rows: the cells of each row.
        keys: how many of the first columns name a row.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Table]:
        """Draws it."""
        del console
        yield Text(self.title, style="italic")
        widths = [max(map(cell_len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        named, blocks = _blocks(widths, self.keys, options.max_width)
        for block in blocks:
            table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
            shown = [*range(self.keys), *block]
            for i in shown:
                table.add_column(Text(self.columns[i]), no_wrap=i > 0, justify="right" if i else "left")
            for row in self.rows:
                table.add_row(Text(in_lines(row[0], named)), *(Text(row[i]) for i in shown[1:]))
            yield table


def _blocks(widths: Sequence[int], keys: int, width: int) -> tuple[int, list[list[int]]]:
    """The width of the first name, and the columns that stand in each block beside the columns that name a row."""
    rest = range(keys, len(widths))
    if sum(widths) + _GAP * len(widths) <= width:
        return widths[0], [list(rest)]
    first = min(widths[0], max(16, width // 3))
    named = first + sum(widths[1:keys]) + _GAP * keys
    blocks: list[list[int]] = []
    for i in rest:
        used = named + sum(widths[j] + _GAP for j in blocks[-1]) if blocks else width
        if used + widths[i] + _GAP > width:
            blocks.append([])
        blocks[-1].append(i)
    return first, blocks


def quantities(title: str, noun: str, rows: Iterable[Sequence[str]] = ()) -> Table:
    """The table of a model's quantities.

    Args:
        title: the title.
        noun: what data are called.
        rows: of each quantity its name, its value, and the data that it is taken over.
    """
    table = Table(title=title, title_justify="left")
    for column in ("quantity", "value", noun):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in rows:
        table.add_row(*row)
    return table
