"""Priors of relaxed discrete latents, whose value is a logit or a logarithm (see `pyro_vae.relaxed`)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from pyro_vae.discrete import groups_of
from pyro_vae.parts import Dims, Distribution, Prior
from pyro_vae.priors.discrete import Bernoulli, OneHotCategorical, keep_logits, logit_of
from pyro_vae.relaxed import LogConcrete, Relaxed, RelaxedBits, Temperature


@final
class RelaxedBernoulli(Prior, Relaxed):
    """p(y) of the logits y of independent relaxed bits sigmoid(y) (Maddison et al. 2017, appendix C).

    The latent is y; the likelihood is given sigmoid(y), which is in [0, 1]. `pyro_vae.models.discretized` gives the
    model with `Bernoulli` latents that has the same parameters.

    Args:
        dims: the sizes, filled in by the program.
        temperature: λ; a relaxed bit is nearer to 0 and 1 for a smaller one. Below 1, both ends are more probable than
            the middle.
        probability: the probability that a bit is nearer to 1 than to 0, of every bit.
        learn: whether this probability is learned for each bit, as a logit; then it starts at ``probability``.

    Raises:
        ValueError: the temperature is not between 0.001 and 1,000, or the probability is not between 0 and 1.
    """

    logits: Tensor

    def __init__(self, dims: Dims, temperature: float = 0.5, probability: float = 0.5, learn: bool = False) -> None:
        super().__init__(dims)
        self.temperature = Temperature(temperature)
        keep_logits(self, torch.full((dims.latent,), logit_of(probability)), learn)

    def forward(self) -> Distribution:
        """Returns the distribution of y."""
        return RelaxedBits(self.logits, self.temperature()).to_event(1)

    def seen(self, t: Tensor) -> Tensor:
        """Returns the relaxed bits."""
        return t.sigmoid()

    def discrete(self) -> Bernoulli:
        """Returns the prior of bits that has the same logits."""
        made = Bernoulli(self.dims, self.made_with["probability"], self.made_with["learn"])
        made.logits = self.logits
        return made


@final
class Concrete(Prior, Relaxed):
    """p(y) of the logarithms y of independent relaxed one-hot vectors exp(y) (Maddison et al. 2017, appendix C).

    The latent is y, vector after vector; the likelihood is given exp(y), whose vectors sum to 1.
    `pyro_vae.models.discretized` gives the model with `OneHotCategorical` latents that has the same parameters.

    Args:
        dims: the sizes, filled in by the program.
        classes: the number of entries of each vector. There are d / classes vectors.
        temperature: λ; a relaxed vector is nearer to a one-hot vector for a smaller one.
        learn: whether the probabilities of the classes are learned, as logits; otherwise they are equal, as they are at
            the start.

    Raises:
        ValueError: the temperature is not between 0.001 and 1,000, there are fewer than two classes, or d is no
            multiple of them.
    """

    logits: Tensor

    def __init__(self, dims: Dims, classes: int = 10, temperature: float = 0.5, learn: bool = False) -> None:
        super().__init__(dims)
        self.temperature = Temperature(temperature)
        keep_logits(self, torch.zeros(groups_of(dims.latent, classes), classes), learn)

    def forward(self) -> Distribution:
        """Returns the distribution of y."""
        return LogConcrete(self.logits, self.temperature())

    def seen(self, t: Tensor) -> Tensor:
        """Returns the relaxed one-hot vectors."""
        return t.exp()

    def discrete(self) -> OneHotCategorical:
        """Returns the prior of one-hot vectors that has the same logits."""
        made = OneHotCategorical(self.dims, self.made_with["classes"], self.made_with["learn"])
        made.logits = self.logits
        return made
