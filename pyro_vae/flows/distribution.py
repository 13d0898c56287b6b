"""The distribution of t = f(z), where z has a base distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import zuko
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor
from torch.distributions import AffineTransform, Transform, constraints

from pyro_vae.flows.transforms import Reflections

ComposedTransform = zuko.transforms.ComposedTransform
Sizes = Size | list[int] | tuple[int, ...]


class FlowDistribution(TorchDistribution):
    """p(t) = p(z) / |det ∂f/∂z| at z = f⁻¹(t), for z from a base distribution over vectors.

    The last draw is remembered, so that its density takes no further pass. The density of any other value takes f⁻¹:
    also that of a draw that has been detached, changed in place, or drawn without a gradient where one is wanted now.

    Args:
        base: the base distribution, of event shape ``(d,)``.
        transform: f, a bijection of vectors that maps z to t.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (as torch declares it)

    def __init__(self, base: TorchDistributionMixin, transform: Transform) -> None:
        self.base_dist: Any = base
        self.transform: Any = transform  # zuko adds a method call_and_ladj, which PyTorch does not declare
        self.has_rsample = base.has_rsample
        self._drawn: _Draw | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The support is all vectors."""
        return constraints.real_vector

    @property
    def mean(self) -> Tensor:
        """The mean, where f is affine: f at the mean of the base distribution.

        Raises:
            NotImplementedError: f is not affine, so that no closed form is known.
        """
        if not _is_affine(self.transform):
            raise NotImplementedError("the mean of a flow is known in closed form only where the flow is affine")
        mean: Tensor = self.transform(self.base_dist.mean)
        return mean

    def expand(self, batch_shape: Sizes, _instance: Any = None) -> FlowDistribution:
        """Returns the same distribution for more data or particles."""
        return FlowDistribution(self.base_dist.expand(batch_shape), self.transform)

    def rsample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws t by one pass of f."""
        return self._draw(self.base_dist.rsample(Size(sample_shape)))

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """Draws t by one pass of f, without a gradient."""
        with torch.no_grad():
            return self._draw(self.base_dist.sample(Size(sample_shape)))

    def _draw(self, z: Tensor) -> Tensor:
        t, log_det = self.transform.call_and_ladj(z)
        density = self.base_dist.log_prob(z) - log_det
        self._drawn = _Draw(t, density, _version(t), t.requires_grad, torch.is_grad_enabled())
        return t

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats."""
        if self._drawn is not None and self._drawn.holds(value):
            return self._drawn.density
        z, log_det = self.transform.inv.call_and_ladj(value)
        return self.base_dist.log_prob(z) + log_det


@dataclass(frozen=True, eq=False)
class _Draw:
    """A draw with its log density, and what tells whether the draw is still as it was.

    Attributes:
        t: the draw.
        density: its log density.
        version: how often t had been changed in place when it was drawn.
        requires_grad: whether t was a function of parameters.
        with_grad: whether the density would have a gradient.
    """

    t: Tensor
    density: Tensor
    version: int
    requires_grad: bool
    with_grad: bool

    def holds(self, value: Tensor) -> bool:
        """Returns whether the density is that of ``value``, with its gradient if one is asked for now."""
        same = value is self.t and _version(value) == self.version and value.requires_grad == self.requires_grad
        return same and (self.with_grad or not torch.is_grad_enabled())


def _version(value: Tensor) -> int:
    """Returns how often a tensor has been changed in place; tensors of the inference mode do not count."""
    return 0 if value.is_inference() else value._version


def _is_affine(transform: Transform) -> bool:
    if isinstance(transform, ComposedTransform):
        return all(_is_affine(each) for each in transform.transforms)
    return isinstance(transform, AffineTransform | Reflections)
