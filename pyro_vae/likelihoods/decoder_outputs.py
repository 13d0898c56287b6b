"""What likelihoods share: where the decoder's output starts, and how its numbers are divided among pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.parts import Dims, Shape


def mean_or(dims: Dims, default: float) -> Tensor:
    """The training mean, or a number for every pixel where it is not known (shape ``x_shape``)."""
    return torch.full(dims.x_shape, default) if dims.x_mean is None else dims.x_mean.clone()


def logit_of_mean(dims: Dims, total_count: int) -> Tensor:
    """logit(clip(mean / n, .001, .999)) of the training mean, or zeros where it is not known (shape ``x_shape``)."""
    return (mean_or(dims, total_count / 2) / total_count).clamp(0.001, 0.999).logit()


def stacked(dims: Dims, n: int) -> Shape:
    """The output shape of a network that gives n numbers a pixel: n times the first dimension of x, its channels."""
    return n * dims.x_shape[0], *dims.x_shape[1:]


def unstacked(outputs: Tensor, dims: Dims, n: int) -> Tensor:
    """What such a network gives, ``(*batch, n·C, ...)``, as ``(n, *batch, *x_shape)``."""
    place = -len(dims.x_shape)
    return outputs.unflatten(place, (n, dims.x_shape[0])).movedim(place - 1, 0)
