"""Measures this project beside its peers at the same work, in one run, as ratios.

    python experiments/benchmark.py
    python experiments/benchmark.py --data MNIST --data.root data --rounds 15

Peers come with ``pip install .[bench]``; one that is missing is left out by name. Contenders take turns, a few steps each, so
that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import discrete as of_discrete
from benchmarks import figures
from benchmarks.steps import CONTENDERS, Case, Contender
from benchmarks.whole import EPOCH, IMAGES, LOG_PX, Job, K
from pyro_vae.app.comparisons.cell import check_numbers
from pyro_vae.app.comparisons.errors import known
from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.app.console import failing_clearly, progress_bar, screen
from pyro_vae.app.options import Options
from pyro_vae.data import MNIST, Data
from pyro_vae.evaluate import interval_of_median
from pyro_vae.scopes import seeded

console = screen()
OURS = "pyro_vae"
_TOLD = (
    "ms: the median over the rounds, with its 95 % interval, for which there must be six; pyro_vae / it: of medians; loss: of "
    "the first weights, nats per datum."
)
SIZES = ((20, 200, 50), (100, 200, 50), (256, 400, 50))


def benchmark(
    data: Data = MNIST(binarize="fixed"),
    rounds: int = 11,
    seconds: float = 0.3,
    peers: bool = True,
    whole: bool = True,
    parts: bool = True,
    discrete: bool = True,
    growth: bool = False,
    out: Path | None = None,
    *,
    config: str,
) -> None:
    """Times a training step of one network by this project and by its peers.

    The network: one hidden layer of softplus units in encoder and decoder, binary pixels, Adam; then with a VampPrior, and
    with an inverse autoregressive flow as guide. All start from the same weights, and the loss that each reports there is
    compared: a contender that does other work is left out.

    Args:
        data: Binary data.
        rounds: How often each contender takes its turn.
        seconds: Length of a turn, at least one step.
        peers: Measure the peers too.
        whole: Measure a whole epoch, and log p(x) of test images, with pythae's network, too.
        parts: Measure a step with a VampPrior and with an inverse autoregressive flow, too.
        discrete: Measure a step with Bernoulli latents by each estimator for them, too.
        growth: Measure how this project's step grows with batch, width and K, too.
        out: The folder of table and figure. By default runs/benchmark-<a number for the options>.
        config: The resolved options.
    """
    check_numbers([rounds], "rounds", 3)
    if not seconds > 0:
        raise ValueError(f"seconds: expected a length above 0, got {seconds}")
    splits = data.load()
    (x,) = splits.train.columns().take(slice(0, 1024))
    if not bool(((x == 0) | (x == 1)).all()):
        raise ValueError("data: expected binary pixels; choose binarize: fixed")
    cells = ComparisonFolder(
        out, "benchmark", config, {"rounds", "seconds", "peers", "whole", "parts", "discrete", "growth"}
    )
    report_steps(cells, x, peers, parts, rounds, seconds)
    if discrete:
        report_discrete(cells, x, peers, rounds, seconds)
    if whole:
        report_whole(cells, Job(splits), peers)
    if growth:
        grown = []
        for name, sizes in GROWTH.items():
            for case in sizes(x):
                for row in measure(case, {n: CONTENDERS[n] for n in (OURS, "pyro_vae eager")}, rounds, seconds):
                    grown.append({"by": name, "size": SIZE_OF[name](case), **row})
        console.print(cells.table("growth", "Growth", ["by", "size", "contender", "ms", "95 %"], grown, keys=3))
        cells.figure(
            "growth", figures.growth(grown, f"milliseconds per step; bars: 95 % of the median of {rounds} rounds")
        )
    console.print(f"Table and figures: {cells.folder}", soft_wrap=True)


def report_steps(cells: ComparisonFolder, x: Any, peers: bool, parts: bool, rounds: int, seconds: float) -> None:
    """Steps with continuous latents."""
    cases = [Case(x[:batch], hidden, latent) for batch, hidden, latent in SIZES]
    cases += [Case(x[:20], 200, 50, "IWAE", 50), Case(x[:20], 200, 50, "DReG", 50)]
    if parts:
        cases += [Case(x[:100], 200, 50, prior="VampPrior"), Case(x[:100], 200, 50, guide="InverseAutoregressive")]
    rows: list[dict[str, Any]] = []
    for case in cases:
        wanted = {name: make for name, make in CONTENDERS.items() if peers or name.startswith(OURS)}
        rows += measure(case, wanted, rounds, seconds)
    columns = ["case", "contender", "ms", "95 %", "pyro_vae / it", "loss"]
    title = f"Milliseconds per step, {torch.get_num_threads()} threads; batch/hidden/latent"
    console.print(cells.table("steps", title, columns, rows, keys=2))
    console.print(_TOLD)
    cells.figure("steps", figures.timings(rows, f"training step; bars: 95 % of the median of {rounds} rounds"))


def report_discrete(cells: ComparisonFolder, x: Any, peers: bool, rounds: int, seconds: float) -> None:
    """Steps with Bernoulli latents."""
    base, rows = of_discrete.BASE, []
    for case in of_discrete.cases(x):
        found = of_discrete.contenders(case)
        wanted = {name: make for name, make in found.items() if peers or "Pyro" not in name}
        rows += measure(case, wanted, rounds, seconds, base=base)
    columns = ["case", "contender", "ms", "95 %", f"{base} / it", "loss"]
    title = f"Bernoulli latents, milliseconds per step, {torch.get_num_threads()} threads; batch/hidden/latent"
    console.print(cells.table("discrete", title, columns, rows, keys=2))
    console.print(
        f"K is 1 where it is not told, 2 for DisARM. {base} / it: of medians; above 1 is faster than {base}, compiled."
    )
    cells.figure("discrete", figures.timings(rows, f"Bernoulli latents; bars: 95 % of the median of {rounds} rounds"))


def report_whole(cells: ComparisonFolder, job: Job, peers: bool) -> None:
    """A whole epoch, and log p(x)."""
    jobs = {
        f"epoch of {len(job.splits.train)}": (EPOCH, 3),
        f"log p(x), K = {K}, {IMAGES} images": (LOG_PX, 3),
    }
    rows = []
    for what, (contenders, rounds) in jobs.items():
        wanted = {name: make for name, make in contenders.items() if peers or name.startswith(OURS)}
        rows += measure(job, wanted, rounds, 0.0, what)
    columns = ["case", "contender", "ms", f"{OURS} / it", "loss"]
    console.print(cells.table("whole", "A whole epoch and an evaluation, milliseconds", columns, rows, keys=2))
    console.print("ms: the median of 3 rounds, too few for an interval.")
    cells.figure(
        "whole", figures.timings(rows, "a whole epoch and an evaluation: medians of 3 rounds, too few for an interval")
    )


GROWTH = {
    "batch": lambda x: [Case(x[:batch], 200, 50) for batch in (16, 64, 256, 1024)],
    "width": lambda x: [Case(x[:64], hidden, 50) for hidden in (50, 200, 800)],
    "K": lambda x: [Case(x[:20], 200, 50, "IWAE", K) for K in (2, 8, 32, 128)],
}
SIZE_OF = {"batch": lambda case: len(case.x), "width": lambda case: case.hidden, "K": lambda case: case.K}


def measure(
    case: Any, wanted: dict[str, Any], rounds: int, seconds: float, name_of_case: str = "", base: str = OURS
) -> list[dict[str, Any]]:
    """Rows of one case: contenders take turns, of ``seconds`` or one step, and are compared with that of the name ``base``."""
    what = name_of_case or str(case)
    ready: dict[str, Contender] = {}
    losses: dict[str, float] = {}
    for name, make in wanted.items():
        try:
            with seeded(torch.device("cpu"), "benchmark"), console.status(f"{what}: {name}"):
                contender = make(case)
                losses[name] = float(np.mean([contender.loss() for _ in range(10 if seconds else 1)]))
                contender.step()
        except (ImportError, NotImplementedError) as error:
            console.print(f"Left out of {what}: {name}: {error}", soft_wrap=True)
            continue
        ready[name] = contender
    agreed = losses[base]
    for name in list(ready):
        if not np.isnan(losses[name]) and abs(losses[name] - agreed) > 0.05 * abs(agreed):
            console.print(
                f"Left out of {what}: {name}: its loss is {losses[name]:.1f}, that of {base} {agreed:.1f}: other work"
            )
            del ready[name]
    times: dict[str, list[float]] = {name: [] for name in ready}
    counts = {name: max(1, round(seconds / _turn(contender, 3))) if seconds else 1 for name, contender in ready.items()}
    with progress_bar(console) as bar:
        task = bar.add_task(what, total=rounds)
        for _ in range(rounds):
            for name, contender in ready.items():
                times[name].append(1000 * _turn(contender, counts[name]))
            bar.advance(task)
    median = {name: interval_of_median(np.array(values)) for name, values in times.items()}
    return [
        {
            "case": what,
            "contender": name,
            "ms": middle,
            "95 %": f"{low:.3g} to {high:.3g}" if np.isfinite(low) else "",
            "low": known(low),
            "high": known(high),
            f"{base} / it": median[base].value / middle,
            "loss": losses[name],
        }
        for name, (middle, low, high) in median.items()
    ]


def _turn(contender: Contender, steps: int) -> float:
    """Seconds of one step, the mean over some."""
    start = time.perf_counter()
    for _ in range(steps):
        contender.step()
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Reads the options and measures."""
    options = Options(benchmark, sys.argv[1:])
    with failing_clearly():
        benchmark(**options.made(), config=options.as_yaml())
