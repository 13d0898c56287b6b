"""Trains a model for each prior, guide, likelihood and estimator, and tells what each combination ends in.

    pyro-vae compare-parts --priors '[StandardNormal, VampPrior, my_file.Mine]'
    pyro-vae compare-parts --guides '[DiagonalNormal, InverseAutoregressive]' --seeds [0,1,2] --epochs 30

Each combination is a run folder. Finished ones are kept: the same command goes on where it was cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pyro_vae import figures
from pyro_vae.app.comparisons.cell import check_numbers, data_digest, following, run_config, trained
from pyro_vae.app.comparisons.errors import MISSING, TAIL, Over, compared, particles_told, tell_left_out, told, trust
from pyro_vae.app.comparisons.folder import ComparisonFolder, EstimatorFactory
from pyro_vae.app.comparisons.grid import Cell, Comparison, Key, Machines, Numbers, Tell
from pyro_vae.app.comparisons.names import labels
from pyro_vae.app.comparisons.run import run_command
from pyro_vae.app.console import StopRequest, screen
from pyro_vae.app.setting import Setting
from pyro_vae.compilation import Compile
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, Estimator
from pyro_vae.evaluate import active_units, encode, evaluate_bound, evidence, mean, sample
from pyro_vae.guides import DiagonalNormal
from pyro_vae.models import Model, ModelSpec
from pyro_vae.models.specification import GuideFactory, LikelihoodFactory, PriorFactory
from pyro_vae.networks import count_parameters
from pyro_vae.priors import MixtureOfNormals, StandardNormal, VampPrior
from pyro_vae.runs import load
from pyro_vae.scopes import seeded
from pyro_vae.training import Training, TrainingPlan, fit
from pyro_vae.trust import here

console = screen()
Cells = dict[tuple[str, ...], dict[int, dict[str, Any]]]
"""Finished cells by their names and by seed."""
KINDS = ("prior", "guide", "likelihood", "estimator")
LEFT_OUT = frozenset({"prior", "guide", "likelihood", "model", "estimator", "seed", "callbacks"})
"""Fields of a specification or a plan that each cell has of its own, or that no cell has."""


def compare_parts(
    spec: ModelSpec,
    plan: TrainingPlan,
    setting: Setting,
    machines: Machines = Machines(),
    priors: Sequence[PriorFactory] = (StandardNormal, MixtureOfNormals, VampPrior),
    guides: Sequence[GuideFactory] = (DiagonalNormal,),
    likelihoods: Sequence[LikelihoodFactory] | None = None,
    estimators: Sequence[EstimatorFactory] = (ELBO,),
    K: int = 1,
    seeds: Sequence[int] = (0,),
    *,
    splits: Splits,
    config: str,
) -> Comparison:
    """Trains a VAE for each prior, guide, likelihood and estimator, and compares what they end in on the test data.

    With one seed, all start from the same first weights as far as their shapes agree, and see the data in the same order.

    Args:
        spec: The model's latent size.
        plan: How each is trained.
        setting: On which data, where, and how the end is judged.
        machines: Where the cells are computed.
        priors: The priors p(t).
        guides: The guides q(t|x,φ).
        likelihoods: The likelihoods p(x|t,w). By default the one that fits the data.
        estimators: The estimators, each called with K.
        K: Number of particles of the estimators.
        seeds: The seeds of the first weights, the order of the data and the noise; there is one training for each.
        splits: The data, loaded.
        config: The resolved options.
    """
    described = yaml.safe_load(config)
    named = [labels(described[f"{kind}s"], f"{kind}s") for kind in KINDS]
    first, where = setting.test(splits, least=2), setting.place
    given = {"data": data_digest(splits)}
    splits, first = splits.to(where), first.to(where)
    parts = (priors, guides, likelihoods or (), estimators)
    made: list[list[tuple[str, Any]]] = [
        list(zip(names, of_kind, strict=True)) for names, of_kind in zip(named, parts, strict=True)
    ]
    specs = {
        (kind, name): spec
        for kind, names in zip(KINDS, named, strict=True)
        for name, spec in zip(names, described[f"{kind}s"], strict=True)
    }
    steps = plan.epochs * plan.steps(len(splits.train))

    def of(seed: int, chosen: Sequence[tuple[str, Any]]) -> Cell:
        names = tuple(name for name, _ in chosen)
        what, one_config = ", ".join(_telling(names, named)), _config_of(described, specs, names, K, seed)
        prior, guide, likelihood, make = (part for _, part in chosen)

        def compute(folder: Path, tell: Tell) -> Numbers:
            with StopRequest() as stop:

                def begin() -> tuple[Model, Training]:
                    one = replace(spec, prior=prior, guide=guide, likelihood=likelihood)
                    model, own = one.build(splits, seed).to(where), replace(plan, estimator=make(K), seed=seed)
                    return model, fit(model, splits, own, on_step=following(tell, what, stop, plan.epochs))

                model, run, seconds = trained(begin, folder, one_config, stop)
            cell = {"seconds": seconds} | evaluated(model, make(K), first, setting.test_particles, plan.compile)
            run.result({"log_px": cell["evidence"]})
            return cell

        def line(cell: Numbers) -> str:
            reached = mean(torch.tensor(cell["log_px"]))
            return f"{what}, seed {seed}: log p(x) = {reached} nats after {cell['seconds']:.0f} s"

        key = (*names, f"seed{seed}")
        return Cell(key, f"{what}, seed {seed}", yaml.safe_load(one_config), steps, compute, line)

    def finish(cells: ComparisonFolder, found: Mapping[Key, Numbers]) -> None:
        done: Cells = {tuple(name for name, _ in chosen): {} for chosen in product(*made)}
        for names, seed in product(done, seeds):
            key = (*names, f"seed{seed}")
            if key in found:
                done[names][seed] = {**found[key], "folder": str(cells.run_folder(*key))}
        over = Over(seeds, len(first), splits.view.noun(splits.x_shape))
        title = f"{setting.name}, d = {spec.latent}, {_counted(plan.epochs, 'epoch')}, {len(first)} test {over.noun}"
        report(cells, done, named, title, over)
        draw(cells, {names: of_cell for names, of_cell in done.items() if of_cell}, named, first, splits, over)
        console.print(f"Tables, figures and cells, each a run folder: {cells.folder}", soft_wrap=True)

    grid = {*(f"{kind}s" for kind in KINDS), "seeds"}
    cells = [of(seed, chosen) for seed in seeds for chosen in product(*made)]
    return Comparison("parts", setting.out, machines, cells, grid, given, finish)


def check_parts(made: Mapping[str, Any]) -> None:
    """Checks the numbers among the arguments of `compare_parts`."""
    check_numbers(made["seeds"], "seeds", 0)
    check_numbers([made["K"]], "K", 1)


def evaluated(vae: Any, estimator: Estimator, first: Split, K: int, compile: Compile) -> dict[str, Any]:
    """What a cell keeps, on the same data and by the same random numbers for every cell."""
    of_one, own = evaluate_bound(vae, first, ELBO(K=10), 100, 0), evaluate_bound(vae, first, estimator, 100, 0)
    found = evidence(vae, first, K, compile=compile)
    return {
        "log_px": found.log_px.tolist(),
        "evidence": found.as_dict(),
        "elbo": of_one.per_datum().tolist(),
        "kl": of_one.terms().kl,
        "bound": own.terms().bound,
        "active units": int(active_units(vae, first).sum()),
        "model parameters": count_parameters(vae.prior) + count_parameters(vae.likelihood),
        "guide parameters": count_parameters(vae.posterior),
    }


def report(cells: ComparisonFolder, done: Cells, named: Sequence[Sequence[str]], title: str, over: Over) -> None:
    """The table: log p(x) with its errors, and means over seeds of what else the cells hold."""
    every, done = done, {names: of_cell for names, of_cell in done.items() if of_cell}
    found = {
        names: {seed: np.array(cell["log_px"]) for seed, cell in of_cell.items()} for names, of_cell in done.items()
    }
    rows: list[dict[str, Any]] = []
    for (names, of_cell), result in zip(done.items(), compared(found, over), strict=True):

        def each(key: str, of_cell: dict[int, dict[str, Any]] = of_cell) -> float:
            """The mean over seeds of means over data."""
            return float(np.mean([np.mean(cell[key]) for cell in of_cell.values()]))

        one = next(iter(of_cell.values()))
        row: dict[str, Any] = {"cell": ", ".join(_telling(names, named)), **{key: result[key] for key in over.columns}}
        of_particles = trust(cell["evidence"] for cell in of_cell.values())
        row |= {key: of_particles[key] for key in (MISSING, TAIL)}
        row |= {"gap": f"{each('log_px') - each('elbo'):.2f}", "KL": f"{each('kl'):.2f}"}
        row |= {"active": f"{each('active units'):.3g}", "ELBO": f"{each('elbo'):.2f}", "s": f"{each('seconds'):.0f}"}
        row["parameters"] = f"{one['model parameters']:,} + {one['guide parameters']:,}"
        row |= dict(zip(KINDS, names, strict=True)) | {"own bound": each("bound")}
        rows.append(row | result | of_particles)
    columns = list(rows[0])[: list(rows[0]).index("parameters") + 1]
    telling = [
        ({"cell": ", ".join(_telling(names, named)), **dict(zip(KINDS, names, strict=True))}, of_cell)
        for names, of_cell in every.items()
    ]
    columns += tell_left_out(rows, telling, over)
    console.print(cells.table("parts", f"Test log p(x), nats per datum, ± 95 % {over.what}: {title}", columns, rows))
    for line in told(found, over, lambda names: ", ".join(_telling(names, named))):
        console.print(line)
    console.print(particles_told((cell["evidence"] for each in done.values() for cell in each.values()), over.noun))
    console.print(
        "gap: log p(x) − ELBO, active: latents whose posterior mean varies over the data, s: seconds of training, parameters: "
        f"of the model + of the guide; these{', means over seeds,' if over.several else ''} are without their errors."
    )


def draw(
    cells: ComparisonFolder, done: Cells, named: Sequence[Sequence[str]], first: Split, splits: Splits, over: Over
) -> None:
    """Samples of each cell, and its aggregate posterior against its prior, of one seed; log p(x) and the gap of all."""
    pictures, clouds, bars, look = {}, {}, {}, figures.look_of(splits)
    for names, of_cell in done.items():
        name, (seed, cell) = "\n".join(_telling(names, named)), next(iter(of_cell.items()))
        shown = name if seed == over.seeds[0] else f"{name}\nseed {seed}"  # the first has none: it was left out
        vae: Any = load(cell["folder"], here(cells.folder)).to(first.x.device)
        pictures[shown] = sample(vae, 1000, noise=True) if look.kind == "table" else sample(vae, 36)
        t, prior = encode(vae, first.x)["t"], vae.prior()
        used = t.var(0).argsort(descending=True)[:2].sort().values
        with torch.no_grad(), seeded(t.device, "prior"):
            draws = prior.sample((len(t),))
        clouds[shown] = figures.Cloud(
            prior=draws[:, used],
            posterior=t[:, used],
            density=prior.log_prob if t.shape[1] == 2 else None,
            axes=used.tolist(),
        )
        of_log_px, of_elbo = (np.array([each[key] for each in of_cell.values()]) for key in ("log_px", "elbo"))
        bars[name] = of_log_px, of_elbo
    of_one = f"seed {over.seeds[0]}" + (f" (of {', '.join(map(str, over.seeds))})" if over.several else "")
    what = "x ~ p(x|t)" if look.kind == "table" else "means of p(x|t)"
    cells.figure("samples", figures.side_by_side(pictures, look, f"{what} at t ~ p(t); {of_one}", x=first.x))
    if all(cloud.prior.shape[1] == 2 for cloud in clouds.values()):
        title = f"test data, t ~ q(t|x,φ), on the prior in gray; {of_one}"
        cells.figure("latents", figures.against_prior(clouds, first.labels, title, splits.view.label))
    title = f"log p(x) and the ELBO of the same {over.data} test {look.noun}; bars: 95 % {over.what}"
    title += ", points: each seed" if over.several else ""
    cells.figure("log_px", figures.gaps(bars, title, over_seeds=over.several))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _telling(names: Sequence[str], named: Sequence[Sequence[str]]) -> list[str]:
    """The names that differ between cells; all of them are the same in a grid of one."""
    differing = [name for name, of_kind in zip(names, named, strict=True) if len(of_kind) > 1]
    return differing or [names[0]]


def _config_of(
    described: dict[str, Any], specs: dict[tuple[str, str], Any], names: tuple[str, ...], K: int, seed: int
) -> str:
    """What ``train`` would be told for one cell."""
    one: dict[str, Any] = {}
    for kind, name in zip(KINDS, names, strict=True):
        each = specs[kind, name]
        one[kind] = {"class_path": each} if isinstance(each, str) else dict(each)
    one["estimator"]["init_args"] = {**(one["estimator"].get("init_args") or {}), "K": K}
    return run_config(described, {*(f"{kind}s" for kind in KINDS), "K", "seeds"}, one | {"seed": seed})


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Compares parts: trains a model for each prior, guide, likelihood and estimator."""
    run_command(compare_parts, arguments, LEFT_OUT, prog, check_parts)
