"""The first half of ``compare-estimators``: gradients at a frozen state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, hypot, isfinite, log, nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pyro_vae import figures
from pyro_vae.app.comparisons.cell import check_numbers, data_digest
from pyro_vae.app.comparisons.folder import ComparisonFolder, EstimatorFactory
from pyro_vae.app.comparisons.grid import Cell, Comparison, Key, Machines, Numbers, Tell
from pyro_vae.app.comparisons.names import labels
from pyro_vae.app.comparisons.references import ANOTHER, LEAVE_ONE_OUT, NOT_TOLD, References
from pyro_vae.app.console import StopRequest, screen
from pyro_vae.app.setting import Setting
from pyro_vae.data import Columns, Splits, columns_for
from pyro_vae.estimators import IWAE, STL, VIMCO, DReG
from pyro_vae.evaluate import GROUPS, SIDES, Draws, Interval, Moments, draw_gradients, fit_line, moments
from pyro_vae.evaluate.statistics import UNRESOLVED
from pyro_vae.files import tensor_digest
from pyro_vae.models import Model, ModelSpec
from pyro_vae.runs import load
from pyro_vae.scopes import seeded
from pyro_vae.training import check_support
from pyro_vae.trust import here

console = screen()
_FORM = 2
"""Raised where cells of gradients come to hold other numbers."""


def gradients(
    spec: ModelSpec,
    setting: Setting,
    machines: Machines = Machines(),
    estimators: Sequence[EstimatorFactory] = (IWAE, DReG, STL, VIMCO),
    particles: Sequence[int] = (1, 3, 10, 30, 100),
    draws: int = 1000,
    reference: EstimatorFactory | None = None,
    same_mean: Sequence[str] = (),
    batch: int = 10,
    fit_from: int = 10,
    run: Path | None = None,
    seed: int = 0,
    *,
    splits: Splits,
    config: str,
) -> Comparison:
    """Compares gradients at a frozen state: mean, variance, signal-to-noise ratio, bias and cost, by w and by φ.

    Args:
        spec: The model that is initialized, where no run is given.
        setting: On which data, by default those that a given run was trained on, and where.
        machines: Where the cells are computed.
        estimators: The estimators, each called with K.
        particles: The numbers of particles K.
        draws: N, how many gradients are drawn for each estimator and K: a multiple of 20.
        reference: The estimator whose mean gradient, at the same K, biases are measured against. Exact: the gradient of the
            bound that an estimator climbs, as a sum over all states of discrete latents; the mean of VIMCO where there are too
            many sets of states for a bound of several particles. By default Exact where all latents are discrete and have few
            states, and otherwise the mean over as many draws of the ELBO or IWAE, or of leave-one-out or VIMCO for guides
            without rsample.
        same_mean: Names of estimators whose gradients are known to have the reference's mean: their signal-to-noise ratio takes
            ‖mean‖ from the reference's draws, which tells it better where those have less noise.
        batch: How many of the first training data the gradient is taken over.
        fit_from: The smallest K that the slopes of log SNR against log K are fitted to.
        run: A run folder: its trained VAE is the frozen state, on the data that it was trained on unless --data names
            others. By default a model of the parts that are given, as initialized.
        seed: The seed of the first weights and of all draws.
        splits: The data, loaded.
        config: The resolved options.
    """
    described = yaml.safe_load(config)
    names = labels(described["estimators"], "estimators")
    _check_known(same_mean, names)
    where = setting.place
    given: dict[str, Any] = {"data": data_digest(splits), "numbers": _FORM}
    splits = splits.to(where)
    programs = (_of_run(run, splits) if run else spec.build(splits, seed)).to(where)
    if run:  # another training may have written into a folder of the same name
        given["run"] = tensor_digest({}, {name: each.cpu() for name, each in programs.state_dict().items()})
    taken = _first(programs, splits, batch, seed)
    made = dict(zip(names, estimators, strict=True))
    described_estimators = dict(zip(names, described["estimators"], strict=True))
    references = References(described["reference"], reference, sorted(particles), programs, taken)

    def of(name: str, make: EstimatorFactory, K: int) -> Cell:
        def compute(_: Path, tell: Tell) -> Numbers:
            with StopRequest() as stop:
                estimator = make(K)
                against = references.of(estimator, K)
                itself, measured = (against.name, against.K) == (name, K), not against.why_not
                rounds = 1 if itself else 1 + (measured and not references.known(against))
                drawn = 0

                def draw(name: str, make: EstimatorFactory, K: int) -> Draws:
                    nonlocal drawn

                    def on_draw(n: int) -> None:
                        stop.check()
                        tell((drawn + n / draws) / rounds, f"{name}, K = {K}, {n}/{draws}", None)

                    found = draw_gradients(programs, taken, make(K), draws, f"{name} {K} {seed}", on_draw)
                    drawn += 1
                    return found

                of_reference = references.draws(against, estimator.max_plate_nesting, draw) if measured else None
                found = of_reference if itself and of_reference else draw(name, make, K)
                of_side = {side: m.as_dict() for side, m in moments(found, of_reference or found).items()}
                told = {"against": "itself" if itself else against.shown, "measured": measured and not itself}
                numbers = {"draws": draws, "ms": 1000 * found.seconds, "evaluations": found.evaluations}
                return {**numbers, **told, **of_side}

        def line(cell: Numbers) -> str:
            return f"{name}, K = {K}: {cell['ms']:.1f} ms a gradient"

        one = {"estimator": described_estimators[name], "K": K}
        # A draw costs about as much as a constant and K particles do: the time left is told by that.
        return Cell((name, f"K{K}"), f"{name} at K = {K}", one, draws * (20 + K), compute, line)

    def finish(cells: ComparisonFolder, found: Mapping[Key, Numbers]) -> None:
        keys = {(name, K): (name, f"K{K}") for name in made for K in sorted(particles)}
        done = {named: dict(found[key]) for named, key in keys.items() if key in found}
        what = f"{setting.name}, N = {draws} draws, batch of {batch}, seed {seed}"
        report_gradients(cells, done, references.name, same_mean, fit_from, what)
        console.print(f"Tables, figures and cells: {cells.folder}", soft_wrap=True)

    cells = [of(name, make, K) for K in sorted(particles) for name, make in made.items()]
    grid = {"estimators", "particles", "same_mean", "fit_from"}
    return Comparison("gradients", setting.out, machines, cells, grid, given, finish)


def check_gradients(made: Mapping[str, Any]) -> None:
    """Checks the numbers among the arguments of `gradients`."""
    check_numbers(made["particles"], "particles", 1)
    if (draws := made["draws"]) < GROUPS or draws % GROUPS:
        raise ValueError(f"draws: expected a multiple of {GROUPS}, since they come in {GROUPS} groups, got {draws}")


def _first(programs: Model, splits: Splits, size: int, seed: int) -> Columns:
    """The first training data, as the model is called with them; pixels that are drawn anew at each use are drawn once."""
    if not 1 <= size <= len(splits.train):
        raise ValueError(f"batch: expected between 1 and the {len(splits.train)} training data, got {size}")
    check_support(programs, splits)
    columns = columns_for(programs, splits.train)
    with seeded(columns.x.device, seed, "batch"):
        return replace(columns, tensors=columns.take(slice(0, size)), dynamic=False)


def _check_known(same_mean: Sequence[str], names: Sequence[str]) -> None:
    if unknown := set(same_mean) - set(names):
        raise ValueError(f"same_mean: {', '.join(sorted(unknown))} is not among the estimators")


def report_gradients(
    cells: ComparisonFolder,
    done: dict[tuple[str, int], dict[str, Any]],
    reference: str,
    same_mean: Sequence[str],
    fit_from: int,
    what: str,
) -> None:
    """Tables and figures of the gradients half."""
    names = list(dict.fromkeys(name for name, _ in done))
    baseline = next((name for name in (reference, LEAVE_ONE_OUT) if name in names), names[0])
    lines: dict[str, dict[str, figures.SNRLine]] = {}
    costs: dict[str, dict[str, tuple[list[int], np.ndarray]]] = {}
    for side in reversed(SIDES):
        known = {key: Moments.from_dict(cell[side]) for key, cell in done.items()}
        per_evaluation = {key: _times(m.variance, done[key]["evaluations"]) for key, m in known.items()}
        lines[side], costs[side], rows = {}, {}, []
        for name in names:
            K = sorted(k for other, k in done if other == name)
            of_name = [known[name, k] for k in K]
            shared = [name in same_mean and done[name, k]["measured"] for k in K]
            each = list(zip(K, of_name, shared, strict=True))
            points = [m.log_snr(of_reference) if k >= fit_from else (nan, nan) for k, m, of_reference in each]
            ratios = [m.snr(of_reference) for _, m, of_reference in each]
            lines[side][name] = figures.SNRLine(K, ratios, fit_line(K, points), fit_from)
            noisy = [(k, _times(m.variance, done[name, k]["ms"])) for k, m, _ in each if not m.noiseless]
            costs[side][name] = [k for k, _ in noisy], np.array([cost for _, cost in noisy]).reshape(-1, 3)
            for k, m, of_reference in each:
                cell = done[name, k]
                k_of_baseline = _nearest(cell["evaluations"], {j: done[baseline, j] for n, j in done if n == baseline})
                ratio = _ratio(per_evaluation[name, k], per_evaluation[baseline, k_of_baseline])
                ratio = Interval(1.0, 1.0, 1.0) if (name, k) == (baseline, k_of_baseline) else ratio
                rows.append(_row(name, k, side, m, cell, of_reference, ratio, k_of_baseline))
        columns = ["estimator", "K", "SNR", "bias", "against", "‖mean‖", "variance", "ratio"]
        columns += ["evaluations", "ms", "var·eval", "var·ms"]
        title = f"Gradient by {figures.PARAMETERS[side]} parameters, in nats, ± 95 % over draws: {what}"
        console.print(cells.table(f"gradients-{side}", title, columns, rows, keys=2))
    against = {cell["against"] for cell in done.values()}
    console.print(
        f"Gradients of the mean bound of the batch. SNR: ‖mean‖ / √variance of one draw; bias: ‖mean − m‖ / ‖m‖, where m is "
        f"the mean gradient of what stands under against; variance: over all coordinates, summed; evaluations: how often "
        f"log p(x|t,w) is computed for each datum in one draw; ms: of one draw; var·eval, var·ms: cost of a gradient of unit "
        f"variance; ratio: of var·eval to that of {baseline} with the nearest number of evaluations, which is the ratio of the "
        f"variances where both numbers are the same."
    )
    if exact := sorted(each for each in against if each.startswith("exact ")):
        console.print(f"{', '.join(exact)}: gradients as sums over all states, which have no error of their own.")
    if ANOTHER in against:
        bound = f"the bound of {reference}" if reference else "the ELBO, or of IWAE's bound"
        console.print(f"{ANOTHER}: the gradient is not meant to be that of {bound}, so that no bias is told.")
    if NOT_TOLD in against:
        console.print(f"{NOT_TOLD}: the estimator does not say (by climbs) of which bound its gradient is.")
    console.print(
        "±, <, [ ]: 95 % intervals over the draws, and upper 95 % limits (jackknife); those of ‖mean‖ and variance are in the "
        "CSV files. Left out: the spread over batches, and over seeds, of which there is one."
    )
    if same_mean:
        console.print(
            f"SNR of {', '.join(same_mean)}: with ‖m‖ of what stands under against, whose mean is known to be the same."
        )
    console.print()
    slopes = [
        {
            "estimator": name,
            **{f"by {side}": _signed(lines[side][name].line.slope) for side in lines},
            "points": ", ".join(str(lines[side][name].line.points) for side in lines),
        }
        for name in names
    ]
    title = (
        f"Slopes of log SNR against log K, with 95 % intervals, fitted to the resolved points from K = {fit_from} on"
    )
    console.print(cells.table("slopes", title, list(slopes[0]), slopes))
    cells.figure("snr", figures.snr(lines, f"signal-to-noise ratio of gradient draws ({what}; bars: 95 % over draws)"))
    cells.figure("cost", figures.cost(costs, f"cost of a gradient of unit precision ({what}; bars: 95 % over draws)"))


def _row(
    name: str,
    K: int,
    side: str,
    m: Moments,
    cell: dict[str, Any],
    same_mean: bool,
    ratio: Interval,
    K_of_baseline: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {"estimator": name, "K": K, "parameters": side, "N": cell["draws"]}
    intervals = {"‖mean‖": m.norm, "variance": m.variance, "SNR": m.snr(same_mean), "bias": m.bias}
    for column, interval in intervals.items():
        exempt = column == "bias" and not cell["measured"]
        row[column] = "—" if exempt else _narrow(interval)
        for end, value in zip(("", " low", " high"), interval, strict=True):
            row[f"{column}{end} (number)"] = "" if exempt else value
    row["SNR"] = "no noise" if m.noiseless else row["SNR"]
    row["against"] = cell["against"]
    row["‖mean‖"], row["variance"] = m.norm.value, m.variance.value
    row["ratio"] = f"{ratio.value:g}" if ratio.low == ratio.high else str(ratio) if isfinite(ratio.value) else ""
    for end, value in zip(("", " low", " high"), ratio, strict=True):
        row[f"ratio{end} (number)"] = value
    row["K of the baseline"] = K_of_baseline
    row["evaluations"], row["ms"] = cell["evaluations"], cell["ms"]
    row["var·eval"], row["var·ms"] = m.variance.value * cell["evaluations"], m.variance.value * cell["ms"]
    return row


def _times(interval: Interval, cost: float) -> Interval:
    return Interval(*(cost * end for end in interval))


def _nearest(evaluations: int, cells: Mapping[int, Mapping[str, Any]]) -> int:
    """The K of the cell whose number of evaluations is nearest to another one, by its ratio to it."""
    return min(cells, key=lambda K: (abs(log(cells[K]["evaluations"] / evaluations)), K))


def _ratio(one: Interval, other: Interval) -> Interval:
    """The ratio of two independent positive numbers, with its interval on the scale of logarithms."""
    if not other.value > 0:
        return UNRESOLVED
    if not one.value > 0:
        return Interval(0.0, 0.0, 0.0)
    reach = hypot(*((each.high - each.value) / each.value for each in (one, other)))
    value = one.value / other.value
    return Interval(value, value * exp(-reach), value * exp(reach))


def _narrow(interval: Interval) -> str:
    """Value ± half the width of its interval; its upper end alone where it reaches zero."""
    value, low, high = interval
    if not isfinite(value):
        return "unresolved"
    return f"{value:.3g} ± {(high - low) / 2:.1g}" if low > 0 else f"<{high:.2g}"


def _signed(interval: Interval) -> str:
    value, low, high = interval
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" if isfinite(value) else "unresolved"


def _of_run(run: Path, splits: Splits) -> Model:
    """The VAE of a run folder, if it is one for these data."""
    vae = load(run, here(run))
    if vae.dims.x_shape != splits.x_shape:
        raise ValueError(
            f"run: {run} holds a model of data of shape {vae.dims.x_shape}, and the data given have shape {splits.x_shape}; "
            f"leave --data out, and the data that it was trained on are taken"
        )
    if vae.dims.classes and splits.classes and splits.classes > vae.dims.classes:
        raise ValueError(
            f"run: {run} holds a model of {vae.dims.classes} classes, and the data given have {splits.classes}"
        )
    try:
        check_support(vae.to(splits.train.x.device), splits)
    except ValueError as error:
        raise ValueError(f"run: {run} holds a model of other data: {error}") from error
    return vae
