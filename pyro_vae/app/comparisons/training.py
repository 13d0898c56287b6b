"""The second half of ``compare-estimators``: what training with each estimator ends in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pyro_vae import figures
from pyro_vae.app.comparisons.cell import check_numbers, data_digest, following, run_config, trained
from pyro_vae.app.comparisons.errors import MISSING, TAIL, Over, compared, particles_told, tell_left_out, told, trust
from pyro_vae.app.comparisons.folder import ComparisonFolder, EstimatorFactory
from pyro_vae.app.comparisons.grid import Cell, Comparison, Key, Machines, Numbers, Tell
from pyro_vae.app.comparisons.names import class_and_options, labels
from pyro_vae.app.console import StopRequest, screen
from pyro_vae.app.setting import Setting
from pyro_vae.data import Splits
from pyro_vae.estimators import ELBO, IWAE, DReG
from pyro_vae.evaluate import Evidence, evidence, mean
from pyro_vae.models import Model, ModelSpec
from pyro_vae.traces import Programs
from pyro_vae.training import Callback, Epoch, Training, TrainingPlan, fit

console = screen()
Cells = dict[tuple[str, int], dict[int, dict[str, Any]]]
"""Finished cells by estimator and K, and by seed."""
LEFT_OUT = frozenset({"estimator", "seed", "callbacks"})
"""Fields of a training plan that each cell has of its own, or that no cell has."""


def training(
    spec: ModelSpec,
    plan: TrainingPlan,
    setting: Setting,
    machines: Machines = Machines(),
    estimators: Sequence[EstimatorFactory] = (ELBO, IWAE, DReG),
    particles: Sequence[int] = (5,),
    seeds: Sequence[int] = (0, 1, 2),
    evaluate_every: int = 3,
    *,
    splits: Splits,
    config: str,
) -> Comparison:
    """Compares what estimators end in: test log p(x), by importance sampling for all, against steps and wall time.

    Every estimator starts at the same weights and sees the data in the same order, both decided by the seed.

    Args:
        spec: The model.
        plan: How it is trained.
        setting: On which data, where, and how the end is judged.
        machines: Where the cells are computed.
        estimators: The estimators, each called with K.
        particles: The numbers of particles K.
        seeds: The seeds of the first weights, the order of the data and the noise; there is one training for each.
        evaluate_every: Epochs between two evaluations; the last epoch is evaluated in any case.
        splits: The data, loaded.
        config: The resolved options.
    """
    described = yaml.safe_load(config)
    names = labels(described["estimators"], "estimators")
    first, where = setting.test(splits, least=2), setting.place
    given = {"data": data_digest(splits)}
    splits, first = splits.to(where), first.to(where)
    per_epoch = plan.steps(len(splits.train))

    def of(seed: int, K: int, name: str, make: EstimatorFactory, described_estimator: Any) -> Cell:
        path, chosen = class_and_options(described_estimator)
        one = {"estimator": {"class_path": path, "init_args": {**chosen, "K": K}}, "seed": seed}
        one_config = run_config(described, {"estimators", "particles", "seeds", "evaluate_every"}, one)

        def compute(folder: Path, tell: Tell) -> Numbers:
            curve: _Curve

            def evaluate(programs: Programs) -> Evidence:
                return evidence(programs, first, setting.test_particles)

            def begin() -> tuple[Model, Training]:
                nonlocal curve
                model, curve = spec.build(splits, seed).to(where), _Curve(evaluate, evaluate_every, given)
                own = replace(plan, estimator=make(K), seed=seed, callbacks=[curve])
                on_step = following(tell, f"{name}, K = {K}", stop, plan.epochs)
                records = fit(model, splits, own, on_step=on_step)
                curve.begin(records)
                return model, records

            with StopRequest() as stop:
                model, _, _ = trained(begin, folder, one_config, stop)
            # The curve is of the weights on the way, and the result of those that were kept.
            found = curve.found if curve.found and plan.keep == "last" else evaluate(model)
            return curve.told(per_epoch) | {"final": found.log_px.tolist(), "evidence": found.as_dict()}

        def line(cell: Numbers) -> str:
            reached = mean(np.array(cell["final"]))
            return f"{name}, K = {K}, seed {seed}: log p(x) = {reached} nats after {cell['seconds'][-1]:.0f} s"

        key, work = (name, f"K{K}", f"seed{seed}"), (20 + K) * plan.epochs * per_epoch
        return Cell(key, f"{name} at K = {K}, seed {seed}", one, work, compute, line)

    def finish(cells: ComparisonFolder, found: Mapping[Key, Numbers]) -> None:
        done: Cells = {
            (name, K): {seed: dict(found[key]) for seed in seeds if (key := (name, f"K{K}", f"seed{seed}")) in found}
            for K in particles
            for name in names
        }
        over = Over(seeds, len(first), splits.view.noun(splits.x_shape))
        report_training(cells, done, f"{setting.name}, {len(first)} test {over.noun}", over)
        console.print(f"Tables, figures and cells, each with its run folder: {cells.folder}", soft_wrap=True)

    cells = [
        of(seed, K, name, make, each)
        for seed in seeds
        for K in particles
        for name, make, each in zip(names, estimators, described["estimators"], strict=True)
    ]
    grid = {"estimators", "particles", "seeds"}
    return Comparison("training", setting.out, machines, cells, grid, given, finish)


def check_training(made: Mapping[str, Any]) -> None:
    """Checks the numbers among the arguments of `training`."""
    check_numbers(made["particles"], "particles", 1)
    check_numbers(made["seeds"], "seeds", 0)
    check_numbers([made["evaluate_every"]], "evaluate_every", 1)


class _Curve(Callback):
    """Test log p(x) before, on the way of and after a training. It is kept in the checkpoints, beside the weights.

    Args:
        evaluate: evaluates a model.
        every: epochs between two evaluations; the last epoch is evaluated in any case.
        given: what the evaluations depend on beside the training, as plain data.
    """

    def __init__(self, evaluate: Callable[[Programs], Evidence], every: int, given: Mapping[str, Any]) -> None:
        self.evaluate, self.every, self.given = evaluate, every, {**given, "every": every}
        self.points: list[tuple[int, float, float]] = []
        """Epochs, seconds of training, and means of log p(x) in nats."""
        self.seconds = 0.0
        self.found: Evidence | None = None
        """The evaluation after the epoch before, if there was one."""

    def begin(self, training: Training) -> None:
        """Is told the training, and evaluates what it begins with."""
        self._is_last = training.kept.is_over
        self._epochs = training.plan.epochs
        self._look(0, training.programs)

    def on_epoch(self, record: Epoch, programs: Programs) -> None:
        """Evaluates where it is time for it."""
        self.seconds += record.seconds
        self.found = None
        if record.epoch % self.every == 0 or record.epoch == self._epochs or self._is_last(record.epoch):
            self._look(record.epoch, programs)

    def _look(self, epoch: int, programs: Programs) -> None:
        self.found = self.evaluate(programs)
        self.points.append((epoch, self.seconds, float(np.mean(self.found.log_px.tolist()))))

    def told(self, steps: int) -> dict[str, Any]:
        """The curve as a cell holds it, at so many steps an epoch."""
        epochs, seconds, log_px = zip(*self.points, strict=True)
        return {"steps": [epoch * steps for epoch in epochs], "seconds": [*seconds], "log_px": [*log_px]}

    def state_dict(self) -> Any:
        """The points so far."""
        return {"given": self.given, "points": self.points, "seconds": self.seconds}

    def load_state_dict(self, state: Any) -> None:
        """Goes on after these points.

        Raises:
            ValueError: they are of other data, or were taken at other epochs.
        """
        if state["given"] != self.given:
            raise ValueError("the curve of this training is of other data, or was taken at other epochs")
        self.points = [(int(epoch), float(seconds), float(value)) for epoch, seconds, value in state["points"]]
        self.seconds, self.found = float(state["seconds"]), None


def report_training(cells: ComparisonFolder, done: Cells, what: str, over: Over) -> None:
    """Table and figure of the training half."""
    every, done = done, {key: of_key for key, of_key in done.items() if of_key}
    found = {key: {seed: np.array(cell["final"]) for seed, cell in of_key.items()} for key, of_key in done.items()}
    rows: list[dict[str, Any]] = []
    for ((name, K), of_key), result in zip(done.items(), compared(found, over), strict=True):
        seconds = float(np.mean([cell["seconds"][-1] for cell in of_key.values()]))
        per_step = 1000 * seconds / next(iter(of_key.values()))["steps"][-1]
        of_particles = trust(cell["evidence"] for cell in of_key.values())
        rows.append({"estimator": name, "K": K, **result, **of_particles, "seconds": seconds, "ms per step": per_step})
    columns = ["estimator", "K", *over.columns, MISSING, TAIL, "seeds", "seconds", "ms per step"]
    columns += tell_left_out(rows, [({"estimator": name, "K": K}, of_key) for (name, K), of_key in every.items()], over)
    title = f"Test log p(x), nats per datum, ± 95 % {over.what}: {what}"
    console.print(cells.table("training", title, columns, rows, keys=2))
    for line in told(found, over, lambda key: f"{key[0]}, K = {key[1]}"):
        console.print(line)
    console.print(particles_told((cell["evidence"] for of_key in done.values() for cell in of_key.values()), over.noun))
    several = ", means over seeds" if over.several else ""
    console.print(f"seconds: of training, and ms per step{several}, are without their errors.")
    curves = {
        f"{name}, K = {K}": figures.Curve(
            np.array(next(iter(of_key.values()))["steps"]),
            np.array([cell["seconds"] for cell in of_key.values()]),
            np.array([cell["log_px"] for cell in of_key.values()]),
        )
        for (name, K), of_key in done.items()
    }
    shown = f"mean and 95 % interval {over.what}" if over.several else f"seed {over.seeds[0]} alone"
    cells.figure("training", figures.convergence(curves, f"test log p(x): {what}; {shown}"))
