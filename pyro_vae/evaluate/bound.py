"""The bound over data, in sums that stay on the device: its terms, its values for each datum, and whether it is still finite."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pyro_vae.data import DataLike, columns_for
from pyro_vae.estimators import Estimate, Estimator
from pyro_vae.scopes import mode, seeded
from pyro_vae.traces import Programs, library_path

EVALUATED = 2**20
"""Particles × data × pixels of a batch that is evaluated without a gradient."""


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


class DivergedError(ArithmeticError):
    """The bound became NaN or infinite. The weights are those of the last epoch that was finite."""


class Sums(NamedTuple):
    """What one step reports of its batch.

    Attributes:
        row: sums over the batch, in float64: of the bound, of E_q log p(x|t), of the KL, then of each site's log-probability.
        bound: the bound of each datum (B,).
    """

    row: Float64[Tensor, " n"]
    bound: Float[Tensor, " B"]


def sums(estimate: Estimate) -> Sums:
    """The sums of an estimate, without a gradient."""
    draws = estimate.particles
    with torch.no_grad():
        kl = draws.log_q - draws.log_prior
        per_datum = [estimate.bound, draws.log_lik.mean(0), kl.mean(0)]
        per_datum += [value.mean(0) for value in draws.sites.values()]
        return Sums(torch.stack(per_datum).detach().to(torch.float64).sum(1), estimate.bound.detach())


def names_of(estimate: Estimate) -> list[str]:
    """What the entries of a row of `sums` are called."""
    return ["bound", "reconstruction", "kl", *estimate.particles.sites]


class Totals:
    """Sums over data, kept on the device in float64, and the first step at which each became NaN or infinite.

    Reading it (`terms`, `check`) waits for the device; adding does not.

    Args:
        names: of the entries of the rows that will be added.
    """

    def __init__(self, names: list[str]) -> None:
        self.count = self.steps = 0
        self.names = names
        self._bounds: list[Tensor] = []
        self._pending: list[Tensor] = []
        self._total, self._failed = torch.zeros(0), torch.zeros(0)

    def add(self, batch: Sums) -> None:
        """Adds a batch: each datum counts once, so an uneven last batch has its own weight."""
        self.count += len(batch.bound)
        self._bounds.append(batch.bound)
        self._pending.append(batch.row)

    def terms(self) -> Terms:
        """Means per datum."""
        self._reduce()
        bound, reconstruction, kl = (self._total[:3] / self.count).tolist()
        return Terms(bound, reconstruction, kl)

    def per_datum(self) -> Float[Tensor, " N"]:
        """The bound of each datum, in the order they came."""
        return torch.cat(self._bounds)

    def check(self, when: str) -> None:
        """Raises DivergedError, naming the step and the sites, if a sum became NaN or infinite."""
        self._reduce()
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

    def _reduce(self) -> None:
        """Takes the rows that were added since the last reading into the totals."""
        if not self._pending:
            return
        rows = torch.stack(self._pending)
        steps = torch.arange(self.steps + 1, self.steps + len(rows) + 1, dtype=rows.dtype, device=rows.device)
        failed = torch.where(rows.isfinite(), torch.inf, steps[:, None]).amin(0)
        if self.steps:
            self._total, self._failed = self._total + rows.sum(0), torch.minimum(self._failed, failed)
        else:
            self._total, self._failed = rows.sum(0), failed
        self.steps += len(rows)
        self._pending = []


def evaluate_bound(
    programs: Programs, data: DataLike, estimator: Estimator, batch_size: int = 100, seed: int = 0
) -> Totals:
    """The estimator's bound and its terms over data, without a gradient, by random numbers that only ``seed`` decides.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        data: N data, on the device of the programs.
        estimator: whose bound.
        batch_size: data at a time; more where they are small.
        seed: of the random numbers.
    """
    columns = columns_for(programs, data)
    size = max(batch_size, EVALUATED // (estimator.M * estimator.K * prod(columns.x.shape[1:])))
    totals: Totals | None = None
    with torch.no_grad(), seeded(columns.x.device, seed, "bound"), library_path(), mode(programs, training=False):
        for batch in columns.batches(size):
            estimate = estimator.estimate(programs.model, programs.guide, *batch)
            totals = totals or Totals(names_of(estimate))
            totals.add(sums(estimate))
    assert totals is not None  # data are never empty
    return totals
