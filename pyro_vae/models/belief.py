"""A model with any number of stochastic layers: a sigmoid belief network, where they are layers of bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import final

import pyro
from torch import Tensor, nn

from pyro_vae.guides import Bernoulli
from pyro_vae.kinds import takes
from pyro_vae.models.base import ThreePartModel, check_prior, scored
from pyro_vae.networks import MLP
from pyro_vae.parts import Dims, Guide, Likelihood, Prior, check_batch

_MOST = 100
"""The largest number of layers above t. Published networks have up to five."""


def affine_bits(dims: Dims) -> Bernoulli:
    """Returns q(t|x) = ∏ Bernoulli(t_j; sigmoid(logit_j)) whose logits are affine in x.

    Args:
        dims: the sizes of t and x.
    """
    return Bernoulli(dims, partial(MLP, hidden=()))


@final
class SigmoidBelief(ThreePartModel):
    """p(t_L) ∏ p(t_l|t_(l+1)) p(x|t_1) with q(t_1|x) ∏ q(t_(l+1)|t_l), a sigmoid belief network.

    It is from Neal 1992, with the amortized guide of Mnih and Gregor 2014. The site ``"t"``, of dimension d, is t_1,
    next to the data; ``"t2"``, ``"t3"``, ... are above it. The guide and the likelihood are q(t_1|x) and p(x|t_1), and
    the prior is that of the topmost layer. The parameters of p(t_l|t_(l+1)) belong to w, those of q(t_(l+1)|t_l) to φ.
    A network of three layers of 200 bits is ``--latent 200 --model.above "[200, 200]"`` (Mnih and Rezende 2016).

    Args:
        dims: the sizes, filled in by the program.
        prior: p(t_L), made from the sizes; `pyro_vae.priors.Bernoulli` for layers of bits.
        guide: q(t_1|x), made from the sizes.
        likelihood: p(x|t_1), made from the sizes.
        above: the dimensions of t_2, t_3, ..., t_L.
        between: the class of p(t_l|t_(l+1)) and of q(t_(l+1)|t_l). It may be any guide that needs no data, since a
            guide maps a vector to a distribution: one whose latents are of the same kind as those of the prior and the
            guide. By default
            it is `affine_bits`: numbers 0 and 1 with logits that are affine in the other layer. With a hidden layer it
            is ``--model.between Bernoulli --model.between.network.hidden "[200]"``.

    Raises:
        ValueError: there is no layer above t, a dimension is below 1, or the prior is made of the guide, whose latent
            is not t_L.
    """

    def __init__(
        self,
        dims: Dims,
        prior: Callable[[Dims], Prior],
        guide: Callable[[Dims], Guide],
        likelihood: Callable[[Dims], Likelihood],
        above: Sequence[int] = (200,),
        between: Callable[[Dims], Guide] = affine_bits,
    ) -> None:
        if not above or min(above) < 1:
            raise ValueError(f"above: expected dimensions of at least 1, of one layer or more, got {list(above)}")
        if len(above) > _MOST:
            raise ValueError(f"above: expected at most {_MOST} layers, got {len(above)}")
        super().__init__(dims, prior(replace(dims, latent=above[-1])), guide(dims), likelihood(dims))
        sizes = list(pairwise([dims.latent, *above]))
        self.down = nn.ModuleList(between(Dims(lower, (upper,))) for lower, upper in sizes)
        self.up = nn.ModuleList(between(Dims(upper, (lower,))) for lower, upper in sizes)
        self.sites = ("t", *(f"t{number}" for number in range(2, len(above) + 2)))
        check_prior(self)

    @takes
    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """Draws the latents from the topmost one to t_1, and x from p(x|t_1), where x is observed if it is given.

        Args:
            x: observed data ``(B, *x_shape)``. If it is None, x is drawn.
            n: the number of data that are drawn if x is None.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.
        """
        for role, module in (("prior", self.prior), ("down", self.down), ("likelihood", self.likelihood)):
            self.register(role, module)
        *lower, top = self.sites
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            seen = self.prior.seen(pyro.sample(top, self.prior()))
            for site, conditional in zip(reversed(lower), reversed(list(self._conditionals(self.down))), strict=True):
                seen = conditional.seen(pyro.sample(site, conditional(seen)))
            sample: Tensor = pyro.sample("x", self.likelihood(seen), obs=scored(x, self.dims.x_shape))
        return sample

    @takes
    def guide(self, x: Tensor) -> tuple[Tensor, ...]:
        """Draws the latents from t_1 to the topmost one, with one pass of the encoder for each datum.

        Args:
            x: data ``(B, *x_shape)``.

        Returns:
            t_1, ..., t_L, each of shape ``(B, d)`` or ``(K, B, d)``.
        """
        check_batch(x, self.dims.x_shape)
        self.register("guide", self.posterior)
        self.register("up", self.up)
        with pyro.plate("data", len(x), dim=-1):
            drawn = [pyro.sample("t", self.posterior(x))]
            both = zip(self._conditionals(self.up), self._conditionals(self.down), strict=True)
            for site, (up, down) in zip(self.sites[1:], both, strict=True):
                drawn.append(pyro.sample(site, up(down.seen(drawn[-1]))))
        return tuple(drawn)

    def _conditionals(self, parts: nn.ModuleList) -> list[Guide]:
        """Returns the parts of a list of modules, which are guides."""
        return [part for part in parts if isinstance(part, Guide)]
