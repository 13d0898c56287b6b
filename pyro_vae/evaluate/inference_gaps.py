"""Where the gap log p(x) - ELBO comes from, for each datum (Cremer, Li and Duvenaud 2018, section 3).

With L[q] = E_q [log p(x,t) - log q(t)] for the guide's q(t|x,φ), and q* the best member of the guide's family for this datum:

================== =================== ========================================================================
gap                equation            what makes it smaller
================== =================== ========================================================================
approximation gap  log p(x) - L[q*]    a guide of a richer family
amortization gap   L[q*] - L[q]        a larger encoder, longer training of it, `SemiAmortized`
generalization gap training - test     more data, less training: `generalization_gap`
================== =================== ========================================================================

q* is found by refinement: Adam climbs L for each datum on its own, from q on, with many draws in each step. What comes out is
measured with draws that had no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, log, nan, prod, sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from pyro_vae.data import DataLike, columns_for
from pyro_vae.estimators import ELBO, STL, Estimator, ScoreFunction
from pyro_vae.evaluate.bound import EVALUATED
from pyro_vae.evaluate.families import Family, Members, members
from pyro_vae.evaluate.statistics import Mean, mean
from pyro_vae.kinds import takes
from pyro_vae.missing import check_seen
from pyro_vae.scopes import seeded, still, tell_progress, telling_memory
from pyro_vae.traces import Program, Programs, library_path, particles

_CHECKED = 2000
"""The number of draws that tell, after each round of steps, whether a datum's q has become better."""
_TOLERANCE = 0.01
"""The gain of a round, in nats, at which the refinement of a datum has converged."""
_HELP = "Raise K, or give log_px from annealed importance sampling, which discrete latents do not have."
"""What helps where log p(x) is too small."""
_EFFECTIVE = 0.1
"""The effective share of the weights below which log p(x) from them is not relied on: a few of them may count for most."""


@dataclass(frozen=True, eq=False)
class Gaps:
    """The gap of each datum and its parts, in nats. Errors are standard errors from the draws, for this datum.

    Attributes:
        log_px: log p(x).
        bound: L[q], the ELBO of the amortized q.
        best: L[q*], the ELBO of the best member that was found. It is that of q where nothing better was found.
        approximation: the approximation gap, log p(x) - L[q*].
        amortization: the amortization gap, L[q*] - L[q].
        log_px_error: the error of log p(x), or NaN where it was given without one.
        bound_error: the error of L[q].
        best_error: the error of L[q*].
        amortization_error: the error of the amortization gap, of which much cancels: both bounds use the same noise.
        replaced: whether a better member than the amortized q was found.
        converged: whether the refinement had come to its end.
        effective: the effective share of the weights that log p(x) was computed from, (Σ w)² / (K Σ w²), or NaN where log p(x)
            was given.
        family: the family.
    """

    log_px: Float64[Tensor, " N"]
    bound: Float64[Tensor, " N"]
    best: Float64[Tensor, " N"]
    log_px_error: Float64[Tensor, " N"]
    bound_error: Float64[Tensor, " N"]
    best_error: Float64[Tensor, " N"]
    amortization_error: Float64[Tensor, " N"]
    replaced: Bool[Tensor, " N"]
    converged: Bool[Tensor, " N"]
    effective: Float64[Tensor, " N"]
    family: str

    @property
    def approximation(self) -> Float64[Tensor, " N"]:
        """The approximation gap log p(x) - L[q*] of each datum."""
        return self.log_px - self.best

    @property
    def amortization(self) -> Float64[Tensor, " N"]:
        """The amortization gap L[q*] - L[q] of each datum."""
        return self.best - self.bound

    @property
    def approximation_error(self) -> Float64[Tensor, " N"]:
        """The error of the approximation gap of each datum, whose two terms have draws of their own."""
        return (self.log_px_error**2 + self.best_error**2).sqrt()

    def summary(self) -> dict[str, Mean]:
        """Returns the means over data: log_px, best, bound, and the gaps approximation, amortization and whole.

        Their errors hold both the spread over data and the noise of the draws.
        """
        values = self._values()
        return {name: mean(each) for name, each in values.items()}

    def monte_carlo(self) -> dict[str, float]:
        """Returns the part of each error of `summary` that comes from the draws alone: it is what more draws would lower."""
        of_whole = (self.log_px_error**2 + self.bound_error**2).sqrt()
        errors = {
            "log_px": self.log_px_error, "best": self.best_error, "bound": self.bound_error,
            "approximation": self.approximation_error, "amortization": self.amortization_error, "whole": of_whole,
        }  # fmt: skip
        return {name: each.square().sum().sqrt().item() / len(each) for name, each in errors.items()}

    def _values(self) -> dict[str, Tensor]:
        return {
            "log_px": self.log_px, "best": self.best, "bound": self.bound,
            "approximation": self.approximation, "amortization": self.amortization, "whole": self.log_px - self.bound,
        }  # fmt: skip

    def notices(self) -> list[str]:
        """Returns what cannot be trusted in these numbers, and what to do about it, as sentences."""
        found, N = [], len(self.bound)
        if open_ended := N - int(self.converged.sum()):
            found.append(
                f"The refinement of {open_ended} of {N} data has not converged: their approximation gaps are too large and "
                f"their amortization gaps too small. More steps or rounds help."
            )
        if few := int((self.effective < _EFFECTIVE).sum()):
            found.append(
                f"For {few} of {N} data, less than {_EFFECTIVE:.0%} of the weights that log p(x) is computed from are "
                f"effective: it, and the approximation gap, may be too small, and their errors too. {_HELP}"
            )
        below = self.approximation < -4 * self.approximation_error.nan_to_num(nan=torch.inf) - _TOLERANCE
        if bool(below.any()):
            found.append(
                f"log p(x) of {int(below.sum())} of {N} data is below a lower bound on it by more than four errors: it is too "
                f"small. {_HELP}"
            )
        gap, noise = self.summary()["whole"], self.monte_carlo()["whole"]
        if N > 1 and noise > 0.5 * abs(gap.mean) and noise > _TOLERANCE:
            found.append(
                f"The error from the draws ({noise:.2g} nats) is as large as the gap ({gap.mean:.2g}): raise draws and K."
            )
        return found


@takes
def gaps(
    programs: Programs,
    data: DataLike,
    *,
    family: Family = "own",
    log_px: Tensor | None = None,
    log_px_error: Tensor | None = None,
    K: int = 5000,
    copies: int = 100,
    steps: int = 200,
    rounds: int = 10,
    rate: float = 0.1,
    draws: int = 1000,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    seed: int = 0,
) -> Gaps:
    """Divides the gap log p(x) - ELBO of each datum into an approximation gap and an amortization gap (Cremer et al. 2018).

    The best member of the family is found by Adam, whose step length falls to 0 within each round. Rounds follow until none
    gains more than 0.01 nats, or what its noise hides. The gradient leaves out the score of q (`STL`), so that it has no noise
    where q is the posterior; for latents without ``rsample`` it is the score-function gradient with leave-one-out control
    (`ScoreFunction`). A member that is not better than the amortized q, by draws that were not climbed on, never replaces it.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        data: N data, on the device of the programs. The cost grows with N: a hundred data tell much.
        family: the family in which the best member is looked for (see `pyro_vae.evaluate.families`): "own" is the guide's;
            "diagonal" and "full_rank" are Gaussians, which tell what another guide would gain.
        log_px: log p(x) of each datum (N,), such as from annealed importance sampling. By default it is computed by
            importance sampling from the best member, which is better than from the amortized q.
        log_px_error: the standard error of each of these (N,), from draws.
        K: the number of weights that log p(x) is computed from, if it is not given.
        copies: the number of draws for each datum in a step of the refinement.
        steps: the number of steps in a round.
        rounds: the largest number of rounds.
        rate: the length of the first step of each round. A mean moves in units of the amortized scale.
        draws: the number of draws that each bound is measured with.
        batch_size: the largest number of data at a time.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of the draws.

    Raises:
        ValueError: a number is below 1, the guide has no such family (see `pyro_vae.evaluate.families.NoFamilyError`), or
            log p(x) does not belong to these data.
    """
    sizes = {"K": K, "copies": copies, "steps": steps, "draws": draws}
    for name, value in sizes.items():
        if value < 2:
            raise ValueError(f"{name}: expected at least 2, got {value}")
    if rounds < 2 or batch_size < 1 or not rate > 0:
        raise ValueError(
            f"rounds, batch_size and rate: expected at least 2, at least 1, and a positive number, got {rounds}, {batch_size}, "
            f"{rate}"
        )
    columns = columns_for(programs, data)
    x, device = columns.x, columns.x.device
    given = _given(log_px, log_px_error, len(columns), columns.dynamic)
    search = _Search(programs, copies, steps, rounds, rate, max_plate_nesting)
    size = max(1, min(batch_size, EVALUATED // (copies * prod(x.shape[1:]))))
    measured: list[dict[str, Tensor]] = []
    with telling_memory(copies=copies, batch_size=batch_size), library_path():
        total = rounds * ceil(len(columns) / size)
        tell_progress("gaps", 0, total)
        for number, batch in enumerate(_batches(columns, size, device, seed)):
            with torch.enable_grad(), still(programs, device, seed, "refinement", number):
                tell = partial(_tell, number * rounds, total)
                found, replaced, converged = search.best(family, batch, (seed, number), tell)
            tell(rounds)
            with torch.no_grad(), still(programs, device, seed, "gaps", number):
                row = _measure(
                    programs, found, replaced, batch, draws, None if given else K, max_plate_nesting, (seed, number)
                )
            measured.append(row | {"replaced": replaced, "converged": converged})
    joined = {name: torch.cat([row[name] for row in measured]) for name in measured[0]} | given
    check_seen(joined["bound"], x)
    return Gaps(**joined, family=family)


@takes
def generalization_gap(train: Gaps, test: Gaps) -> dict[str, Mean]:
    """Returns the means over training data minus those over test data, of everything in `Gaps.summary`.

    "bound" is the generalization gap of the ELBO, "log_px" that of the model alone, and the others say whether the guide is
    worse on data that it was not trained with. The intervals are Welch's, for two sets of different data.

    Args:
        train: the gaps of training data.
        test: the gaps of other data.
    """
    one, other = train.summary(), test.summary()
    return {name: _difference(one[name], other[name]) for name in one}


def _difference(one: Mean, other: Mean) -> Mean:
    """The difference of two independent means, with Welch's degrees of freedom, rounded down."""
    a, b = one.error**2, other.error**2
    if min(one.n, other.n) < 2:
        return Mean(one.mean - other.mean, nan, 1)
    spread = a**2 / (one.n - 1) + b**2 / (other.n - 1)
    freedom = int((a + b) ** 2 / spread) if spread > 0 else one.n + other.n - 2
    return Mean(one.mean - other.mean, sqrt(a + b), freedom + 1)


def _given(log_px: Tensor | None, error: Tensor | None, N: int, dynamic: bool) -> dict[str, Tensor]:
    """Returns log p(x) and its error as they were given, by the names of `Gaps`, and nothing if they were not."""
    if log_px is None:
        if error is not None:
            raise ValueError("log_px_error: it is the error of log_px, which is not given")
        return {}
    for name, each in (("log_px", log_px), ("log_px_error", error)):
        if each is not None and each.shape != (N,):
            raise ValueError(f"{name}: expected one number for each of {N} data, got shape {tuple(each.shape)}")
    if dynamic:
        raise ValueError(
            "log_px: the pixels of these data are drawn anew at each use, so that it is of other data: leave it out"
        )
    unknown = torch.full((N,), nan, dtype=torch.float64, device=log_px.device)
    return {
        "log_px": log_px.double(),
        "log_px_error": unknown if error is None else error.double(),
        "effective": unknown,
    }


def _tell(before: int, total: int, rounds: int) -> None:
    """Tells how far it is, with so many rounds of this batch done."""
    tell_progress("gaps", before + rounds, total)


def _batches(columns: Any, size: int, device: torch.device, seed: int) -> Any:
    """Batches whose pixels, where they are drawn, depend on the seed alone."""
    with seeded(device, seed, "pixels"):
        return list(columns.batches(size))


@dataclass(frozen=True)
class _Search:
    """The refinement of a batch. The attributes are arguments of `gaps`."""

    programs: Programs
    copies: int
    steps: int
    rounds: int
    rate: float
    max_plate_nesting: int

    def best(
        self, family: Family, batch: tuple[Tensor, ...], key: tuple[int, int], tell: Callable[[int], None]
    ) -> tuple[Members, Tensor, Tensor]:
        """Returns the best member found, whether it is better than the amortized q (B,), and whether it converged (B,).

        The argument ``tell`` is told how many rounds are done.
        """
        found = members(self.programs, family, batch, self.max_plate_nesting)
        nesting = self.max_plate_nesting
        best = log_weights(self.programs.model, self.programs.guide, batch, _CHECKED, nesting, (*key, "check"))
        replaced = torch.zeros(best.shape[1], dtype=torch.bool, device=best.device)
        if not found.leaves:  # nothing depends on φ
            return found, replaced, ~replaced
        last = log_weights(self.programs.model, found.guide, batch, _CHECKED, nesting, (*key, "check"))
        kept = [leaf.detach().clone() for leaf in found.leaves]
        converged = replaced
        for round in range(self.rounds):
            tell(round)
            self._climb(found, batch)
            now = log_weights(self.programs.model, found.guide, batch, _CHECKED, nesting, (*key, "check"))
            gain, error = _gain(now, last)
            converged = ~(gain > torch.clamp(2 * error, min=_TOLERANCE)) & (round > 0)
            better = gain > 0
            replaced = torch.where(better, now.mean(0) > best.mean(0), replaced)
            found.assign(kept, ~better)
            kept, last = [leaf.detach().clone() for leaf in found.leaves], torch.where(better, now, last)
            if bool(converged.all()):
                break
        return found, replaced, converged

    def _climb(self, found: Members, batch: tuple[Tensor, ...]) -> None:
        """Takes one round of steps."""
        # With ε as large as the rate, steps where the slope is small are the slope itself: in units of q's own scale, that is
        # Newton's step where q is nearly right. With a small ε, Adam would make long steps of rounding errors there.
        optimizer = torch.optim.Adam(found.leaves, lr=self.rate, eps=self.rate, maximize=True)
        estimator = self._estimator(found, batch)
        for step in range(self.steps):
            estimate = estimator.estimate(self.programs.model, found.guide, *batch)
            # A leaf may be without effect: where refined guides run the decoder, its network counts among theirs.
            gradients = torch.autograd.grad(
                estimate.surrogate.sum(), found.leaves, allow_unused=True, materialize_grads=True
            )
            for leaf, gradient in zip(found.leaves, gradients, strict=True):
                leaf.grad = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            optimizer.param_groups[0]["lr"] = self.rate * (1 - step / self.steps)
            optimizer.step()

    def _estimator(self, found: Members, batch: tuple[Tensor, ...]) -> Estimator:
        """The gradient without the score of q where densities are cheap at any t; a flow would have to be inverted for it."""
        with torch.no_grad():
            draw = particles(self.programs.model, found.guide, *batch, max_plate_nesting=self.max_plate_nesting)
        if all(draw.reparameterized.values()):
            return (STL if found.plain else ELBO)(self.copies, self.max_plate_nesting)
        return ScoreFunction(self.copies, "leave-one-out", max_plate_nesting=self.max_plate_nesting)


def _gain(now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The mean difference of weights (K, B) that share their noise, and its standard error (B,)."""
    difference = now - before
    return difference.mean(0), difference.std(0) / sqrt(len(difference))


def log_weights(
    model: Program, guide: Program, batch: tuple[Tensor, ...], K: int, max_plate_nesting: int, key: tuple[Any, ...]
) -> Float[Tensor, "K B"]:
    """Returns log p(x,t) - log q(t|x) of K draws for each datum of a batch, in float64, without a gradient.

    Two guides that are given the same key use the same noise.
    """
    B, device = len(batch[0]), batch[0].device
    pixels = max(column[0].numel() for column in batch)
    chunk = max(1, min(K, EVALUATED // (B * pixels)))
    with torch.no_grad(), seeded(device, *key):
        sizes = [min(chunk, K - start) for start in range(0, K, chunk)]
        found = [
            particles(model, guide, *batch, K=k, max_plate_nesting=max_plate_nesting).log_w.double() for k in sizes
        ]
    return torch.cat(found)


def _measure(
    programs: Programs,
    found: Members,
    replaced: Tensor,
    batch: tuple[Tensor, ...],
    draws: int,
    K: int | None,
    max_plate_nesting: int,
    key: tuple[int, int],
) -> dict[str, Tensor]:
    """Returns what `Gaps` holds of a batch, from draws that had no part in the refinement."""

    def both(count: int, what: str) -> tuple[Tensor, Tensor]:
        options = (batch, count, max_plate_nesting, (*key, what))
        amortized = log_weights(programs.model, programs.guide, *options)
        refined = log_weights(programs.model, found.guide, *options)
        return amortized, torch.where(replaced, refined, amortized)

    amortized, best = both(draws, "bounds")
    amortization, error = _gain(best, amortized)
    row = {
        "bound": amortized.mean(0),
        "best": amortized.mean(0) + amortization,
        "bound_error": amortized.std(0) / sqrt(draws),
        "best_error": best.std(0) / sqrt(draws),
        "amortization_error": error,
    }
    if K is None:
        return row
    log_w = both(K, "log p(x)")[1]
    weight = (log_w - log_w.logsumexp(0)).exp()
    effective = 1 / weight.square().sum(0)
    error = (1 / effective - 1 / K).clamp(min=0.0).sqrt()  # of log Σ w, by the delta method
    return row | {"log_px": log_w.logsumexp(0) - log(K), "log_px_error": error, "effective": effective / K}
