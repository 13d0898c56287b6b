"""Training: stochastic variational inference on any Pyro model and guide, a record an epoch.

The random numbers of epoch e (order of the data, binarization, ε) depend on the seed and on e alone, so that a run is
reproducible bit for bit on a CPU and leaves the global random state as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pyro_vae.base import Estimator
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO
from pyro_vae.objectives import Objective
from pyro_vae.particles import library_path, observed, parameters
from pyro_vae.programs import Programs, mode, seeded
from pyro_vae.steps import Compile, Precision, Step, Update, has_products, logger, make_step
from pyro_vae.tally import DivergedError, Tally, Terms, names_of, sums

EVALUATED = 2**20
"""Particles × data × pixels of a batch that is only evaluated."""
OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True)
class Epoch:
    """One epoch's record.

    Attributes:
        epoch: from 1.
        train: means over the training data while the weights moved.
        valid: means over the validation data at the epoch's end, with the same random numbers at each epoch.
        lr: the learning rate of the epoch.
        seconds: wall time of the epoch.
    """

    epoch: int
    train: Terms
    valid: Terms
    lr: float
    seconds: float


class Progress(NamedTuple):
    """Where training stands inside an epoch: steps done of all, and the epoch's bound so far (nats per datum)."""

    epoch: int
    step: int
    steps: int
    bound: float


class BurdaSchedule(LambdaLR):
    """Learning rate lr · 10^(-i/7) for 3^i epochs, i = 0, 1, ... (Burda et al. 2016, section 5; there i ≤ 7: 3280 epochs).

    Args:
        optimizer: the optimizer, filled in by the program.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, self.factor)

    @staticmethod
    def factor(epoch: int) -> float:
        """10^(-i/7) for the stage i that holds an epoch counted from 0: stage i ends after (3^(i+1) - 1)/2 epochs."""
        stage = 0
        while epoch >= (3 ** (stage + 1) - 1) // 2:
            stage += 1
        return float(10 ** (-stage / 7))


def fit(
    programs: Programs,
    data: Splits,
    *,
    epochs: int,
    batch_size: int = 100,
    estimator: Estimator | None = None,
    optimizer: OptimizerFactory = Adam,
    schedule: ScheduleFactory | None = None,
    seed: int = 0,
    objective: Objective | None = None,
    e_steps: int = 0,
    m_steps: int = 0,
    clip_norm: float | None = None,
    compile: Compile = "auto",
    precision: Precision = "fp32",
    on_step: Callable[[Progress], None] | None = None,
) -> Iterator[Epoch]:
    """Trains a model and a guide by stochastic variational inference and yields a record after each epoch.

    Arguments and data are checked at once; training goes on as long as records are asked for
    (``for epoch in fit(...): print(epoch)``). Pyro's global parameter store is left alone; a bare ``pyro.param`` of the
    programs is trained where it lives, in that store.

    Args:
        programs: a `VAE`, or anything with a Pyro ``model(x)`` and ``guide(x)``.
        data: train and validation data, on the device of the programs.
        epochs: number of passes over the training data.
        batch_size: data per step; the last batch of an epoch holds what is left.
        estimator: the bound and its gradient; None is `ELBO` with one particle.
        optimizer: makes the optimizer from the parameters.
        schedule: makes a learning-rate schedule, moved on after each epoch.
        seed: of the order of the data, the binarization and ε.
        objective: what is optimized in place of the bound; None is the bound. Records report the bound in any case.
        e_steps: steps on φ alone, in turn with `m_steps` on w alone (an EM-style schedule); 0 and 0 move both in each step.
        m_steps: steps on w alone.
        clip_norm: the largest norm of the gradient by all parameters; a larger one is scaled down to it.
        compile: whether steps are compiled (see `pyro_vae.steps`). What cannot be is run eagerly, and the logger "pyro_vae"
            says why.
        precision: of the networks' matrix products. The logger says where bf16 is slower than fp32.
        on_step: told where training stands, about ten times a second.

    Returns:
        An iterator over `Epoch`s; with each, the weights of that epoch are in place.

    Raises:
        ValueError: batch size or epochs out of range, data outside the likelihood's support, programs without parameters
            or outside the estimator's domain.
        DivergedError: the bound became NaN or infinite; the last good weights are put back first.
    """
    # An estimator may keep a state: a run has its own.
    estimator, objective = deepcopy(estimator or ELBO()), objective or Objective()
    _check_sizes(epochs, batch_size, len(data.train), e_steps, m_steps, clip_norm)
    device, data = data.train.x.device, data.given_to(programs)
    if not has_products(precision, device):
        logger.warning("precision: this processor has no bfloat16 products, which makes bf16 far slower than fp32 here")
    with seeded(device, seed, "setup"):
        check_support(programs, data)
        batch = data.train.take(slice(0, batch_size))
        w, phi = parameters(programs.model, programs.guide, *batch)
        with torch.no_grad(), library_path():
            names = names_of(estimator.estimate(programs.model, programs.guide, *batch, objective=objective))
    leaves = [*w.values(), *phi.values()]
    if not leaves:
        raise ValueError("model and guide use no parameters: nothing to train")
    optimizer = optimizer(leaves)
    fuse(optimizer)
    scheduler = schedule(optimizer) if schedule else None
    state = leaves + (list(programs.buffers()) if isinstance(programs, nn.Module) else [])
    steps = -(-len(data.train) // batch_size)

    def run_epoch(epoch: int, step: Step) -> Epoch:
        start, lr, told = time.perf_counter(), float(optimizer.param_groups[0]["lr"]), 0.0
        tally, kl_weight = Tally(names), objective.weight(epoch)
        with seeded(device, seed, "epoch", epoch), library_path(), mode(programs, training=True):
            for number, index in enumerate(data.train.order().split(batch_size)):
                phase = "both"
                if e_steps:  # counted over the whole run: a cycle of E and M steps does not begin anew with each epoch
                    phase = "E" if ((epoch - 1) * steps + number) % (e_steps + m_steps) < e_steps else "M"
                tally.add(step(index, kl_weight, phase))
                if on_step and (now := time.perf_counter()) - told > 0.1:
                    told = now
                    tally.check(f"in epoch {epoch}")
                    on_step(Progress(epoch, (epoch - 1) * steps + number + 1, epochs * steps, tally.terms().bound))
        tally.check(f"in epoch {epoch}")
        valid = evaluate_bound(programs, data.valid, estimator, batch_size, seed)
        valid.check(f"on the validation data after epoch {epoch}")
        if scheduler:
            scheduler.step()
        return Epoch(epoch, tally.terms(), valid.terms(), lr, time.perf_counter() - start)

    def run() -> Iterator[Epoch]:
        phases = {"both": leaves, "E": list(phi.values()), "M": list(w.values())}
        update = Update(
            programs, estimator, objective, data.train, optimizer, phases, clip_norm=clip_norm, precision=precision
        )
        step = make_step(update, compile, epochs * steps, batch_size)
        for epoch in range(1, epochs + 1):
            good = [tensor.detach().clone() for tensor in state]
            try:
                record = run_epoch(epoch, step)
            except DivergedError:
                with torch.no_grad():
                    for tensor, kept in zip(state, good, strict=True):
                        tensor.copy_(kept)
                raise
            yield record

    return run()


def _check_sizes(epochs: int, batch_size: int, size: int, e_steps: int, m_steps: int, clip_norm: float | None) -> None:
    """Raises ValueError if an argument of `fit` is out of range."""
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size: expected between 1 and the {size} training data, got {batch_size}")
    if min(e_steps, m_steps) < 0 or (e_steps > 0) != (m_steps > 0):
        raise ValueError(f"e_steps and m_steps: expected both 0 or both at least 1, got {e_steps} and {m_steps}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: expected a norm above 0, got {clip_norm}")


def fuse(optimizer: Optimizer) -> None:
    """Lets the optimizer update all parameters in one kernel, where its class has one and nobody chose otherwise."""
    for group in optimizer.param_groups:
        devices = {parameter.device.type for parameter in group["params"]}
        if group.get("fused", False) is None and not group.get("foreach") and devices <= {"cpu", "cuda"}:
            group["fused"] = True


def evaluate_bound(programs: Programs, split: Split, estimator: Estimator, batch_size: int, seed: int) -> Tally:
    """The estimator's bound and its terms over a split, without a gradient, by random numbers that only ``seed`` decides.

    Batches are as large as the processor likes them, and at least ``batch_size``.
    """
    tally: Tally | None = None
    batch_size = max(batch_size, EVALUATED // (estimator.M * estimator.K * split.x[0].numel()))
    with torch.no_grad(), seeded(split.x.device, seed, "bound"), library_path(), mode(programs, training=False):
        for batch in split.given_to(programs).batches(batch_size):
            estimate = estimator.estimate(programs.model, programs.guide, *batch)
            tally = tally or Tally(names_of(estimate))
            tally.add(sums(estimate))
    assert tally is not None  # a split is never empty
    return tally


def check_support(programs: Programs, data: Splits) -> None:
    """Raises ValueError if a split holds values that the model cannot score, naming the split, the site and the range."""
    data = data.given_to(programs)
    for name, split in (("training", data.train), ("validation", data.valid), ("test", data.test)):
        for site, distribution in observed(programs.model, *split.take(slice(0, 1))).items():
            if all(bool(distribution.support.check(x).all()) for x, *_ in split.batches(1000)):
                continue
            low, high = split.x.min().item(), split.x.max().item()
            base = distribution
            while hasattr(base, "base_dist"):
                base = base.base_dist
            message = (
                f"the {name} data hold values from {low:g} to {high:g} that {type(base).__name__} at site {site!r} "
                f"cannot score: its support is {base.support}"
            )
            message += getattr(base.support, "advice", "")
            if base.support is constraints.boolean and low >= 0:
                message += (
                    ". Gray pixels have no probability under it: binarize the data (binarize: dynamic draws the pixels anew at "
                    "each use, fixed draws them once), or choose a likelihood for such values"
                )
            raise ValueError(message)
