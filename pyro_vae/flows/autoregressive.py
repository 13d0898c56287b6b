"""Masked autoregressive transforms, for flows whose coordinate j is transformed given the coordinates before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import zuko
from torch import Size, nn

from pyro_vae.flows.monotonic import MonotonicNetwork
from pyro_vae.flows.splines import Spline

_MOST = 1000
"""The largest number of transforms. Published flows have tens of them."""


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
    if transforms > _MOST:
        raise ValueError(f"transforms: expected at most {_MOST}, since each has a network of its own, got {transforms}")
    _check_widths(hidden)
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


def masked_network(d: int, hidden: Sequence[int]) -> nn.Module:
    """Returns a network of vectors ``(*lead, d)`` whose output j depends on the inputs before j.

    It is MADE (Germain et al. 2015), with rectified linear units.

    Args:
        d: the length of the vectors, at least 2.
        hidden: the width of each hidden layer.

    Raises:
        ValueError: there is no hidden layer, or a hidden width below 1.
    """
    _check_widths(hidden)
    with torch.device("cpu"):  # zuko computes with the values of its masks while it builds them
        made: nn.Module = zuko.nn.MaskedMLP(torch.ones(d, d).tril(-1).bool(), hidden)
    return made.to(torch.get_default_device())


def _check_widths(hidden: Sequence[int]) -> None:
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden: expected widths of at least 1, got {list(hidden)}")


def spline(bins: int) -> dict[str, Any]:
    """Returns arguments that make `autoregressive` use rational-quadratic splines (Durkan et al. 2019).

    Each spline acts on [-5, 5] and is the identity outside.
    """
    if bins < 2:
        raise ValueError(f"bins: expected at least 2, got {bins}")
    return {
        "univariate": Spline,
        "shapes": [Size((bins,)), Size((bins,)), Size((bins - 1,))],
    }


def neural(d: int, signal: int) -> dict[str, Any]:
    """Returns arguments that make `autoregressive` use a monotonic network for each coordinate (Huang et al. 2018)."""
    with torch.device("cpu"):
        return {"univariate": MonotonicNetwork(d, signal), "shapes": [Size((signal,))]}


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
