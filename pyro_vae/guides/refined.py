"""Guides that fit parameters to each datum, either starting from an encoder or without one."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, constraints
from torch.distributions.constraints import Constraint

from pyro_vae.flows import FlowDistribution
from pyro_vae.guides.normal import DiagonalNormal
from pyro_vae.missing import observed_ends
from pyro_vae.parts import Dims, Distribution, Guide, placed
from pyro_vae.scopes import mode
from pyro_vae.special import latent_log_scale, latent_scale
from pyro_vae.stored import blocks

_MOST = 1000
"""The largest number of steps of a guide. Kim et al. 2018 take 20."""
_HASHED = 1000
"""The number of data that are hashed at a time."""
_MISSING = 2.0**52 + 1
"""What a missing value counts as where data are hashed: no number of this size is a value in float32."""


@final
class SemiAmortized(Guide):
    """Any guide, refined for each datum by a few gradient steps on its bound (Kim et al. 2018; Krishnan et al. 2018).

    t = a + b ⊙ t₀, where t₀ ~ q₀(t|x,φ) is drawn from the inner guide. For each datum, a and log b start at 0 and take
    steps of Adam up the gradient of E_q [log p(x,t) - log q(t|x)], with one draw in each step. For the gradient by φ, a
    and b are constants: the inner guide is trained by the bound at the end of the steps, not through the steps
    (Krishnan et al.). The model is trained by this tighter bound.

    Args:
        dims: the sizes, filled in by the program.
        guide: the guide that is refined; it needs ``rsample``.
        steps: the number of steps.
        rate: the length of the first step, in units of t; later steps become shorter, down to nearly 0.

    Raises:
        ValueError: there is no step, or the rate is not positive; or, when the guide is called, the inner guide has no
            ``rsample`` or its latents are not all real numbers, or the prior is made of this guide.
    """

    def __init__(
        self, dims: Dims, guide: Callable[[Dims], Guide] = DiagonalNormal, steps: int = 5, rate: float = 0.1
    ) -> None:
        super().__init__(dims)
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        if steps > _MOST:
            raise ValueError(f"steps: expected at most {_MOST}, since each runs the decoder, got {steps}")
        if not rate > 0:
            raise ValueError(f"rate: expected a positive number, got {rate}")
        self.steps, self.rate = steps, rate
        self.inner = guide(dims)
        self._refining = False

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of a + b ⊙ t₀ for x of shape ``(*batch, *x_shape)``."""
        if self._refining:
            raise ValueError(
                "SemiAmortized: the prior is made of this guide, whose steps need the prior: choose another"
            )
        inner = self.inner(x)
        if not inner.has_rsample:
            raise ValueError(f"SemiAmortized: {type(self.inner).__name__} has no rsample to be refined by")
        if not _is_real(inner.support):
            raise ValueError(
                f"SemiAmortized: it moves latents along all real numbers, and those of {type(self.inner).__name__} are "
                f"{inner.support}: choose another inner guide"
            )
        self._refining = True
        try:
            shift, log_scale = self._refined(x, inner)
        finally:
            self._refining = False
        return FlowDistribution(inner, AffineTransform(shift, latent_scale(log_scale), event_dim=1))

    def _refined(self, x: Tensor, inner: Distribution) -> Tensor:
        """Returns (a, log b), of shape ``(2, *batch, d)``, without a gradient."""
        with torch.no_grad():
            prior, draws = self.parts.prior(), [inner.rsample() for _ in range(self.steps)]
        moved = torch.zeros_like(torch.stack([draws[0], draws[0]])).requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=self.rate, maximize=True)
        for step, t0 in enumerate(draws):
            # Evaluation mode, because a likelihood that learns from what it scores shall learn only after the steps.
            with torch.enable_grad(), mode(self.parts.likelihood, training=False):
                (moved.grad,) = torch.autograd.grad(self._gain(x, prior, t0, moved).sum(), moved)
            optimizer.param_groups[0]["lr"] = self.rate * (1 - step / self.steps)
            optimizer.step()
        return moved.detach()

    def _gain(self, x: Tensor, prior: Distribution, t0: Tensor, moved: Tensor) -> Tensor:
        """Returns log p(x,t) - log q(t|x) + log q₀(t₀|x) for t = a + b ⊙ t₀, of shape ``(*batch,)``.

        The last term is added, so that it need not be computed: it does not depend on a and b.
        """
        shift, log_scale = moved
        t = shift + latent_scale(log_scale) * t0
        return (
            self.parts.likelihood(self.parts.prior.seen(t)).log_prob(x)
            + prior.log_prob(t)
            + latent_log_scale(log_scale).sum(-1)
        )


def _is_real(support: Constraint) -> bool:
    """Whether a support is all vectors of real numbers, of one distribution or of all components of a mixture."""
    inner: Any = support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    return inner in (constraints.real, constraints.real_vector)


@final
class PerDatum(Guide):
    """q(t|x_i) = N(m_i, diag s_i²), where each training datum has its own m_i and s_i, and there is no encoder.

    This is stochastic variational inference as it was before amortization (Hoffman et al. 2013); with ``--e_steps`` and
    ``--m_steps`` it is the classic EM-style schedule. A datum is recognized by its values, so that equal data share
    one m and s. Data that were not in training have no parameters: they all get the same Gaussian, with the mean and
    the variance of the training data's posteriors together, in which each training datum counts once. `SemiAmortized`,
    with this guide as its inner guide, fits each of them.

    Args:
        dims: the sizes and the training data, filled in by the program.
        scale: the initial value of s_i.

    Raises:
        ValueError: the training data are not known or are binarized again at each use, different data are recognized as
            the same (see `_hash`), or the scale is not positive.
    """

    direction: Tensor
    keys: Tensor
    """The training data's hashes, in ascending order."""
    order: Tensor
    """The row of m and s that belongs to each of the keys."""

    def __init__(self, dims: Dims, scale: float = 1.0) -> None:
        super().__init__(dims)
        if dims.train is None:
            raise ValueError(
                "PerDatum (guide): needs the training data: make dims by splits.dims(latent), or Dims(train=...)"
            )
        if dims.dynamic:
            raise ValueError(
                "PerDatum (guide): the data are binarized anew at each use: choose binarize: fixed or none"
            )
        if not scale > 0:
            raise ValueError(f"scale: expected a positive number, got {scale}")
        N, d = len(dims.train), dims.latent
        self.loc, self.log_scale = nn.Parameter(torch.zeros(N, d)), nn.Parameter(torch.zeros(N, d).add(scale).log())
        generator = torch.Generator("cpu").manual_seed(0)
        direction = torch.randint(-(2**62), 2**62, (prod(dims.x_shape),), generator=generator, device="cpu")
        train = dims.train if dims.train.is_meta else dims.train.cpu()
        keys = torch.cat([_hash(x.flatten(1), direction.to(train.device)) for x in blocks(train, _HASHED)])
        keys, order = keys.sort(stable=True)
        if not train.is_meta:
            _check_different(train, keys, order)
        order = order[torch.searchsorted(keys, keys)]  # the row of the first of equal data, for all of them
        for name, value in zip(("direction", "keys", "order"), (direction, keys, order), strict=True):
            self.register_buffer(name, placed(value))

    def forward(self, x: Tensor) -> Distribution:
        """Returns N(m, diag s²) for x of shape ``(*batch, *x_shape)``."""
        key = _hash(x.flatten(x.dim() - len(self.dims.x_shape)), self.direction)
        at = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        known, row = (self.keys[at] == key).unsqueeze(-1), self.order[at]
        with torch.no_grad():
            # of each training datum
            each, variance = self.loc[self.order], latent_scale(self.log_scale[self.order]) ** 2
            loc = each.mean(0)
            scale = (variance.mean(0) + each.var(0, correction=0)).sqrt()
        return dist.Normal(
            torch.where(known, self.loc[row], loc), torch.where(known, latent_scale(self.log_scale[row]), scale)
        ).to_event(1)


def _hash(x: Tensor, direction: Tensor) -> Tensor:
    """Returns a number for each datum of ``(*batch, n)``, the same on every device, because integer sums are exact.

    Values that are equal when rounded to multiples of 1/65536 count as the same, and so do missing values. An integer
    overflow wraps around.
    """
    rounded = (x.double() * 65536).round()
    return (torch.where(x.isnan(), _MISSING, rounded).long() * direction).sum(-1)


def _check_different(train: Tensor, keys: Tensor, order: Tensor) -> None:
    """Checks that training data of one key are the same, to a thousandth of the largest number in them."""
    same = keys[1:] == keys[:-1]
    if not bool(same.any()):
        return
    one, other = (train[rows[same]].flatten(1).nan_to_num() for rows in (order[1:], order[:-1]))
    if bool(((one - other).abs().amax(1) > 1e-3 * one.abs().amax(1)).any()):
        low, high = observed_ends(train)
        raise ValueError(
            f"PerDatum (guide): data are recognized by their values rounded to 1/65536, which does not tell training data "
            f"apart whose values are between {low:g} and {high:g}: rescale the data"
        )
