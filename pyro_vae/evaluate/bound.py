"""The bound over data: its terms, its value for each datum, and whether it is still finite.

Its sums stay on the device until they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan, prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pyro_vae.data import Columns, DataLike, columns_for
from pyro_vae.estimators import Estimate, Estimator
from pyro_vae.evaluate.statistics import Mean, mean
from pyro_vae.kinds import takes
from pyro_vae.scopes import evaluating, telling_memory
from pyro_vae.together import Together
from pyro_vae.traces import Programs, library_path

EVALUATED = 2**20
"""The size of a batch that is evaluated without a gradient: particles × data × pixels."""


class Terms(NamedTuple):
    """Means over data, in nats per datum.

    Attributes:
        bound: the estimator's bound on log p(x).
        reconstruction: E_q log p(x|t,w).
        kl: E_q [log q(t|x,φ) - log p(t)], estimated from the same draws.
    """

    bound: float
    reconstruction: float
    kl: float


class DivergedError(ArithmeticError):
    """Raised if the bound became NaN or infinite.

    The weights are then those of the last epoch that was finite.
    """


class Sums(NamedTuple):
    """The sums that one step reports of its batch.

    Attributes:
        row: the sums over the batch, in float64, of the bound, E_q log p(x|t), the KL and each site's log-probability,
            in this order.
        bound: the bound of each datum (B,).
        norms: the norms of the gradient by w and by φ, of a training step that is asked for them; 0 for a side that it does not
            move.
    """

    row: Float64[Tensor, " n"]
    bound: Float[Tensor, " B"]
    norms: Float64[Tensor, " 2"] | None = None


def sums(estimate: Estimate) -> Sums:
    """Returns the sums of an estimate, without a gradient."""
    draws = estimate.particles
    with torch.no_grad():
        kl = draws.log_q - draws.log_prior
        per_datum = [estimate.bound, draws.log_lik.mean(0), kl.mean(0)]
        per_datum += [value.mean(0) for value in draws.sites.values()]
        return Sums(torch.stack(per_datum).detach().to(torch.float64).sum(1), estimate.bound.detach())


def part_of(found: Sums, place: slice, size: int, share: float) -> Sums:
    """What some data of a batch add to its sums.

    Args:
        found: the sums of these data.
        place: where they stand in the batch.
        size: the number of data in the batch.
        share: their share of the batch; where it is zero, they add nothing.
    """
    bound = found.bound.new_zeros(size)
    bound[place] = found.bound
    return Sums(found.row, bound) if share else Sums(found.row * 0, bound * 0)


def names_of(estimate: Estimate) -> list[str]:
    """Returns the names of the entries of a row of `sums`."""
    return ["bound", "reconstruction", "kl", *estimate.particles.sites]


class Totals:
    """Sums over data, on their device in float64, and the first step at which each became NaN or infinite.

    The methods that read them (`terms`, `check`) wait for the device; `add` does not.

    Args:
        names: the names of the entries of the rows that will be added.
        estimator: the estimator whose bound is added.
    """

    def __init__(self, names: list[str], estimator: Estimator) -> None:
        self.count = 0
        self.names, self.estimator = names, estimator
        self._bounds: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, batch: Sums) -> None:
        """Adds a batch, in which each datum counts once, so that a smaller last batch has a smaller weight."""
        self.count += len(batch.bound)
        self._bounds.append(batch.bound)
        self._rows.append(batch.row[None])

    def state(self) -> dict[str, Any]:
        """What was added so far but for the bound of each datum: what a checkpoint within an epoch keeps."""
        return {"count": self.count, "rows": self._stacked()} if self._rows else {"count": 0, "rows": None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Begins with what another one had added."""
        self.count = state["count"]
        if state["rows"] is not None:
            self._rows = [state["rows"]]

    def terms(self) -> Terms:
        """Returns the means per datum."""
        bound, reconstruction, kl = (self._stacked().sum(0)[:3] / self.count).tolist()
        return Terms(bound, reconstruction, kl)

    def per_datum(self) -> Float[Tensor, " N"]:
        """Returns the bound of each datum, in the order in which the data were added.

        Raises:
            ValueError: the estimator has no value for each datum (see `pyro_vae.estimators.Estimator`).
        """
        if not self.estimator.per_datum:
            raise ValueError(
                f"{self._name} has the bound of a whole batch, and none for each datum: use terms() or mean()"
            )
        return torch.cat(self._bounds)

    def mean(self) -> Mean:
        """Returns the mean bound with its error over data, or with the reason why this error is not known."""
        if self.estimator.per_datum:
            return mean(self.per_datum())
        return Mean(self.terms().bound, nan, self.count, f"{self._name} has no value for each datum")

    @property
    def _name(self) -> str:
        return type(self.estimator).__name__

    def check(self, when: str) -> None:
        """Raises DivergedError, which names the step and the sites, if a sum became NaN or infinite."""
        rows = self._stacked()
        steps = torch.arange(1, len(rows) + 1, dtype=rows.dtype, device=rows.device)
        failed = torch.where(rows.isfinite(), torch.inf, steps[:, None]).amin(0).tolist()
        if (first := min(failed)) == float("inf"):
            return
        sites = [name for name, step in zip(self.names, failed, strict=True) if step == first]
        named = [name for name in sites if " " in name]
        where = "at the sites " + ", ".join(repr(name) for name in named) if named else "in the bound alone"
        raise DivergedError(
            f"the bound became NaN or infinite {when}, step {int(first)}, {where}; the weights are put back to those before "
            f"that epoch. A smaller learning rate usually helps."
        )

    def _stacked(self) -> Tensor:
        """The rows of all steps (T, n). Their sum is the same, bit for bit, however often it was read before."""
        self._rows = [torch.cat(self._rows)]
        return self._rows[0]


@takes
def evaluate_bound(
    programs: Programs, data: DataLike, estimator: Estimator, batch_size: int = 100, seed: int = 0
) -> Totals:
    """Returns the estimator's bound and its terms over data, without a gradient.

    The random numbers depend on ``seed`` alone.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        data: N data, on the device of the programs.
        estimator: the estimator whose bound is computed.
        batch_size: the number of data at a time, which is larger where the data are small.
        seed: the seed of the random numbers.

    Raises:
        ValueError: the model cannot score the data.
    """
    return bound_over(programs, columns_for(programs, data), estimator, batch_size, seed)


def bound_over(
    programs: Programs,
    columns: Columns,
    estimator: Estimator,
    batch_size: int,
    seed: int,
    together: Together | None = None,
) -> Totals:
    """Returns what `evaluate_bound` returns, of columns that were checked before.

    Args:
        programs: the model and the guide.
        columns: the data.
        estimator: the estimator.
        batch_size: as for `evaluate_bound`.
        seed: the seed.
        together: the processes that share each batch out, if there are several.
    """
    size = max(batch_size, EVALUATED // (estimator.drawn * prod(columns.x.shape[1:])))
    totals: Totals | None = None
    sizes = {"batch_size": batch_size, "K": estimator.drawn}
    with telling_memory(**sizes), evaluating(programs, columns.x.device, seed, "bound"), library_path():
        for start in range(0, len(columns), size):
            place = slice(start, start + size)
            if together:
                index = torch.arange(start, min(start + size, len(columns)), device=columns.x.device)
                with together.share(index, sizes["K"]) as (own, at, share):
                    estimate = estimator.estimate(programs.model, programs.guide, *columns.take(own))
                found = Sums(*together.sum(part_of(sums(estimate), at, len(index), share)[:2]))
            else:
                estimate = estimator.estimate(programs.model, programs.guide, *columns.take(place))
                found = sums(estimate)
            totals = totals or Totals(names_of(estimate), estimator)
            totals.add(found)
    assert totals is not None  # data are never empty
    return totals
