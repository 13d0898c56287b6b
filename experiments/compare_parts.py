"""Compares parts: trains a VAE for each prior, guide, likelihood and estimator, and tells what each combination ends in.

    python experiments/compare_parts.py --priors '[StandardNormal, VampPrior, my_file.Mine]'
    python experiments/compare_parts.py --guides '[DiagonalNormal, InverseAutoregressive]' --seeds [0,1,2] --epochs 30

Each combination is a run folder. Finished ones are kept: the same command goes on where it was cut off.
"""

from __future__ import annotations

from command_line import failing_clearly, parse, with_data
from comparison.parts import compare_parts
from rich.console import Console

console = Console(highlight=False)


def main() -> None:
    """Reads the options and compares."""
    parser, options = parse(compare_parts, skip={"splits", "config"})
    with failing_clearly():
        arguments, splits, options = with_data(parser, options)
        try:
            compare_parts(**arguments, splits=splits, config=parser.dump(options, skip_unset=False))
        except KeyboardInterrupt:
            console.print("Stopped. Finished cells are kept: the same command goes on from them.")
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
