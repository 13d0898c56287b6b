"""What trained models are worth, and how far the numbers and their posteriors can be trusted.

    pyro-vae evaluate runs/mine
    pyro-vae evaluate runs/one runs/other --test_particles 5000
    pyro-vae evaluate runs/mine --metrics "[LogLikelihood, {class_path: AIS, init_args: {temperatures: 1000}}, my_file.Mine]"

Each metric is a class, the same as ``train`` takes, and each finished one is kept: the same command goes on where it was cut
off, and with more runs or metrics in the same ``--out``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import yaml

from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.app.console import failing_clearly, screen, status_of
from pyro_vae.app.evaluation.measured import Asked, Comparison, Evaluation, Opened
from pyro_vae.app.options import Options
from pyro_vae.app.table import quantities
from pyro_vae.data import Data
from pyro_vae.files import to_json, write_table, write_whole
from pyro_vae.reports import AIS, Bracket, Calibration, Gaps, LogLikelihood, Metric, Surgery, TestBound

console = screen()
GRID = frozenset({"runs", "metrics", "shown"})
"""Options that do not change what is measured of a run: the same folder takes others of them."""


def evaluate(
    runs: Sequence[Path] = (),
    metrics: Sequence[Callable[[], Metric]] = (TestBound, LogLikelihood, AIS, Bracket, Gaps, Surgery, Calibration),
    data: Data | None = None,
    test_particles: int = 5000,
    test_images: int = 1000,
    device: str = "auto",
    out: Path | None = None,
    *,
    config: str,
) -> None:
    """Evaluates trained models: bounds on log p(x) from several sides, where the gap comes from, and calibration.

    Args:
        runs: The run folders.
        metrics: A list of what is measured on the test data, such as "[LogLikelihood, AIS, my_file.Mine]".
        data: The data set. By default each run's own.
        test_particles: K of log p(x) by importance sampling.
        test_images: How many test data that estimate is taken over, counted from the first.
        device: auto (CUDA where there is one), cpu, cuda or cuda:<number>.
        out: The folder of the results. By default it lies in runs/, and is named after the options.
        config: The resolved options.
    """
    asked = Asked(runs, metrics, data, test_particles, test_images, device)
    evaluation = Evaluation(ComparisonFolder(out, "evaluate", config, GRID), asked)
    for run in evaluation.measure(yaml.safe_load(config)["metrics"], console):
        _tell(evaluation.cells.folder, run)
    if len(evaluation.runs) > 1:
        compare(evaluation)
    console.print(f"Tables, figures, and values of each datum: {evaluation.cells.folder}", soft_wrap=True)


def _tell(folder: Path, run: Opened) -> None:
    """The table of a run, and what cannot be trusted, on the screen; its values as JSON, and those of each datum as CSV."""
    if not run.rows:
        return
    console.print(quantities(f"{run.name}: test set, nats per datum", run.trained.noun, run.rows))
    for notice in run.notices:
        console.print(f"Note: {notice}", markup=False)
    each = run.joined("each")
    write_whole(folder / f"{run.stem}.json", (to_json(run.joined("values"), indent=2) + "\n").encode())
    rows = enumerate(zip_longest(*each.values(), fillvalue=""))
    write_table(folder / f"{run.stem}.csv", [["datum", *each], *([i, *row] for i, row in rows)])


def compare(evaluation: Evaluation) -> Comparison | str:
    """The table of several runs, on the screen and in files, which is returned; or why there is none."""
    found = evaluation.compared()
    if isinstance(found, str):
        console.print(found)
        return found
    console.print(evaluation.cells.table("runs", found.title, found.columns, found.rows))
    for line in found.lines:
        console.print(line)
    return found


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Evaluates trained models: log p(x) from several sides, gaps, calibration, and what cannot be trusted."""
    options = Options(evaluate, of_runs(arguments), prog=prog)
    with failing_clearly():
        try:
            evaluate(**options.made(), config=options.as_yaml())
        except KeyboardInterrupt as stop:
            console.print("Stopped. Finished metrics are kept: the same command goes on from them.")
            raise SystemExit(status_of(stop)) from None


def of_runs(arguments: Sequence[str] | None) -> list[str]:
    """The words of a command line, where those before the first option are the run folders."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    leading = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return [f"--runs={to_json(words[:leading])}", *words[leading:]] if leading else words
