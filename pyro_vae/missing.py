"""Missing values: NaN in data means that a number was not observed. Bounds are then those on the log density of the others."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, TorchDistribution
from torch import Tensor
from torch.distributions.constraints import Constraint


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
    if not result.is_meta and not bool(result.isfinite().all()) and bool(x.isinf().any()):
        raise ValueError(
            f"the data hold infinite values, {int(x.isinf().sum())} of {x.numel()}, and the model gives no finite number for "
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
    there = ~x.isnan()
    first = there.to(torch.uint8).argmax(0, keepdim=True)
    some = x[there][:1].reshape([1] * (x.dim() - 1))
    return torch.where(there.any(0), x.gather(0, first)[0], some)


def observed_mean(x: Tensor) -> Tensor:
    """Returns the mean of each number over the data where it is observed; of a number without one, that of all numbers."""
    return torch.where(x.isnan().all(0), x.nanmean(), x.nanmean(0)) if has_missing(x) else x.mean(0)


def has_missing(x: Tensor) -> bool:
    """Whether there is a NaN among data."""
    return x.is_floating_point() and bool(x.isnan().any())


def observed_values(x: Tensor) -> Tensor:
    """Returns x, or, where values are missing, a vector of the others."""
    return x[~x.isnan()] if has_missing(x) else x
