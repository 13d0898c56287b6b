"""Priors of discrete latents: independent bits, one-hot vectors, and bits that depend on those before them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import log
from typing import Any, final

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae.discrete import Bits, OneHotBlocks, groups_of
from pyro_vae.flows import masked_network
from pyro_vae.parts import Dims, Distribution, Prior


@final
class Bernoulli(Prior):
    """p(t) = ∏ Bernoulli(t_j; p_j), independent numbers 0 and 1.

    Args:
        dims: the sizes, filled in by the program.
        probability: p_j, the probability of a 1, of every number.
        learn: whether each p_j is learned, as a logit; then it starts at ``probability``.

    Raises:
        ValueError: the probability is not between 0 and 1.
    """

    logits: Tensor

    def __init__(self, dims: Dims, probability: float = 0.5, learn: bool = False) -> None:
        super().__init__(dims)
        keep_logits(self, torch.full((dims.latent,), logit_of(probability)), learn)

    def forward(self) -> Distribution:
        """Returns the product of the Bernoulli distributions."""
        return Bits(logits=self.logits).to_event(1)


@final
class OneHotCategorical(Prior):
    """p(t) = ∏ Categorical, independent one-hot vectors, which follow each other in t.

    Args:
        dims: the sizes, filled in by the program.
        classes: the number of entries of each vector. There are d / classes vectors.
        learn: whether the probabilities of the classes are learned, as logits; otherwise all classes are equally
            probable, as they are at the start.

    Raises:
        ValueError: there are fewer than two classes, or d is no multiple of them.
    """

    logits: Tensor

    def __init__(self, dims: Dims, classes: int = 10, learn: bool = False) -> None:
        super().__init__(dims)
        keep_logits(self, torch.zeros(groups_of(dims.latent, classes), classes), learn)

    def forward(self) -> Distribution:
        """Returns the product of the categorical distributions."""
        return OneHotBlocks(self.logits)


@final
class AutoregressiveBernoulli(Prior):
    """p(t) = ∏ p(t_j|t_<j), numbers 0 and 1 whose logits a masked network gives.

    It is MADE (Germain et al. 2015). A t is scored in one pass of the network, and drawn in d passes.

    Args:
        dims: the sizes, filled in by the program.
        hidden: the width of each hidden layer of the network.

    Raises:
        ValueError: there is no hidden layer, or a hidden width below 1.
    """

    def __init__(self, dims: Dims, hidden: Sequence[int] = (128,)) -> None:
        super().__init__(dims)
        if dims.latent > 1:
            self.network: nn.Module = masked_network(dims.latent, hidden)
        else:
            self.network = _Constant(hidden)

    def forward(self) -> Distribution:
        """Returns the distribution of the numbers, one after another."""
        return _Autoregressive(self.network, self.dims.latent)


class _Constant(nn.Module):
    """The logit of a single number, which has none before it.

    Args:
        hidden: the widths of layers that there would be with several numbers.
    """

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        masked_network(2, hidden)  # checks the widths
        self.logit = nn.Parameter(torch.zeros(1))

    def forward(self, t: Tensor) -> Tensor:
        """Returns the logit for each t ``(*lead, 1)``."""
        return self.logit.expand(t.shape)


class _Autoregressive(TorchDistribution):
    """∏ p(t_j|t_<j) of numbers 0 and 1; event shape ``(d,)``.

    Args:
        network: a map of t ``(*lead, d)`` to logits ``(*lead, d)``, each of which depends on the numbers before it.
        d: the number of numbers.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (as torch declares it)
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, network: nn.Module, d: int) -> None:
        self.network = network
        super().__init__(Size(), Size((d,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Autoregressive:
        """Returns the same distribution for more data or particles."""
        new = copy(self)
        new._batch_shape = Size(batch_shape)
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws one number after another, in d passes of the network."""
        like = next(iter(self.network.parameters()))
        with torch.no_grad():
            t = like.new_zeros(self._extended_shape(Size(sample_shape)))
            for j in range(t.shape[-1]):
                t[..., j] = torch.bernoulli(self.network(t)[..., j].sigmoid())
        return t

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability in nats, in one pass of the network."""
        logits = self.network(value)
        return -binary_cross_entropy_with_logits(logits, value.expand(logits.shape), reduction="none").sum(-1)


def keep_logits(part: nn.Module, logits: Tensor, learn: bool) -> None:
    """Makes logits a parameter of a part, or a buffer of it where they are not learned."""
    if learn:
        part.register_parameter("logits", nn.Parameter(logits))
    else:
        part.register_buffer("logits", logits, persistent=False)


def logit_of(probability: float) -> float:
    """Returns the logit of a probability.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a number between 0 and 1, both excluded, got {probability}")
    return log(probability) - log(1 - probability)
