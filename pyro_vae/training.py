"""Training: stochastic variational inference on any Pyro model and guide, a record an epoch.

The random numbers of epoch e (order of the data, binarisation, ε) depend on the seed and on e alone, so that a run is
reproducible bit for bit on a CPU and leaves the global random state as it was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pyro_vae.base import Estimate, Estimator
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO
from pyro_vae.objectives import Objective
from pyro_vae.particles import Program, library_path, observed, parameters

OptimiserFactory = Callable[[Iterable[Tensor]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]


@runtime_checkable
class Programs(Protocol):
    """What is trained and evaluated: a Pyro model and a Pyro guide, both called with x. A `VAE` is one."""

    @property
    def model(self) -> Program:
        """p(t) p(x|t,w)."""

    @property
    def guide(self) -> Program:
        """q(t|x,φ)."""


class Terms(NamedTuple):
    """Means over data, in nats per datum.

    Attributes:
        bound: the estimator's bound on log p(x).
        reconstruction: E_q log p(x|t,w).
        kl: E_q [log q(t|x,φ) - log p(t)], estimated by the same draws.
    """

    bound: float
    reconstruction: float
    kl: float


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


class DivergedError(ArithmeticError):
    """The bound became NaN or infinite. The weights are those of the last epoch that was finite."""


class BurdaSchedule(LambdaLR):
    """Learning rate lr · 10^(-i/7) for 3^i epochs, i = 0, 1, ... (Burda et al. 2016, section 5; there i ≤ 7: 3280 epochs).

    Args:
        optimizer: the optimiser, filled in by the program.
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
    optimiser: OptimiserFactory = Adam,
    schedule: ScheduleFactory | None = None,
    seed: int = 0,
    objective: Objective | None = None,
    e_steps: int = 0,
    m_steps: int = 0,
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
        optimiser: makes the optimiser from the parameters.
        schedule: makes a learning-rate schedule, moved on after each epoch.
        seed: of the order of the data, the binarisation and ε.
        objective: what is optimised in place of the bound; None is the bound. Records report the bound in any case.
        e_steps: steps on φ alone, in turn with `m_steps` on w alone (an EM-style schedule); 0 and 0 move both in each step.
        m_steps: steps on w alone.
        on_step: told where training stands, about ten times a second.

    Returns:
        An iterator over `Epoch`s; with each, the weights of that epoch are in place.

    Raises:
        ValueError: batch size or epochs out of range, data outside the likelihood's support, programs without parameters
            or outside the estimator's domain.
        DivergedError: the bound became NaN or infinite; the last good weights are put back first.
    """
    estimator = ELBO() if estimator is None else deepcopy(estimator)  # one may keep a state: a run has its own
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    if not 1 <= batch_size <= len(data.train):
        raise ValueError(f"batch_size: expected between 1 and the {len(data.train)} training data, got {batch_size}")
    if min(e_steps, m_steps) < 0 or (e_steps > 0) != (m_steps > 0):
        raise ValueError(f"e_steps and m_steps: expected both 0 or both at least 1, got {e_steps} and {m_steps}")
    objective = objective or Objective()
    device = data.train.x.device
    with seeded(device, seed, "setup"):
        check_support(programs, data)
        x = data.train.take(slice(0, batch_size))
        w, phi = parameters(programs.model, programs.guide, x)
        with torch.no_grad(), library_path():
            estimator.estimate(programs.model, programs.guide, x, objective=objective)
    leaves = [*w.values(), *phi.values()]
    if not leaves:
        raise ValueError("model and guide use no parameters: nothing to train")
    optimizer = optimiser(leaves)
    scheduler = schedule(optimizer) if schedule else None
    state = leaves + (list(programs.buffers()) if isinstance(programs, nn.Module) else [])

    def run_epoch(epoch: int) -> Epoch:
        start, lr, told = time.perf_counter(), float(optimizer.param_groups[0]["lr"]), 0.0
        steps = -(-len(data.train) // batch_size)
        tally = Tally()
        with seeded(device, seed, "epoch", epoch), library_path(), mode(programs, training=True):
            for step, x in enumerate(data.train.batches(batch_size, shuffle=True), 1):
                # Counted over the whole run: a cycle of E and M steps does not begin anew with each epoch.
                phase = ((epoch - 1) * steps + step - 1) % (e_steps + m_steps) if e_steps else None
                still = [] if phase is None else list((w if phase < e_steps else phi).values())
                tally.add(train_step(programs, estimator, optimizer, x, objective.at(epoch), still))
                if on_step and (now := time.perf_counter()) - told > 0.1:
                    told = now
                    tally.check(f"in epoch {epoch}")
                    on_step(Progress(epoch, (epoch - 1) * steps + step, epochs * steps, tally.terms().bound))
        tally.check(f"in epoch {epoch}")
        valid = evaluate_bound(programs, data.valid, estimator, batch_size, seed)
        valid.check(f"on the validation data after epoch {epoch}")
        if scheduler:
            scheduler.step()
        return Epoch(epoch, tally.terms(), valid.terms(), lr, time.perf_counter() - start)

    def run() -> Iterator[Epoch]:
        for epoch in range(1, epochs + 1):
            good = [tensor.detach().clone() for tensor in state]
            try:
                record = run_epoch(epoch)
            except DivergedError:
                with torch.no_grad():
                    for tensor, kept in zip(state, good, strict=True):
                        tensor.copy_(kept)
                raise
            yield record

    return run()


def train_step(
    programs: Programs,
    estimator: Estimator,
    optimizer: Optimizer,
    x: Tensor,
    objective: Objective | None = None,
    still: Sequence[Tensor] = (),
) -> Estimate:
    """One update on one batch: ascends the mean of the estimator's surrogate, with the parameters in ``still`` kept."""
    optimizer.zero_grad(set_to_none=True)
    estimate = estimator.estimate(programs.model, programs.guide, x, objective=objective)
    (-estimate.surrogate.mean()).backward()
    for parameter in still:
        parameter.grad = None
    optimizer.step()
    return estimate


def evaluate_bound(programs: Programs, split: Split, estimator: Estimator, batch_size: int, seed: int) -> Tally:
    """The estimator's bound and its terms over a split, without a gradient, by random numbers that only ``seed`` decides."""
    tally = Tally()
    with torch.no_grad(), seeded(split.x.device, seed, "bound"), library_path(), mode(programs, training=False):
        for x in split.batches(batch_size):
            tally.add(estimator.estimate(programs.model, programs.guide, x))
    return tally


class Tally:
    """Sums over data, kept on the device in float64, and the first step at which each became NaN or infinite.

    Reading it (`terms`, `check`) waits for the device; adding does not.
    """

    def __init__(self) -> None:
        self.count = self.steps = 0
        self.names: list[str] = []
        self._bounds: list[Tensor] = []
        self._total = self._failed = torch.zeros(0)

    def add(self, estimate: Estimate) -> None:
        """Adds a batch: each datum counts once, so an uneven last batch has its own weight."""
        draws = estimate.particles
        with torch.no_grad():
            kl = draws.log_q - draws.log_prior
            per_datum = [estimate.bound, draws.log_lik.mean(0), kl.mean(0)]
            per_datum += [value.mean(0) for value in draws.sites.values()]
            row = torch.stack(per_datum).detach().to(torch.float64).sum(1)
            self._bounds.append(estimate.bound.detach())
            self.steps += 1
            self.count += len(estimate.bound)
            failed = torch.where(row.isfinite(), torch.inf, float(self.steps))
            if self.names:
                self._total += row
                self._failed = torch.minimum(self._failed, failed)
            else:
                self.names = ["bound", "reconstruction", "kl", *draws.sites]
                self._total, self._failed = row, failed

    def terms(self) -> Terms:
        """Means per datum."""
        bound, reconstruction, kl = (self._total[:3] / self.count).tolist()
        return Terms(bound, reconstruction, kl)

    def per_datum(self) -> Float[Tensor, " N"]:
        """The bound of each datum, in the order they came."""
        return torch.cat(self._bounds)

    def check(self, when: str) -> None:
        """Raises DivergedError, naming the step and the sites, if a sum became NaN or infinite."""
        failed = self._failed.tolist()
        if (first := min(failed)) == float("inf"):
            return
        sites = [name for name, step in zip(self.names, failed, strict=True) if step == first]
        named = [name for name in sites if " " in name]
        where = "at the sites " + ", ".join(repr(name) for name in named) if named else "in the bound alone"
        raise DivergedError(
            f"the bound became NaN or infinite {when}, step {int(first)}, {where}; the weights are put back to those before "
            f"that epoch. A smaller learning rate usually helps."
        )


def check_support(programs: Programs, data: Splits) -> None:
    """Raises ValueError if a split holds values that the model cannot score, naming the split, the site and the range."""
    for name, split in (("training", data.train), ("validation", data.valid), ("test", data.test)):
        for site, distribution in observed(programs.model, split.take(slice(0, 1))).items():
            if all(bool(distribution.support.check(x).all()) for x in split.batches(1000)):
                continue
            low, high = split.x.min().item(), split.x.max().item()
            base = distribution
            while hasattr(base, "base_dist"):
                base = base.base_dist
            message = (
                f"the {name} data hold values from {low:g} to {high:g} that {type(base).__name__} at site {site!r} "
                f"cannot score: its support is {base.support}"
            )
            if base.support is constraints.boolean and low >= 0:
                message += (
                    ". Grey pixels have no probability under it: binarise the data (binarise: dynamic draws the pixels anew at "
                    "each use, fixed draws them once), or choose a likelihood for such values"
                )
            raise ValueError(message)


@contextmanager
def seeded(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seeds the random numbers of the CPU and of ``device`` by a hash of ``key``, and puts back their state at the end.

    The key says what the numbers are for, so that two uses of one seed share none of them.
    """
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def mode(programs: Any, training: bool) -> Iterator[None]:
    """Puts a module into training or evaluation mode and back; other programs have no mode."""
    if not isinstance(programs, nn.Module):
        with nullcontext():
            yield
        return
    was = programs.training
    programs.train(training)
    try:
        yield
    finally:
        programs.train(was)
