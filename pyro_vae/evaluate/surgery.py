"""ELBO surgery: what the KL term of the ELBO is made of (Hoffman and Johnson 2016, equation 8).

Averaged over data, E_x KL(q(t|x)‖p(t)) = I(x;t) + KL(q(t)‖p(t)), where q(t) = E_x q(t|x) is the aggregate posterior. So

    mean ELBO = reconstruction - I(x;t) - KL(q(t)‖p(t)),

and a small KL term may mean a q(t) that fits the prior, which is wanted, or latents that say nothing of x, which is not.

Two different things are estimated. Both need log q(t|x') at draws t of every datum x, for all pairs of data.

- Over the N data that are given: q(t) = (1/N) Σ_j q(t|x_j) is a mixture whose density is computed exactly. Both terms are
  means over draws, without bias. This I(x;t) is that of a datum's number, and cannot be above log N.
- For other data of the same kind, I(x;t) lies between the expectations of two estimates (Poole et al. 2019, section 2.2):
  the one over the N data, which is the contrastive lower bound, and the same with x_i left out of q(t) at its own draws,
  which is an upper bound. KL(q(t)‖p(t)) lies between the KL term less each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log, prod, sqrt
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from pyro_vae.data import DataLike, columns_for
from pyro_vae.evaluate.bound import EVALUATED
from pyro_vae.evaluate.latent_use import THRESHOLD, kl_of_draws, variance_of_means
from pyro_vae.evaluate.statistics import Mean, mean
from pyro_vae.kinds import takes
from pyro_vae.missing import check_seen
from pyro_vae.scopes import evaluating, telling_memory
from pyro_vae.traces import Programs, crossed, library_path, particles, singles

_KEPT = 2**26
"""The number of log q(t|x') that are kept for the second pass over all pairs: half a gigabyte. More are computed twice."""
_LITTLE = 0.05
"""What counts as nothing where collapse is looked for, in nats: of I(x;t), and of the change of log p(x|t) with t."""
_WIDE = 0.5
"""The distance between the bounds on I(x;t), in nats, above which a notice asks for more data."""


@dataclass(frozen=True, eq=False)
class Surgery:
    """The terms of the ELBO of N data, in nats. Per-datum arrays are means over the S draws of each datum.

    Attributes:
        reconstruction: E_q log p(x|t) of each datum.
        information: E_q [log q(t|x) - log q(t)] of each datum, where q(t) is the mixture over the N data. Its mean is I(x;t)
            over these data.
        marginal_kl: E_q [log q(t) - log p(t)] of each datum. Its mean is KL(q(t)‖p(t)) over these data.
        information_low: what each datum contributes to the contrastive lower bound on I(x;t) of other data: its mean is that of
            ``information``, and its spread also holds what the datum does to the mixture (infinitesimal jackknife).
        information_high: the same for the leave-one-out upper bound.
        noise: the variance over the draws of each datum, for reconstruction, information, marginal_kl and their sum, the ELBO.
        draws: S, the number of draws of each datum.
        kl: E_q [log q - log p] of each datum, by site: their sum is the KL term.
        kl_per_dimension: the mean of the same over data, by site and dimension, for sites where q and p are both independent
            over dimensions; other sites are missing.
        closed_form: whether each of these was computed in closed form, and not from draws, by site.
        activity: Var_x E_q[t_j|x], by site and dimension (Burda et al. 2016).
        threshold: the activity above which a latent counts as used.
        spread: the standard deviation of log p(x|t) over the draws of each datum: 0 where the decoder ignores t.
    """

    reconstruction: Float64[Tensor, " N"]
    information: Float64[Tensor, " N"]
    marginal_kl: Float64[Tensor, " N"]
    information_low: Float64[Tensor, " N"]
    information_high: Float64[Tensor, " N"]
    noise: dict[str, Float64[Tensor, " N"]]
    draws: int
    kl: dict[str, Float64[Tensor, " N"]]
    kl_per_dimension: dict[str, Float64[Tensor, ...]]
    closed_form: dict[str, bool]
    activity: dict[str, Tensor]
    threshold: float
    spread: Float64[Tensor, " N"]

    @property
    def bound(self) -> Float64[Tensor, " N"]:
        """The ELBO of each datum: reconstruction - information - marginal KL."""
        return self.reconstruction - self.information - self.marginal_kl

    @property
    def cap(self) -> float:
        """Log N, the largest value that I(x;t) over N data can have."""
        return log(len(self.bound))

    @property
    def used(self) -> dict[str, Tensor]:
        """Which latents are in use, by site and dimension: those whose activity is above the threshold."""
        return {name: activity > self.threshold for name, activity in self.activity.items()}

    def given(self) -> dict[str, Mean]:
        """Returns the terms over the N data that were given. Their errors come from the draws alone.

        They are bound, reconstruction, information (at most log N) and marginal_kl, and
        reconstruction - information - marginal_kl = bound, to rounding.
        """
        found, N = {}, len(self.bound)
        for name, noise in self.noise.items():
            value = getattr(self, name).mean().item()
            found[name] = Mean(value, sqrt(noise.sum().item() / self.draws) / N, N * (self.draws - 1) + 1)
        return found

    def population(self) -> dict[str, Mean]:
        """Returns the terms for other data of the same kind. Their errors come from the N data and the draws together.

        bound, reconstruction and kl, the KL term, are plain means. I(x;t) is between the expectations of information_low and
        information_high, and KL(q(t)‖p(t)) between those of marginal_kl_low and marginal_kl_high. The bounds are not tight
        where I(x;t) is above log N: then marginal_kl_low may be below 0, and says nothing.
        """
        whole = self.information + self.marginal_kl
        return {
            "bound": mean(self.bound),
            "reconstruction": mean(self.reconstruction),
            "kl": mean(whole),
            "information_low": mean(self.information_low),
            "information_high": mean(self.information_high),
            "marginal_kl_low": mean(whole - self.information_high),
            "marginal_kl_high": mean(whole - self.information_low),
        }

    def notices(self) -> list[str]:
        """Returns what cannot be trusted, and whether the posterior has collapsed, as sentences."""
        found = self._collapse()
        bracket = self.population()
        low, high = bracket["information_low"].mean, bracket["information_high"].mean
        if not high - low <= _WIDE:  # it may be infinite
            capped = f", since I(x;t) over {len(self.bound)} data cannot be above log N = {self.cap:.2f}" * (
                self.cap - low < 1
            )
            found.append(
                f"The mutual information of other data is only known to be between {low:.2f} and {high:.2f} nats{capped}. "
                f"More data bring the two closer."
            )
        return found

    def _collapse(self) -> list[str]:
        used = torch.cat([each.flatten() for each in self.used.values()])
        unused = int((~used).sum())
        if not unused:
            return []
        low = self.population()["information_low"]
        if unused < len(used):
            return [
                f"Not in use: {unused} of {len(used)} latents, where q(t_j|x) has the same mean for all x: {self._names()}."
            ]
        if low.low > _LITTLE:
            return [
                f"No latent has a mean that varies with x by more than the threshold ({self.threshold:g}), and yet the latents "
                f"tell x apart (I(x;t) is {low.mean:.2f} nats or more): the threshold suits latents whose scale is about 1."
            ]
        spread = self.spread.mean().item()
        return [
            f"The posterior has collapsed: q(t|x) is the same for all x, so that no latent is in use and I(x;t) is "
            f"{max(0.0, low.mean):.2g} nats. "
            + (
                f"The decoder ignores t: log p(x|t) varies by only {spread:.2g} nats between draws of t. "
                if spread < _LITTLE
                else f"The decoder does depend on t (log p(x|t) varies by {spread:.2g} nats between draws of t): it is the "
                f"guide that ignores x. "
            )
            + "KL warm-up, free nats, or a weaker decoder help."
        ]

    def _names(self) -> str:
        """The latents that are not in use, such as ``t[3], t[7]``."""
        found = [
            f"{site}[{j}]" for site, used in self.used.items() for j in (~used.flatten()).nonzero().flatten().tolist()
        ]
        return ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")


@takes
def elbo_surgery(
    programs: Programs,
    data: DataLike,
    *,
    draws: int = 10,
    batch_size: int = 100,
    max_plate_nesting: int = 1,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Surgery:
    """Divides the KL term of the ELBO into mutual information and marginal KL (Hoffman and Johnson 2016).

    log q(t|x') is computed for the draws of each datum and every other datum, which are N² S densities: a thousand data take
    seconds with a Gaussian guide. A flow is inverted for each of them, which takes minutes.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide`` whose prior is the same for each datum.
        data: N data, at least two, on the device of the programs. With labels, x stands for data and labels together.
        draws: S, the number of draws of each datum, at least two.
        batch_size: the number of data at a time.
        max_plate_nesting: the number of plate dimensions that the programs use.
        threshold: the activity above which a latent counts as used.
        seed: the seed of the draws.

    Raises:
        ValueError: there are fewer than two data or draws, the prior differs between data, or the guide's density is not the
            same when it is asked again (it is random beyond its sample sites).
    """
    columns = columns_for(programs, data)
    N, device = len(columns), columns.x.device
    if N < 2 or draws < 2 or batch_size < 1:
        raise ValueError(
            f"data, draws and batch_size: expected at least 2, 2 and 1, since q(t) is a mean over data, got {N}, {draws} and "
            f"{batch_size}"
        )
    with torch.no_grad(), telling_memory(batch_size=batch_size, draws=draws), library_path():
        with evaluating(programs, device, seed, "pixels"):
            batches = list(columns.batches(batch_size))
        pairs = _Pairs(programs, batches, draws, max_plate_nesting, seed)
        parts = pairs.draw()
        check_seen(parts["log_q"], columns.x)
        low, high = pairs.mixtures(parts["log_q"])
    activity = _activity(programs, columns, pairs, seed)
    log_q, log_p, log_lik, owner = parts["log_q"], parts["log_prior"], parts["log_lik"], pairs.owner
    terms = {"reconstruction": log_lik, "information": log_q - low.log_q, "marginal_kl": low.log_q - log_p}
    terms["bound"] = terms["reconstruction"] - terms["information"] - terms["marginal_kl"]
    per_datum = {name: _over_draws(value, owner, N) for name, value in terms.items()}
    of_high = _over_draws(log_q - high.log_q, owner, N)[0]
    return Surgery(
        **{name: per_datum[name][0] for name in ("reconstruction", "information", "marginal_kl")},
        information_low=per_datum["information"][0] - (low.share - 1),
        information_high=of_high - (high.share - 1),
        noise={name: variance for name, (_, variance) in per_datum.items()},
        draws=draws,
        kl=pairs.kl,
        kl_per_dimension=pairs.per_dimension,
        closed_form=pairs.closed_form,
        activity=activity,
        threshold=threshold,
        spread=per_datum["reconstruction"][1].sqrt(),
    )


@dataclass(frozen=True, eq=False)
class _Mixture:
    """An aggregate posterior at the draws.

    Attributes:
        log_q: its log density at each draw.
        share: how much of it, at the draws of all data, comes from each datum (N,): on average 1.
    """

    log_q: Tensor
    share: Tensor


class _Pairs:
    """Draws of all data, and log q(t|x') for all pairs. A guide runs with the same random numbers whenever it sees a batch.

    Draws are numbered: those of the first batch come first, and in a batch all first draws, then all second ones.
    """

    def __init__(
        self, programs: Programs, batches: list[tuple[Tensor, ...]], draws: int, max_plate_nesting: int, seed: int
    ) -> None:
        self.programs, self.batches, self.draws, self.nesting, self.seed = (
            programs,
            batches,
            draws,
            max_plate_nesting,
            seed,
        )
        sizes = [len(batch[0]) for batch in batches]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.N, self.device = sum(sizes), batches[0][0].device
        each = [start + torch.arange(size).repeat(draws) for start, size in zip(self.starts, sizes, strict=True)]
        self.owner = torch.cat(each).to(self.device)
        self.latents: dict[str, Tensor] = {}
        self.kl: dict[str, Tensor] = {}
        self.per_dimension: dict[str, Tensor] = {}
        self.closed_form: dict[str, bool] = {}

    def draw(self) -> dict[str, Tensor]:
        """Draws the latents of all data. Returns their log_lik, log_prior and log_q, in float64."""
        rows: list[dict[str, Tensor]] = []
        latents: list[dict[str, Tensor]] = []
        kls: list[dict[str, Tensor]] = []
        dimensions: list[dict[str, tuple[Tensor, bool]]] = []
        for number, batch in enumerate(self.batches):
            with evaluating(self.programs, self.device, self.seed, "surgery", number):
                found = particles(
                    self.programs.model, self.programs.guide, *batch, K=self.draws, max_plate_nesting=self.nesting
                )
            rows.append({name: getattr(found, name).double().flatten() for name in ("log_lik", "log_prior", "log_q")})
            latents.append(singles(found))
            kls.append({name: (found.guide[name] - found.model[name]).double().mean(0) for name in found.guide})
            dimensions.append(kl_of_draws(found))
            if number == 0:
                self._check(batch, latents[0], rows[0])
        self.latents = {name: torch.cat([each[name] for each in latents]) for name in latents[0]}
        self.kl = {name: torch.cat([each[name] for each in kls]) for name in kls[0]}
        for name in dimensions[0]:
            self.per_dimension[name] = torch.cat([each[name][0] for each in dimensions]).mean(0)
            self.closed_form[name] = dimensions[0][name][1]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def mixtures(self, own: Tensor) -> tuple[_Mixture, _Mixture]:
        """Returns q(t) over all data, and that over all data but the one that a draw belongs to.

        Args:
            own: log q(t|x) of each draw for its own datum.
        """
        kept = list(self._blocks()) if len(own) * self.N <= _KEPT else None
        others = torch.full_like(own, -torch.inf)
        for rows, _, block in kept or self._blocks():
            others[rows] = torch.logaddexp(others[rows], block.logsumexp(1))
        totals = torch.logaddexp(others, own), others
        shares = [torch.zeros(self.N, dtype=own.dtype, device=own.device) for _ in totals]
        shares[0].index_add_(0, self.owner, (own - totals[0]).exp())
        for rows, start, block in kept or self._blocks():
            for share, total in zip(shares, totals, strict=True):
                share[start : start + block.shape[1]] += (block - total[rows, None]).exp().sum(0)
        return tuple(
            _Mixture(total - log(count), share / self.draws)
            for total, share, count in zip(totals, shares, (self.N, self.N - 1), strict=True)
        )  # type: ignore[return-value]

    def _blocks(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Gives log q(t|x') of some draws and the data of one batch: the draws, the first of the data, and a matrix.

        A draw's own datum counts as -∞.
        """
        for number, (start, batch) in enumerate(zip(self.starts, self.batches, strict=True)):
            B = len(batch[0])
            numbers = sum(each[0].numel() for each in self.latents.values())
            size = max(1, EVALUATED // (B * numbers))
            for first in range(0, len(self.owner), size):
                rows = slice(first, min(first + size, len(self.owner)))
                block = self._log_q(number, batch, {name: each[rows] for name, each in self.latents.items()})
                own = self.owner[rows, None] == torch.arange(start, start + B, device=self.device)
                yield rows, start, block.masked_fill(own, -torch.inf)

    def _log_q(self, number: int, batch: tuple[Tensor, ...], latents: dict[str, Tensor]) -> Tensor:
        with evaluating(self.programs, self.device, self.seed, "surgery", number):
            found = crossed(self.programs.guide, latents, *batch, max_plate_nesting=self.nesting)
        return torch.stack(list(found.values())).sum(0).double()

    def _check(self, batch: tuple[Tensor, ...], latents: dict[str, Tensor], row: dict[str, Tensor]) -> None:
        """Checks that log q is what the draws were made with, and that the prior is the same for each datum."""
        B = len(batch[0])
        first = {name: each[:B] for name, each in latents.items()}
        again, own = self._log_q(0, batch, first).diagonal(), row["log_q"][:B]
        if again.is_meta:
            return
        if bool(((again - own).abs() > 0.01 + 1e-3 * own.abs()).any()):
            raise ValueError(
                "guide: log q(t|x) is another number when it is asked again for the same t and x, since the guide is random "
                "beyond its sample sites: surgery needs one density q(t|x)"
            )
        few = {name: each[:2] for name, each in latents.items()}
        with evaluating(self.programs, self.device, self.seed, "surgery", 0):
            prior = crossed(self.programs.model, few, *batch, max_plate_nesting=self.nesting)
        log_p = torch.stack(list(prior.values())).sum(0)
        if bool((log_p.amax(1) - log_p.amin(1) > 1e-3 + 1e-4 * log_p.abs().amax(1)).any()):
            raise ValueError(
                "model: p(t) is not the same for each datum, so that there is no KL(q(t)‖p(t)): surgery takes models "
                "with one prior"
            )


def _over_draws(values: Tensor, owner: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Returns the mean and the variance of the draws of each datum."""
    S = len(values) // N
    total = torch.zeros(N, dtype=values.dtype, device=values.device).index_add_(0, owner, values)
    average = total / S
    squares = torch.zeros_like(total).index_add_(0, owner, (values - average[owner]).square())
    return average, squares / (S - 1)


def _activity(programs: Programs, columns: Any, pairs: _Pairs, seed: int) -> dict[str, Tensor]:
    sites = {name: value.shape[pairs.nesting + 1 :] for name, value in pairs.latents.items()}
    # The error from draws, about the variance of t over S √N, stays below a quarter of the usual threshold at a scale of 1.
    S = max(20, ceil(4 / (THRESHOLD * sqrt(pairs.N))))
    found = variance_of_means(programs, columns, draws=S, seed=seed)
    sizes = [prod(shape) for shape in sites.values()]
    if sum(sizes) != len(found):  # latents that stand in further plates
        return {name: variance_of_means(programs, columns, name, S, seed) for name in sites}
    return {name: part.reshape(shape) for (name, shape), part in zip(sites.items(), found.split(sizes), strict=True)}
