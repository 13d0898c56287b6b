"""Guides that are flows: t = m + s ⊙ f(ε; h), where one network head gives m, s and the context h.

f starts near the identity, so that each starts as a `DiagonalNormal`; `Sylvester` alone, whose steps follow after m and s,
starts where its network does. One pass draws t and gives its density; the density at any other t takes f⁻¹, which goes
coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform

from pyro_vae.flows import (
    ComposedTransform,
    FlowDistribution,
    Projected,
    Reflections,
    autoregressive,
    neural,
    spline,
)
from pyro_vae.guides.normal import below_diagonal, triangular
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Distribution, Guide


@final
class InverseAutoregressive(Guide):
    """Inverse autoregressive flow: each f_j(ε) is affine in ε_j, with shift and scale from ε_<j and h (Kingma et al. 2016).

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, from x to (m, log s, h).
        transforms: how many autoregressive transforms follow each other.
        hidden: width of each hidden layer of their networks.
        context: length of h.

    Raises:
        ValueError: no transform, a hidden layer of no width, or no context.
    """

    def __init__(
        self,
        dims: Dims,
        network: NetworkFactory = MLP,
        transforms: int = 2,
        hidden: Sequence[int] = (128,),
        context: int = 32,
    ) -> None:
        super().__init__(dims)
        self.network = network(dims.x_shape, (_head(dims, context),))
        self.flow = autoregressive(dims.latent, context, transforms, hidden)

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, h = _split(self.network(self.scaled(x)), self.dims.latent)
        return _flow(loc, log_scale, self.flow(h))


@final
class SplineAutoregressive(Guide):
    """An autoregressive flow of monotonic rational-quadratic splines on [-5, 5] (Durkan et al. 2019).

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, from x to (m, log s, h).
        transforms: how many autoregressive transforms follow each other.
        hidden: width of each hidden layer of their networks.
        context: length of h.
        bins: of each spline.

    Raises:
        ValueError: no transform, a hidden layer of no width, no context, or fewer than two bins.
    """

    def __init__(
        self,
        dims: Dims,
        network: NetworkFactory = MLP,
        transforms: int = 2,
        hidden: Sequence[int] = (128,),
        context: int = 32,
        bins: int = 8,
    ) -> None:
        super().__init__(dims)
        self.network = network(dims.x_shape, (_head(dims, context),))
        self.flow = autoregressive(dims.latent, context, transforms, hidden, **spline(bins))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, h = _split(self.network(self.scaled(x)), self.dims.latent)
        return _flow(loc, log_scale, self.flow(h))


@final
class Householder(Guide):
    """t = H_n ⋯ H_1 (s ⊙ ε) + m: a Gaussian whose axes are turned by reflections (Tomczak and Welling 2016).

    With d reflections every rotation can be had, so that this is `FullRankNormal` in another parametrization. Each v_i is a
    learned vector, where it starts, plus what the network says of x.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, from x to (m, log s, v_1, ..., v_n).
        reflections: n.

    Raises:
        ValueError: no reflection.
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, reflections: int = 4) -> None:
        super().__init__(dims)
        if reflections < 1:
            raise ValueError(f"reflections: expected at least 1, got {reflections}")
        self.reflections = reflections
        self.network = network(dims.x_shape, (_head(dims, reflections * dims.latent),))
        self.axes = nn.Parameter(torch.randn(reflections, dims.latent))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, v = _split(self.network(self.scaled(x)), self.dims.latent)
        v = self.axes + v.unflatten(-1, (self.reflections, self.dims.latent))
        base = dist.Normal(loc.new_zeros(()), 1.0).expand(loc.shape).to_event(1)
        scale, shift = AffineTransform(0.0, log_scale.exp(), event_dim=1), AffineTransform(loc, 1.0, event_dim=1)
        return FlowDistribution(base, ComposedTransform(scale, Reflections(v), shift))


@final
class Sylvester(Guide):
    """Steps t ← t + Q R tanh(R̃ Qᵀ t + b) from t = s ⊙ ε + m (van den Berg et al. 2018); planar flows with one column.

    Q has M orthonormal columns, the first of a product of M reflections; R and R̃ are triangular, with diagonals in (-1, 1), so
    that every step can be inverted. The network gives all of them; to the vectors of the reflections learned ones are added.
    One column is a planar flow (Rezende and Mohamed 2015, equation 10) with u parallel to w, both shorter than 1.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, from x to (m, log s, and Q, R, R̃ and b of each step).
        transforms: number of steps.
        columns: M; no more than d of them are used.

    Raises:
        ValueError: no step, or no column.
    """

    place: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, transforms: int = 4, columns: int = 4) -> None:
        super().__init__(dims)
        if transforms < 1 or columns < 1:
            raise ValueError(f"transforms and columns: expected at least 1, got {transforms} and {columns}")
        d, M = dims.latent, min(columns, dims.latent)
        self.transforms, self.sizes = transforms, [M * d, M, M * (M - 1) // 2, M, M * (M - 1) // 2, M]
        self.network = network(dims.x_shape, (_head(dims, transforms * sum(self.sizes)),))
        self.axes = nn.Parameter(torch.randn(transforms, M, d))
        self.register_buffer("place", below_diagonal(M), persistent=False)

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, numbers = _split(self.network(self.scaled(x)), self.dims.latent)
        steps = []
        for axes, of_step in zip(self.axes, numbers.chunk(self.transforms, -1), strict=True):
            v, *of_R, b = of_step.split(self.sizes, -1)
            reflections = Reflections((axes + v.unflatten(-1, axes.shape)).unsqueeze(-3))
            Q = reflections(torch.eye(*axes.shape, dtype=v.dtype, device=v.device)).mT
            R, R_tilde = (
                triangular(0.999 * diagonal.tanh(), below, self.place).mT  # products stay above -1 in float32 too
                for diagonal, below in ((of_R[0], of_R[1]), (of_R[2], of_R[3]))
            )
            steps.append(Projected(Q, R, R_tilde, b))
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return FlowDistribution(base, ComposedTransform(*steps))


@final
class NeuralAutoregressive(Guide):
    """An autoregressive flow whose f_j is a monotonic network in ε_j, driven by ε_<j and h (Huang et al. 2018).

    Its inverse is found by bisection: this guide is for its own draws, and slow where other values are scored.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, from x to (m, log s, h).
        transforms: how many autoregressive transforms follow each other.
        hidden: width of each hidden layer of their networks.
        context: length of h.
        signal: length of what drives each monotonic network.

    Raises:
        ValueError: no transform, a hidden layer of no width, no context or no signal.
    """

    def __init__(
        self,
        dims: Dims,
        network: NetworkFactory = MLP,
        transforms: int = 1,
        hidden: Sequence[int] = (128,),
        context: int = 32,
        signal: int = 8,
    ) -> None:
        super().__init__(dims)
        if signal < 1:
            raise ValueError(f"signal: expected a length of at least 1, got {signal}")
        self.network = network(dims.x_shape, (_head(dims, context),))
        self.flow = autoregressive(dims.latent, context, transforms, hidden, **neural(dims.latent, signal))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, h = _split(self.network(self.scaled(x)), self.dims.latent)
        return _flow(loc, log_scale, self.flow(h))


def _head(dims: Dims, context: int) -> int:
    """How many numbers the encoder gives: m, log s and the context."""
    if context < 1:
        raise ValueError(f"context: expected a length of at least 1, got {context}")
    return 2 * dims.latent + context


def _split(head: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """The encoder's m, log s and context."""
    loc, log_scale, context = head.split([d, d, head.shape[-1] - 2 * d], dim=-1)
    return loc, log_scale, context


def _flow(loc: Tensor, log_scale: Tensor, transform: Transform) -> Distribution:
    """The distribution of t = m + s ⊙ f(ε)."""
    base = dist.Normal(loc.new_zeros(()), 1.0).expand(loc.shape).to_event(1)
    return FlowDistribution(base, ComposedTransform(transform, AffineTransform(loc, log_scale.exp(), event_dim=1)))
