"""True latents and draws of q(t|x) for data that the model draws itself, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pyro_vae.data import Columns
from pyro_vae.evaluate.calibration.ranks import JOINT, Particles, products, ranks_of
from pyro_vae.evaluate.calibration.simulation import Drawn, drawn_from, rows
from pyro_vae.scopes import evaluating, tell_progress, telling_memory
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
FEWEST = 20
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


def collect(
    programs: Programs, columns: Columns, n: int, L: int, M: int | None, max_plate_nesting: int, seed: int
) -> tuple[list[str], Found]:
    """Returns the names of all latent numbers, and what is kept of n simulated data (see `pyro_vae.evaluate.calibrate`)."""
    device, size = columns.x.device, max(_WIDTH, prod(columns.x.shape[1:]))
    run = Run(programs, size, max_plate_nesting)
    K, others = 1 + (M or L), min(n, max(FEWEST, _REFERENCES // size))
    batches: list[Found] = []
    with telling_memory(n=n, draws=L, M=M or 0), evaluating(programs, device, seed, "calibration"), library_path():
        apart = [(x, run.drawn(x, t, 1).t[0]) for x, t in _simulated(programs, columns, others, size, (seed, "apart"))]
        references, done = References(columns, apart), 0
        tell_progress("calibration", 0, n)
        for x, truth in _simulated(programs, columns, n, K * size, (seed, "truth")):
            found = run.drawn(x, truth, K)
            found, ess = (found, found.log_w.new_zeros(len(x[0])).double()) if M is None else chosen(found, L)
            ranks = ranks_of(found, M is None, references.nearest(x), references.unit)
            spread = torch.var_mean(found.t[1:], 0)
            batches.append(Found(ranks, spread[1], spread[0], ess, _pairs(found.t)))
            done += len(ess)
            tell_progress("calibration", done, n)
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
    """Returns the names of the numbers of a latent, counted from 1; none is that of a joint quantity."""
    if d == 1:
        return [f"{site} (latent)" if site in JOINT else site]
    return [f"{site}[{j + 1}]" for j in range(d)]


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
