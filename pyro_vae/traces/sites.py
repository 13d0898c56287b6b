"""The sample sites of a trace: what they hold, and log-probabilities (K, B) from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import transform_to

from pyro_vae.traces.programs import Site, layers
from pyro_vae.traces.supports import check_kinds, kind_of

PARTICLES = "particles"


@contextmanager
def plate_of_particles(K: int, max_plate_nesting: int) -> Iterator[None]:
    """Runs programs with K particles, whose dimension is left of the programs' own plates."""
    try:
        with pyro.plate(PARTICLES, K, dim=-1 - max_plate_nesting), filled_where_masked():
            yield
    except ValueError as error:
        if f'"{PARTICLES}", collide' not in str(error):
            raise
        raise ValueError(
            f"a plate stands where the particles do: give a max_plate_nesting above {max_plate_nesting}"
        ) from error


class _Filled(Messenger):
    """Fills in what a mask leaves out and nothing could score (see `filled_where_masked`)."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and isinstance(msg["value"], Tensor) and not isinstance(msg["fn"], _Subsample):
            msg["value"] = Observation(msg["fn"], msg["value"], msg["mask"]).filled()


def filled_where_masked() -> AbstractContextManager[Any]:
    """Runs programs so that a missing value (NaN) under a mask gives no NaN in the gradient.

    A mask sets the log-probability to 0, and its derivative is then 0 times that of the log-probability, which is NaN at
    NaN. So a value that the distribution can score stands in for it. A NaN that is not masked stays.
    """
    return _Filled()


@dataclass(frozen=True, eq=False)
class Observation:
    """What a model observes at one of its sites.

    Attributes:
        distribution: the distribution at the site.
        value: the observed value.
        mask: the site's mask, or None.
    """

    distribution: Any
    value: Tensor
    mask: Any

    @property
    def masks(self) -> list[tuple[Tensor, torch.Size]]:
        """The masks of the site and of its distribution that are tensors, each with the batch shape that it stands for."""
        inner = [each for each in layers(self.distribution) if isinstance(each, MaskedDistribution)]
        found = [(self.mask, self.distribution.batch_shape)] + [(each._mask, each.batch_shape) for each in inner]
        return [(torch.as_tensor(mask), shape) for mask, shape in found if mask is not None and mask is not True]

    def filled(self) -> Tensor:
        """Returns the observed value, with another one in place of each number that a mask leaves out and none could score.

        These are NaN, infinite numbers, and those outside of the support, such as a -1 that stands for a missing count.
        """
        masks, inner = self.masks, layers(self.distribution)[-1]
        if not masks or not self.value.is_floating_point():
            return self.value
        fits = inner.support.check(self.value)
        gone = ~(fits.reshape(*fits.shape, *[1] * (self.value.dim() - fits.dim())) & self.value.isfinite())
        rank = len(self.distribution.batch_shape) + len(self.distribution.event_shape)
        for mask, shape in masks:
            exists = mask.to(self.value.device).expand(shape)
            gone = gone & ~exists.reshape(*shape, *[1] * (rank - len(shape)))
        return torch.where(gone, _inside(inner, self.value), self.value)

    def scored(self, value: Tensor) -> Tensor:
        """Returns whether each number of a value at this site is finite and in the support, or is masked and so not scored.

        The result has the batch shape of the innermost distribution, which is the shape of the value unless its numbers
        belong together.
        """
        scored: Tensor = layers(self.distribution)[-1].support.check(value)
        finite = ~value.isinf()  # the real numbers of PyTorch hold infinity
        scored = scored & (finite.flatten(scored.dim()).all(-1) if value.dim() > scored.dim() else finite)
        for mask, shape in self.masks:
            exists = mask.to(scored.device).expand(shape)
            scored = scored | ~exists.reshape(*shape, *[1] * (scored.dim() - len(shape)))
        return scored


def _inside(distribution: Any, like: Tensor) -> Tensor:
    """Returns values that the distribution can score with a finite derivative: its mean, or others where that is none."""
    support = distribution.support
    if support.is_discrete:
        return torch.as_tensor(getattr(support, "lower_bound", 0), dtype=like.dtype, device=like.device)
    try:
        other = transform_to(support)(like.new_zeros(())) if not support.event_dim else like.new_full((), 0.5)
    except NotImplementedError:
        other = like.new_full((), 0.5)
    try:
        mean: Tensor = distribution.mean.detach()
    except (NotImplementedError, AttributeError):
        return other
    fits = support.check(mean)
    fits = fits.reshape(*fits.shape, *[1] * (mean.dim() - fits.dim())) & mean.isfinite()
    return torch.where(fits, mean, other)


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Returns the sites that have a log-probability, without subsample indices, deterministic values and auxiliary sites."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not site["infer"].get("_deterministic")
        and not site["infer"].get("auxiliary")
    }


def auxiliary_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Returns the observed sites that are part of no bound, and that an objective may add (``infer={"auxiliary": True}``)."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and site["infer"].get("auxiliary")}


def check_latents(
    model: dict[str, Site],
    guide: dict[str, Site],
    observed_sites: frozenset[str],
    enumerated: frozenset[str] = frozenset(),
) -> None:
    """Checks that the two programs sample the same latents, of the same kinds, and that the model observes something.

    Args:
        model: the model's sites.
        guide: the guide's sites.
        observed_sites: the names of those that the model observes.
        enumerated: the names of those that are summed out.

    Raises:
        ValueError: they do not.
    """
    latents = model.keys() - observed_sites
    if not observed_sites:
        raise ValueError("the model observes nothing: give one of its sites obs=...")
    if missing := latents - guide.keys() - enumerated:
        discrete = sorted(name for name in missing if kind_of(model[name]["fn"]).mass)
        advice = (
            f"; to sum out a discrete one, mark it in the model: pyro.sample({discrete[0]!r}, ..., "
            f'infer={{"enumerate": "parallel"}})'
            if discrete
            else ""
        )
        raise ValueError(
            f"the guide does not sample the model's latent sites {sorted(missing)}; it samples {sorted(guide)}{advice}"
        )
    if unused := guide.keys() - latents:
        raise ValueError(
            f"the guide samples {sorted(unused)}, which are not latent sites of the model {sorted(latents)}"
        )
    for name in guide:
        check_kinds(name, guide[name]["fn"], model[name]["fn"])


def data_dim_of(sites: list[Site]) -> int:
    """Returns the dimension of the data, which is that of the plate that all sites share."""
    frames = [
        {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != PARTICLES}
        for site in sites
    ]
    shared = {name: dim for name, dim in frames[0].items() if all(name in other for other in frames)}
    if len(shared) > 1 and "data" in shared:
        shared = {"data": shared["data"]}
    if len(shared) != 1:
        found = f"they share {sorted(shared)}" if shared else "there is none"
        raise ValueError(
            f'all sample sites must stand in one vectorized data plate, such as pyro.plate("data", len(x), dim=-1); {found}'
        )
    return int(next(iter(shared.values())))


def size_of(sites: list[Site], dim: int) -> int:
    """Returns the size of the plate of this dimension, which all sites share."""
    return next(int(frame.size) for frame in sites[0]["cond_indep_stack"] if frame.dim == dim)


def log_prob_of(site: Site, value: Tensor) -> Tensor:
    """Returns the log-probability of a value at a site, without its scale and with its mask."""
    log_prob: Tensor = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, 1.0, site["mask"])


def evaluations_of(shape: Sequence[int], max_plate_nesting: int) -> int:
    """Returns for how many particles and states there is a log-probability, given the shape of those of a site."""
    return prod(shape[: max(0, len(shape) - max_plate_nesting)])


class Evaluations(Messenger):
    """Counts how often programs compute the log-probability of what they observe, for each datum, in all runs inside.

    Args:
        max_plate_nesting: the number of plate dimensions that the programs use.
    """

    def __init__(self, max_plate_nesting: int) -> None:
        super().__init__()
        self.max_plate_nesting, self._of_site = max_plate_nesting, dict[str, int]()

    @property
    def number(self) -> int:
        """The number, for the site that has most."""
        return max(self._of_site.values(), default=0)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not isinstance(msg["fn"], _Subsample) and not msg["infer"].get("_deterministic"):
            found = evaluations_of(msg["fn"].batch_shape, self.max_plate_nesting)
            self._of_site[msg["name"]] = self._of_site.get(msg["name"], 0) + found


def masked(site: Site) -> TorchDistributionMixin:
    """Returns the distribution of a site with the site's mask."""
    fn: TorchDistributionMixin = site["fn"]
    return fn if site["mask"] is None else fn.mask(site["mask"])


def summed_per_datum(value: Tensor, particle_dim: int, data_dim: int, shape: tuple[int, int]) -> Tensor:
    """Returns a tensor of a site's batch shape as (K, B), summed over the site's other plates."""
    if value.shape == shape and particle_dim == -2:
        return value
    rank = max(value.dim(), -particle_dim)
    full = [1] * (rank - value.dim()) + list(value.shape)
    value = value.reshape(full)
    full[particle_dim], full[data_dim] = shape
    return value.expand(full).movedim((particle_dim, data_dim), (0, 1)).reshape(*shape, -1).sum(-1)


def per_state(value: Tensor, rank: int, states: int, data_dim: int, shape: tuple[int, int]) -> Tensor:
    """Returns a tensor of a site's batch shape as (states..., K, B), summed over the site's other plates.

    Args:
        value: the tensor.
        rank: the number of dimensions of plates, that of the particles included, which is the first of them.
        states: the number of dimensions of states, which are left of these.
        data_dim: the dimension of the data.
        shape: K and B.
    """
    full = [1] * (states + rank - value.dim()) + list(value.shape)
    value, at = value.reshape(full), len(full) - rank
    full[-rank], full[data_dim] = shape
    moved = value.expand(full).movedim((-rank, data_dim), (at, at + 1))
    return moved.reshape(*full[:at], *shape, -1).sum(-1)


def scale_of(sites: dict[str, Site], size: int) -> float | Tensor:
    """Returns the one scale that all sites share, as a number or as (B,)."""
    (first, first_site), *others = sites.items()
    scale = first_site["scale"]
    for name, site in others:
        other = site["scale"]
        if other is not scale and not torch.equal(torch.as_tensor(scale).cpu(), torch.as_tensor(other).cpu()):
            raise ValueError(
                f"sites {first!r} and {name!r} have different scales ({scale} and {other}): a bound has one scale for each "
                f"datum; weight the terms of an objective in the estimator, not by poutine.scale"
            )
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return float(scale)
    return scale.reshape(-1).expand(size)


def total(terms: list[Tensor], other: dict[str, Tensor]) -> Tensor:
    """Returns the sum of log-probabilities; zeros of the shape of others where there are none."""
    return reduce(add, terms) if terms else torch.zeros_like(next(iter(other.values())))
