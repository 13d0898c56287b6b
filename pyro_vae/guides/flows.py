"""Guides that are flows: t = m + s ⊙ f(ε; h), where one network head gives m, s and the context h.

In the autoregressive guides, f starts near the identity, so that each of them starts near a `DiagonalNormal`.
`Householder` starts with random axes, and so does `Sylvester`, whose steps follow after m and s. One pass draws t and
gives its density. The density at any other t needs f⁻¹, which goes coordinate by coordinate (in `Householder`, it is
one pass too).
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
from pyro_vae.special import latent_scale


@final
class InverseAutoregressive(Guide):
    """An inverse autoregressive flow: f_j(ε) is affine in ε_j; ε_<j and h give shift and scale (Kingma et al. 2016).

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to (m, log s, h).
        transforms: the number of autoregressive transforms, which follow each other.
        hidden: the width of each hidden layer of the transforms' networks.
        context: the length of the context h.

    Raises:
        ValueError: there is no transform, no hidden layer, a hidden width below 1, or no context.
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
        self.network = network(dims.seen_shape, (_head(dims, context),))
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
        network: the encoder, which maps x to (m, log s, h).
        transforms: the number of autoregressive transforms, which follow each other.
        hidden: the width of each hidden layer of the transforms' networks.
        context: the length of the context h.
        bins: the number of bins of each spline.

    Raises:
        ValueError: there is no transform, no hidden layer, a hidden width below 1, no context, or fewer than two bins.
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
        self.network = network(dims.seen_shape, (_head(dims, context),))
        self.flow = autoregressive(dims.latent, context, transforms, hidden, **spline(bins))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, h = _split(self.network(self.scaled(x)), self.dims.latent)
        return _flow(loc, log_scale, self.flow(h))


@final
class Householder(Guide):
    """t = H_n ⋯ H_1 (s ⊙ ε) + m, a Gaussian whose axes are turned by reflections (Tomczak and Welling 2016).

    With d reflections every rotation is possible, so that this guide is `FullRankNormal` in another parametrization.
    Each v_i is the sum of a learned vector, which starts at random, and a vector that the network gives for x.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to (m, log s, v_1, ..., v_n).
        reflections: n, the number of reflections.

    Raises:
        ValueError: there is no reflection.
    """

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, reflections: int = 4) -> None:
        super().__init__(dims)
        if reflections < 1:
            raise ValueError(f"reflections: expected at least 1, got {reflections}")
        self.reflections = reflections
        self.network = network(dims.seen_shape, (_head(dims, reflections * dims.latent),))
        self.axes = nn.Parameter(torch.randn(reflections, dims.latent))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, v = _split(self.network(self.scaled(x)), self.dims.latent)
        v = self.axes + v.unflatten(-1, (self.reflections, self.dims.latent))
        base = dist.Normal(loc.new_zeros(()), 1.0).expand(loc.shape).to_event(1)
        scale, shift = (
            AffineTransform(0.0, latent_scale(log_scale), event_dim=1),
            AffineTransform(loc, 1.0, event_dim=1),
        )
        return FlowDistribution(base, ComposedTransform(scale, Reflections(v), shift))


@final
class Sylvester(Guide):
    """Steps t ← t + Q R tanh(R̃ Qᵀ t + b), which begin at t = s ⊙ ε + m (van den Berg et al. 2018).

    Q has M orthonormal columns, which are the first M columns of a product of M reflections. R and R̃ are triangular,
    with diagonals in (-1, 1), so that every step can be inverted. The network gives all of them; learned vectors are
    added to the vectors of the reflections. With one column, each step is a planar flow (Rezende and Mohamed 2015,
    equation 10) with u parallel to w, both shorter than 1.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to (m, log s, and Q, R, R̃ and b of each step).
        transforms: the number of steps.
        columns: M, the number of columns of Q; at most d of them are used.

    Raises:
        ValueError: there is no step, or no column.
    """

    place: Tensor

    def __init__(self, dims: Dims, network: NetworkFactory = MLP, transforms: int = 4, columns: int = 4) -> None:
        super().__init__(dims)
        if transforms < 1 or columns < 1:
            raise ValueError(f"transforms and columns: expected at least 1, got {transforms} and {columns}")
        d, M = dims.latent, min(columns, dims.latent)
        self.transforms, self.sizes = transforms, [M * d, M, M * (M - 1) // 2, M, M * (M - 1) // 2, M]
        self.network = network(dims.seen_shape, (_head(dims, transforms * sum(self.sizes)),))
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
                triangular(0.999 * diagonal.tanh(), below, self.place).mT  # keeps products above -1 in float32 too
                for diagonal, below in ((of_R[0], of_R[1]), (of_R[2], of_R[3]))
            )
            steps.append(Projected(Q, R, R_tilde, b))
        base = dist.Normal(loc, latent_scale(log_scale)).to_event(1)
        return FlowDistribution(base, ComposedTransform(*steps))


@final
class NeuralAutoregressive(Guide):
    """An autoregressive flow in which f_j is a monotonic network in ε_j, conditioned on ε_<j and h (Huang et al. 2018).

    Its inverse is found by bisection, so that this guide is fast for its own draws and slow for other values.

    Args:
        dims: the sizes, filled in by the program.
        network: the encoder, which maps x to (m, log s, h).
        transforms: the number of autoregressive transforms, which follow each other.
        hidden: the width of each hidden layer of the transforms' networks.
        context: the length of the context h.
        signal: the length of the vector that conditions each monotonic network.

    Raises:
        ValueError: there is no transform, no hidden layer, a hidden width below 1, no context, or no signal.
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
        self.network = network(dims.seen_shape, (_head(dims, context),))
        self.flow = autoregressive(dims.latent, context, transforms, hidden, **neural(dims.latent, signal))

    def forward(self, x: Tensor) -> Distribution:
        """Returns the distribution of t for x of shape ``(*batch, *x_shape)``."""
        loc, log_scale, h = _split(self.network(self.scaled(x)), self.dims.latent)
        return _flow(loc, log_scale, self.flow(h))


def _head(dims: Dims, context: int) -> int:
    """Returns how many numbers the encoder gives for m, log s and the context."""
    if context < 1:
        raise ValueError(f"context: expected a length of at least 1, got {context}")
    return 2 * dims.latent + context


def _split(head: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits the encoder's output into m, log s and the context."""
    loc, log_scale, context = head.split([d, d, head.shape[-1] - 2 * d], dim=-1)
    return loc, log_scale, context


def _flow(loc: Tensor, log_scale: Tensor, transform: Transform) -> Distribution:
    """Returns the distribution of t = m + s ⊙ f(ε)."""
    base = dist.Normal(loc.new_zeros(()), 1.0).expand(loc.shape).to_event(1)
    return FlowDistribution(
        base, ComposedTransform(transform, AffineTransform(loc, latent_scale(log_scale), event_dim=1))
    )
