"""One HTML page of one run or several: what they reached, whether it can be trusted, every figure, and single data to look at.

    pyro-vae report runs/mine
    pyro-vae report runs/one runs/other --test_particles 1000
    pyro-vae evaluate runs/one runs/other && pyro-vae report runs/one runs/other

The page needs nothing beside it, and no network. What ``evaluate`` measured with the same options is in it, and is not measured
again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.app.comparisons.names import file_name
from pyro_vae.app.console import failing_clearly, screen, status_of
from pyro_vae.app.evaluation.command import GRID, compare, of_runs
from pyro_vae.app.evaluation.measured import Asked, Evaluation
from pyro_vae.app.options import Options
from pyro_vae.app.report.page import page
from pyro_vae.app.slots import Slot
from pyro_vae.data import Data
from pyro_vae.files import write_whole
from pyro_vae.reports import LogLikelihood, Metric, TestBound

console = screen()


def report(
    runs: Sequence[Path] = (),
    metrics: Sequence[Callable[[], Metric]] = (TestBound, LogLikelihood),
    data: Data | None = None,
    test_particles: int = 5000,
    test_images: int = 1000,
    shown: int = 300,
    device: str = "auto",
    out: Path | None = None,
    *,
    config: str,
    command: str = "",
) -> None:
    """Writes one HTML page of trained models, which needs nothing beside it.

    Args:
        runs: The run folders.
        metrics: A list of what is measured where it was not before, such as "[LogLikelihood, Gaps, my_file.Mine]".
        data: The data set. By default each run's own.
        test_particles: K of log p(x) by importance sampling.
        test_images: How many test data that estimate is taken over, counted from the first.
        shown: How many test data can be looked at one by one, those of the worst numbers first; 0 for none.
        device: auto (CUDA where there is one), cpu, cuda or cuda:<number>.
        out: The folder of the results. By default it is that of ``evaluate`` with the same options.
        config: The resolved options.
        command: The command line, for the page.
    """
    if shown < 0:
        raise ValueError(f"shown: expected at least 0, got {shown}")
    asked = Asked(runs, metrics, data, test_particles, test_images, device)
    evaluation = Evaluation(ComparisonFolder(out, "evaluate", config, GRID), asked)
    for run in evaluation.measure(yaml.safe_load(config)["metrics"], console):
        console.print(f"{run.name}: measured", markup=False)
    evaluation.add_finished()
    comparison = compare(evaluation) if len(evaluation.runs) > 1 else None
    given = yaml.safe_load(config)["data"]
    text = page(evaluation, comparison, shown, command, list(Slot(Metric).known()), given).encode()
    named = file_name("report", "-".join(run.name for run in evaluation.runs))
    path = evaluation.cells.folder / f"{named}.html"  # reports of other runs are in the same folder
    write_whole(path, text)
    console.print(f"Report: {path}   ({len(text) / 1e6:.1f} MB; open it in a browser)", soft_wrap=True)


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Writes one HTML page of trained models, which needs nothing beside it."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = Options(report, of_runs(words), prog=prog)
    with failing_clearly():
        try:
            report(**options.made(), config=options.as_yaml(), command=f"{options.parser.prog} {shlex.join(words)}")
        except KeyboardInterrupt as stop:
            console.print("Stopped. Finished metrics are kept: the same command goes on from them.")
            raise SystemExit(status_of(stop)) from None
