"""Trains a variational autoencoder and reports what it reached: the main job.

    python experiments/train.py
    python experiments/train.py --data MNIST --data.root data --latent 20
    python experiments/train.py --prior my_priors.StudentT --prior.df 5
    python experiments/train.py --config experiments/iwae_mnist.yaml

Every slot takes the name of a class, or the import path of a class in a file of your own in the folder you stand in.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from command_line import StopRequest, failing_clearly, parse, pick_device, progress_bar, with_data
from rich.console import Console
from rich.table import Table
from torch.distributions.constraints import boolean, integer_interval

from pyro_vae import Estimator, figures, fit, load
from pyro_vae.conditional import Conditional  # noqa: F401  (a class is found by its name once it is imported)
from pyro_vae.data import Data, Digits, Splits
from pyro_vae.estimators import ELBO
from pyro_vae.evaluate import bits_per_dim, decode, encode, log_px, mean, reconstruct, sample
from pyro_vae.guides import DiagonalNormal
from pyro_vae.hierarchies import Ladder, TwoLayer  # noqa: F401
from pyro_vae.likelihoods import default_likelihood
from pyro_vae.networks import count_parameters
from pyro_vae.objectives import Objective
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import seeded
from pyro_vae.runs import GuideFactory, LikelihoodFactory, ModelFactory, PriorFactory, Run, assemble
from pyro_vae.steps import Compile, Precision
from pyro_vae.training import Epoch, OptimizerFactory, Progress, ScheduleFactory, evaluate_bound
from pyro_vae.vae import Model

console = Console(highlight=False)
HEADER = f"{'epoch':<13}{'train':>11}{'validation':>11}{'reconstruction':>16}{'KL':>9}{'seconds':>9}"


def train(
    data: Data = Digits(),
    prior: PriorFactory = StandardNormal,
    guide: GuideFactory = DiagonalNormal,
    likelihood: LikelihoodFactory | None = None,
    model: ModelFactory | None = None,
    latent: int = 8,
    estimator: Estimator = ELBO(),
    objective: Objective = Objective(),
    optimizer: OptimizerFactory = torch.optim.Adam,
    schedule: ScheduleFactory | None = None,
    epochs: int = 60,
    batch_size: int = 50,
    e_steps: int = 0,
    m_steps: int = 0,
    clip_norm: float | None = None,
    compile: Compile = "auto",
    precision: Precision = "fp32",
    seed: int = 0,
    device: str = "auto",
    test_particles: int = 1000,
    test_images: int = 1000,
    out: Path | None = None,
    *,
    splits: Splits,
    config: str,
) -> None:
    """Trains a variational autoencoder: a model p(t) p(x|t,w) and a guide q(t|x,φ).

    Args:
        data: The data set.
        prior: The prior p(t).
        guide: The guide q(t|x,φ), with its network, the encoder.
        likelihood: The likelihood p(x|t,w), with its network, the decoder. By default the one that fits the data: Bernoulli
            for binary pixels, Binomial for counts, Normal with a learned scale for other numbers.
        model: A model of two stochastic layers, TwoLayer or Ladder, or of data given their labels, Conditional. By default the
            VAE of prior, guide and likelihood.
        latent: d, the dimension of the latent t.
        estimator: The bound on log p(x) that is maximized, and its gradient.
        objective: What is optimized in place of the bound, by weights of its terms. The bound itself is reported in any case.
        optimizer: The optimizer of w and φ.
        schedule: A learning-rate schedule, moved on after each epoch. By default the rate is constant.
        epochs: Passes over the training data.
        batch_size: Data per step.
        e_steps: Steps on φ alone, in turn with m_steps on w alone (an EM-style schedule). By default each step moves both.
        m_steps: Steps on w alone.
        clip_norm: The largest norm of the gradient; a larger one is scaled down to it. By default none is.
        compile: Compile the step, and the estimate of log p(x), into one graph: on, off, or auto, where the work ahead (5,000
            steps or more) outweighs the 10 to 40 seconds that it takes. What cannot be compiled runs eagerly, and a line says
            why.
        precision: Of training: fp32, or bf16: the networks' matrix products in bfloat16, all else in float32. What is
            reported is evaluated in float32.
        seed: Of the first weights, the order of the data and the noise. The split and the test set do not depend on it.
        device: auto (CUDA where there is one), cpu, cuda or cuda:<number>.
        test_particles: K of the final estimate of log p(x) by importance sampling.
        test_images: How many test images it is taken over, counted from the first.
        out: The run folder. By default runs/<data>-<date>-<time>.
        splits: The data, loaded.
        config: The resolved options, for the run folder.
    """
    where = pick_device(device)
    splits = splits.to(where)
    if test_particles < 1 or test_images < 1:
        raise ValueError(
            f"expected at least 1 of test_particles and test_images, got {test_particles} and {test_images}"
        )
    dims = splits.dims(latent)
    with seeded(
        torch.device("cpu"), seed, "first weights"
    ):  # on the CPU, so that the first weights are the same on every device
        vae = assemble(dims, prior, guide, likelihood or default_likelihood(splits.support), model).to(where)

    records: list[Epoch] = []
    start = time.perf_counter()
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("")

        def on_step(now: Progress) -> None:
            stop.check()
            bar.update(
                task, description=f"epoch {now.epoch}/{epochs}", total=now.steps, completed=now.step, live=now.bound
            )

        training = fit(
            vae,
            splits,
            epochs=epochs,
            batch_size=batch_size,
            estimator=estimator,
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            objective=objective,
            e_steps=e_steps,
            m_steps=m_steps,
            clip_norm=clip_norm,
            compile=compile,
            precision=precision,
            on_step=on_step,
        )
        run = Run(out or Path("runs") / f"{type(data).__name__}-{datetime.now():%Y%m%d-%H%M%S}", config)
        introduce(vae, data, splits, where)
        try:
            for record in training:
                run.record(record, vae)
                records.append(record)
                console.print(line(record, epochs))
                stop.check()
        except KeyboardInterrupt:
            bar.stop()
            console.print(f"Stopped in epoch {len(records) + 1}.")
    trained_for = time.perf_counter() - start
    interrupted = len(records) < epochs
    if not records:
        console.print(f"No epoch was finished: {run.folder} holds the configuration alone.")
        raise SystemExit(130)

    try:
        if interrupted:
            vae = load(run.folder).to(where)
            console.print(f"Evaluating the weights of epoch {len(records)}; Ctrl-C again skips this.")
        report(run, vae, splits, estimator, test_particles, test_images, batch_size, compile, trained_for)
        draw(run, vae, splits, records)
    except KeyboardInterrupt:
        interrupted = True
    console.print(
        f"Run folder: {run.folder}   (configuration, metrics, weights, {run.folder / 'figures'}/*.png)", soft_wrap=True
    )
    if interrupted:
        raise SystemExit(130)


def introduce(vae: Model, data: Data, splits: Splits, device: torch.device) -> None:
    """Says what is trained on what."""
    parts = ", ".join(type(part).__name__ for part in (vae.prior, vae.posterior, vae.likelihood))
    sizes = f"{len(splits.train)} train, {len(splits.valid)} validation, {len(splits.test)} test"
    console.print(f"{type(data).__name__}: {sizes}, each {'×'.join(map(str, splits.x_shape))}")
    console.print(
        f"{type(vae).__name__}: {parts}; d = {vae.dims.latent}, {count_parameters(vae):,} parameters, on {device}"
    )
    console.print("Bounds on log p(x), in nats per datum; reconstruction E log p(x|t) and KL on the validation data.\n")
    console.print(HEADER, style="bold")


def line(record: Epoch, epochs: int) -> str:
    """An epoch in one line, under `HEADER`."""
    terms = record.valid
    return (
        f"{record.epoch:>6}/{epochs:<6}{record.train.bound:>11.2f}{terms.bound:>11.2f}{terms.reconstruction:>16.2f}"
        f"{terms.kl:>9.2f}{record.seconds:>9.1f}"
    )


def report(
    run: Run,
    vae: Model,
    splits: Splits,
    estimator: Estimator,
    K: int,
    images: int,
    batch_size: int,
    compile: Compile,
    trained_for: float,
) -> None:
    """The final table, on the screen and in result.json."""
    tally = evaluate_bound(vae, splits.test, estimator, batch_size, seed=0)
    splits = splits.given_to(vae)
    first = splits.test.first(images)
    log_p = "log p(x|y)" if first.labeled else "log p(x)"
    with console.status(f"{log_p} of {len(first)} test images with K = {K} …"):
        per_image = log_px(vae, first, K, max_plate_nesting=estimator.max_plate_nesting, compile=compile)
    likelihood = mean(per_image)
    terms = tally.terms()
    table = Table(title="Test set, nats per datum", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("images")
    everything = f"all {len(splits.test)}"
    bound = mean(tally.per_datum())
    table.add_row(f"{type(estimator).__name__} bound (K = {estimator.K})", str(bound), everything)
    table.add_row("  reconstruction  E log p(x|t)", f"{terms.reconstruction:.2f}", everything)
    table.add_row("  KL  E log q(t|x) − log p(t)", f"{terms.kl:.2f}", everything)
    counted = everything if len(first) == len(splits.test) else f"first {len(first)}"
    table.add_row(f"{log_p} (importance sampling, K = {K})", str(likelihood), counted)
    values = {"test": terms._asdict(), "test_bound": bound._asdict(), "log_px": {**likelihood._asdict(), "K": K}}
    if isinstance(splits.support, integer_interval) and splits.support is not boolean:
        bits = mean(bits_per_dim(per_image, splits.x_shape))
        table.add_row("  in bits per dimension", f"{bits.mean:.3f} ± {bits.error:.3f}", counted)
        values["bits_per_dim"] = bits._asdict()
    console.print(table)
    console.print(f"± is the standard error over images. Training took {trained_for:.0f} s.")
    run.result(values)


def draw(run: Run, vae: Model, splits: Splits, records: list[Epoch]) -> None:
    """The figures of a run."""
    first = splits.test.first(1000).given_to(vae)
    x, labels, vmax = first.x, first.labels, float(splits.train.x.max())
    y = labels if first.labeled else None
    run.figure("learning_curves", figures.learning_curves(records))
    run.figure(
        "reconstructions",
        figures.reconstructions(
            x[:24], reconstruct(vae, x[:24], y=None if y is None else y[:24]), "test data and their reconstructions"
        ),
    )
    if labels is not None and first.labeled:
        each = labels.unique()[:20]
        images = sample(vae, x, 10 * len(each), y=each.repeat_interleave(10))
        title = "means of p(x|t,y) at t ~ p(t), a class y a line"
        run.figure(
            "samples", figures.grid(list(images.split(10)), [f"{k}" for k in each.tolist()], vmax=vmax, title=title)
        )
    else:
        run.figure("samples", figures.samples(sample(vae, x, 100), vmax, "means of p(x|t) at t ~ p(t)"))
    t = encode(vae, x, y=y)
    run.figure("latents", figures.latents(t, labels, "test data in the latent space, t ~ q(t|x,φ)"))
    if first.labeled:
        return  # a plane or a line of t has a picture for each class
    if vae.dims.latent == 2:
        ticks = torch.linspace(-2.5, 2.5, 21, device=x.device)
        plane = torch.stack([ticks.repeat(21), ticks.flip(0).repeat_interleave(21)], dim=1)
        run.figure(
            "plane", figures.plane(decode(vae, plane, x), ticks.tolist(), vmax, "the latent plane: means of p(x|t)")
        )
    elif vae.dims.latent > 2:
        run.figure("traversals", traversals(vae, x, vmax))


def traversals(vae: Model, x: torch.Tensor, vmax: float) -> Any:
    """The most central test datum, with one of the ten most used latents moved at a time."""
    ticks = torch.linspace(-3, 3, 11, device=x.device)
    posterior_means = torch.stack([encode(vae, x, seed=seed) for seed in range(10)]).mean(0)
    used = posterior_means.var(0).argsort(descending=True)[:10]
    central = posterior_means.norm(dim=1).argmin()  # from there both ways lead through the data
    grid = posterior_means[central].repeat(len(used) * len(ticks), 1)
    for i, j in enumerate(used.tolist()):
        grid[i * len(ticks) : (i + 1) * len(ticks), j] = ticks
    names = [f"$t_{{{j + 1}}}$" for j in used.tolist()]
    return figures.traversals(decode(vae, grid, x), names, ticks.tolist(), vmax, "one latent moves, the others stay")


def main() -> None:
    """Reads the options, fills in the likelihood that fits the data where none was chosen, and trains."""
    parser, options = parse(train, skip={"splits", "config"})
    with failing_clearly():
        arguments, splits, options = with_data(parser, options)
        train(**arguments, splits=splits, config=parser.dump(options, skip_unset=False))


if __name__ == "__main__":
    main()
