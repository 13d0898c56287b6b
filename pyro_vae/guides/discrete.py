"""Guides of discrete latents, and of their relaxations (see `pyro_vae.relaxed`)."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from pyro_vae.discrete import Bits, OneHotBlocks, groups_of
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Guide
from pyro_vae.relaxed import LogConcrete, Relaxed, RelaxedBits, Temperature


@final
class Bernoulli(Guide):
    """q(t|x,φ) = ∏ Bernoulli(t_j; sigmoid(logit_j(x))), numbers 0 and 1 that are independent given x.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to one logit for each number.
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP) -> None:
        super().__init__(dims)
        self.network = network(dims.seen_shape, (dims.latent,))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        return Bits(logits=self.network(self.scaled(x))).to_event(1)


@final
class OneHotCategorical(Guide):
    """q(t|x,φ) = ∏ Categorical, one-hot vectors that are independent given x, and follow each other in t.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to a logit for each class of each vector.
        classes: the number of entries of each vector. There are d / classes vectors.

    Raises:
        ValueError: there are fewer than two classes, or d is no multiple of them.
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, classes: int = 10) -> None:
        super().__init__(dims)
        self.network = network(dims.seen_shape, (groups_of(dims.latent, classes), classes))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        return OneHotBlocks(self.network(self.scaled(x)))


@final
class RelaxedBernoulli(Guide, Relaxed):
    """q(y|x,φ) of the logits y = (logit(x) + L) / λ of relaxed bits sigmoid(y) (Maddison et al. 2017, appendix C).

    It is the guide for a prior of the same name. It has ``rsample``: gradients pass through y.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to one logit for each bit.
        temperature: λ; a smaller one is nearer to discrete latents, and its gradients have a larger variance.
        learn_temperature: whether λ is learned; then it starts at ``temperature``.

    Raises:
        ValueError: the temperature is not between 0.001 and 1,000.
    """

    def __init__(
        self, dims: Dims, network: NetworkFactory = MLP, temperature: float = 2 / 3, learn_temperature: bool = False
    ) -> None:
        super().__init__(dims)
        self.temperature = Temperature(temperature, learn_temperature)
        self.network = network(dims.seen_shape, (dims.latent,))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of y for x of shape ``(*batch, *x_shape)``."""
        return RelaxedBits(self.network(self.scaled(x)), self.temperature()).to_event(1)

    def seen(self, t: Tensor) -> Tensor:
        """Returns the relaxed bits."""
        return t.sigmoid()

    def discrete(self) -> Bernoulli:
        """Returns the guide of bits that has the same encoder."""
        return _sharing(self, Bernoulli)


@final
class Concrete(Guide, Relaxed):
    """q(y|x,φ) of the logarithms y of relaxed one-hot vectors exp(y) (Maddison et al. 2017, appendix C).

    It is the guide for a prior of the same name. It has ``rsample``: gradients pass through y.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to a logit for each class of each vector.
        classes: the number of entries of each vector. There are d / classes vectors.
        temperature: λ; a smaller one is nearer to discrete latents, and its gradients have a larger variance.
        learn_temperature: whether λ is learned; then it starts at ``temperature``.

    Raises:
        ValueError: the temperature is not between 0.001 and 1,000, there are fewer than two classes, or d is no
            multiple of them.
    """

    def __init__(
        self,
        dims: Dims,
        network: NetworkFactory = MLP,
        classes: int = 10,
        temperature: float = 2 / 3,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__(dims)
        self.temperature = Temperature(temperature, learn_temperature)
        self.network = network(dims.seen_shape, (groups_of(dims.latent, classes), classes))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of y for x of shape ``(*batch, *x_shape)``."""
        return LogConcrete(self.network(self.scaled(x)), self.temperature())

    def seen(self, t: Tensor) -> Tensor:
        """Returns the relaxed one-hot vectors."""
        return t.exp()

    def discrete(self) -> OneHotCategorical:
        """Returns the guide of one-hot vectors that has the same encoder."""
        return _sharing(self, OneHotCategorical)


def _sharing(relaxed: RelaxedBernoulli | Concrete, cls: type[Any]) -> Any:
    """Returns a guide of discrete latents that holds the encoder of a relaxed one, and is described by its options."""
    options = {name: value for name, value in relaxed.made_with.items() if name in ("network", "classes")}
    own = {name: value for name, value in options.items() if name != "network"}
    made = cls(relaxed.dims, lambda *_: relaxed.network, **own)
    made.units, made.made_with = relaxed.units, options
    return made
