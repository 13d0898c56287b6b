"""Priors that are mixtures: of Gaussians, posteriors of pseudo-inputs, or Gaussians around encoded training data."""

from __future__ import annotations

from typing import Literal, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.missing import observed_ends, observed_mean
from pyro_vae.parts import Dims, Distribution, Prior, placed
from pyro_vae.special import Mixture, latent_scale

_EXEMPLARS, _DRAWN = 1000, 500
"""How many exemplars there are, and how many a training step uses, where nobody says it."""


@final
class MixtureOfNormals(Prior):
    """p(t) = Σ_c π_c N(a_c, diag b_c²), where π, a and b are learned.

    Args:
        dims: the sizes, filled in by the program.
        components: the number of Gaussians.
        spread: the standard deviation of the initial means a_c of the Gaussians; the scales b_c start at 1.

    Raises:
        ValueError: there is no component, or the spread is negative.
    """

    def __init__(self, dims: Dims, components: int = 10, spread: float = 1.0) -> None:
        super().__init__(dims)
        _check_components("components", components)
        if spread < 0:
            raise ValueError(f"spread: expected at least 0, got {spread}")
        self.loc = nn.Parameter(spread * torch.randn(components, dims.latent))
        self.log_scale = nn.Parameter(torch.zeros(components, dims.latent))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> Distribution:
        """Returns the mixture."""
        return _mixture(self.logits, dist.Normal(self.loc, latent_scale(self.log_scale)).to_event(1))


@final
class VampPrior(Prior):
    """p(t) = 1/K Σ_k q(t|u_k,φ), the mixture of the guide's posteriors of learned pseudo-inputs u_k.

    It is from Tomczak and Welling 2018 (equation 9). The guide is the one of the VAE, and its parameters still belong
    to the guide. The pseudo-inputs are kept in the range of the training data. They have no missing values.

    The density at each draw is that of K posteriors. With a guide whose flow is inverted one coordinate after another, such as
    `InverseAutoregressive`, training is slow, and log p(x) from many particles far slower: lower test_particles there.

    Args:
        dims: the sizes, and the training data if there are any, filled in by the program.
        components: K, the number of pseudo-inputs.
        init: how the pseudo-inputs start. With noise, they start at 5 % of the range, with a standard deviation of 1 %
            (the protocol of the paper). With data, they start at K training data drawn at random, or at all of them if
            there are K.
        learn: whether the pseudo-inputs are learned; otherwise they stay as they start.

    Raises:
        ValueError: there is no component, or init is data and there are no training data or fewer than K.
    """

    low: Tensor
    high: Tensor
    inputs: Tensor

    def __init__(
        self, dims: Dims, components: int = 500, init: Literal["noise", "data"] = "noise", learn: bool = True
    ) -> None:
        super().__init__(dims)
        _check_components("components", components)
        ends = (torch.zeros(()), torch.ones(()))
        if dims.train is not None:
            ends = torch.aminmax(dims.train) if dims.train.is_meta else observed_ends(dims.train)
        low, high = map(placed, ends)
        if init == "data":
            inputs = _some_data(dims, components, "VampPrior with init: data: components")
            if dims.missing and dims.train is not None and not dims.train.is_meta:
                inputs = torch.where(inputs.isnan(), placed(observed_mean(dims.train)), inputs)
        else:
            noise = 0.05 + 0.01 * torch.randn(components, *dims.x_shape)
            inputs = low + (high - low) * (noise.to("meta") if low.is_meta else noise)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        if learn:
            self.inputs = nn.Parameter(inputs)
        else:
            self.register_buffer("inputs", inputs)

    def forward(self) -> Distribution:
        """Returns the mixture, by one pass of the guide over the K pseudo-inputs."""
        inputs = self.inputs.clamp(self.low, self.high)
        return _mixture(inputs.new_zeros(len(inputs)), self.parts.guide(inputs))


@final
class ExemplarPrior(Prior):
    """p(t) = 1/M Σ_j N(t; m(x_j), σ² I), a mixture of M Gaussians around the guide's means of training data.

    It is from Norouzi et al. 2020 (equation 4). The guide is the one of the VAE, and σ is one learned number. In
    training, each use of the prior draws ``drawn`` of the exemplars at random. The paper leaves out the exemplar of the
    datum itself; here it is among the drawn exemplars with a probability of ``drawn`` over the number of training data.

    Args:
        dims: the sizes and the training data, filled in by the program.
        exemplars: the number of training data that are kept as exemplars, drawn at random; evaluation uses all of them. By
            default 1,000, or all training data where there are fewer.
        drawn: the number of exemplars that a training step uses. By default 500, or all exemplars where there are fewer.

    Raises:
        ValueError: there is no exemplar, or there are more exemplars than training data; ``drawn`` is not in
            1..exemplars; or, when the prior is called, the guide has no mean in closed form.
    """

    inputs: Tensor
    gone: Tensor

    def __init__(self, dims: Dims, exemplars: int | None = None, drawn: int | None = None) -> None:
        super().__init__(dims)
        if exemplars is None:
            exemplars = _EXEMPLARS if dims.train is None else min(_EXEMPLARS, len(dims.train))
        drawn = min(_DRAWN, exemplars) if drawn is None else drawn
        _check_components("exemplars", exemplars)
        if not 1 <= drawn <= exemplars:
            raise ValueError(f"drawn: expected between 1 and the {exemplars} exemplars, got {drawn}")
        self.drawn = drawn
        inputs = _some_data(dims, exemplars, "ExemplarPrior: exemplars")
        self.missing = dims.missing
        if self.missing:  # kept apart, so that no buffer holds NaN
            self.register_buffer("gone", inputs.isnan())
            inputs = inputs.nan_to_num(nan=0.0)
        self.register_buffer("inputs", inputs)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self) -> Distribution:
        """Returns the mixture, by one pass of the guide over the exemplars."""
        inputs = self.inputs
        if self.missing:
            inputs = torch.where(self.gone, torch.nan, inputs)
        if self.training:
            inputs = inputs[torch.randint(len(inputs), (self.drawn,), device=inputs.device)]
        try:
            loc = self.parts.guide(inputs).mean
        except NotImplementedError:
            raise ValueError(
                f"ExemplarPrior: {type(self.parts.guide).__name__} has no mean in closed form: use a Gaussian guide"
            ) from None
        return _mixture(loc.new_zeros(len(inputs)), dist.Normal(loc, latent_scale(self.log_scale)).to_event(1))


def _mixture(logits: Tensor, components: Distribution) -> Distribution:
    return Mixture(dist.Categorical(logits=logits), components)


def _check_components(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")


def _some_data(dims: Dims, number: int, what: str) -> Tensor:
    """Returns training data drawn at random, in their original order, on the default device."""
    if dims.train is None:
        raise ValueError(f"{what}: needs the training data: make dims by splits.dims(latent), or Dims(train=...)")
    if number > len(dims.train):
        raise ValueError(f"{what}: expected at most the {len(dims.train)} training data, got {number}")
    chosen = torch.randperm(len(dims.train), device="cpu")[:number].sort().values
    return placed(dims.train[chosen.to(dims.train.device)].clone())
