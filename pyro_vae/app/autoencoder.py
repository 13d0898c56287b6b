"""What noise and the KL each do: four trainings of one model, with or without noise and with or without the KL.

    pyro-vae autoencoder --latent 2
    pyro-vae autoencoder --latent 2 --data MNIST --data.root data --epochs 10

With both it is the variational autoencoder, with neither the plain autoencoder: t = m(x), and log p(x|t) alone is maximized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pyro_vae import figures
from pyro_vae.app.comparisons.cell import data_digest, following, run_config, trained
from pyro_vae.app.comparisons.errors import MISSING, TAIL, particles_told, trust
from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.app.comparisons.grid import Cell, Comparison, Key, Machines, Numbers, Tell
from pyro_vae.app.comparisons.run import run_command
from pyro_vae.app.console import StopRequest, screen
from pyro_vae.app.setting import Setting
from pyro_vae.data import Split, Splits
from pyro_vae.description import path_of
from pyro_vae.estimators import ELBO, AnalyticKL, Objective
from pyro_vae.evaluate import encode, evaluate_bound, evidence, mean, reconstruct, sample
from pyro_vae.models import Model, ModelSpec
from pyro_vae.runs import load
from pyro_vae.scopes import seeded
from pyro_vae.training import Training, TrainingPlan, fit
from pyro_vae.trust import here

console = screen()
LEFT_OUT = frozenset({"model", "estimator", "objective", "callbacks"})
"""Fields of a specification or a plan that each case has of its own, or that no case has."""
CASES = {
    "VAE: noise and KL": Objective(),
    "noise, no KL": Objective(beta=0),
    "KL, no noise": Objective(noise=False),
    "autoencoder: neither": Objective(beta=0, noise=False),
}


_MEANS = ("log p(x|t)", "with noise", "KL(q‖p)")
"""Columns of the table that are kept as means over data."""


def autoencoder(
    spec: ModelSpec,
    plan: TrainingPlan,
    setting: Setting,
    machines: Machines = Machines(),
    *,
    splits: Splits,
    config: str,
) -> Comparison:
    """Trains one model in four ways: with or without noise, with or without the KL, and shows them side by side.

    The guide's KL to the prior must have a closed form.

    Args:
        spec: The model.
        plan: How it is trained, the same for all four.
        setting: On which data, where, and how the end is judged.
        machines: Where the four are computed.
        splits: The data, loaded.
        config: The resolved options.
    """
    first, where, look = setting.test(splits, least=1), setting.place, figures.look_of(splits)
    data = data_digest(splits)
    splits, first = splits.to(where), first.to(where)
    for objective in CASES.values():  # what one of them cannot do is told before any is trained
        fit(spec.build(splits, plan.seed).to(where), splits, _case(plan, objective))

    def of(name: str, objective: Objective) -> Cell:
        case = _case(plan, objective)
        one = {"estimator": {"class_path": path_of(type(case.estimator))}, "objective": vars(objective)}

        def compute(folder: Path, tell: Tell) -> Numbers:
            with StopRequest() as stop:

                def begin() -> tuple[Model, Training]:
                    model = spec.build(splits, plan.seed).to(where)
                    return model, fit(model, splits, case, on_step=following(tell, name, stop, plan.epochs))

                model, _, _ = trained(begin, folder, run_config(yaml.safe_load(config), set(), one), stop)
            return {"terms": _terms(model, first, objective, plan.batch_size, setting.test_particles)}

        def line(cell: Numbers) -> str:
            return f"{name}: log p(x) = {mean(np.array(cell['terms']['log p(x)']))} nats"

        return Cell((name,), name, one, 1.0, compute, line)

    def finish(cells: ComparisonFolder, found: Mapping[Key, Numbers]) -> None:
        rows, kept, columns = [], [], {}
        for name, objective in CASES.items():
            if (name,) not in found:
                rows.append({"trained with": name, "log p(x)": "left out"})
                continue
            terms = dict(found[name,]["terms"])
            kept.append(terms.pop("evidence"))
            terms = {key: value if key in _MEANS else mean(np.array(value)) for key, value in terms.items()}
            rows.append({"trained with": name, **terms, **trust([kept[-1]])})
            vae: Any = load(cells.run_folder(name), here(cells.folder)).to(where)
            with objective.sampling():
                drawn, t = reconstruct(vae, first.x[:18]), encode(vae, first.x)["t"]
            with torch.no_grad(), seeded(where, plan.seed, "prior"):
                t_prior = vae.prior().sample((1000,))
            drawn_x = sample(vae, 36, noise=look.kind == "table")
            columns[name] = figures.Case(first.x[:18], drawn, drawn_x, t, t_prior)
        every = max(rows, key=len)
        rows = sorted((dict.fromkeys(every, "") | row for row in rows), key=lambda row: row["log p(x)"] == "left out")
        title = (
            f"{setting.name}, d = {spec.latent}, {plan.epochs} epochs, first {len(first)} test {look.noun}; nats per datum, "
            f"± 95 % over {look.noun}, seed {plan.seed}"
        )
        console.print(cells.table("cases", title, ["trained with", "log p(x)", MISSING, TAIL, "ELBO", *_MEANS], rows))
        console.print(particles_told(kept, look.noun))
        console.print(
            "log p(x): as a generative model; log p(x|t): reconstruction, with the noise of its training; with noise: at "
            "t ~ q(t|x,φ) in any case. These two and the KL are without their errors; the spread over seeds is left out of all."
        )
        cells.figure(
            "cases",
            figures.cases(
                columns,
                first.labels,
                look,
                f"{setting.name}, d = {spec.latent}, seed {plan.seed}",
                splits.view.label,
            ),
        )
        console.print(f"Table, figure and run folders: {cells.folder}", soft_wrap=True)

    cells = [of(name, objective) for name, objective in CASES.items()]
    return Comparison("cases", setting.out, machines, cells, set(), {"data": data}, finish)


def _case(plan: TrainingPlan, objective: Objective) -> TrainingPlan:
    """The plan of one case. A KL without noise is the closed form."""
    return replace(
        plan, estimator=AnalyticKL() if objective.beta and not objective.noise else ELBO(), objective=objective
    )


def _terms(vae: Any, first: Split, objective: Objective, batch_size: int, K: int) -> dict[str, Any]:
    """A row of the table: means, and ELBO and log p(x) of each datum."""
    with_noise = evaluate_bound(vae, first, ELBO(), batch_size, seed=0)
    noisy = with_noise.terms()
    with objective.sampling():
        own = evaluate_bound(vae, first, ELBO(), batch_size, seed=0).terms()
    found = evidence(vae, first, K)
    return {
        "log p(x|t)": own.reconstruction,
        "with noise": noisy.reconstruction,
        "KL(q‖p)": noisy.kl,
        "ELBO": with_noise.per_datum().tolist(),
        "log p(x)": found.log_px.tolist(),
        "evidence": found.as_dict(),
    }


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Trains one model with or without noise and with or without the KL: what makes a VAE of an autoencoder."""
    run_command(autoencoder, arguments, LEFT_OUT, prog)
