"""Relaxed discrete latents: distributions of real numbers that become discrete ones as their temperature goes to 0.

Both are those of Maddison, Mnih and Teh 2017 ("The Concrete distribution", arXiv 1611.00712) in the coordinates of
their appendix C: y = logit(t) for a relaxed bit t, and y = log(t) for a relaxed one-hot vector t. In float32, t itself
rounds to 0 and 1, where its density is none; y does not. The ratio of two densities is the same in both coordinates,
and so is every bound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from math import lgamma, log, pi
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from pyro_vae.discrete import BlockConstraint, logarithm
from pyro_vae.special import bounded

LEAST, MOST = 1e-3, 1e3
"""The ends of temperatures. Below, y reaches 1e5 at a logit of 100, where float32 loses what the noise adds."""


class Relaxed(ABC):
    """A prior or a guide of relaxed latents, with the discrete one that the same parameters define."""

    @abstractmethod
    def discrete(self) -> Any:
        """Returns the part of discrete latents that has the same parameters. Both hold them together, as one."""


class Temperature(nn.Module):
    """The temperature λ of a relaxed part.

    It is among the weights, since it may be learned, or lowered while a model is trained.

    Args:
        value: λ, or its first value.
        learn: whether λ is learned.

    Raises:
        ValueError: λ is not between `LEAST` and `MOST`.
    """

    value: Tensor

    def __init__(self, value: float, learn: bool = False) -> None:
        super().__init__()
        if not LEAST <= value <= MOST:
            raise ValueError(f"temperature: expected a number from {LEAST:g} to {MOST:g}, got {value}")
        self.learned = learn
        if learn:
            self.log_value = nn.Parameter(torch.tensor(value).log())
        else:
            self.register_buffer("value", torch.tensor(value))

    def forward(self) -> Tensor:
        """Returns λ, of shape ``()``. A learned one stays between the same ends, within a factor of e."""
        return bounded(self.log_value, log(LEAST), log(MOST)).exp() if self.learned else self.value


class RelaxedBits(TorchDistribution):
    """y = (logit + L) / λ with L from the standard logistic distribution; event shape ``()``.

    sigmoid(y) is a relaxed bit (BinConcrete of Maddison et al.), and y its logit. Rounded to 0 or 1, which is whether
    y > 0, it is a Bernoulli number of this logit at every temperature λ.

    Args:
        logits: the logit of each bit.
        temperature: λ > 0, a number in a tensor, or one for each bit.
        validate_args: whether values are checked, as in every distribution of PyTorch.
    """

    arg_constraints = {"logits": constraints.real, "temperature": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: Tensor, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = torch.broadcast_tensors(logits, temperature)
        super().__init__(self.logits.shape, Size(), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean of y, logit / λ."""
        return self.logits / self.temperature

    @property
    def variance(self) -> Tensor:
        """The variance of y, π² / (3 λ²)."""
        return pi**2 / 3 / self.temperature**2

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedBits:
        """Returns the same distribution for more data or particles."""
        new = copy(self)
        new.logits, new.temperature = self.logits.expand(batch_shape), self.temperature.expand(batch_shape)
        new._batch_shape = Size(batch_shape)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws y as a function of the logits and of the temperature."""
        shape = self._extended_shape(Size(sample_shape))
        # log U - log(1 - U) of a uniform U, as the difference of two exponential numbers, which is exact
        one, other = (self.logits.new_empty(shape).exponential_() for _ in range(2))
        return (self.logits + logarithm(one) - logarithm(other)) / self.temperature

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of y in nats: log λ + a - 2 softplus(a) at a = logit - λ y."""
        if self._validate_args:
            self._validate_sample(value)
        a = (self.logits - self.temperature * value).abs()  # the density is even in a
        return self.temperature.log() - a - 2 * softplus(-a)


class LogBlocks(BlockConstraint):
    """Logarithms of ``groups`` probability vectors that follow each other: in each block, Σ_k exp(y_k) = 1.

    Args:
        groups: the number of blocks.
        classes: the number of entries of each.
    """

    is_discrete = False

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each vector, the last dimension of a tensor, is made of such blocks, to 1e-4 in log Σ exp(y)."""
        if value.shape[-1:] != (self.groups * self.classes,):
            return value.new_zeros(value.shape[:-1]).bool()
        return (value.unflatten(-1, (self.groups, self.classes)).logsumexp(-1).abs() < 1e-4).all(-1)


def inside(support: Constraint, t: Tensor) -> Tensor:
    """Returns t ``(..., d)`` in a support of relaxed one-hot vectors: each is made to sum to 1. Others are left as they are."""
    if not isinstance(support, LogBlocks):
        return t
    return t.unflatten(-1, (support.groups, support.classes)).log_softmax(-1).flatten(-2)


class LogConcrete(TorchDistribution):
    """y = log softmax((logits + G) / λ) with Gumbel numbers G, block after block.

    They are the logarithms of relaxed one-hot vectors, each of which has the ExpConcrete distribution of Maddison et
    al.; event shape ``(groups * classes,)``. The largest entry of a block is that of a one-hot vector with these logits
    at every temperature λ. Blocks have n - 1 free numbers for n classes. The density is that of y_k - y_n for k < n, which is
    the same whichever entry is the n-th.

    Args:
        logits: unnormalized log-probabilities of the classes, of shape ``(*batch, groups, classes)``.
        temperature: λ > 0, a number in a tensor, or one for each batch ``(*batch)``.
        validate_args: whether values are checked, as in every distribution of PyTorch.
    """

    arg_constraints = {  # noqa: RUF012  (as torch declares it)
        "logits": constraints.independent(constraints.real, 2),
        "temperature": constraints.positive,
    }
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: Tensor, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits.log_softmax(-1), temperature.expand(logits.shape[:-2])
        self.groups, self.classes = logits.shape[-2:]
        super().__init__(logits.shape[:-2], Size((self.groups * self.classes,)), validate_args=validate_args)

    @property
    def support(self) -> LogBlocks:
        """Logarithms of probability vectors, block after block."""
        return LogBlocks(self.groups, self.classes)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogConcrete:
        """Returns the same distribution for more data or particles."""
        new = copy(self)
        new.logits = self.logits.expand(*batch_shape, self.groups, self.classes)
        new.temperature = self.temperature.expand(batch_shape)
        new._batch_shape = Size(batch_shape)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws y as a function of the logits and of the temperature."""
        shape = (*sample_shape, *self.logits.shape)
        gumbel = -logarithm(self.logits.new_empty(shape).exponential_())
        return ((self.logits + gumbel) / self.temperature[..., None, None]).log_softmax(-1).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of y in nats: Σ_groups [log (n-1)! + (n-1) log λ + Σ_k a_k - n log Σ_k exp a_k].

        Here a_k = logit_k - λ y_k.
        """
        if self._validate_args:
            self._validate_sample(value)
        n, temperature = self.classes, self.temperature[..., None, None]
        a = self.logits - temperature * value.unflatten(-1, (self.groups, n))
        constant = lgamma(n) + (n - 1) * self.temperature.log()
        return self.groups * constant + a.log_softmax(-1).sum((-2, -1))


class _ToLogBlocks(Transform):
    """y = log softmax of (u_1, ..., u_(n-1), 0) in each block: all real numbers u to `LogBlocks`.

    As densities of `LogConcrete` are those of u, its Jacobian counts as 1.

    Args:
        support: the blocks.
    """

    domain = constraints.real_vector
    bijective = True

    def __init__(self, support: LogBlocks) -> None:
        super().__init__()
        self.support = self.codomain = support

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ToLogBlocks) and other.support == self.support

    __hash__ = None  # type: ignore[assignment]  # as PyTorch's transforms, which define no hash

    def _call(self, u: Tensor) -> Tensor:
        blocks = u.unflatten(-1, (self.support.groups, self.support.classes - 1))
        return torch.nn.functional.pad(blocks, (0, 1)).log_softmax(-1).flatten(-2)

    def _inverse(self, y: Tensor) -> Tensor:
        blocks = y.unflatten(-1, (self.support.groups, self.support.classes))
        return (blocks[..., :-1] - blocks[..., -1:]).flatten(-2)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns 0 for each vector."""
        del y
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape: Any) -> Size:
        """Returns the shape of y for a shape of u."""
        return Size((*shape[:-1], self.support.groups * self.support.classes))

    def inverse_shape(self, shape: Any) -> Size:
        """Returns the shape of u for a shape of y."""
        return Size((*shape[:-1], self.support.groups * (self.support.classes - 1)))


@biject_to.register(LogBlocks)
def _to_log_blocks(support: LogBlocks) -> Transform:
    return _ToLogBlocks(support)
