"""What a process is told that computes cells, and what comes of them there."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae.app.comparisons.folder import REASON
from pyro_vae.app.comparisons.grid import Cell, Comparison, Numbers, Tell
from pyro_vae.app.options import Options
from pyro_vae.files import digest
from pyro_vae.scopes import NotEnoughMemoryError, is_out_of_memory


@dataclass(frozen=True)
class Order:
    """What a process is told that computes cells of a comparison: how to read its command line as this process did.

    Args:
        command: the comparison.
        words: the words of its command line.
        left_out: fields of its specifications that are no options of it.
        prog: how the command is called.
        check: the check of its arguments.
        made_from: a digest of the options and the data, which must be the same there.
        threads: how many cores a cell may take.
    """

    command: Callable[..., Comparison]
    words: tuple[str, ...]
    left_out: frozenset[str]
    prog: str | None
    check: Callable[[Mapping[str, Any]], None] | None
    made_from: str = ""
    threads: int = 1

    def read(self) -> tuple[Comparison, str]:
        """The comparison, and its resolved options in YAML."""
        options = Options(self.command, list(self.words), self.left_out, self.prog)
        made, splits = options.with_data(self.check)
        config = options.as_yaml()
        return self.command(**made, splits=splits, config=config), config

    def read_again(self) -> Comparison:
        """The comparison, in another process than the one that began it.

        Raises:
            ValueError: the data or a file of options changed meanwhile.
        """
        with redirect_stdout(io.StringIO()):
            comparison, config = self.read()
        if made_from(comparison, config) != self.made_from:
            raise ValueError(
                "the data, or a file of options, changed since the comparison began: give the command again"
            )
        return comparison


def made_from(comparison: Comparison, config: str) -> str:
    """A digest of what a comparison is computed from."""
    return digest({"config": config, **comparison.given})


def attempt(cell: Cell, folder: Path, tell: Tell) -> Numbers:
    """Computes a cell: its numbers, or the reason why it has none.

    Raises:
        OSError: a file cannot be written.
        RuntimeError: the device is of no more use, so that no other cell could be computed either.
    """
    try:
        return cell.compute(folder, tell)
    except OSError:
        raise
    except Exception as error:  # a part may be a user's own, which raises anything
        return {REASON: _reason(error)}


def _reason(error: Exception) -> str:
    """Why a cell is left out, in a line."""
    if is_out_of_memory(error):
        return str(error) if isinstance(error, NotEnoughMemoryError) else "out of memory"
    if "CUDA error" in str(error):
        raise error
    line = str(error).partition("\n")[0]
    return line if isinstance(error, ValueError | ArithmeticError) else f"{type(error).__name__.lstrip('_')}: {line}"


class Ended(NamedTuple):
    """What came of a cell.

    Attributes:
        number: its number.
        numbers: what it holds. None where the process that computed it died.
        reason: how that process died.
        files: the files of its run, by their paths in its folder, where that folder was elsewhere.
    """

    number: int
    numbers: Numbers | None
    reason: str = ""
    files: Mapping[str, bytes] | None = None
