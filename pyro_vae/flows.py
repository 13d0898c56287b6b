"""Normalizing flows: the distribution of t = f(z), with z from a base and f from zuko's transforms.

Zuko's transforms are used, and not Pyro's: a context comes in as an argument, one pass gives a value together with its
log-determinant, all of them can be inverted, and they keep no state between calls, so that they trace into one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform, constraints

_validating = Distribution._validate_args
import zuko  # noqa: E402  (it switches PyTorch's validation off for everyone, which is undone here)

Distribution.set_default_validate_args(_validating)
ComposedTransform = zuko.transforms.ComposedTransform

Sizes = Size | list[int] | tuple[int, ...]


class FlowDistribution(TorchDistribution):
    """p(t) = p(z) / |det ∂f/∂z| at z = f⁻¹(t), for z from a base distribution over vectors.

    The last draw is remembered: scoring it takes no pass at all. Any other value is scored by f⁻¹.

    Args:
        base: of event shape ``(d,)``.
        transform: f, from base to t, a bijection of vectors.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (as torch declares it)

    def __init__(self, base: TorchDistributionMixin, transform: Transform) -> None:
        self.base_dist: Any = base
        self.transform: Any = transform  # zuko gives each transform a method of two results
        self.has_rsample = base.has_rsample
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """All vectors."""
        return constraints.real_vector

    def expand(self, batch_shape: Sizes, _instance: Any = None) -> FlowDistribution:
        """The same distribution for more data or particles."""
        return FlowDistribution(self.base_dist.expand(batch_shape), self.transform)

    def rsample(self, sample_shape: Sizes = ()) -> Tensor:
        """One pass of f."""
        return self._draw(self.base_dist.rsample(Size(sample_shape)))

    def sample(self, sample_shape: Sizes = ()) -> Tensor:
        """The same without a gradient."""
        with torch.no_grad():
            return self._draw(self.base_dist.sample(Size(sample_shape)))

    def _draw(self, z: Tensor) -> Tensor:
        t, log_det = self.transform.call_and_ladj(z)
        self._drawn = t, self.base_dist.log_prob(z) - log_det
        return t

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, in nats."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        z, log_det = self.transform.inv.call_and_ladj(value)
        return self.base_dist.log_prob(z) + log_det


class Reflections(Transform):
    """t = H_n ⋯ H_1 z with Householder reflections H_i = I - 2 v_i v_iᵀ / |v_i|², which keep volume.

    Args:
        v: the vectors ``(*batch, n, d)``.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, v: Tensor) -> None:
        super().__init__()
        self.v = v / v.norm(dim=-1, keepdim=True)

    def _call(self, z: Tensor) -> Tensor:
        for v in self.v.unbind(-2):
            z = z - 2 * (z * v).sum(-1, keepdim=True) * v
        return z

    @property
    def inv(self) -> Transform:
        """The reflections in reverse order."""
        return Reflections(self.v.flip(-2))

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The image, and the log-determinant 0."""
        return self(z), z.new_zeros(z.shape[:-1])


class Projected(Transform):
    """t = z + Q R tanh(R̃ Qᵀ z + b), a Sylvester flow (van den Berg et al. 2018, section 3); with one column a planar one.

    The determinant is that of the M×M matrix I + diag(tanh′) R̃ R. f⁻¹ is found in the M coordinates Qᵀ z, from the last to the
    first, each the root of a monotonic function of one variable; its gradient is that of the implicit function.

    Args:
        Q: orthonormal columns ``(*batch, d, M)``.
        R: upper triangular ``(*batch, M, M)``.
        R_tilde: upper triangular; the products of the two diagonals are above -1.
        b: of shape ``(*batch, M)``.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, Q: Tensor, R: Tensor, R_tilde: Tensor, b: Tensor) -> None:
        super().__init__()
        self.Q, self.R, self.R_tilde, self.b = Q, R, R_tilde, b

    def _inner(self, z: Tensor) -> Tensor:
        """Qᵀ z."""
        return (self.Q * z.unsqueeze(-1)).sum(-2)

    def _moved(self, h: Tensor) -> Tensor:
        """Q R h."""
        return (self.Q * (self.R * h.unsqueeze(-2)).sum(-1).unsqueeze(-2)).sum(-1)

    def _units(self, y: Tensor) -> Tensor:
        """tanh(R̃ y + b)."""
        return ((self.R_tilde * y.unsqueeze(-2)).sum(-1) + self.b).tanh()

    def _call(self, z: Tensor) -> Tensor:
        return z + self._moved(self._units(self._inner(z)))

    def log_abs_det_jacobian(self, z: Tensor, _t: Tensor) -> Tensor:
        """Σ_m log(1 + tanh′_m R_mm R̃_mm)."""
        products = self.R.diagonal(dim1=-2, dim2=-1) * self.R_tilde.diagonal(dim1=-2, dim2=-1)
        return torch.log1p((1 - self._units(self._inner(z)) ** 2) * products).sum(-1)

    def _inverse(self, t: Tensor) -> Tensor:
        target, M = self._inner(t), self.b.shape[-1]
        y: list[Tensor] = []  # from coordinate m + 1 on
        h: list[Tensor] = []
        for m in reversed(range(M)):
            r, r_tilde, c, v = self.R[..., m, m], self.R_tilde[..., m, m], self.b[..., m], target[..., m]
            for j, (y_j, h_j) in enumerate(zip(y, h, strict=True), start=m + 1):
                c, v = c + self.R_tilde[..., m, j] * y_j, v - self.R[..., m, j] * h_j
            y.insert(0, _root(r, r_tilde, c, v))
            h.insert(0, (r_tilde * y[0] + c).tanh())
        return t - self._moved(torch.stack(h, -1))


def _root(r: Tensor, r_tilde: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """The y at which y + r tanh(r̃ y + c) = v; it lies between v - |r| and v + |r|."""
    with torch.no_grad():
        low, high = v - r.abs(), v + r.abs()
        for _ in range(24):
            y = (low + high) / 2
            above = y + r * (r_tilde * y + c).tanh() > v
            low, high = torch.where(above, low, y), torch.where(above, y, high)
        y = (low + high) / 2
    for _ in range(3):  # Newton's steps, to the last bits; the last one carries the gradient
        y = y.detach()
        h = (r_tilde * y + c).tanh()
        y = y - (y + r * h - v) / (1 + r * r_tilde * (1 - h**2)).detach()
    return y


def autoregressive(
    d: int,
    context: int,
    transforms: int,
    hidden: Sequence[int],
    univariate: Callable[..., Any] | None = None,
    shapes: Sequence[Size] | None = None,
    passes: int | None = None,
) -> nn.Module:
    """A composition of masked autoregressive transforms (MADE networks), each with the order of coordinates reversed.

    Args:
        d: length of the vectors.
        context: length of the context, 0 for none.
        transforms: how many.
        hidden: width of each hidden layer of their networks.
        univariate: the transform of one coordinate; None is affine.
        shapes: of its parameters.
        passes: of the inverse; 2 makes coupling layers of them, None inverts coordinate by coordinate.

    Raises:
        ValueError: no transform, or a hidden layer of no width.
    """
    if transforms < 1:
        raise ValueError(f"transforms: expected at least 1, got {transforms}")
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden: expected widths of at least 1, got {list(hidden)}")
    kind = {} if univariate is None or shapes is None else {"univariate": univariate, "shapes": shapes}
    order = torch.arange(d, device="cpu")
    with torch.device("cpu"):  # zuko counts with its masks as it builds them
        flow = zuko.lazy.LazyComposedTransform(
            *(
                zuko.flows.MaskedAutoregressiveTransform(
                    d,
                    context,
                    passes=passes,
                    order=order.flip(0) if i % 2 else order,
                    hidden_features=hidden,
                    **kind,
                )
                for i in range(transforms)
            )
        )
    return _near_identity(flow).to(torch.get_default_device())


def spline(bins: int) -> dict[str, Any]:
    """Rational-quadratic splines on [-5, 5] (Durkan et al. 2019), the identity outside."""
    if bins < 2:
        raise ValueError(f"bins: expected at least 2, got {bins}")
    return {
        "univariate": zuko.transforms.MonotonicRQSTransform,
        "shapes": [Size((bins,)), Size((bins,)), Size((bins - 1,))],
    }


def neural(d: int, signal: int) -> dict[str, Any]:
    """Monotonic networks, one for each coordinate (Huang et al. 2018)."""
    with torch.device("cpu"):
        return {
            "univariate": zuko.flows.neural.MNN(signal=signal, stack=d, hidden_features=(16, 16)),
            "shapes": [Size((signal,))],
        }


def _near_identity(flow: nn.Module) -> nn.Module:
    """Starts each transform close to the identity: a model trains from its base, not from a random warp of it."""
    for module in flow.modules():
        hyper = getattr(module, "hyper", None)
        last = hyper[-1] if isinstance(hyper, nn.Sequential) else getattr(module, "phi", None)
        with torch.no_grad():
            if isinstance(last, nn.Linear):
                last.weight.mul_(0.1)
                last.bias.mul_(0.1)
            elif isinstance(last, nn.ParameterList):
                for parameter in last:
                    parameter.mul_(0.1)
    return flow
