"""log p(x) from importance weights, and what the weights say about how far it can be trusted.

The weights of a datum arrive in pieces and are not kept. What is kept of them is enough for the estimate, for its rise with K,
for the effective sample size, and for the shape k̂ of the weights' tail, which depends on the largest weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isfinite, isnan, log, nan, sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pyro_vae.evaluate.pareto import LEAST, good_k, pareto_k, tail_size
from pyro_vae.evaluate.statistics import UNRESOLVED, Interval, Mean, interval_of_median, jackknife, mean, student_reach

PARTS = 100
"""Into how many parts the particles are divided, so that K/100, K/10 and K particles can be compared."""
TRUSTED = 0.1
"""How much of the error from the particles may be left, in nats, where log p(x) is trusted. Differences between models that are
reported are usually larger."""


class Weights:
    """The importance weights of B data, added in pieces.

    Args:
        K: how many weights each datum will have.
        like: a tensor (B, ...) on the device of the weights.
    """

    def __init__(self, K: int, like: Tensor) -> None:
        self.K = K
        parts = next(parts for parts in (PARTS, 10, 1) if parts <= K)
        self._ends = [K * (part + 1) // parts for part in range(parts)]
        self._largest = 1 + tail_size(K)
        B = len(like)
        self._sums = like.new_full((parts, B), -torch.inf, dtype=torch.float64)
        self._squares = like.new_full((B,), -torch.inf, dtype=torch.float64)
        self._tail: list[Tensor] = []
        self._seen = self._part = 0
        self._unit = torch.finfo(like.dtype).eps if like.is_floating_point() else torch.finfo(torch.float32).eps

    def add(self, log_w: Float[Tensor, "k B"]) -> None:
        """Adds k weights of each datum."""
        start, log_w = 0, log_w.to(torch.float64)
        self._squares = torch.logaddexp(self._squares, (2 * log_w).logsumexp(0))
        self._tail.append(log_w)
        if sum(map(len, self._tail)) > 2 * self._largest:
            self._tail = [self._kept()]
        while start < len(log_w):
            more = log_w[start : start + self._ends[self._part] - self._seen]
            self._sums[self._part] = torch.logaddexp(self._sums[self._part], more.logsumexp(0))
            start, self._seen = start + len(more), self._seen + len(more)
            self._part += self._seen == self._ends[self._part]

    def found(self) -> Evidence:
        """Returns what the weights say, when all have been added."""
        sizes = torch.tensor([end - start for start, end in pairwise([0, *self._ends])], dtype=torch.float64)
        total = self._sums.logsumexp(0)
        parts = self._sums - sizes.log().to(self._sums.device)[:, None]
        ess = (2 * total - self._squares).exp().clamp(max=self.K)  # rounding may pass K
        return Evidence(total - log(self.K), ess, parts, self._kept(), self.K, self._unit)

    def _kept(self) -> Tensor:
        every = torch.cat(self._tail)
        return every.topk(min(self._largest, len(every)), dim=0).values


_TENSORS = ("log_px", "ess", "parts", "largest")


@dataclass(frozen=True, eq=False)
class Evidence:
    """log p(x) of N data by importance sampling with K particles each, and how far it can be trusted.

    Attributes:
        log_px: log (1/K) Σ_k w_k of each datum (N,), in nats. Its expectation is below log p(x).
        ess: the effective sample size (Σ w)² / Σ w² of each datum (N,), between 1 and K (Kong 1992).
        parts: the same as ``log_px`` from each of 100 nearly equal parts of the particles (100, N); of 10 parts if K < 100, and
            of one if K < 10.
        largest: the largest log weights of each datum (M, N), the largest first. M grows as √K.
        K: the number of particles.
        unit: the relative rounding error of the log weights.
    """

    log_px: Float64[Tensor, " N"]
    ess: Float64[Tensor, " N"]
    parts: Float64[Tensor, "parts N"]
    largest: Float64[Tensor, "M N"]
    K: int
    unit: float

    @staticmethod
    def join(batches: Sequence[Evidence]) -> Evidence:
        """Returns batches of data as one, in their order."""
        first = batches[0]
        joined = {name: torch.cat([getattr(each, name) for each in batches], -1) for name in _TENSORS}
        return Evidence(**joined, K=first.K, unit=first.unit)

    @cached_property
    def pareto_k(self) -> Float64[Tensor, " N"]:
        """The shape k̂ of the weights' tail of each datum, by ArviZ (see `pyro_vae.evaluate.pareto.pareto_k`)."""
        found = pareto_k(self.largest.cpu().numpy(), self.K, self.unit)
        return torch.as_tensor(found, dtype=torch.float64, device=self.log_px.device)

    @property
    def good_k(self) -> float:
        """The largest k̂ at which K particles are enough for a reliable estimate; NaN if K < 30."""
        return good_k(self.K)

    @property
    def unreliable(self) -> int:
        """How many of the data have k̂ above `good_k`. Those whose k̂ cannot be computed are among them."""
        return int((~(self.pareto_k <= self.good_k)).sum())

    @property
    def noise(self) -> Float64[Tensor, " N"]:
        """The standard error of each datum's ``log_px`` from its particles, by the delta method from the parts.

        It is too small where k̂ is large. It is NaN if K < 10.
        """
        groups = self._groups(10)
        return (groups - self.log_px).exp().std(0) / sqrt(len(groups))

    def rise(self, decade: int = 1) -> Float64[Tensor, " N"]:
        """Returns how much each datum's estimate rises from K/10 to K particles; with ``decade=2``, from K/100 to K/10.

        It is an estimate without bias of the rise of the expectation. It is NaN where there are not as many parts.
        """
        ends = [self._groups(10**power).mean(0) for power in (decade, decade - 1)]
        return ends[1] - ends[0]

    @cached_property
    def left(self) -> Interval:
        """How much of the mean log p(x) is still missing at K particles, extrapolated, with a 95 % interval over data.

        The rise from one decade of particles to the next is taken to go on shrinking by the same factor, though by no more than
        ten, which is how it shrinks where the weights have a variance (Domke and Sheldon 2018, theorem 3). With a heavy tail it
        shrinks more slowly the larger K is, so that the value is then too small: at least this much is missing. It is not
        resolved if K < 100, for fewer than two data, or where the rise does not shrink.
        """
        if len(self.parts) < PARTS or len(self.log_px) < 2 or not self.log_px.isfinite().all():
            return UNRESOLVED
        rises = [self.rise(decade).cpu().numpy() for decade in (1, 2)]
        groups = np.array_split(np.arange(len(rises[0])), min(20, len(rises[0])))

        def missing(kept: np.ndarray) -> float:
            at = np.concatenate([groups[i] for i in kept])
            last, before = (float(rise[at].mean()) for rise in rises)
            shrinking = max(last / before if before > 0 else 0.0, 0.1)
            return last * shrinking / (1 - shrinking) if shrinking < 1 else nan

        value, error = jackknife(missing, len(groups))
        if not isfinite(error):
            return UNRESOLVED
        reach = student_reach(len(groups) - 1) * error
        return Interval(value, value - reach, value + reach)

    @property
    def mean(self) -> Mean:
        """The mean of ``log_px`` over data; the noise of the particles is part of its error."""
        return mean(self.log_px)

    @property
    def trusted(self) -> bool:
        """Whether the particles are enough: no more than 0.1 nat of the mean is missing, at the upper end of its interval."""
        return self.left.high <= TRUSTED

    def as_dict(self) -> dict[str, Any]:
        """Returns the mean and its diagnostics, for a file."""
        ess, left, rise = interval_of_median(self.ess.cpu().numpy()), self.left, mean(self.rise())
        reason = self._unresolved if isnan(left.value) else None
        return {
            **self.mean.as_dict(),
            "K": self.K,
            "rise": rise.as_dict(),
            "left": left._asdict() | ({f"{name}_missing": reason for name in left._fields} if reason else {}),
            "ess": ess._asdict(),
            "good_k": self.good_k,
            "unreliable": self.unreliable,
            "trusted": self.trusted,
        }

    def notices(self, noun: str = "data", *, annealed: bool = True) -> list[str]:
        """Returns what cannot be trusted and what helps, in sentences; none where all is well.

        Args:
            noun: what the data are called.
            annealed: whether log p(x) can be annealed, which takes latents that are not discrete.
        """
        N, found = len(self.log_px), []
        if not self.trusted:
            value, low, high = self.left
            missing = f"at least about {value:.2f} [{max(low, 0):.2f}, {high:.2f}] nats are missing"
            if isnan(value):
                missing = f"how much is missing cannot be told, since {self._unresolved}"
            rises = (
                f" it rises by {mean(self.rise())} from K = {self.K / 10:.4g} to {self.K}, and" if self.K >= 10 else ""
            )
            more = "More particles, a guide that fits better, or annealed importance sampling comes closer."
            if not annealed:
                more = "More particles, or a guide that fits better, come closer."
            found.append(f"log p(x) from K = {self.K} particles is too low:{rises} {missing}. {more}")
        if self.unreliable > 0.05 * N and self.K >= LEAST:
            found.append(
                f"k̂ is above {self.good_k:.2f} for {self.unreliable} of {N} {noun}: a few particles outweigh all others there, "
                f"so that what is missing can be more than the rise shows."
            )
        return found

    @property
    def _unresolved(self) -> str:
        """Why `left` has no value."""
        if len(self.parts) < PARTS:
            return f"that takes K of at least {PARTS}"
        if len(self.log_px) < 2:
            return "that takes at least two data"
        return "the rise does not shrink as K grows" if self.log_px.isfinite().all() else "a value is infinite or NaN"

    def _groups(self, n: int) -> Float64[Tensor, "n N"]:
        """The estimates from each of n groups of particles; NaN where there are not as many parts."""
        if n > len(self.parts):
            return torch.full_like(self.parts, nan).expand(n, -1)
        return self.parts.unflatten(0, (n, -1)).logsumexp(1) - log(len(self.parts) / n)
