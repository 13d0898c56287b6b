"""Monotonic rational-quadratic splines of one variable (Durkan et al. 2019), with a stable inverse."""

from __future__ import annotations

from typing import final

import torch
import zuko
from torch import Tensor


@final
class Spline(zuko.transforms.MonotonicRQSTransform):
    """Zuko's spline on [-5, 5], which is the identity outside, with another formula for its inverse.

    Zuko solves the quadratic equation as the paper states it (its equations 6 to 8). Its terms cancel where the slopes
    at the ends of a bin are far from the bin's own slope: in float32 the solution is then wrong, or NaN.
    """

    def _inverse(self, y: Tensor) -> Tensor:
        """Returns x, by a quadratic equation in which nothing cancels.

        With the place θ of y in its bin, and r = ξ / (1 - ξ) for the place ξ of x in its bin, it is
        s (1 - θ) r² + (d₀ (1 - θ) - d₁ θ) r - s θ = 0, whose discriminant is a sum of two terms that are not negative.
        """
        inside, x0, x1, y0, y1, d0, d1, s = self.bin(self.searchsorted(self.vertical, y) - 1)
        theta = inside * (y - y0) / (y1 - y0)
        b = d0 * (1 - theta) - d1 * theta
        root = b.abs() + (b**2 + 4 * s**2 * theta * (1 - theta)).sqrt()
        rising, falling = 2 * s * theta, 2 * s * (1 - theta)
        xi = torch.where(b >= 0, rising, root) / (root + torch.where(b >= 0, rising, falling))
        return torch.where(inside, x0 + xi * (x1 - x0), y)
