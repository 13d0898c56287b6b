"""Distributions of discrete latents, as vectors of the numbers 0 and 1: independent bits, and one-hot blocks.

All are right in float32 for every finite logit. Both have a linear log-probability, Σ_j t_j log p_j for a one-hot t, so
that it is defined, and has a derivative, at a relaxed t too.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.distributions.kl import register_kl
from torch.nn.functional import softplus


class Bits(dist.Bernoulli):
    """Independent numbers 0 and 1, each with a logit; event shape ``()``.

    It is Pyro's Bernoulli distribution with a divergence KL(p‖q) that is right where sigmoid(logit) rounds to 0 or 1:
    PyTorch's own is infinite there, from a logit of 17 on in float32.

    Args:
        logits: log p(1) - log p(0) of each number.
    """

    @property
    def variance(self) -> Tensor:
        """The variance p (1 - p), which is above 0 where p rounds to 1 too."""
        return self.logits.sigmoid() * (-self.logits).sigmoid()


@register_kl(Bits, Bits)
def _kl_bits(p: Bits, q: Bits) -> Tensor:
    """KL(p‖q) = p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q)), in nats, from the logits alone."""
    a, b = p.logits, q.logits
    return a.sigmoid() * (softplus(-b) - softplus(-a)) + (-a).sigmoid() * (softplus(b) - softplus(a))


class BlockConstraint(Constraint):
    """Vectors of ``groups * classes`` numbers, in ``groups`` blocks that follow each other.

    Args:
        groups: the number of blocks.
        classes: the number of entries of each.
    """

    event_dim = 1

    def __init__(self, groups: int, classes: int) -> None:
        self.groups, self.classes = groups, classes
        super().__init__()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), self.groups, self.classes))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(groups={self.groups}, classes={self.classes})"


class Blocks(BlockConstraint):
    """One-hot blocks: each has one 1 and otherwise 0.

    Args:
        groups: the number of blocks.
        classes: the number of entries of each.
    """

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each vector, the last dimension of a tensor, is made of one-hot blocks."""
        if value.shape[-1:] != (self.groups * self.classes,):
            return value.new_zeros(value.shape[:-1]).bool()
        one_hot = ((value == 0) | (value == 1)).all(-1)
        return one_hot & (value.unflatten(-1, (self.groups, self.classes)).sum(-1) == 1).all(-1)


class OneHotBlocks(TorchDistribution):
    """Independent one-hot vectors, written one after another as one vector; event shape ``(groups * classes,)``.

    Args:
        logits: unnormalized log-probabilities of the classes, of shape ``(*batch, groups, classes)``.
        validate_args: whether parameters and values are checked, as in every distribution of PyTorch.

    Attributes:
        logits: the normalized log-probabilities, of the same shape.

    Raises:
        ValueError: there are fewer than two dimensions.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 2)}  # noqa: RUF012  (as torch declares it)
    has_rsample = False
    has_enumerate_support = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        if logits.dim() < 2:
            raise ValueError(f"logits: expected the shape (..., groups, classes), got {tuple(logits.shape)}")
        self.logits = logits.log_softmax(-1)
        self.groups, self.classes = logits.shape[-2:]
        super().__init__(logits.shape[:-2], Size((self.groups * self.classes,)), validate_args=validate_args)

    @property
    def support(self) -> Blocks:
        """One-hot blocks."""
        return Blocks(self.groups, self.classes)

    @property
    def probs(self) -> Tensor:
        """The probabilities of the classes, of shape ``(*batch, groups, classes)``."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        """The probabilities, as vectors of shape ``(*batch, groups * classes)``."""
        return self.probs.flatten(-2)

    @property
    def variance(self) -> Tensor:
        """The variance p (1 - p) of each number, of shape ``(*batch, groups * classes)``."""
        return self.mean * -self.logits.flatten(-2).expm1()

    @property
    def mode(self) -> Tensor:
        """The most probable vector: the first class of the largest logit of each group."""
        return self._one_hot(self.logits.argmax(-1))

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneHotBlocks:
        """Returns the same distribution for more data or particles."""
        new = self._get_checked_instance(OneHotBlocks, _instance)
        new.groups, new.classes = self.groups, self.classes
        new.logits = self.logits.expand(*batch_shape, self.groups, self.classes)
        super(OneHotBlocks, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws vectors, of shape ``(*sample_shape, *batch, groups * classes)``."""
        with torch.no_grad():
            noise = self.logits.new_empty((*sample_shape, *self.logits.shape)).exponential_()
            return self._one_hot((self.logits - logarithm(noise)).argmax(-1))  # the Gumbel-max trick

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of vectors, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        each: Tensor = value.unflatten(-1, (self.groups, self.classes)) * self.logits
        return each.sum((-2, -1))

    def entropy(self) -> Tensor:
        """Returns the entropy of each vector, in nats."""
        return -(self.probs * self.logits).sum((-2, -1))

    def _one_hot(self, index: Tensor) -> Tensor:
        """Returns the vectors whose 1 is at the index of each group ``(..., groups)``, in the type of the logits."""
        classes = torch.arange(self.classes, device=index.device)
        return (index.unsqueeze(-1) == classes).to(self.logits.dtype).flatten(-2)


def logarithm(number: Tensor) -> Tensor:
    """Returns the logarithm of exponential random numbers; one that was rounded to 0 counts as the smallest number."""
    return number.clamp(min=torch.finfo(number.dtype).tiny).log()


@register_kl(OneHotBlocks, OneHotBlocks)
def _kl_blocks(p: OneHotBlocks, q: OneHotBlocks) -> Tensor:
    """KL(p‖q) = Σ p (log p - log q), in nats."""
    if p.support != q.support:
        raise ValueError(f"a divergence is defined between equal blocks, and these are {p.support} and {q.support}")
    return (p.probs * (p.logits - q.logits)).sum((-2, -1))


def groups_of(d: int, classes: int) -> int:
    """Returns the number of one-hot vectors of this many classes that a latent of dimension d consists of.

    Raises:
        ValueError: there are fewer than two classes, or d is no multiple of them.
    """
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    if d % classes:
        raise ValueError(
            f"classes: expected a divisor of the dimension of the latent, which holds one-hot vectors one after another; "
            f"{d} is no multiple of {classes}"
        )
    return d // classes
