"""What noise and the KL each do: four trainings of one model, with or without noise and with or without the KL.

    python experiments/autoencoder_vs_vae.py
    python experiments/autoencoder_vs_vae.py --data MNIST --data.root data --epochs 10

With both it is the variational autoencoder, with neither the plain autoencoder: t = m(x), and log p(x|t) alone is maximized.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from command_line import StopRequest, failing_clearly, parse, pick_device, progress_bar, with_data
from comparison.cells import Cells, check_numbers, file_name, initialized
from rich.console import Console

from pyro_vae import figures, fit, load
from pyro_vae.data import Data, Digits, Split, Splits
from pyro_vae.estimators import ELBO, AnalyticKL
from pyro_vae.evaluate import encode, log_px, mean, reconstruct, sample
from pyro_vae.guides import DiagonalNormal
from pyro_vae.objectives import Objective
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import seeded
from pyro_vae.runs import GuideFactory, LikelihoodFactory, PriorFactory, Run
from pyro_vae.training import OptimizerFactory, Progress, evaluate_bound

console = Console(highlight=False)
CASES = {
    "VAE: noise and KL": Objective(),
    "noise, no KL": Objective(beta=0),
    "KL, no noise": Objective(noise=False),
    "autoencoder: neither": Objective(beta=0, noise=False),
}


def compare(
    data: Data = Digits(),
    prior: PriorFactory = StandardNormal,
    guide: GuideFactory = DiagonalNormal,
    likelihood: LikelihoodFactory | None = None,
    latent: int = 2,
    optimizer: OptimizerFactory = torch.optim.Adam,
    epochs: int = 60,
    batch_size: int = 50,
    seed: int = 0,
    device: str = "auto",
    test_particles: int = 1000,
    test_images: int = 1000,
    out: Path | None = None,
    *,
    splits: Splits,
    config: str,
) -> None:
    """Trains one model in four ways: with or without noise, with or without the KL, and shows them side by side.

    Args:
        data: The data set.
        prior: The prior p(t).
        guide: The guide q(t|x,φ); its KL to the prior must have a closed form.
        likelihood: The likelihood p(x|t,w). By default the one that fits the data.
        latent: d, the dimension of the latent t.
        optimizer: The optimizer of w and φ.
        epochs: Passes over the training data.
        batch_size: Data per step.
        seed: Of the first weights, the order of the data and the noise: the same for all four.
        device: auto (CUDA where there is one), cpu, cuda or cuda:<number>.
        test_particles: K of the estimate of log p(x).
        test_images: How many test images the table and the figure are made of, counted from the first.
        out: The folder of the four runs, the table and the figure. By default runs/cases-<a number for the options>.
        splits: The data, loaded.
        config: The resolved options.
    """
    check_numbers([test_particles], "test_particles", 1)
    check_numbers([test_images], "test_images", 18)
    where = pick_device(device)
    splits = splits.to(where)
    cells = Cells(out, "cases", config, set())
    first = splits.test.first(test_images)
    rows, columns = [], {}
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("", total=len(CASES))
        for i, (name, objective) in enumerate(CASES.items()):
            estimator = AnalyticKL() if objective.beta and not objective.noise else ELBO()
            folder = cells.folder / "runs" / file_name(name)
            if (cell := cells.get(name)) is None:

                def on_step(now: Progress, i: int = i, name: str = name) -> None:
                    stop.check()
                    bar.update(
                        task, completed=i + now.step / now.steps, description=f"{name}, epoch {now.epoch}/{epochs}"
                    )

                vae = initialized(splits, latent, prior, guide, likelihood, seed).to(where)
                records = fit(
                    vae,
                    splits,
                    epochs=epochs,
                    batch_size=batch_size,
                    estimator=estimator,
                    optimizer=optimizer,
                    seed=seed,
                    objective=objective,
                    on_step=on_step,
                )
                shutil.rmtree(folder, ignore_errors=True)  # what a cut left of this case
                run = Run(folder, config)
                for record in records:
                    run.record(record, vae)
                    stop.check()
                cell = {"terms": _terms(vae, first, objective, batch_size, test_particles)}
                cells.put(cell, name)
            bar.update(task, completed=i + 1)
            rows.append({"trained with": name, **cell["terms"]})
            vae = load(folder).to(where)
            with objective.sampling():
                drawn, t = reconstruct(vae, first.x[:18]), encode(vae, first.x)
            with torch.no_grad(), seeded(where, seed, "prior"):
                t_prior = vae.prior().sample((1000,))
            columns[name] = figures.Case(first.x[:18], drawn, sample(vae, first.x, 36), t, t_prior)
    title = f"{type(data).__name__}, d = {latent}, {epochs} epochs, first {len(first)} test images; nats per datum"
    console.print(cells.table("cases", title, list(rows[0]), rows))
    console.print(
        f"log p(x|t): reconstruction, with the noise of its training; with noise: at t ~ q(t|x,φ) in any case;\n"
        f"log p(x): as a generative model, by importance sampling from q with K = {test_particles} (a lower bound)."
    )
    labels = None if splits.test.labels is None else splits.test.labels[:test_images]
    cells.figure("cases", figures.cases(columns, labels, float(splits.train.x.max()), title.split(",", maxsplit=1)[0]))
    console.print(f"Table, figure and run folders: {cells.folder}", soft_wrap=True)


def _terms(vae: Any, first: Split, objective: Objective, batch_size: int, K: int) -> dict[str, float]:
    """A row of the table."""
    noisy = evaluate_bound(vae, first, ELBO(), batch_size, seed=0).terms()
    with objective.sampling():
        own = evaluate_bound(vae, first, ELBO(), batch_size, seed=0).terms()
    return {
        "log p(x|t)": own.reconstruction,
        "with noise": noisy.reconstruction,
        "KL(q‖p)": noisy.kl,
        "ELBO": noisy.bound,
        "log p(x)": mean(log_px(vae, first, K)).mean,
    }


def main() -> None:
    """Reads the options and compares."""
    parser, options = parse(compare, skip={"splits", "config"})
    with failing_clearly():
        arguments, splits, options = with_data(parser, options)
        try:
            compare(**arguments, splits=splits, config=parser.dump(options, skip_unset=False))
        except KeyboardInterrupt:
            console.print("Stopped. Finished cases are kept: the same command goes on from them.")
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
