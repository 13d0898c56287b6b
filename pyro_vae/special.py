"""Functions that are right in float32 for every finite number that a network can give.

PyTorch's distributions lose digits, or give NaN, where scales, rates or counts are very large or very small. The parts
use these functions instead. All can be traced into a graph and differentiated twice.
"""

from __future__ import annotations

from copy import copy
from math import log, pi
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions.constraints import Constraint

_LIMIT = 15.0
_HUGE = 1e30


def bounded(number: Tensor, low: float, high: float) -> Tensor:
    """Returns the number itself inside [low, high], and outside a number that is at most 1 away from the nearer end.

    At a distance u outside, the result is u / (1 + u) away from the end. So it is bounded in float32 and float64 alike,
    for every finite number, and its derivative 1 / (1 + u)² is continuous and leads back.
    """
    above, below = (number - high).relu(), (low - number).relu()
    inside = torch.where(number > high, high + above / (1 + above), number)
    return torch.where(number < low, low - below / (1 + below), inside)


def latent_log_scale(log_scale: Tensor) -> Tensor:
    """Returns log s of latents, `bounded` by -15 and 15 (see `latent_scale`)."""
    return bounded(log_scale, -_LIMIT, _LIMIT)


def latent_scale(log_scale: Tensor) -> Tensor:
    """Returns s = exp(log s) of latents, where log s is `bounded` by -15 and 15, so that s is between 1e-7 and 9e6.

    Below 1e-7, float32 cannot tell s ε + m from m if m is near 1. Within these ends, the densities of the draws of one
    Gaussian under another, and their gradients, are finite in float32 too.
    """
    return latent_log_scale(log_scale).exp()


class _InFloat64(torch.autograd.Function):
    """A conversion to float64, whose gradient is kept within what float32 holds, with room for sums of many of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Returns x in float64."""
        ctx.dtype = x.dtype
        return x.double()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Returns the gradient in the type of x."""
        return (gradient if ctx.dtype == torch.float64 else gradient.clamp(-_HUGE, _HUGE)).to(ctx.dtype)


def in_float64(x: Tensor) -> Tensor:
    """Returns x in float64. Its gradient is clamped to ±1e30, since a gradient in float64 may be too large for float32."""
    result: Tensor = _InFloat64.apply(x)
    return result


def stirling_remainder(z: Tensor) -> Tensor:
    """Returns log Γ(z) - (z - ½) log z + z - ½ log 2π, which is about 1 / (12 z), for z > 0 in float64.

    Differences of log Γ at large numbers are taken by it, so that nothing cancels (Loader 2000, "Fast and accurate
    computation of binomial probabilities"). From 10 on, it is Stirling's series, whose error is below 1e-13.
    """
    large = z >= 10
    w, v = torch.where(large, z, 10.0), torch.where(large, 10.0, z)
    u = 1 / (w * w)
    series = (1 / 12 - u * (1 / 360 - u * (1 / 1260 - u * (1 / 1680 - u / 1188)))) / w
    return torch.where(large, series, torch.lgamma(v) - (v - 0.5) * v.log() + v - log(2 * pi) / 2)


def log_sinhc(logit: Tensor) -> Tensor:
    """Returns log [sinh(h) / h] at h = logit / 2, for |logit| up to 2, as the logarithm of a series of positive terms."""
    return torch.log1p(_series(logit * logit / 4)[0])


def half_langevin(logit: Tensor) -> Tensor:
    """Returns the derivative of `log_sinhc` by the logit, for |logit| up to 2."""
    value, slope = _series(logit * logit / 4)
    return logit / 2 * slope / (1 + value)


def _series(z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sinh(h) / h - 1 and its derivative by z, where z = h² is at most 1."""
    value, slope = torch.zeros_like(z), torch.zeros_like(z)
    for n in reversed(range(1, 11)):  # the term of z^n is below 1e-19 from n = 10 on
        # value = z / ((2n)(2n+1)) (1 + the rest), and slope is its derivative
        slope = (1 + value + z * slope) / (2 * n * (2 * n + 1))
        value = z * (1 + value) / (2 * n * (2 * n + 1))
    return value, slope


class Mixture(dist.MixtureSameFamily):
    """A mixture whose gradient is right where all components are improbable.

    Where log-probabilities are near -1e8, float32 does not hold their sum with a log weight, and the gradient of
    ``logsumexp`` gives each component a weight of 1. Here the largest log-probability is subtracted first.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats."""
        each = self.component_distribution.log_prob(self._pad(value))
        largest = each.amax(-1, keepdim=True).detach()
        log_weights = self.mixture_distribution.logits.log_softmax(-1)
        return (each - largest + log_weights).logsumexp(-1) + largest.squeeze(-1)


class Elementwise(TorchDistribution):
    """A distribution of single numbers, one for each entry of its parameters; event shape ``()``.

    Args:
        **parameters: tensors of one shape, which become attributes.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (as torch declares it)

    def __init__(self, **parameters: Tensor) -> None:
        for name, value in parameters.items():
            setattr(self, name, value)
        self._names = tuple(parameters)
        super().__init__(parameters[self._names[0]].shape, Size(), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Elementwise:
        """Returns the same distribution for more data or particles."""
        new = copy(self)
        Elementwise.__init__(new, **{name: getattr(self, name).expand(batch_shape) for name in self._names})
        return new
