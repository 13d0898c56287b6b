"""Missing values: NaN in data means that a number was not observed. Bounds are then those on the log density of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent, TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vae.stored import Stored, blocks, held, once


class Marginal(TorchDistribution):
    """The distribution of those numbers of x that are observed, where all numbers are independent given t.

    log p(x_obs|t) = Σ_j log p(x_j|t) over the observed numbers, since ∫ p(x_j|t) dx_j = 1 for the others. A value may hold
    NaN in any place: its number counts as missing, and has no term and no gradient. The mean and draws are those of whole
    data, without NaN.

    Args:
        whole: the distribution of whole data: an ``Independent`` one of single numbers, or a `pyro_vae.parts.Rescaled` of one.
        filling: a value of each number that the distribution can score, of the shape of x; it stands in for missing values
            where the density is computed, so that no gradient is NaN.

    Raises:
        ValueError: the numbers of x are not independent given t.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (as torch declares it)

    def __init__(self, whole: Any, filling: Tensor) -> None:
        self.base_dist, self.filling, self.has_rsample = whole, filling, whole.has_rsample
        super().__init__(whole.batch_shape, whole.event_shape, validate_args=False)
        self.units: Tensor | None = getattr(whole, "units", None)
        self.each: Any = whole if self.units is None else whole.base_dist
        while isinstance(self.each, Independent):
            self.each = self.each.base_dist
        if self.each.event_shape:
            raise ValueError(
                f"data have missing values (NaN), and under {type(self.each).__name__} the numbers of x are not independent "
                f"given t, so that the density of the observed ones alone is not known. Choose a likelihood of independent "
                f"numbers, such as Normal, or fill in the missing values"
            )

    @property
    def support(self) -> Constraint:
        """The values of x that can be scored, where NaN is one for every number."""
        return _OrMissing(self)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Marginal:
        """Returns the same distribution for more data or particles."""
        return Marginal(self.base_dist.expand(batch_shape), self.filling)

    def filled(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which numbers are there, and the numbers as `each` scores them, with the filling for those that are not."""
        there = ~value.isnan()
        filled = torch.where(there, value, self.filling)
        return there, filled if self.units is None else (filled - self.units[0]) / self.units[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of the observed numbers, in nats. It is 0 where none is observed."""
        there, filled = self.filled(value)
        # A distribution that learns from what it scores is told which numbers are there.
        each = self.each.where_observed(there) if hasattr(self.each, "where_observed") else self.each
        log_prob: Tensor = each.log_prob(filled)
        if self.units is not None:
            log_prob = log_prob - self.units[1].log()
        return torch.where(there, log_prob, 0.0).flatten(log_prob.dim() - len(self.event_shape)).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws whole data as a function of the parameters."""
        drawn: Tensor = self.base_dist.rsample(torch.Size(sample_shape))
        return drawn

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws whole data."""
        drawn: Tensor = self.base_dist.sample(torch.Size(sample_shape))
        return drawn

    @property
    def mean(self) -> Tensor:
        """The mean of whole data."""
        mean: Tensor = self.base_dist.mean
        return mean

    @property
    def variance(self) -> Tensor:
        """The variance of whole data."""
        variance: Tensor = self.base_dist.variance
        return variance


class _OrMissing(Constraint):
    """The data whose observed numbers are all in a support.

    Args:
        of: the distribution of observed numbers.
    """

    def __init__(self, of: Marginal) -> None:
        self.of, self.event_dim, self.is_discrete = of, len(of.event_shape), of.each.support.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each datum can be scored."""
        there, filled = self.of.filled(value)
        fits: Tensor = self.of.each.support.check(filled) | ~there
        return fits.flatten(fits.dim() - self.event_dim).all(-1)

    def __repr__(self) -> str:
        return f"{self.of.each.support} or missing"


def check_seen(result: Tensor, x: Tensor) -> None:
    """Checks what a model gave for data.

    Raises:
        ValueError: it is NaN, and values of the data are missing: the model was not built for such data; or it is not finite,
            and values of the data are infinite.
    """
    if not result.is_meta and not bool(result.isfinite().all()) and (infinite := _count(x, torch.isinf)):
        raise ValueError(
            f"the data hold infinite values, {infinite} of {x.numel()}, and the model gives no finite number for "
            f"them: leave them out"
        )
    if not result.is_meta and has_missing(result) and has_missing(x):
        raise ValueError(
            "the data hold missing values (NaN), and the model gives NaN for them: build it for such data, by data.dims(...) "
            "or Dims(..., missing=True)"
        )


def filling_of(x: Tensor) -> Tensor:
    """Returns the first observed value of each number of x ``(N, *x_shape)``; of a number without one, some value of another.

    So each is a value that the data have, which a likelihood of the data can score.
    """
    found: list[Tensor] = []
    for block in blocks(x):
        there = ~block.isnan()
        first = block.gather(0, there.to(torch.uint8).argmax(0, keepdim=True))[0]
        if not found:
            if not bool(there.any()):
                continue
            found = [first, there.any(0), block[there][:1].reshape([1] * first.dim())]
        else:
            found[:2] = torch.where(found[1], found[0], first), found[1] | there.any(0)
        if bool(found[1].all()):
            break
    first, known, some = found
    return torch.where(known, first, some)


def observed_mean(x: Tensor) -> Tensor:
    """Returns the mean of each number over the data where it is observed; of a number without one, that of all numbers.

    Over data of several blocks (see `pyro_vae.stored`) it is summed in float64.
    """
    if (whole := held(x)) is None:
        found = moments(x)
        overall = (found.mean * found.number).sum() / found.number.sum()
        return torch.where(found.number > 0, found.mean, overall).to(x.dtype)
    return torch.where(whole.isnan().all(0), whole.nanmean(), whole.nanmean(0)) if has_missing(whole) else whole.mean(0)


class Moments(NamedTuple):
    """Sums over data that are not in memory, of each number, in float64.

    Attributes:
        number: over how many data it is observed.
        mean: its mean over these, and 0 where there are none.
        squares: the sum of its squared distances from the mean.
    """

    number: Tensor
    mean: Tensor
    squares: Tensor


def moments(x: Tensor) -> Moments:
    """Returns the moments of each number over data in blocks, joined as in Chan et al. 1983."""
    if isinstance(x, Stored):
        return once(x, "moments", lambda: _moments(x))
    return _moments(x)


def _moments(x: Tensor) -> Moments:
    count, mean, squares = torch.zeros((3, *x.shape[1:]), dtype=torch.float64, device=x.device)
    for block in blocks(x):
        there = ~block.isnan()
        new, values = there.sum(0).double(), torch.where(there, block.double(), 0.0)
        center = values.sum(0) / new.clamp(min=1)
        spread = torch.where(there, values - center, 0.0).square().sum(0)
        total, gap = count + new, center - mean
        share = new / total.clamp(min=1)
        mean, squares = mean + gap * share, squares + spread + gap.square() * count * share
        count = total
    return Moments(count, mean, squares)


def spread_of(x: Tensor) -> float:
    """Returns the standard deviation of all observed values together."""
    if (whole := held(x)) is not None:
        return observed_values(whole).std(correction=0).item()
    found = moments(x)
    total = found.number.sum()
    mean = (found.number * found.mean).sum() / total
    between = (found.number * (found.mean - mean).square()).sum()
    return ((found.squares.sum() + between) / total).sqrt().item()


class Facts(NamedTuple):
    """What one pass over data that are not in memory tells.

    Attributes:
        low: the smallest observed value.
        high: the largest.
        whole: whether all observed values are whole numbers.
        missing: how many values are missing.
        infinite: how many are infinite.
    """

    low: Tensor
    high: Tensor
    whole: bool
    missing: int
    infinite: int


def facts_of(x: Stored) -> Facts:
    """Returns what one pass over the data tells."""

    def compute() -> Facts:
        low, high, whole, missing, infinite = *torch.tensor([torch.inf, -torch.inf], dtype=x.dtype), True, 0, 0
        for block in blocks(x.cpu()):
            gone = int(block.isnan().sum())
            there = block[~block.isnan()] if gone else block
            missing += gone
            if there.numel():
                ends = torch.aminmax(there)
                low, high = torch.minimum(low, ends.min), torch.maximum(high, ends.max)
                if not (ends.min.isfinite() and ends.max.isfinite()):
                    infinite += int(there.isinf().sum())
                whole = whole and bool((there == there.round()).all())
        return Facts(low, high, whole, missing, infinite)

    return once(x, "facts", compute)


def observed_ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest observed value."""
    if isinstance(x, Stored):
        found = facts_of(x)
        return found.low.to(x.device), found.high.to(x.device)
    low, high = torch.aminmax(observed_values(x))
    return low, high


def has_missing(x: Tensor) -> bool:
    """Whether there is a NaN among data."""
    if isinstance(x, Stored):
        return facts_of(x).missing > 0
    return x.is_floating_point() and bool(x.isnan().any())


def count_missing(x: Tensor) -> int:
    """How many values are NaN."""
    return _count(x, torch.isnan)


def _count(x: Tensor, which: Callable[[Tensor], Tensor]) -> int:
    return sum(int(which(block).sum()) for block in blocks(x))


def observed_values(x: Tensor) -> Tensor:
    """Returns x, or, where values are missing, a vector of the others. The data are in memory."""
    return x[~x.isnan()] if has_missing(x) else x
