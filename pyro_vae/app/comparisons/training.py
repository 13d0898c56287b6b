"""The second half of ``compare-estimators``: what training with each estimator ends in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from pyro_vae import figures
from pyro_vae.app.comparisons.folder import (
    ComparisonFolder,
    EstimatorFactory,
    check_numbers,
    class_and_options,
    labels,
    left_out,
    run_config,
)
from pyro_vae.app.console import StopRequest, progress_bar, wide_console
from pyro_vae.app.setting import Setting
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, IWAE, DReG
from pyro_vae.evaluate import interval, log_px, mean
from pyro_vae.models import Model, ModelSpec
from pyro_vae.runs import Run
from pyro_vae.training import Progress, Training, TrainingPlan, fit

console = wide_console()
LEFT_OUT = frozenset({"estimator", "seed", "callbacks"})
"""Fields of a training plan that each cell has of its own, or that no cell has."""


def training(
    spec: ModelSpec,
    plan: TrainingPlan,
    setting: Setting,
    estimators: Sequence[EstimatorFactory] = (ELBO, IWAE, DReG),
    particles: Sequence[int] = (5,),
    seeds: Sequence[int] = (0, 1, 2),
    evaluate_every: int = 3,
    *,
    splits: Splits,
    config: str,
) -> None:
    """Compares what estimators end in: test log p(x), by importance sampling for all, against steps and wall time.

    Every estimator starts at the same weights and sees the data in the same order, both decided by the seed.

    Args:
        spec: The model.
        plan: How it is trained.
        setting: On which data, where, and how the end is judged.
        estimators: The estimators, each called with K.
        particles: The numbers of particles K.
        seeds: The seeds of the first weights, the order of the data and the noise; there is one training for each.
        evaluate_every: Epochs between two evaluations; the last epoch is evaluated in any case.
        splits: The data, loaded.
        config: The resolved options.
    """
    described = yaml.safe_load(config)
    names = labels(described["estimators"], "estimators")
    check_numbers(particles, "particles", 1)
    check_numbers(seeds, "seeds", 0)
    check_numbers([evaluate_every], "evaluate_every", 1)
    first, where = setting.test(splits, least=2), setting.place
    splits, first = splits.to(where), first.to(where)
    cells = ComparisonFolder(setting.out, "training", config, {"estimators", "particles", "seeds"})
    steps = plan.steps(len(splits.train))

    skipped: dict[str, str] = {}
    done: dict[tuple[str, int], list[dict[str, Any]]] = {}
    grid = [
        (seed, K, name, make, each)
        for seed in seeds
        for K in particles
        for name, make, each in zip(names, estimators, described["estimators"], strict=True)
    ]
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("", total=sum((20 + K) * plan.epochs * steps for _, K, *_ in grid))
        before = 0
        for seed, K, name, make, described_estimator in grid:
            key = name, f"K{K}", f"seed{seed}"
            cell = cells.get(*key)
            if cell is None:

                def on_step(now: Progress, K: int = K, before: int = before, what: str = f"{name}, K = {K}") -> None:
                    stop.check()
                    text = f"{what}, epoch {now.epoch}/{plan.epochs}"
                    bar.update(task, completed=before + (20 + K) * now.step, description=text, live=now.bound)

                model = spec.build(splits, seed).to(where)
                try:
                    records = fit(model, splits, replace(plan, estimator=make(K), seed=seed), on_step=on_step)
                except ValueError as error:
                    skipped[f"{name} at K = {K}"] = str(error)
                    before += (20 + K) * plan.epochs * steps
                    bar.update(task, completed=before)
                    continue
                path, chosen = class_and_options(described_estimator)
                one = {"estimator": {"class_path": path, "init_args": {**chosen, "K": K}}, "seed": seed}
                own = {"estimators", "particles", "seeds", "evaluate_every"}
                run = cells.new_run(run_config(described, own, one), *key)
                cell = _follow(records, model, run, first, setting.test_particles, evaluate_every, steps, stop)
                cells.put(cell, *key)
                reached = f"log p(x) = {cell['log_px'][-1]:.2f} nats after {cell['seconds'][-1]:.0f} s"
                console.print(f"{name}, K = {K}, seed {seed}: {reached}")
            before += (20 + K) * plan.epochs * steps
            bar.update(task, completed=before)
            done.setdefault((name, K), []).append(cell)
    left_out(console, skipped, bool(done))
    what = f"{setting.name}, {len(seeds)} seeds, K = {setting.test_particles} on {len(first)} test images"
    report_training(cells, done, what)
    console.print(f"Tables, figures and cells, each with its run folder: {cells.folder}", soft_wrap=True)


def _follow(
    records: Training, model: Model, run: Run, first: Split, K: int, every: int, steps: int, stop: StopRequest
) -> dict[str, Any]:
    """Trains on, evaluates on the way, and returns the cell."""
    cell: dict[str, Any] = {"steps": [], "seconds": [], "log_px": []}

    def evaluate(epoch: int, seconds: float) -> None:
        cell["final"] = log_px(model, first, K).tolist()
        for key, value in (("steps", epoch * steps), ("seconds", seconds), ("log_px", float(np.mean(cell["final"])))):
            cell[key].append(value)

    evaluate(0, 0.0)
    seconds = 0.0
    for record in records:
        seconds += record.seconds
        run.record(record, model, records.estimator.state)
        if record.epoch % every == 0:
            evaluate(record.epoch, seconds)
        stop.check()
    if record.epoch % every:
        evaluate(record.epoch, seconds)
    return cell


def report_training(cells: ComparisonFolder, done: dict[tuple[str, int], list[dict[str, Any]]], what: str) -> None:
    """Table and figure of the training half."""
    finals = {key: np.array([cell["log_px"][-1] for cell in of_key]) for key, of_key in done.items()}
    base = next(iter(finals))
    rows = []
    for (name, K), final in finals.items():
        value, gap = interval(final), interval(final - finals[base])
        images = np.mean([cell["final"] for cell in done[name, K]], axis=0)
        row: dict[str, Any] = {"estimator": name, "K": K, "seeds": len(final)}
        row["log p(x)"] = (
            f"{value.value:.2f} ± {(value.high - value.value):.2f}" if len(final) > 1 else f"{value.value:.2f}"
        )
        row["to the first"] = "first"
        if (name, K) != base:
            row["to the first"] = (
                f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]" if len(final) > 1 else f"{gap.value:+.2f}"
            )
        row["seconds"] = float(np.mean([cell["seconds"][-1] for cell in done[name, K]]))
        row["ms per step"] = 1000 * row["seconds"] / done[name, K][0]["steps"][-1]
        row |= {"log p(x) (number)": value.value, "low": value.low, "high": value.high}
        row |= {"to the first (number)": gap.value, "to the first low": gap.low, "to the first high": gap.high}
        row["standard error over images"] = mean(images).error
        rows.append(row)
    columns = ["estimator", "K", "seeds", "log p(x)", "to the first", "seconds", "ms per step"]
    console.print(cells.table("training", f"Test log p(x), nats per datum: {what}", columns, rows))
    console.print(
        f"± and [ ]: 95 % intervals over seeds (Student's t); differences are taken seed by seed. The standard error over "
        f"images, common to all rows, is {rows[0]['standard error over images']:.2f}."
    )
    curves = {
        f"{name}, K = {K}": figures.Curve(
            np.array(of_key[0]["steps"]),
            np.array([cell["seconds"] for cell in of_key]),
            np.array([cell["log_px"] for cell in of_key]),
        )
        for (name, K), of_key in done.items()
    }
    cells.figure("training", figures.convergence(curves, f"test log p(x): {what}; band: lowest to highest seed"))
