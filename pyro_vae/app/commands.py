"""The commands of the application, by the first word of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from pyro_vae._version import version
from pyro_vae.app import autoencoder, train
from pyro_vae.app.comparisons import estimators, parts
from pyro_vae.app.evaluation import command as evaluation
from pyro_vae.app.options import choose, program
from pyro_vae.app.ranks import first_tells
from pyro_vae.app.report import command as report

COMMANDS: dict[str, Callable[[Sequence[str], str], None]] = {
    "train": train.main,
    "evaluate": evaluation.main,
    "report": report.main,
    "compare-estimators": estimators.main,
    "compare-parts": parts.main,
    "autoencoder": autoencoder.main,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names; the others are its options."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    with first_tells():
        if words[:1] == ["--version"]:
            print(f"pyro_vae {version}")
            return
        name, rest = choose(COMMANDS, words, "command", program())
    COMMANDS[name](rest, f"{program()} {name}")
