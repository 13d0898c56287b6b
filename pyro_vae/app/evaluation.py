"""What trained models are worth, and how far the numbers and their posteriors can be trusted.

    pyro-vae evaluate runs/mine
    pyro-vae evaluate runs/one runs/other --test_particles 5000
    pyro-vae evaluate runs/mine --metrics "[LogLikelihood, {class_path: AIS, init_args: {temperatures: 1000}}, my_file.Mine]"

Each metric is a class, the same as ``train`` takes, and each finished one is kept: the same command goes on where it was cut
off, and with more runs or metrics in the same ``--out``.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pyro_vae.app.comparisons.errors import MISSING, TAIL, Over, compared, particles_told, trust, undecided
from pyro_vae.app.comparisons.folder import ComparisonFolder, data_digest
from pyro_vae.app.comparisons.names import class_and_options, labels
from pyro_vae.app.console import StopRequest, failing_clearly, pick_device, screen
from pyro_vae.app.options import Options, program
from pyro_vae.app.setting import check_positive
from pyro_vae.app.table import quantities
from pyro_vae.app.train import made
from pyro_vae.app.words import data_of_run
from pyro_vae.construction import make
from pyro_vae.data import Data, Splits
from pyro_vae.estimators import ELBO, Estimator
from pyro_vae.evaluate import mean
from pyro_vae.files import read_yaml, to_json, write_whole
from pyro_vae.models import Model
from pyro_vae.reports import (
    AIS,
    Bracket,
    Calibration,
    Gaps,
    LogLikelihood,
    Metric,
    Surgery,
    TestBound,
    Trained,
)
from pyro_vae.runs import load, tensor_digest
from pyro_vae.training import TrainingPlan
from pyro_vae.trust import Trust, here

console = screen()


@dataclass(frozen=True)
class Opened:
    """A run that was read.

    Attributes:
        name: what it is called here.
        trained: its model and data.
        digest: a digest of its weights and of its data.
    """

    name: str
    trained: Trained
    digest: str


def evaluate(
    runs: Sequence[Path],
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
    place, described = pick_device(device), yaml.safe_load(config)
    check_positive(test_particles=test_particles, test_images=test_images)
    if not runs:
        raise ValueError("runs: name at least one run folder")
    measured = dict(zip(labels(described["metrics"], "metrics"), made("metrics", metrics), strict=True))
    cells = ComparisonFolder(out, "evaluate", config, {"runs", "metrics"})
    skipped: dict[str, str] = {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    opened: dict[str, Opened] = {}
    with StopRequest() as stop:
        for name, folder in _named(runs).items():
            try:
                run = _open(name, folder, data, test_particles, test_images, place)
            except (ValueError, OSError) as error:
                skipped[name] = str(error)
                continue
            opened[name], found[name] = run, {}
            for (what, metric), description in zip(measured.items(), described["metrics"], strict=True):
                of = {"run": run.digest, "metric": list(class_and_options(description))}
                cell = cells.get(name, what, of=of)
                if cell is None:
                    stop.check()
                    with console.status(f"{name}: {what} …"):
                        try:
                            cell = cells.put(_measured(cells, run, metric), name, what, of=of)
                        except Exception as error:  # a metric may be a user's own, which raises anything
                            skipped[f"{name}: {what}"] = f"{type(error).__name__}: {error}".partition("\n")[0]
                            continue
                found[name][what] = cell
            _report(cells, run, found[name])
    cells.left_out(console, skipped, any(found.values()))
    if len(opened) > 1:
        _compare(cells, list(opened.values()), found)
    console.print(f"Tables, figures, and values of each datum: {cells.folder}", soft_wrap=True)


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """The folders by the shortest ends of their paths that tell them apart."""
    whole = list(dict.fromkeys(Path(run) for run in runs))
    for parts in range(1, 1 + max(len(path.resolve().parts) for path in whole)):
        names = ["/".join(path.resolve().parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, whole, strict=True))


def _open(name: str, folder: Path, data: Data | None, particles: int, images: int, place: torch.device) -> Opened:
    """Reads a run.

    Raises:
        FileNotFoundError: it is not there, or is not complete.
        ValueError: it is damaged, or names what is not trusted, or its data do not fit.
    """
    trusted = here(folder)
    model = load(folder, trusted)
    config = read_yaml(folder / "config.yaml")
    splits = (data or make(data_of_run(folder, trusted), Data, "data", trusted)).load()
    _check(model, splits, folder)
    weights = tensor_digest({}, {key: value.cpu() for key, value in model.state_dict().items()})
    estimator = _estimator(config, trusted)
    trained = Trained(model.to(place), splits.to(place), TrainingPlan(estimator=estimator), [], particles, images)
    return Opened(name, trained, f"{weights} {data_digest(splits)}")


def _estimator(config: Mapping[str, Any], trusted: Trust) -> Estimator:
    """The estimator that a run was trained with; the ELBO for a model that was saved without one."""
    described = config.get("estimator")
    found: Estimator = make(described, Estimator, "estimator", trusted) if described else ELBO()
    return found


def _check(model: Model, splits: Splits, folder: Path) -> None:
    """Checks that data are of the shape that the model takes."""
    if tuple(model.dims.x_shape) != splits.x_shape:
        ours, theirs = ("×".join(map(str, shape)) for shape in (model.dims.x_shape, splits.x_shape))
        raise ValueError(f"data: the model of {folder} takes data of {ours} numbers each, and these are {theirs}")


def _measured(cells: ComparisonFolder, run: Opened, metric: Metric) -> dict[str, Any]:
    """What a cell keeps of a metric. Its figures are drawn."""
    found = metric.measure(run.trained)
    for name, figure in found.figures.items():
        cells.figure(f"{run.name.replace('/', '-')}-{name}", figure)
    each = {name: value.double().cpu().tolist() for name, value in found.each.items()}
    rows = [list(row) for row in found.rows]
    return {"rows": rows, "values": found.values, "notices": list(found.notices), "each": each}


def _report(cells: ComparisonFolder, run: Opened, found: Mapping[str, Mapping[str, Any]]) -> None:
    """The table of a run, and what cannot be trusted, on the screen; its values as JSON, and those of each datum as CSV."""
    noun = run.trained.noun
    rows = [row for cell in found.values() for row in cell["rows"]]
    if not rows:
        return
    console.print(quantities(f"{run.name}: test set, nats per datum", noun, rows))
    for cell in found.values():
        for notice in cell["notices"]:
            console.print(f"Note: {notice}")
    if more := _more_by_annealing(found, noun):
        console.print(more)
    stem = run.name.replace("/", "-")
    values, each = _joined(found, "values"), _joined(found, "each")
    write_whole(cells.folder / f"{stem}.json", (to_json(values, indent=2) + "\n").encode())
    with (cells.folder / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["datum", *each])
        for i in range(max(map(len, each.values()), default=0)):
            writer.writerow([i, *(column[i] if i < len(column) else "" for column in each.values())])


def _more_by_annealing(found: Mapping[str, Mapping[str, Any]], noun: str) -> str | None:
    """How much more annealing finds than importance sampling, of the same data; None where both are not known."""
    each = _joined(found, "each")
    if not each.keys() >= {"log_px", "ais"}:
        return None
    n = min(len(each["log_px"]), len(each["ais"]))
    more = mean(np.array(each["ais"][:n]) - np.array(each["log_px"][:n]))
    return f"Annealing finds {more.text(sign=True)} nats against importance sampling, of the same {n} {noun}."


def _joined(found: Mapping[str, Mapping[str, Any]], what: str) -> dict[str, Any]:
    """What all metrics of a run found."""
    return {name: value for cell in found.values() for name, value in cell[what].items()}


def _compare(
    cells: ComparisonFolder, runs: Sequence[Opened], found: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    """log p(x) of several runs on the same data, with differences paired by datum."""
    of_data = {run.digest.split()[1] for run in runs}
    if len(of_data) > 1:
        console.print(
            "The runs are not compared: they were evaluated on different data (--data names one set for all)."
        )
        return
    values = {name: _joined(of_run, "values") for name, of_run in found.items()}
    each = {name: _joined(of_run, "each") for name, of_run in found.items()}
    rows: dict[str, dict[str, Any]] = {run.name: {"run": run.name} for run in runs}
    columns, first = ["run"], runs[0].trained
    if all("log_px" in each[name] for name in rows):
        kept = {name: {0: np.array(each[name]["log_px"])} for name in rows}
        over = Over([0], len(next(iter(kept.values()))[0]), first.noun)
        if over.data > 1:
            for name, result in zip(rows, compared(kept, over), strict=True):
                rows[name] |= result | trust([values[name]["log_px"]])
            columns += [*over.columns, MISSING, TAIL]
    if len(columns) == 1:
        return
    if all("ais" in values[name] for name in rows):
        for name, row in rows.items():
            row["annealed"] = f"{values[name]['ais']['mean']:.2f} (n = {values[name]['ais']['n']})"
        columns.append("annealed")
    title = f"Test log p(x), nats per datum, ± 95 % over the {over.data} test {over.noun}"
    console.print(cells.table("runs", title, columns, list(rows.values())))
    console.print(
        f"±: 95 % intervals over the test {over.noun} (Student's t), of a difference paired by datum. Left out: the spread "
        f"over trainings, since each row is one (compare-parts and compare-estimators train with several seeds)."
    )
    for line in undecided(kept, over):
        console.print(line)
    console.print(particles_told((values[name]["log_px"] for name in rows), over.noun))


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Evaluates trained models: log p(x) from several sides, gaps, calibration, and what cannot be trusted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    folders = list(words[: _leading(words)])
    rest = words[len(folders) :]
    if folders:
        rest = [f"--runs={to_json(folders)}", *rest]
    options = Options(evaluate, rest, prog=prog or f"{program()} evaluate")
    with failing_clearly():
        try:
            evaluate(**options.made(), config=options.as_yaml())
        except KeyboardInterrupt:
            console.print("Stopped. Finished metrics are kept: the same command goes on from them.")
            raise SystemExit(130) from None


def _leading(words: Sequence[str]) -> int:
    """How many words stand before the first option."""
    return next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
