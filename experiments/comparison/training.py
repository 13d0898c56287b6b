"""The training half of compare_estimators.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from math import nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from command_line import StopRequest, pick_device, progress_bar
from scipy.stats import t as student_t

from comparison.cells import (
    Cells,
    EstimatorFactory,
    check_numbers,
    file_name,
    initialized,
    labels,
    left_out,
    wide_console,
)
from pyro_vae import VAE, figures, fit
from pyro_vae.data import Data, Digits, Split, Splits
from pyro_vae.estimators import ELBO, IWAE, DReG
from pyro_vae.evaluate import log_px
from pyro_vae.gradients import Interval
from pyro_vae.guides import DiagonalNormal
from pyro_vae.objectives import Objective
from pyro_vae.priors import StandardNormal
from pyro_vae.runs import GuideFactory, LikelihoodFactory, PriorFactory, Run
from pyro_vae.steps import Compile, Precision
from pyro_vae.training import Epoch, OptimizerFactory, Progress, ScheduleFactory

console = wide_console()


def training(
    estimators: Sequence[EstimatorFactory] = (ELBO, IWAE, DReG),
    particles: Sequence[int] = (5,),
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 30,
    evaluate_every: int = 3,
    data: Data = Digits(),
    prior: PriorFactory = StandardNormal,
    guide: GuideFactory = DiagonalNormal,
    likelihood: LikelihoodFactory | None = None,
    latent: int = 8,
    objective: Objective = Objective(),
    optimizer: OptimizerFactory = torch.optim.Adam,
    schedule: ScheduleFactory | None = None,
    batch_size: int = 50,
    compile: Compile = "auto",
    precision: Precision = "fp32",
    test_particles: int = 1000,
    test_images: int = 500,
    device: str = "auto",
    out: Path | None = None,
    *,
    splits: Splits,
    config: str,
) -> None:
    """Compares what estimators end in: test log p(x), by importance sampling for all, against steps and wall time.

    Every estimator starts at the same weights and sees the data in the same order, both decided by the seed.

    Args:
        estimators: The estimators, each called with K.
        particles: The numbers of particles K.
        seeds: One training for each, of the first weights, the order of the data and the noise.
        epochs: Passes over the training data.
        evaluate_every: Epochs between two evaluations; the last epoch is evaluated in any case.
        data: The data set.
        prior: The prior p(t).
        guide: The guide q(t|x,φ).
        likelihood: The likelihood p(x|t,w). By default the one that fits the data.
        latent: d, the dimension of the latent t.
        objective: What is optimized in place of the bound, by weights of its terms.
        optimizer: The optimizer of w and φ.
        schedule: A learning-rate schedule, moved on after each epoch.
        batch_size: Data per step.
        compile: Compile the step: on, off, or auto, where the steps ahead outweigh the time that it takes.
        precision: fp32, or bf16: the networks' matrix products in bfloat16.
        test_particles: K of the evaluation of log p(x), the same for all.
        test_images: How many test images it is taken over, counted from the first.
        device: auto (CUDA where there is one), cpu, cuda or cuda:<number>.
        out: The folder of the cells, tables and figures. By default runs/training-<a number for the options>.
        splits: The data, loaded.
        config: The resolved options.
    """
    described = yaml.safe_load(config)
    names = labels(described["estimators"], "estimators")
    check_numbers(particles, "particles", 1)
    check_numbers(seeds, "seeds", 0)
    for option, value in (("evaluate_every", evaluate_every), ("test_particles", test_particles)):
        check_numbers([value], option, 1)
    check_numbers([test_images], "test_images", 2)
    where = pick_device(device)
    splits = splits.to(where)
    cells = Cells(out, "training", config, {"estimators", "particles", "seeds"})
    first = splits.test.first(test_images)
    steps = -(-len(splits.train) // batch_size)

    skipped: dict[str, str] = {}
    done: dict[tuple[str, int], list[dict[str, Any]]] = {}
    grid = [
        (seed, K, name, make, spec)
        for seed in seeds
        for K in particles
        for name, make, spec in zip(names, estimators, described["estimators"], strict=True)
    ]
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("", total=sum((20 + K) * epochs * steps for _, K, *_ in grid))
        before = 0
        for seed, K, name, make, spec in grid:
            key = name, f"K{K}", f"seed{seed}"
            cell = cells.get(*key)
            if cell is None:

                def on_step(now: Progress, K: int = K, before: int = before, what: str = f"{name}, K = {K}") -> None:
                    stop.check()
                    text = f"{what}, epoch {now.epoch}/{epochs}"
                    bar.update(task, completed=before + (20 + K) * now.step, description=text, live=now.bound)

                vae = initialized(splits, latent, prior, guide, likelihood, seed).to(where)
                try:
                    records = fit(
                        vae,
                        splits,
                        epochs=epochs,
                        batch_size=batch_size,
                        estimator=make(K),
                        optimizer=optimizer,
                        schedule=schedule,
                        seed=seed,
                        objective=objective,
                        compile=compile,
                        precision=precision,
                        on_step=on_step,
                    )
                except ValueError as error:
                    skipped[f"{name} at K = {K}"] = str(error)
                    before += (20 + K) * epochs * steps
                    bar.update(task, completed=before)
                    continue
                folder = cells.folder / "runs" / file_name(*key)
                shutil.rmtree(folder, ignore_errors=True)  # what a cut left of this cell
                run = Run(folder, _run_config(described, spec, K, seed))
                cell = _follow(records, vae, run, first, test_particles, evaluate_every, steps, stop)
                cells.put(cell, *key)
                reached = f"log p(x) = {cell['log_px'][-1]:.2f} nats after {cell['seconds'][-1]:.0f} s"
                console.print(f"{name}, K = {K}, seed {seed}: {reached}")
            before += (20 + K) * epochs * steps
            bar.update(task, completed=before)
            done.setdefault((name, K), []).append(cell)
    left_out(console, skipped, bool(done))
    what = f"{type(data).__name__}, {len(seeds)} seeds, K = {test_particles} on {len(first)} test images"
    report_training(cells, done, what)
    console.print(f"Tables, figures and cells, each with its run folder: {cells.folder}", soft_wrap=True)


def _follow(
    records: Iterator[Epoch], vae: VAE, run: Run, first: Split, K: int, every: int, steps: int, stop: StopRequest
) -> dict[str, Any]:
    """Trains on, evaluates on the way, and returns the cell."""
    cell: dict[str, Any] = {"steps": [], "seconds": [], "log_px": []}

    def evaluate(epoch: int, seconds: float) -> None:
        cell["final"] = log_px(vae, first, K).tolist()
        for key, value in (("steps", epoch * steps), ("seconds", seconds), ("log_px", float(np.mean(cell["final"])))):
            cell[key].append(value)

    evaluate(0, 0.0)
    seconds = 0.0
    for record in records:
        seconds += record.seconds
        run.record(record, vae)
        if record.epoch % every == 0:
            evaluate(record.epoch, seconds)
        stop.check()
    if record.epoch % every:
        evaluate(record.epoch, seconds)
    return cell


def report_training(cells: Cells, done: dict[tuple[str, int], list[dict[str, Any]]], what: str) -> None:
    """Table and figure of the training half."""
    finals = {key: np.array([cell["log_px"][-1] for cell in of_key]) for key, of_key in done.items()}
    base = next(iter(finals))
    rows = []
    for (name, K), final in finals.items():
        value, gap = _over_seeds(final), _over_seeds(final - finals[base])
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
        row["standard error over images"] = float(images.std(ddof=1)) / sqrt(len(images))
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


def _over_seeds(values: np.ndarray) -> Interval:
    """Mean and its 95 % interval."""
    center, n = float(values.mean()), len(values)
    reach = float(student_t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / sqrt(n) if n > 1 else nan
    return Interval(center, center - reach, center + reach)


def _run_config(described: dict[str, Any], spec: str | dict[str, Any], K: int, seed: int) -> str:
    """What train.py would be told for one cell."""
    own = {"print_config", "estimators", "particles", "seeds", "evaluate_every", "out", "device"}
    path, options = (spec, {}) if isinstance(spec, str) else (spec["class_path"], spec.get("init_args") or {})
    one = {"estimator": {"class_path": path, "init_args": {**options, "K": K}}, "seed": seed}
    return yaml.safe_dump({key: value for key, value in described.items() if key not in own} | one, sort_keys=False)
