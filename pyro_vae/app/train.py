"""The main job: trains a variational autoencoder and reports what it reached.

    pyro-vae train
    pyro-vae train --data MNIST --data.root data --latent 20
    pyro-vae train --prior my_priors.StudentT --prior.df 5
    pyro-vae train --config experiments/iwae_mnist.yaml

Every slot takes the name of a class, or the import path of a class in a file of your own in the folder you stand in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from pyro_vae.app.console import StopRequest, failing_clearly, progress_bar, screen, status_of
from pyro_vae.app.options import Options
from pyro_vae.app.ranks import check_device, first_tells, in_turn, joined
from pyro_vae.app.setting import Setting
from pyro_vae.app.table import quantities
from pyro_vae.app.tracking import Told
from pyro_vae.data import Splits
from pyro_vae.files import NotWrittenError, to_json
from pyro_vae.missing import count_missing
from pyro_vae.models import Model, ModelSpec
from pyro_vae.networks import count_parameters
from pyro_vae.reports import (
    Latents,
    LearningCurves,
    LogLikelihood,
    Metric,
    Picture,
    Plane,
    Reconstructions,
    Row,
    Samples,
    TestBound,
    Tracker,
    Trained,
    Traversals,
)
from pyro_vae.reports.base import given_to
from pyro_vae.runs import Run, load
from pyro_vae.runs.run import CHECKPOINT
from pyro_vae.together import Together
from pyro_vae.training import Epoch, Progress, Training, TrainingPlan, Watch, fit
from pyro_vae.training.checkpoint import Every
from pyro_vae.trust import here

console = screen()
Made = TypeVar("Made")
HEADER = f"{'epoch':<13}{'train':>11}{'validation':>11}{'reconstruction':>16}{'KL':>9}{'seconds':>9}"


def train(
    spec: ModelSpec,
    plan: TrainingPlan,
    setting: Setting,
    metrics: Sequence[Callable[[], Metric]] = (TestBound, LogLikelihood),
    figures: Sequence[Callable[[], Picture]] = (LearningCurves, Reconstructions, Samples, Latents, Plane, Traversals),
    resume: bool = False,
    checkpoint_every: str = "minute",
    trackers: Sequence[Tracker] = (),
    watch: Sequence[Watch] = (),
    *,
    splits: Splits,
    config: str,
) -> None:
    """Trains a variational autoencoder: a model p(t) p(x|t,w) and a guide q(t|x,φ).

    Args:
        spec: The model.
        plan: How it is trained.
        setting: On which data, where, and how the end is judged.
        metrics: A list of what is measured at the end, on the test data, such as "[TestBound, my_file.Mine]".
        figures: A list of what is drawn at the end, such as "[Samples, my_file.Mine]"; [] for nothing.
        resume: true goes on with the run in --out where it was cut, as if it had never been; it begins the run where there is
            none, and leaves one that is finished as it is.
        checkpoint_every: How often a checkpoint is written, from which a run goes on: "10 minutes", "500 steps", "epoch".
        trackers: A list of who else is told of the run while it goes on, such as "[TensorBoard, my_file.Mine]".
        watch: A list of what else is kept of each epoch, any of rates, gradient_norm, steps_per_second, kl_per_dimension: the
            learning rates and the gradient's norms of w and φ, speed, and the KL of each latent's dimensions on validation
            data.
        splits: The data, loaded.
        config: The resolved options, for the run folder.
    """
    every, together = Every(checkpoint_every), Together.now()
    if resume and not setting.out:
        raise ValueError("resume: name the folder of the run that goes on, with --out")
    setting.test(splits, least=1)
    where = setting.place
    splits = splits.to(where)
    model = spec.build(splits, plan.seed).to(where)
    measured, drawn = made("metrics", metrics), made("figures", figures)  # before training: a wrong one costs nothing
    if together and together.rank:
        follow_first(
            fit(model, splits, plan, watch=watch), setting.out / CHECKPOINT if resume and setting.out else None
        )
        return

    with Told(trackers, console) as tell:
        with progress_bar(console) as bar, StopRequest() as stop:
            task = bar.add_task("")

            def on_step(now: Progress) -> None:
                stop.check()
                text = f"epoch {now.epoch}/{plan.epochs}"
                bar.update(task, description=text, total=now.steps, completed=now.step, live=now.bound)

            training = fit(model, splits, plan, on_step=on_step, watch=watch)
            run = _begun(setting, config, resume)
            finished = resume and run.finished()
            if together:
                together.agree(not finished)
            if finished:
                console.print(f"{run.folder} is finished: nothing is left to do.", soft_wrap=True)
                return
            training.keep(run.checkpoint, every)
            records = run.before(training.done)
            introduce(model, setting.name, splits, where)
            if records or training.step_of_epoch:
                step = f" and {training.step_of_epoch} steps of the next one" if training.step_of_epoch else ""
                console.print(f"Going on after epoch {len(records)}{step}.")
            tell.begin(run.folder, yaml.safe_load(config), len(records))
            start = time.perf_counter()
            records += follow(training, model, run, plan.epochs, stop, tell)
            trained_for = time.perf_counter() - start

        interrupted = not training.is_over
        if not records or (interrupted and stop.hurried):
            kept = "a checkpoint" if run.checkpoint.is_file() else "the configuration alone"
            console.print(
                f"{len(records)} epochs were finished: {run.folder} holds {kept}. {_go_on(run)}", soft_wrap=True
            )
            raise SystemExit(stop.status)
        if interrupted:
            model = load(run.folder, here()).to(where)
            console.print("Evaluating the weights that were kept so far; Ctrl-C again skips this.")
        else:
            run.conclude(model, training)
            if len(records) < plan.epochs:
                console.print(
                    f"Ended after epoch {len(records)}: no better validation bound for {plan.patience} epochs."
                )
        trained = Trained(model, splits, plan, records, setting.test_particles, setting.test_images)
        conclude(run, trained, measured, drawn, trained_for, interrupted, _weights(training, records), tell)


def _weights(training: Training, records: Sequence[Epoch]) -> dict[str, str]:
    """The weights that are evaluated, by the names of their files, and what they are called; the first ones are the kept.

    The average is there when training is over.
    """
    keep, kept, last = training.plan.keep, training.kept, f"of the last epoch, {len(records)}"
    averaged = training.is_over and kept.averaged > 0
    best = f"of the best epoch by validation, {kept.epoch}"
    mean = f"averaged over steps ({training.plan.average})"
    found = {"model": {"last": last, "best": best, "average": mean if averaged else last}[keep]}
    if keep != "last" and found["model"] != last and not (keep == "best" and kept.epoch == len(records)):
        found["last"] = last
    if keep != "best" and kept.wants_best and kept.epoch < len(records):
        found["best"] = best
    if keep != "average" and averaged:
        found["average"] = mean
    return found


def follow_first(training: Training, checkpoint: Path | None) -> None:
    """Trains with the first of several processes, which writes and prints for all.

    Args:
        training: the training.
        checkpoint: the file that it goes on from, if it is there.
    """
    assert training.together
    if not training.together.agree(False):  # there is nothing left to do
        return
    if checkpoint:
        training.keep(checkpoint, Every("minute"))
    for _ in training:
        pass


def conclude(
    run: Run,
    trained: Trained,
    measured: Sequence[Metric],
    drawn: Sequence[Picture],
    trained_for: float,
    interrupted: bool,
    weights: Mapping[str, str],
    tell: Told,
) -> None:
    """Measures and draws a trained model, and says where everything is. One that was interrupted ends the program so.

    Args:
        run: its folder.
        trained: the model with the weights that are kept.
        measured: the metrics.
        drawn: the pictures.
        trained_for: the seconds that training took.
        interrupted: whether it came to no end.
        weights: all weights that are measured, by the names of their files, and what they are called, the kept ones first.
        tell: the trackers.
    """
    status = 130
    try:
        values = report(run, trained, measured, trained_for, weights)
        tell("result", deepcopy(values))
        for picture in drawn:
            draw(run, trained, picture, tell)
        if not interrupted:
            run.result(values | {"finished": True})
    except KeyboardInterrupt as stop:
        interrupted, status = True, status_of(stop)
    shown = f", {run.folder / 'figures'}/*.png" if drawn else ""
    contents = f"configuration, metrics, weights{shown}"
    console.print(f"Run folder: {run.folder}   ({contents})", soft_wrap=True)
    if interrupted:
        console.print(_go_on(run), soft_wrap=True)
        raise SystemExit(status)


def _go_on(run: Run) -> str:
    return f"To go on from there: the same command with --out {run.folder} --resume true"


def _begun(setting: Setting, config: str, resume: bool) -> Run:
    """The folder of the run. Two runs that begin in the same second get two folders.

    Raises:
        FileExistsError: it exists, and is not to be gone on with.
        ValueError: it holds a run with other options.
    """
    if setting.out:
        return Run(setting.out, config, again=resume)
    named, number = Path("runs") / f"{setting.name}-{datetime.now():%Y%m%d-%H%M%S}", 1
    while True:
        try:
            return Run(named if number == 1 else named.with_name(f"{named.name}-{number}"), config)
        except FileExistsError:
            number += 1


def made(option: str, classes: Sequence[Callable[[], Made]]) -> list[Made]:
    """The objects of a list of classes.

    Raises:
        ValueError: one cannot be made.
    """
    try:
        return [make() for make in classes]
    except TypeError as error:
        raise ValueError(f"{option}: {error}") from error


def draw(run: Run, trained: Trained, picture: Picture, tell: Told) -> None:
    """Keeps the figures of a picture. One that fails is told, and costs neither the others nor what is saved already."""
    try:
        for name, figure in picture.draw(trained).items():
            run.figure(name, figure)
            tell("figure", name, figure)
    except NotWrittenError:
        raise
    except Exception as error:  # a picture may be a user's own, which raises anything
        console.print(f"Left out: figure {type(picture).__name__}: {type(error).__name__}: {error}", markup=False)


def introduce(model: Model, data: str, splits: Splits, device: torch.device) -> None:
    """Says what is trained on what."""
    together = Together.now()
    parts = [getattr(model, name) for name in ("prior", "posterior", "likelihood") if hasattr(model, name)]
    named = ", ".join(type(part).__name__ for part in parts)
    sizes = f"{len(splits.train)} train, {len(splits.valid)} validation, {len(splits.test)} test"
    given = given_to(model)
    bar, comma = (f"|{given}", f",{given}") if given else ("", "")
    console.print(f"{data}: {sizes}, each {'×'.join(map(str, splits.x_shape))}")
    if splits.missing:
        share = sum(count_missing(split.x) for split in splits[:3]) / sum(split.x.numel() for split in splits[:3])
        console.print(f"{100 * share:.2g} % of the values are missing: every log p(x{bar}) is that of the others.")
    console.print(
        f"{type(model).__name__}{': ' if named else ''}{named}; d = {model.dims.latent}, {count_parameters(model):,} "
        f"parameters, on {device}" + (f", in {together.size} processes" if together else "")
    )
    console.print(
        f"In nats per datum: the bound on log p(x{bar}) on training and validation data; reconstruction E log p(x|t{comma}) "
        f"and KL, whose difference is the ELBO, on the validation data.\n"
    )
    console.print(HEADER, style="bold")


def follow(training: Training, model: Model, run: Run, epochs: int, stop: StopRequest, tell: Told) -> list[Epoch]:
    """Trains to the end or until Ctrl-C, and keeps, prints and tells each epoch."""
    records: list[Epoch] = []
    try:
        for record in training:
            run.follow(record, model, training)
            records.append(record)
            tell("epoch", record)
            if stop.made:
                training.save()
            try:
                console.print(line(record, epochs))
            except (OSError, SystemExit):  # nobody reads it any more
                training.save()
                raise
            stop.check()
    except KeyboardInterrupt:
        console.print(f"Stopped in epoch {training.done + 1}.")
    return records


def line(record: Epoch, epochs: int) -> str:
    """An epoch in one line, under `HEADER`."""
    terms = record.valid
    return (
        f"{record.epoch:>6}/{epochs:<6}{short(record.train.bound):>11}{short(terms.bound):>11}"
        f"{short(terms.reconstruction):>16}{short(terms.kl):>9}{record.seconds:>9.1f}"
    )


def short(value: float) -> str:
    """A number with two decimals, or in a short form where it is so large that they say nothing."""
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.2e}"


def report(
    run: Run, trained: Trained, metrics: Sequence[Metric], trained_for: float, weights: Mapping[str, str]
) -> dict[str, Any]:
    """The final tables, on the screen and in result.json, which each metric adds to; returns what stands there."""
    values: dict[str, Any] = {}
    console.print(f"Evaluating on the test data, with up to {trained.test_particles} particles for each …")
    for name, told in weights.items():
        if name == "model":
            values["weights"] = told
            measure(run, trained, metrics, values, values, "" if len(weights) == 1 else f", weights {told}")
        else:  # others that were kept: as numbers beside
            model = load(run.folder, here(), name).to(trained.data.test.x.device)
            other = values.setdefault("others", {}).setdefault(name, {"weights": told})
            measure(run, replace(trained, model=model), metrics, values, other, f", weights {told}")
    console.print(f"Training took {trained_for:.0f} s.")
    return values


def measure(
    run: Run, trained: Trained, metrics: Sequence[Metric], values: dict[str, Any], own: dict[str, Any], told: str
) -> None:
    """Measures one set of weights, as a table on the screen, and adds what is found to its own values and the run's result."""
    noun = trained.noun
    table = quantities(f"Test set, nats per datum{told}", noun)
    rows: list[Row] = []
    notices: list[str] = []
    with progress_bar(console):
        for metric in metrics:
            try:
                measured = metric.measure(trained)
                for row in measured.rows:
                    table.add_row(*row)
                    rows.append(row)
                notices += measured.notices
                to_json(measured.values)  # a metric of one's own may give what cannot be written
                own |= measured.values
                run.result(values)
            except NotWrittenError:
                raise
            except Exception as error:  # a metric may be a user's own, which raises anything
                console.print(
                    f"Left out: metric {type(metric).__name__}: {type(error).__name__}: {error}", markup=False
                )
    if table.rows:
        console.print(table)
        over = f"±: 95 % intervals over {noun}. " if any(" ± " in row.value for row in rows) else ""
        console.print(f"{over}Left out: the errors of the terms, and the spread over seeds (there is one).")
        for notice in notices:
            console.print(f"Note: {notice}", markup=False)


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Trains a variational autoencoder and reports what it reached."""
    with first_tells():
        options = Options(train, sys.argv[1:] if arguments is None else list(arguments), prog=prog)
    with failing_clearly(), joined():
        with in_turn():
            made, splits = options.with_data(lambda made: check_device(made["setting"].place))
        train(**made, splits=splits, config=options.as_yaml())
