"""Transforms of vectors, in a form that can be inverted: reflections, and the steps of a Sylvester flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

_LONGEST = 1e15
"""The largest length, and the inverse of the smallest, at which float32 holds the square of a vector's numbers."""


def directions(v: Tensor) -> Tensor:
    """Returns v / |v| for vectors ``(*batch, d)`` of any length, with its gradient for lengths between 1e-15 and 1e15.

    Outside, the gradient is 0: the true one is below 1e-15 for longer vectors, and above 1e15 for shorter ones, where a
    step along it would be random. A vector of zeros has no direction, and is returned as it is.
    """
    largest = v.detach().abs().amax(-1, keepdim=True)
    usual = (largest >= 1 / _LONGEST) & (largest <= _LONGEST)
    v = torch.where(usual, v, v.detach() / torch.where(largest > 0, largest, 1.0))
    length = v.norm(dim=-1, keepdim=True)
    return v / torch.where(length > 0, length, 1.0)


class Reflections(Transform):
    """t = H_n ⋯ H_1 z with Householder reflections H_i = I - 2 v_i v_iᵀ / |v_i|², which preserve volume.

    Where v_i = 0, H_i is the identity.

    Args:
        v: the vectors v_1, ..., v_n, of shape ``(*batch, n, d)``.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, v: Tensor) -> None:
        super().__init__()
        self.v = directions(v)

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
