"""Compares estimators: their gradients at a frozen state, or the models that they end in.

    python experiments/compare_estimators.py gradients
    python experiments/compare_estimators.py gradients --run runs/mine --estimators '[IWAE, my_file.Mine]' --particles [1,10]
    python experiments/compare_estimators.py training --estimators '[ELBO, IWAE]' --particles [5,50] --seeds [0,1,2]

Finished cells are kept in a folder: the same command goes on where it was cut off.
"""

from __future__ import annotations

from collections.abc import Callable

from command_line import failing_clearly, parse_one_of, with_data
from comparison.gradients import gradients
from comparison.training import training
from rich.console import Console

console = Console(highlight=False)


def main() -> None:
    """Runs the half that the first word names."""
    jobs: dict[str, Callable[..., None]] = {"gradients": gradients, "training": training}
    job, parser, options = parse_one_of(jobs, skip={"splits", "config"})
    with failing_clearly():
        arguments, splits, options = with_data(parser, options)
        try:
            jobs[job](**arguments, splits=splits, config=parser.dump(options, skip_unset=False))
        except KeyboardInterrupt:
            console.print("Stopped. Finished cells are kept: the same command goes on from them.")
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
