"""The calibration of q(t|x) under its own model: t ~ p(t), x ~ p(x|t), and ranks of that t among draws of q(t|x)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyro_vae.data import Columns, DataLike, columns_for
from pyro_vae.evaluate.calibration.bands import holm, p_value
from pyro_vae.evaluate.calibration.ranks import JOINT, Particles, products, ranks_of
from pyro_vae.evaluate.calibration.result import Calibration
from pyro_vae.evaluate.calibration.simulation import Drawn, drawn_from, rows
from pyro_vae.kinds import takes
from pyro_vae.scopes import evaluating, modules_of, telling_memory
from pyro_vae.traces import Programs, library_path, particles

_SIZE = 2**21
"""The size of what is computed at a time, data × particles × numbers of a datum."""
_WIDTH = 64
"""How many numbers a datum counts as at least: the layers of its networks are wider than a datum of few numbers."""
_TOGETHER = 256
"""The most data at a time."""
_REFERENCES = 2**24
"""The most numbers in the data that references are taken from."""
_PAIRS = 200
"""The most latent numbers whose pairs are looked at: with more, their products would take longer than all else."""
_FEWEST = 20
"""The fewest simulated data: with fewer, hardly anything but a guide that is always wrong could be told."""


class Found(NamedTuple):
    """What is kept of the simulated data, in tensors on the device.

    Attributes:
        ranks: the ranks of each latent number and of each joint quantity.
        mean: the mean over the draws of each latent number.
        variance: their variance.
        ess: the effective sample size of the weights that draws were chosen by; 0 where they were not.
        pairs: for each pair of latent numbers the mean over data of the products of normal scores, of the truth and of the
            draws, and the mean and the mean square of their difference, (4, d, d).
    """

    ranks: Int64[Tensor, "n J"]
    mean: Float64[Tensor, "n d"]
    variance: Float64[Tensor, "n d"]
    ess: Float64[Tensor, " n"]
    pairs: Float64[Tensor, "4 e e"]


@takes
def calibrate(
    programs: Programs,
    like: DataLike,
    n: int = 500,
    draws: int = 100,
    *,
    M: int | None = None,
    max_plate_nesting: int = 1,
    seed: int = 0,
) -> Calibration:
    """Compares q(t|x) with the posterior p(t|x) of its own model, by n data that the model draws itself.

    For each of n data, t ~ p(t) and x ~ p(x|t) are drawn from the model, and L = ``draws`` latents from q(t|x). If q is the
    posterior, the true t is one of L + 1 draws that cannot be told apart, so that the rank of any quantity f(t, x) of it among
    those of the draws is uniform on 0..L (Talts et al. 2018, theorem 1). These quantities are ranked:

    - each number of the latents. They see a q that is too narrow, too wide or shifted. They do not see q = p, nor a dependence
      between latents that q leaves out;
    - log p(x|t), log p(t) and log w = log p(x,t) - log q(t|x), which see those too (Modrák et al. 2023);
    - the density q(t|x): how often the truth is in a region of highest density of each level (expected coverage, Hermans et
      al. 2022);
    - the distance from a reference point (TARP, Lemos et al. 2023), in units in which each number of t has the same spread.
      The point is the t of another simulated datum, the one whose x is nearest, since TARP passes q = p where the point does
      not depend on x.

    Whether ranks are uniform is told by one p-value for each quantity (see `bands`); Holm's procedure makes the chance of any
    false alarm at most 5 %. Each joint quantity has a share of one, and so have all numbers of the latents together.

    With ``M``, q is corrected first: M latents are drawn from q(t|x), and L of these are taken **without replacement**, with
    chances in proportion to p(x,t) / q(t|x). So what is left shows how far importance weights can mend q. Draws that are taken
    with replacement would hold copies of each other wherever few weights are large, and copies are not independent draws; and
    smoothed weights would still be taken so. The price: where few weights are large, the L draws lie between q and the
    posterior (Rubin 1987; Gelman et al. 2014, section 10.4), which `Calibration.ess` tells.

    Memory grows with n × (d + L), and not with n × L × d.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        like: data, of which the shape of a datum, labels, missing values (NaN) and the device are used. Programs that take
            labels are judged given the labels of these data, and programs that observe a part of x given its other numbers;
            where a value is missing in these data, it is missing in a simulated datum.
        n: the number of simulated data, at least 20.
        draws: L, the number of draws from q(t|x) for each of them.
        M: the number of draws that importance weights choose from, at least 2 L; None takes q as it is.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of all random numbers.

    Raises:
        ValueError: a number is too small, the data have no values, x cannot be drawn from the model, the guide cannot score a
            latent that it did not draw, or a log-probability is NaN.
    """
    if n < _FEWEST:
        raise ValueError(f"n: expected at least {_FEWEST} simulated data, got {n}")
    if draws < 2:
        raise ValueError(f"draws: expected at least 2 draws for each datum, got {draws}")
    if M is not None and 2 * draws > M:
        raise ValueError(f"M: expected at least 2 × draws = {2 * draws} to choose {draws} of, or None, got {M}")
    columns = columns_for(programs, like)
    if not len(columns):
        raise ValueError("like: expected at least one datum, whose shape simulated data have, and got none")
    if columns.x.is_meta:
        raise ValueError("like: it is on the meta device, where numbers have no values and nothing can be compared")
    known = (each for top in modules_of(programs) for each in top.parameters() if not is_lazy(each))
    if any(bool(each.isnan().any()) for each in known):
        raise ValueError("programs: parameters are NaN, so that no data can be drawn from the model")
    names, found = collect(programs, columns, n, draws, M, max_plate_nesting, seed)
    ranks = found.ranks.cpu().numpy()
    d = len(names)
    weights = [1 / d] * d + [1.0] * len(JOINT)
    p = np.array([p_value(column, draws) for column in ranks.T])
    return Calibration(
        names=(*names, *JOINT),
        ranks=ranks,
        L=draws,
        p=p,
        adjusted=holm(p.tolist(), weights),
        weights=np.array(weights),
        mean=found.mean.cpu().numpy(),
        variance=found.variance.cpu().numpy(),
        pairs=found.pairs.cpu().numpy(),
        ess=None if M is None else found.ess.cpu().numpy(),
        M=M,
        seed=seed,
    )


def collect(
    programs: Programs, columns: Columns, n: int, L: int, M: int | None, max_plate_nesting: int, seed: int
) -> tuple[list[str], Found]:
    """Returns the names of all latent numbers, and what is kept of n simulated data (see `calibrate`)."""
    device, size = columns.x.device, max(_WIDTH, prod(columns.x.shape[1:]))
    run = Run(programs, size, max_plate_nesting)
    K, others = 1 + (M or L), min(n, max(_FEWEST, _REFERENCES // size))
    batches: list[Found] = []
    with telling_memory(n=n, draws=L, M=M or 0), evaluating(programs, device, seed, "calibration"), library_path():
        apart = [(x, run.drawn(x, t, 1).t[0]) for x, t in _simulated(programs, columns, others, size, (seed, "apart"))]
        references = References(columns, apart)
        for x, truth in _simulated(programs, columns, n, K * size, (seed, "truth")):
            found = run.drawn(x, truth, K)
            found, ess = (found, found.log_w.new_zeros(len(x[0])).double()) if M is None else chosen(found, L)
            ranks = ranks_of(found, M is None, references.nearest(x), references.unit)
            spread = torch.var_mean(found.t[1:], 0)
            batches.append(Found(ranks, spread[1], spread[0], ess, _pairs(found.t)))
    ranks, mean, variance, ess = (torch.cat([each[i] for each in batches]) for i in range(4))
    return run.names, Found(ranks, mean, variance, ess, torch.stack([each.pairs for each in batches]).sum(0) / n)


class Run:
    """Runs the programs on the truth and on draws.

    Args:
        programs: a model and a guide.
        size: how many numbers a datum counts as.
        max_plate_nesting: the number of plate dimensions that the programs use.
    """

    def __init__(self, programs: Programs, size: int, max_plate_nesting: int) -> None:
        self.programs, self.size, self.max_plate_nesting = programs, size, max_plate_nesting
        self.names: list[str] = []

    def drawn(self, batch: tuple[Tensor, ...], truth: dict[str, Tensor], K: int) -> Particles:
        """Returns the truth and K - 1 draws from the guide.

        Raises:
            ValueError: the guide cannot score the truth, or a log-probability is NaN.
        """
        chunk, parts = max(2, _SIZE // (len(batch[0]) * self.size)), list[Particles]()
        for start in range(0, K, chunk):
            try:
                found = particles(
                    self.programs.model,
                    self.programs.guide,
                    *batch,
                    K=min(chunk, K - start),
                    max_plate_nesting=self.max_plate_nesting,
                    first=None if start else truth,
                )
            except (NotImplementedError, KeyError) as error:  # transforms without an inverse raise these
                raise ValueError(
                    "guide: it cannot score a latent that it did not draw itself, and the true one is such a latent: choose a "
                    "guide with an exact density, such as a flow with an inverse"
                ) from error
            if found.log_lik.shape[1] != len(batch[0]):
                raise ValueError(
                    f"programs: their plate holds {found.log_lik.shape[1]} of {len(batch[0])} data at a call (subsample_size): "
                    f"give programs whose plate holds all data that they are called with"
                )
            t = [found.vectors(name).double() for name in found.values]
            if not self.names:
                shapes = {name: value.shape[-1] for name, value in zip(found.values, t, strict=True)}
                self.names = [each for name, d in shapes.items() for each in _numbered(name, d)]
            parts.append(Particles(torch.cat(t, -1), found.log_lik, found.log_prior, found.log_q))
        whole = Particles(*(torch.cat(part) for part in zip(*parts, strict=True)))
        _check(whole, batch)
        return whole


class References:
    """The points from which TARP measures distances: latents of other simulated data.

    Args:
        columns: what the programs are called with.
        apart: simulated data, and their latents as vectors.

    Attributes:
        unit: the distance between the quartiles of each latent number, or its standard deviation where they are equal; 1 for
            a constant.
    """

    def __init__(self, columns: Columns, apart: list[tuple[tuple[Tensor, ...], Tensor]]) -> None:
        self.place = columns.inputs.index("x")
        x, self.t = torch.cat([self._flat(batch) for batch, _ in apart]), torch.cat([t for _, t in apart])
        there = ~x.isnan()
        count = there.sum(0).clamp(min=1)
        self.mean = x.nan_to_num().sum(0) / count
        spread = (((x - self.mean).nan_to_num() ** 2).sum(0) / count).sqrt()
        self.spread = torch.where(spread > 0, spread, 1.0)
        self.x = self._scaled(x)
        ordered, at = self.t.sort(0).values, len(self.t) // 4
        unit = torch.where(ordered[-1 - at] > ordered[at], ordered[-1 - at] - ordered[at], self.t.std(0))
        self.unit = torch.where(unit > 0, unit, 1.0)

    def nearest(self, batch: tuple[Tensor, ...]) -> Float64[Tensor, "b d"]:
        """Returns the latents of the simulated data whose x are nearest to these."""
        return self.t[torch.cdist(self._scaled(self._flat(batch)), self.x).argmin(1)]

    def _flat(self, batch: tuple[Tensor, ...]) -> Float[Tensor, "b D"]:
        return (
            batch[self.place].flatten(1).float() if batch[self.place].dim() > 1 else batch[self.place][:, None].float()
        )

    def _scaled(self, x: Float[Tensor, "b D"]) -> Float[Tensor, "b D"]:
        return ((x - self.mean) / self.spread).nan_to_num()


def chosen(found: Particles, L: int) -> tuple[Particles, Float64[Tensor, " b"]]:
    """Returns the truth and L of the draws, taken without replacement by their weights, and the weights' sample size.

    The L largest of log w + G, with independent Gumbel numbers G, are such a sample (Efraimidis and Spirakis 2006).
    """
    log_w = found.log_w[1:].double()
    share = log_w.softmax(0)
    gumbel = -torch.empty_like(log_w).exponential_().log()
    index = (log_w + gumbel).topk(L, 0).indices + 1
    index = torch.cat([torch.zeros_like(index[:1]), index])
    t = found.t.gather(0, index[..., None].expand(-1, -1, found.t.shape[-1]))
    rest = (value.gather(0, index) for value in found[1:])
    return Particles(t, *rest), (1 / share.square().sum(0)).nan_to_num(posinf=0.0)


def _simulated(programs: Programs, columns: Columns, n: int, size: int, key: tuple[int | str, ...]) -> Iterator[Drawn]:
    """Draws n latents and data from the model, as many at a time as fit a size for each datum."""
    whole, step = rows(columns, n), max(1, min(_TOGETHER, _SIZE // size))
    for start in range(0, n, step):
        batch = replace(whole, tensors=whole.take(slice(start, start + step)))
        yield drawn_from(programs.model, batch, (*key, start))


def _pairs(t: Float64[Tensor, "K b d"]) -> Float64[Tensor, "4 e e"]:
    """Returns the sums over data that `Found` has means of; nothing where there are too many pairs."""
    if t.shape[-1] > _PAIRS:
        return t.new_zeros(4, 0, 0)
    truth, draws = products(t)
    gap = truth - draws
    return torch.stack([truth, draws, gap, gap.square()]).sum(1)


def _numbered(site: str, d: int) -> list[str]:
    """Returns the names of the numbers of a latent, counted from 1."""
    return [site] if d == 1 else [f"{site}[{j + 1}]" for j in range(d)]


def _check(found: Particles, batch: tuple[Tensor, ...]) -> None:
    """Checks that there is no NaN."""
    if found.t.is_meta:
        return
    for name, value in (("log p(x|t)", found.log_lik), ("log p(t)", found.log_prior), ("log q(t|x)", found.log_q)):
        if bool(value.isnan().any()):
            missing = any(column.is_floating_point() and bool(column.isnan().any()) for column in batch)
            advice = (
                "values of `like` are missing (NaN), and the model must be built for such data, by data.dims(...) or Dims(..., "
                "missing=True)"
                if missing
                else "its networks give numbers that are not finite"
            )
            raise ValueError(f"programs: {name} is NaN for simulated data: {advice}")
