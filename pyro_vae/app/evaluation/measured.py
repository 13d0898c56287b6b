"""Runs that were opened and measured: the numbers that the screen and the report tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from pyro_vae.app.comparisons.cell import data_digest
from pyro_vae.app.comparisons.errors import MISSING, TAIL, Over, compared, particles_told, trust, undecided
from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.app.comparisons.names import class_and_options, labels
from pyro_vae.app.console import pick_device, progress_bar
from pyro_vae.app.setting import check_positive
from pyro_vae.app.train import made
from pyro_vae.app.words import data_of_run
from pyro_vae.construction import make
from pyro_vae.data import Data
from pyro_vae.estimators import ELBO, Estimator
from pyro_vae.evaluate import mean
from pyro_vae.files import NotWrittenError, read_yaml, tensor_digest
from pyro_vae.models import Model
from pyro_vae.reports import Metric, Trained
from pyro_vae.runs import load, read_records
from pyro_vae.training import TrainingPlan
from pyro_vae.trust import Trust, here

Cell = Mapping[str, Any]
"""What is kept of a metric of a run: ``rows``, ``values``, ``notices``, ``each`` and ``figures``."""


@dataclass(frozen=True)
class Asked:
    """What is measured, and on which data.

    Attributes:
        runs: the run folders.
        metrics: the classes of metrics.
        data: the data set; None for each run's own.
        particles: K of log p(x) by importance sampling.
        images: how many test data that is taken over.
        device: the name of the device.
    """

    runs: Sequence[Path]
    metrics: Sequence[Callable[[], Metric]]
    data: Data | None
    particles: int
    images: int
    device: str


@dataclass(frozen=True)
class Opened:
    """A run that was read, and what was measured of it.

    Attributes:
        name: what it is called here.
        folder: where it lies.
        config: its configuration, as plain data.
        model: its model.
        trained: that model, and its data.
        digests: of its weights, and of its data.
        cells: what is kept of each metric, by its name.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    model: Model
    trained: Trained
    digests: tuple[str, str]
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return self.name.replace("/", "-")

    @property
    def rows(self) -> list[Sequence[str]]:
        """The rows of its table."""
        return [row for cell in self.cells.values() for row in cell["rows"]]

    @property
    def notices(self) -> list[str]:
        """What cannot be trusted, and what helps, in sentences."""
        more = self._more_by_annealing()
        return [notice for cell in self.cells.values() for notice in cell["notices"]] + ([more] if more else [])

    def joined(self, what: str) -> dict[str, Any]:
        """The ``values``, or the numbers of ``each`` datum, of all metrics."""
        return {name: value for cell in self.cells.values() for name, value in cell[what].items()}

    def _more_by_annealing(self) -> str | None:
        """How much more annealing finds than importance sampling, of the same data; None where both are not known."""
        each, noun = self.joined("each"), self.trained.noun
        if not each.keys() >= {"log_px", "ais"}:
            return None
        n = min(len(each["log_px"]), len(each["ais"]))
        more = mean(np.array(each["ais"][:n]) - np.array(each["log_px"][:n]))
        return f"Annealing finds {more.text(sign=True)} nats against importance sampling, of the same {n} {noun}."


class Comparison(NamedTuple):
    """A table of several runs.

    Attributes:
        title: its title.
        columns: the columns that are shown.
        rows: the rows, by column; there are more than are shown.
        lines: what each ± is, and what is left out of it.
    """

    title: str
    columns: list[str]
    rows: list[dict[str, Any]]
    lines: list[str]


@dataclass(frozen=True)
class Evaluation:
    """Runs that are measured.

    Attributes:
        cells: the folder that keeps what was measured.
        asked: what is measured.
        runs: the runs that were read, in their order.
        skipped: what was left out, and why.
    """

    cells: ComparisonFolder
    asked: Asked
    runs: list[Opened] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def measure(self, described: Sequence[Any], console: Console) -> Iterator[Opened]:
        """Opens and measures one run after the other. What is there is not measured again.

        Args:
            described: the classes of metrics as plain data.
            console: where it is told how far that is.

        Raises:
            ValueError: an argument is wrong, or no run can be measured.
        """
        asked = self.asked
        place = pick_device(asked.device)
        check_positive(test_particles=asked.particles, test_images=asked.images)
        if not asked.runs:
            raise ValueError("runs: name at least one run folder")
        metrics = dict(zip(labels(described, "metrics"), made("metrics", asked.metrics), strict=True))
        for name, folder in _named(asked.runs).items():
            try:
                run = self._open(name, folder, place)
            except (ValueError, OSError) as error:
                self.skipped[name] = str(error)
                continue
            self.runs.append(run)
            for (what, metric), description in zip(metrics.items(), described, strict=True):
                of = {"run": " ".join(run.digests), "metric": list(class_and_options(description))}
                cell = self.cells.get(name, what, of=of)
                if cell is None:
                    with progress_bar(console) as bar:
                        bar.add_task(f"{name}: {what} …", total=None)
                        try:
                            cell = self.cells.put(self._measured(run, metric), name, what, of=of)
                        except NotWrittenError:
                            raise
                        except Exception as error:  # a metric may be a user's own, which raises anything
                            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                            self.skipped[f"{name}: {what}"] = reason
                            continue
                run.cells[what] = cell
            yield run
        self.cells.left_out(console, any(run.cells for run in self.runs), self.skipped)

    def add_finished(self) -> None:
        """Gives each run what was measured of it before, by the same options, beside what was asked for now."""
        for run in self.runs:
            for what, cell in self.cells.finished(run.name, {"run": " ".join(run.digests)}).items():
                run.cells.setdefault(what, cell)

    def compared(self) -> Comparison | str:
        """log p(x) of several runs on the same data, with differences paired by datum; or why there is no comparison."""
        runs = [run for run in self.runs if run.cells]
        if len({run.digests[1] for run in runs}) > 1:
            return "The runs are not compared: they were evaluated on different data (--data names one set for all)."
        noun = runs[0].trained.noun
        kept = {run.name: np.array(run.joined("each").get("log_px", [])) for run in runs}
        n = min(map(len, kept.values()))
        if n < 2:
            return (
                "The runs are not compared: log p(x) of at least two data is needed of each (the metric LogLikelihood)."
            )
        over, evidence = Over([0], n, noun), [run.joined("values")["log_px"] for run in runs]
        rows = compared({name: {0: values} for name, values in kept.items()}, over)
        rows = [{"run": run.name} | row | trust([found]) for run, row, found in zip(runs, rows, evidence, strict=True)]
        columns = ["run", *over.columns, MISSING, TAIL]
        if all("ais" in run.joined("values") for run in runs):
            for run, row in zip(runs, rows, strict=True):
                annealed = run.joined("values")["ais"]
                row["annealed"] = f"{annealed['mean']:.2f} (n = {annealed['n']})"
            columns.append("annealed")
        lines = [
            *_given(runs),
            *_twice(runs),
            f"±: 95 % intervals over the test {noun} (Student's t), of a difference paired by datum. Left out: the spread over "
            f"trainings, since each row is one (compare-parts and compare-estimators train with several seeds).",
            *undecided({name: {0: values} for name, values in kept.items()}, over),
            particles_told(evidence, noun),
        ]
        return Comparison(f"Test log p(x), nats per datum, ± 95 % over the {n} test {noun}", columns, rows, lines)

    def _open(self, name: str, folder: Path, place: torch.device) -> Opened:
        """Reads a run.

        Raises:
            FileNotFoundError: it is not there, or is not complete.
            ValueError: it is damaged, or names what is not trusted, or its data do not fit.
        """
        trusted = here(folder)
        model = load(folder, trusted)
        config = read_yaml(folder / "config.yaml")
        splits = (self.asked.data or make(data_of_run(folder, trusted), Data, "data", trusted)).load()
        if tuple(model.dims.x_shape) != splits.x_shape:
            ours, theirs = ("×".join(map(str, shape)) for shape in (model.dims.x_shape, splits.x_shape))
            raise ValueError(f"data: the model of {folder} takes data of {ours} numbers each, and these are {theirs}")
        weights = tensor_digest({}, {key: value.cpu() for key, value in model.state_dict().items()})
        plan = TrainingPlan(estimator=_estimator(config, trusted))
        trained = Trained(
            model.to(place), splits.to(place), plan, read_records(folder), self.asked.particles, self.asked.images
        )
        return Opened(name, folder, config, model, trained, (weights, data_digest(splits)))

    def _measured(self, run: Opened, metric: Metric) -> dict[str, Any]:
        """What a cell keeps of a metric. Its figures are drawn."""
        found = metric.measure(run.trained)
        names = []
        for name, figure in found.figures.items():
            names.append(f"{run.stem}-{name}")
            self.cells.figure(names[-1], figure)
        each = {name: value.double().cpu().tolist() for name, value in found.each.items()}
        return {
            "rows": [list(row) for row in found.rows],
            "values": found.values,
            "notices": list(found.notices),
            "each": each,
            "figures": names,
        }


def _given(runs: Sequence[Opened]) -> list[str]:
    """A sentence where models are told different things beside the data, so that their numbers are of different quantities."""
    named = {run.name: run.trained.log_px for run in runs}
    if len(set(named.values())) < 2:
        return []
    those = "; ".join(f"{name}: {what}" for name, what in named.items() if what != "log p(x)")
    return [
        f"Not the same quantity in all rows: {those}, of a model that is given labels; of the others log p(x). A difference "
        f"between the two kinds does not say which model is better."
    ]


def _twice(runs: Sequence[Opened]) -> list[str]:
    """A sentence for each group of runs that have the same weights."""
    same: dict[str, list[str]] = {}
    for run in runs:
        same.setdefault(run.digests[0], []).append(run.name)
    return [f"The weights are the same: {', '.join(names)}." for names in same.values() if len(names) > 1]


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """The folders by the shortest ends of their paths that tell them apart. One that is named twice is one."""
    once: dict[Path, Path] = {}
    for run in runs:
        once.setdefault(Path(run).resolve(), Path(run))
    whole = list(once.values())
    for parts in range(1, 1 + max(len(path.resolve().parts) for path in whole)):
        names = ["/".join(path.resolve().parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, whole, strict=True))


def _estimator(config: Mapping[str, Any], trusted: Trust) -> Estimator:
    """The estimator that a run was trained with; the ELBO for a model that was saved without one."""
    described = config.get("estimator")
    found: Estimator = make(described, Estimator, "estimator", trusted) if described else ELBO()
    return found
