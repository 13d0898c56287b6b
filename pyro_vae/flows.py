"""Normalizing flows: the distribution of t = f(z), where z has a base distribution and f is made of zuko's transforms.

Zuko's transforms are used instead of Pyro's for four reasons: they take a context as an argument, one pass gives a
value together with its log-determinant, all of them can be inverted, and they keep no state between calls, so that they
can be traced into one graph.
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
import zuko  # noqa: E402  (the import switches PyTorch's validation off for everyone; this is undone here)

Distribution.set_default_validate_args(_validating)
ComposedTransform = zuko.transforms.ComposedTransform

Sizes = Size | list[int] | tuple[int, ...]


class FlowDistribution(TorchDistribution):
    """p(t) = p(z) / |det ∂f/∂z| at z = f⁻¹(t), for z from a base distribution over vectors.

    The last draw is remembered, so that its density takes no further pass. The density of any other value takes f⁻¹.

    Args:
        base: the base distribution, of event shape ``(d,)``.
        transform: f, a bijection of vectors that maps z to t.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (as torch declares it)

    def __init__(self, base: TorchDistributionMixin, transform: Transform) -> None:
        self.base_dist: Any = base
        self.transform: Any = transform  # zuko adds a method call_and_ladj, which PyTorch does not declare
        self.has_rsample = base.has_rsample
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The support is all vectors."""
        return constraints.real_vector

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
        self._drawn = t, self.base_dist.log_prob(z) - log_det
        return t

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density in nats."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        z, log_det = self.transform.inv.call_and_ladj(value)
        return self.base_dist.log_prob(z) + log_det


class Reflections(Transform):
    """t = H_n ⋯ H_1 z with Householder reflections H_i = I - 2 v_i v_iᵀ / |v_i|², which preserve volume.

    Args:
        v: the vectors v_1, ..., v_n, of shape ``(*batch, n, d)``.
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
        """The inverse, which is the same reflections in reverse order."""
        return Reflections(self.v.flip(-2))

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns t and the log-determinant, which is 0."""
        return self(z), z.new_zeros(z.shape[:-1])


class Projected(Transform):
    """t = z + Q R tanh(R̃ Qᵀ z + b), a Sylvester flow (van den Berg et al. 2018, section 3), or a planar flow if M = 1.

    The determinant is that of the M×M matrix I + diag(tanh′) R̃ R. The inverse f⁻¹ is found in the M coordinates Qᵀ z,
    from the last to the first: each coordinate is the root of a monotonic function of one variable, and its gradient is
    that of the implicit function.

    Args:
        Q: the matrices with orthonormal columns, of shape ``(*batch, d, M)``.
        R: the upper triangular matrices, of shape ``(*batch, M, M)``.
        R_tilde: the upper triangular matrices R̃, of the same shape; the products R_mm R̃_mm are above -1.
        b: the shifts, of shape ``(*batch, M)``.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, Q: Tensor, R: Tensor, R_tilde: Tensor, b: Tensor) -> None:
        super().__init__()
        self.Q, self.R, self.R_tilde, self.b = Q, R, R_tilde, b

    def _inner(self, z: Tensor) -> Tensor:
        """Returns Qᵀ z."""
        return (self.Q * z.unsqueeze(-1)).sum(-2)

    def _moved(self, h: Tensor) -> Tensor:
        """Returns Q R h."""
        return (self.Q * (self.R * h.unsqueeze(-2)).sum(-1).unsqueeze(-2)).sum(-1)

    def _units(self, y: Tensor) -> Tensor:
        """Returns tanh(R̃ y + b)."""
        return ((self.R_tilde * y.unsqueeze(-2)).sum(-1) + self.b).tanh()

    def _call(self, z: Tensor) -> Tensor:
        return z + self._moved(self._units(self._inner(z)))

    def log_abs_det_jacobian(self, z: Tensor, _t: Tensor) -> Tensor:
        """Returns Σ_m log(1 + tanh′_m R_mm R̃_mm)."""
        products = self.R.diagonal(dim1=-2, dim2=-1) * self.R_tilde.diagonal(dim1=-2, dim2=-1)
        return torch.log1p((1 - self._units(self._inner(z)) ** 2) * products).sum(-1)

    def _inverse(self, t: Tensor) -> Tensor:
        target, M = self._inner(t), self.b.shape[-1]
        y: list[Tensor] = []  # holds the coordinates from m + 1 on
        h: list[Tensor] = []
        for m in reversed(range(M)):
            r, r_tilde, c, v = self.R[..., m, m], self.R_tilde[..., m, m], self.b[..., m], target[..., m]
            for j, (y_j, h_j) in enumerate(zip(y, h, strict=True), start=m + 1):
                c, v = c + self.R_tilde[..., m, j] * y_j, v - self.R[..., m, j] * h_j
            y.insert(0, _root(r, r_tilde, c, v))
            h.insert(0, (r_tilde * y[0] + c).tanh())
        return t - self._moved(torch.stack(h, -1))


def _root(r: Tensor, r_tilde: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """Returns the y for which y + r tanh(r̃ y + c) = v; it lies between v - |r| and v + |r|."""
    with torch.no_grad():
        low, high = v - r.abs(), v + r.abs()
        for _ in range(24):
            y = (low + high) / 2
            above = y + r * (r_tilde * y + c).tanh() > v
            low, high = torch.where(above, low, y), torch.where(above, y, high)
        y = (low + high) / 2
    for _ in range(3):  # bisection leaves the last bits to Newton's steps; the last step carries the gradient
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
    """Returns a composition of masked autoregressive transforms (MADE networks).

    The order of coordinates is reversed from one transform to the next.

    Args:
        d: the length of the vectors.
        context: the length of the context; 0 means that there is none.
        transforms: the number of transforms.
        hidden: the width of each hidden layer of the transforms' networks.
        univariate: the transform of one coordinate; None means an affine one.
        shapes: the shapes of the parameters of ``univariate``.
        passes: the number of passes of the inverse; 2 gives coupling layers, and None inverts coordinate by coordinate.

    Raises:
        ValueError: there is no transform, no hidden layer, or a hidden width below 1.
    """
    if transforms < 1:
        raise ValueError(f"transforms: expected at least 1, got {transforms}")
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden: expected widths of at least 1, got {list(hidden)}")
    kind = {} if univariate is None or shapes is None else {"univariate": univariate, "shapes": shapes}
    order = torch.arange(d, device="cpu")
    with torch.device("cpu"):  # zuko computes with the values of its masks while it builds them
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
    """Returns arguments that make `autoregressive` use rational-quadratic splines (Durkan et al. 2019).

    Each spline acts on [-5, 5] and is the identity outside.
    """
    if bins < 2:
        raise ValueError(f"bins: expected at least 2, got {bins}")
    return {
        "univariate": zuko.transforms.MonotonicRQSTransform,
        "shapes": [Size((bins,)), Size((bins,)), Size((bins - 1,))],
    }


def neural(d: int, signal: int) -> dict[str, Any]:
    """Returns arguments that make `autoregressive` use a monotonic network for each coordinate (Huang et al. 2018)."""
    with torch.device("cpu"):
        return {
            "univariate": zuko.flows.neural.MNN(signal=signal, stack=d, hidden_features=(16, 16)),
            "shapes": [Size((signal,))],
        }


def _near_identity(flow: nn.Module) -> nn.Module:
    """Starts each transform close to the identity, so that training starts near the base, not at a random map of it."""
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
