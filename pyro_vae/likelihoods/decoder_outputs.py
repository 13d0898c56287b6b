"""What likelihoods share: the initial value of the decoder's output, and the division of its numbers among pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.parts import Dims, Shape


def mean_or(dims: Dims, default: float) -> Tensor:
    """Returns the training mean, or ``default`` for every pixel if the mean is not known (shape ``x_shape``)."""
    return torch.full(dims.x_shape, default) if dims.x_mean is None else dims.x_mean.clone()


def logit_of_mean(dims: Dims, total_count: int) -> Tensor:
    """Returns logit(clip(mean / n, .001, .999)) of the training mean, or zeros without one (shape ``x_shape``)."""
    return (mean_or(dims, total_count / 2) / total_count).clamp(0.001, 0.999).logit()


def stacked(dims: Dims, n: int) -> Shape:
    """Returns the shape of n numbers for each pixel: the first dimension of x, its channels, is n times as long."""
    return n * dims.x_shape[0], *dims.x_shape[1:]


def unstacked(outputs: Tensor, dims: Dims, n: int) -> Tensor:
    """Reshapes outputs of the shape that `stacked` returns, ``(*batch, n·C, ...)``, to ``(n, *batch, *x_shape)``."""
    place = -len(dims.x_shape)
    return outputs.unflatten(place, (n, dims.x_shape[0])).movedim(place - 1, 0)
