"""Normalizing flows: the distribution of t = f(z), where z has a base distribution and f is made of zuko's transforms.

Zuko's transforms are used instead of Pyro's for four reasons: they take a context as an argument, one pass gives a
value together with its log-determinant, all of them can be inverted, and they keep no state between calls, so that they
can be traced into one graph. The monotonic networks are this project's own (`pyro_vae.flows.monotonic` says why).
"""

from __future__ import annotations

from torch.distributions import Distribution

_validating = Distribution._validate_args
import zuko  # noqa: E402, F401  (the import switches PyTorch's validation off for everyone; this is undone here)

Distribution.set_default_validate_args(_validating)

from pyro_vae.flows.autoregressive import autoregressive, masked_network, neural, spline  # noqa: E402
from pyro_vae.flows.distribution import ComposedTransform, FlowDistribution, Sizes  # noqa: E402
from pyro_vae.flows.transforms import Projected, Reflections  # noqa: E402

__all__ = [
    "ComposedTransform",
    "FlowDistribution",
    "Projected",
    "Reflections",
    "Sizes",
    "autoregressive",
    "masked_network",
    "neural",
    "spline",
]
