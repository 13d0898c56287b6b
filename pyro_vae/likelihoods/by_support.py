"""The likelihood that is used if none was chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.kinds import takes
from pyro_vae.likelihoods.binary import Bernoulli
from pyro_vae.likelihoods.counts import Binomial, NegativeBinomial
from pyro_vae.likelihoods.levels import DiscretizedLogistic
from pyro_vae.likelihoods.real import Normal
from pyro_vae.missing import has_missing, moments, observed_mean, spread_of
from pyro_vae.parts import Dims, Likelihood, floating
from pyro_vae.stored import held
from pyro_vae.view import View

_BYTE = 255
_BY_SHAPE = View()
_DISPERSED = 1.5
"""Counts whose variance is larger than this many times their mean are too wide for a Poisson or a Binomial distribution."""
_SPREAD, _LEFT = 10.0, 3.0
"""The variance of an image's levels, as a multiple of that of binomial counts of the same means: the largest that Binomial is
chosen for, before and after a linear decoder of 8 latents has explained what it can.

A Binomial distribution has no scale of its own. Where the variance that is left is r times its own, it costs about
(r - 1 - log r) / 2 nats a pixel, 0.45 at r = 3; and a decoder that explains little of a tenfold variance ends below the uniform
distribution. The 0..16 of `pyro_vae.data.Digits` have 8.1 and 2.5.
"""
_EXPLAINED, _SEEN = 8, 500
"""The number of latents of that decoder, which is the default of a model, and of the images that are looked at."""


class Choice(NamedTuple):
    """A likelihood, and why it fits the data."""

    likelihood: Callable[[Dims], Likelihood]
    reason: str


@takes
def default_likelihood(
    support: Constraint, x: Tensor | None = None, standardized: bool = False, view: View = _BY_SHAPE
) -> Choice:
    """Returns the likelihood that fits data.

    ==================================================== ===========================================
    data                                                 likelihood
    ==================================================== ===========================================
    0 and 1                                              `Bernoulli`
    images of whole numbers, the largest in 128..255     `DiscretizedLogistic` of 256 levels
    images of whole numbers 0..n, n below 128, that
    vary far more than binomial counts (see the reason)  `DiscretizedLogistic` of n + 1 levels
    whole numbers above 255                              `NegativeBinomial`
    whole numbers, variance above 1.5 times the mean,
    no images                                            `NegativeBinomial`
    other whole numbers 0..n                             `Binomial`
    standardized real numbers                            `Normal`, a learned scale for each of them
    other real numbers                                   `Normal`, one learned scale, which begins
                                                         at the standard deviation of the data
    ==================================================== ===========================================

    Args:
        support: the values that a datum may take.
        x: the training data ``(N, *x_shape)``. Without them the support alone decides.
        standardized: whether parts see standardized data.
        view: how the data are shown, which tells whether they are images.
    """
    x = None if x is None else floating(x)
    if support is constraints.boolean:
        return Choice(Bernoulli, "every value is 0 or 1")
    if isinstance(support, constraints.integer_interval):
        return _of_counts(int(support.upper_bound), x, view)
    if standardized:
        return Choice(partial(Normal, learn_scale="pixel"), "the values are real numbers, standardized one by one")
    return Choice(partial(Normal, scale=_spread(x), learn_scale=True), "the values are real numbers")


def _spread(x: Tensor | None) -> float:
    """Returns the standard deviation of all values, in two digits, where a learned scale begins; 1 where it is unknown."""
    spread = 0.0 if x is None or x.is_meta else spread_of(x)
    return float(f"{spread:.2g}") if spread > 0 else 1.0


def _of_counts(largest: int, x: Tensor | None, view: View) -> Choice:
    """Returns the likelihood of whole numbers 0..largest."""
    image = x is not None and view.kind_of(tuple(x.shape[1:])) == "image"
    if image and _BYTE // 2 < largest <= _BYTE:
        levels = partial(DiscretizedLogistic, levels=_BYTE + 1)
        return Choice(levels, f"the data are images of whole numbers up to {largest}, which are levels 0..255")
    if image and x is not None and not x.is_meta and largest < _BYTE:
        spread, left = _dispersion(x, largest)
        if spread > _SPREAD or left > _LEFT:
            many = f"{spread:.0f} times as much as binomial counts do"
            if spread <= _SPREAD:
                many = (
                    f"{left:.1f} times as much as binomial counts do, beside what {_EXPLAINED} linear latents explain"
                )
            return Choice(
                partial(DiscretizedLogistic, levels=largest + 1),
                f"the data are images of whole numbers up to {largest} that vary {many}, so that they are taken for levels "
                f"0..{largest}, whose scale is learned",
            )
    if largest > _BYTE:
        return Choice(
            NegativeBinomial, f"the values are whole numbers up to {largest}, which are counts without a limit"
        )
    if x is not None and not image:
        mean = observed_mean(x)
        if (whole := held(x)) is None:
            count, _, squares = moments(x)
            variance = squares / count.clamp(min=1)
        else:
            gaps = (whole - mean).square()
            variance = observed_mean(gaps) if has_missing(whole) else whole.var(0, correction=0)
        ratio = (variance.sum() / mean.sum()).item()
        if ratio > _DISPERSED:
            return Choice(NegativeBinomial, f"the values are counts whose variance is {ratio:.1f} times their mean")
    return Choice(partial(Binomial, total_count=largest), f"the values are whole numbers 0..{largest}")


def _dispersion(x: Tensor, largest: int) -> tuple[float, float]:
    """Returns the variance of counts 0..n over that of binomial counts of the same means, and what is left of it.

    What is left is the variance outside the first principal components.
    """
    some = x[:: max(1, len(x) // _SEEN)][:_SEEN].double().flatten(1)
    mean = observed_mean(some)
    centered = torch.where(some.isnan(), 0.0, some - mean)
    binomial = (mean * (1 - mean / largest)).sum().item()
    along = torch.linalg.eigvalsh(centered @ centered.T / len(some)).clamp(min=0)
    if binomial <= 0:
        return 0.0, 0.0
    return along.sum().item() / binomial, along[:-_EXPLAINED].sum().item() / binomial
