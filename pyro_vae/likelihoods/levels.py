"""Likelihoods of pixels that are levels 0..L-1, such as the 256 levels of a gray image.

For these likelihoods, bits per dimension are meaningful.
"""

from __future__ import annotations

from math import lgamma, log
from typing import final

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid

from pyro_vae.flows import Sizes
from pyro_vae.likelihoods.decoder_outputs import logit_of_mean, mean_or, stacked, unstacked
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Likelihood
from pyro_vae.special import Elementwise, Mixture, bounded

_SHARPEST = -7.0
"""The smallest log s, for levels scaled to [-1, 1], as in the code of Salimans et al. 2017; what is below comes within 1 of it.

See `pyro_vae.special.bounded`. A hard end, as in that code, has no gradient that leads back.
"""
_FLATTEST = 20.0
"""The largest log s, at which all inner levels are equally probable in float32."""


@final
class Categorical(Likelihood):
    """p(x|t,w) = ∏ softmax(a_j(t))[x_j], with one logit for each level of each pixel.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to L logits for each pixel.
        levels: L, the number of levels.

    Raises:
        ValueError: there are fewer than two levels.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, levels: int = 256) -> None:
        super().__init__(dims)
        _check_levels(levels)
        self.levels, n = levels, levels - 1
        self.network = network((dims.latent,), stacked(dims, levels))
        # The distribution starts as the Binomial distribution with the training mean.
        log_choose = torch.tensor([lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) for k in range(levels)])
        self.register_buffer("offset", log_choose + torch.arange(levels) * logit_of_mean(dims, n)[..., None])

    def forward(self, t: Tensor) -> Distribution:
        """Returns the categorical distributions of all pixels, for t of shape ``(*batch, d)``."""
        logits = unstacked(self.network(t), self.dims, self.levels).movedim(0, -1) + self.offset
        return _Levels(logits=logits).to_event(len(self.dims.x_shape))


class _Levels(dist.Categorical):
    """A categorical distribution over the numbers 0..L-1, so that it has a mean."""

    @property
    def mean(self) -> Tensor:
        """The mean Σ_k k p_k."""
        return (self.probs * torch.arange(self.probs.shape[-1], device=self.probs.device)).sum(-1)

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws levels, as floating-point numbers such as data have."""
        return dist.Categorical.sample(self, Size(sample_shape)).to(self.logits.dtype)


@final
class DiscretizedLogistic(Likelihood):
    """p(x|t,w) = ∏ [F(x_j + ½) - F(x_j - ½)], where F belongs to a logistic distribution or to a mixture of several.

    F is the distribution function. The first and the last level also get the tails. This is the likelihood of Kingma et
    al. 2016 (equation 13), with the mixture of Salimans et al. 2017 (equation 2), independent over channels.

    Args:
        dims: the sizes, filled in by the program.
        network: the decoder, which maps t to the location and the log scale of each pixel; for a mixture, to the
            location, the log scale and the logit of each component of each pixel.
        levels: L, the number of levels.
        components: the number of components of the mixture; 1 means a single logistic distribution.

    Raises:
        ValueError: there are fewer than two levels, or there is no component.
    """

    offset: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, levels: int = 256, components: int = 1) -> None:
        super().__init__(dims)
        _check_levels(levels)
        if components < 1:
            raise ValueError(f"components: expected at least 1, got {components}")
        self.levels, self.components = levels, components
        self.network = network((dims.latent,), stacked(dims, self._numbers))
        self.register_buffer("offset", 2 * mean_or(dims, (levels - 1) / 2) / (levels - 1) - 1)

    @property
    def _numbers(self) -> int:
        return 2 if self.components == 1 else 3 * self.components

    def forward(self, t: Tensor) -> Distribution:
        """Returns the distributions of all pixels, for t of shape ``(*batch, d)``."""
        numbers, pixels = unstacked(self.network(t), self.dims, self._numbers), len(self.dims.x_shape)
        if self.components == 1:
            return _Discretized(numbers[0] + self.offset, _scale(numbers[1]), self.levels).to_event(pixels)
        loc, log_scale, logits = (part.movedim(0, -1) for part in numbers.chunk(3))
        # The locations of the components start around the mean, spread over a third of the range.
        loc = loc + self.offset[..., None] + torch.linspace(-1 / 3, 1 / 3, self.components, device=loc.device)
        each = _Discretized(loc, _scale(log_scale), self.levels)
        return Mixture(dist.Categorical(logits=logits), each).to_event(pixels)


def _scale(number: Tensor) -> Tensor:
    """Returns s > 0, which is a tenth of the range where the network gives 0."""
    return bounded(number + log(0.2), _SHARPEST, _FLATTEST).exp()


class _Discretized(Elementwise):
    """A logistic distribution in L bins of [-1, 1], of which the outer two reach to infinity; event shape ``()``.

    Args:
        loc: the location.
        scale: the scale s.
        levels: L, the number of bins.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, levels: int) -> None:
        self.levels = levels
        super().__init__(loc=loc, scale=scale)

    @property
    def support(self) -> Constraint:
        """The support is the levels 0..L-1."""
        return constraints.integer_interval(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log [σ(a) - σ(b)] = log σ(a) + log σ(-b) + log(1 - e^(b - a)) for the bin of the value.

        The ends a and b of the bin are relative to the location, in units of s. This form is exact in every tail.
        """
        half, x = 1 / (self.levels - 1), 2 * value / (self.levels - 1) - 1
        a, b = (x + half - self.loc) / self.scale, (x - half - self.loc) / self.scale
        below, above = logsigmoid(a), logsigmoid(-b)  # log F at the upper end, log (1 - F) at the lower end
        inside = below + above + torch.log(-torch.expm1(-2 * half / self.scale))
        return torch.where(value <= 0, below, torch.where(value >= self.levels - 1, above, inside))

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws from the logistic distribution and rounds to the nearest level."""
        u = torch.rand((*sample_shape, *self.batch_shape), dtype=self.loc.dtype, device=self.loc.device)
        y = self.loc + self.scale * (u.clamp(1e-7, 1 - 1e-7)).logit()
        return ((y + 1) / 2 * (self.levels - 1)).round().clamp(0, self.levels - 1).detach()

    @property
    def mean(self) -> Tensor:
        """The mean Σ_k P(x > k), a sum over the upper ends of the bins."""
        total = torch.zeros_like(self.loc)
        for k in range(self.levels - 1):
            total = total + torch.sigmoid((self.loc - ((2 * k + 1) / (self.levels - 1) - 1)) / self.scale)
        return total


def _check_levels(levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}")
