"""How a comparison is called: finished cells are kept where it is cut off."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from pyro_vae.app.console import failing_clearly, screen, status_of
from pyro_vae.app.options import Options

console = screen()


def run_command(
    command: Callable[..., None],
    arguments: Sequence[str] | None,
    left_out: Set[str],
    prog: str | None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Reads the options of a comparison and runs it.

    Args:
        command: the comparison.
        arguments: the words of its command line; by default those of this process.
        left_out: fields of its specifications that are no options of it.
        prog: how the command is called, for messages.
        check: a function that raises ValueError if an argument, by name, is out of its range, called before data are read.
    """
    options = Options(command, sys.argv[1:] if arguments is None else list(arguments), left_out, prog)
    with failing_clearly():
        made, splits = options.with_data(check)
        try:
            command(**made, splits=splits, config=options.as_yaml())
        except KeyboardInterrupt as stop:
            console.print("Stopped. Finished cells are kept: the same command goes on from them.")
            raise SystemExit(status_of(stop)) from None
