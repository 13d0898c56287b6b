"""Monotonic networks of one variable, and their inverse, for neural autoregressive flows (Huang et al. 2018).

Zuko's transform of this kind is not used, for three reasons. Its inverse stays within [-10, 10], whatever the value.
The backward pass of its inverse knows of the network's weights in training mode only, and counts them once more for
each pass of the autoregressive transform. And it starts at a random slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import elu

_WIDTHS = 16, 16
"""The widths of the hidden layers."""
_REACH = 80.0
"""The inverse is looked for between -sinh(80) and sinh(80), which is 3e34: in nearly all of float32."""
_HALVINGS, _STEPS = 24, 6
"""24 halvings of [-80, 80] leave an error of 1e-5 max(1, |z|); each of Newton's steps about squares it."""


class MonotonicNetwork(nn.Module):
    """d networks f_j(z; signal) that increase in z, each with two hidden layers.

    These are zuko's networks: weights enter by their absolute values, and one half of each hidden layer is ELU(a), the
    other half -ELU(-a). So f is linear far out on both sides, and takes every value. Each f_j starts with mean 0 and
    variance 1 over z ~ N(0, 1), at a signal of zero.

    Args:
        d: the number of networks.
        signal: the length of the vector that conditions each of them.
    """

    def __init__(self, d: int, signal: int) -> None:
        super().__init__()
        self.network = zuko.nn.MonotonicMLP(1 + signal, 1, stack=d, hidden_features=_WIDTHS)
        points, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(32))
        weights, last = weights / weights.sum(), self.network[-1]
        with torch.no_grad():
            y = self(torch.zeros(d, signal))(points.to(last.weight)[:, None].expand(-1, d)).double()
            mean = weights @ y
            scale = (weights @ (y - mean) ** 2).sqrt()
            last.weight.div_(scale[:, None, None])
            last.bias.sub_(mean[:, None]).div_(scale[:, None])

    def forward(self, signal: Tensor) -> Transform:
        """Returns f as a transform of ``(*batch, d)``, for signals of shape ``(*batch, d, signal)``."""
        (weight, bias), *rest = [
            (layer.weight.abs(), layer.bias) for layer in self.network if isinstance(layer, zuko.nn.Linear)
        ]
        given = _linear(weight[..., 1:], signal.to(weight.dtype)) + bias
        return Monotonic(weight[..., 0], given, rest)


class Monotonic(Transform):
    """f_j(z_j) for each coordinate j: a network with positive weights, ELU(a) in one half of each layer, -ELU(-a) in the other.

    The inverse is solved for without a gradient. Its gradient is that of the implicit function: by y it is 1 / f′(z),
    and by everything that f depends on it is -∂f / f′(z).

    Args:
        weight: the weights of z in the first layer, of shape ``(d, n)``.
        given: all else in the first layer's sums, of shape ``(*batch, d, n)``.
        layers: the weights ``(d, m, n)`` and the biases ``(d, m)`` of the other layers; the last one has m = 1.
    """

    domain = codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, weight: Tensor, given: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.weight, self.given, self.layers = weight, given, layers

    def _call(self, z: Tensor) -> Tensor:
        a = self.weight * z.unsqueeze(-1) + self.given
        for weight, bias in self.layers:
            up, down = a.chunk(2, -1)
            a = _linear(weight, torch.cat([elu(up), -elu(-down)], -1)) + bias
        return a.squeeze(-1)

    def slope(self, z: Tensor) -> Tensor:
        """Returns f′(z), which is positive."""
        a, slope = self.weight * z.unsqueeze(-1) + self.given, self.weight
        for weight, bias in self.layers:
            up, down = a.chunk(2, -1)
            a = _linear(weight, torch.cat([elu(up), -elu(-down)], -1)) + bias
            inner = torch.cat([up.clamp(max=0), (-down).clamp(max=0)], -1).exp()  # the derivative of both halves
            slope = _linear(weight, inner * slope)
        return slope.squeeze(-1)

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns f(z) and log f′(z)."""
        return self(z), self.slope(z).log()

    def log_abs_det_jacobian(self, z: Tensor, _y: Tensor) -> Tensor:
        """Returns log f′(z)."""
        return self.slope(z).log()

    def _inverse(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            z, slope = self._solved(y)
        f = self(z)
        return z + ((y - y.detach()) - (f - f.detach())) / slope

    def _solved(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the z at which f(z) = y, and f′(z): by halving an interval of asinh(z), and then by Newton's steps.

        A step that would leave the interval is replaced by another halving.
        """
        low, high = torch.full_like(y, -_REACH), torch.full_like(y, _REACH)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self(middle.sinh()) > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        z, low, high = ((low + high) / 2).sinh(), low.sinh(), high.sinh()
        for _ in range(_STEPS):
            f = self(z)
            above = f > y
            low, high = torch.where(above, low, z), torch.where(above, z, high)
            step = z - (f - y) / self.slope(z)
            z = torch.where((low <= step) & (step <= high), step, (low + high) / 2)
        return z, self.slope(z)


def _linear(weight: Tensor, inputs: Tensor) -> Tensor:
    """Returns the products of the matrices ``(d, m, n)`` and the vectors ``(*batch, d, n)``.

    They are never computed in bfloat16: f would be a staircase, which has no inverse.
    """
    kind = inputs.device.type
    precise: AbstractContextManager[Any] = nullcontext()
    if torch.amp.is_autocast_available(kind):
        precise = torch.autocast(kind, enabled=False)
    with precise:
        return torch.einsum("...ij,...j->...i", weight, inputs)
