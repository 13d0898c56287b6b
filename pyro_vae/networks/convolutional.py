"""Convolutional networks, for signals, images and volumes of any size and number of channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import gcd, prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pyro_vae.parts import Network, Shape
from pyro_vae.scopes import is_rebuilt

logger = logging.getLogger("pyro_vae")
_FEW = 4
"""An array (C, L) of more lines than this may be an image without channels."""
_CONVOLUTIONS: dict[int, tuple[Any, Any, str]] = {
    1: (nn.Conv1d, nn.ConvTranspose1d, "time steps"),
    2: (nn.Conv2d, nn.ConvTranspose2d, "pixels"),
    3: (nn.Conv3d, nn.ConvTranspose3d, "voxels"),
}
"""For each number of axes: the convolution, the one that doubles sizes, and what it goes over."""
_MOST = 1000
"""The largest number of residual blocks. He et al. 2016 trained a network of a thousand layers."""


@final
class Convolutional(Network):
    """An encoder, from a signal, an image or a volume to any shape, or a decoder, the reverse.

    The number of axes tells the kind: a signal (C, L), an image (C, H, W), or a volume (C, D, H, W). Each stage of an
    encoder halves every size but that of the channels, rounded up, and a decoder restores exactly the same sizes. There
    is no batch normalization, because it would make the bound of one datum depend on the other data.

    The side with more axes is the one with the signal, image or volume; with equally many, it is the input. A vector
    (L,) is taken for a signal of one channel where the other side is a vector at most half as long.

    Args:
        in_shape: the shape of one input, without leading dimensions.
        out_shape: the shape of one output, without leading dimensions.
        channels: the number of channels of each stage, from the data inwards.
        blocks: the number of residual blocks after each halving, 0 for none. Each block has two convolutions, with a
            nonlinearity before each (He et al. 2016).
        activation: the class of the nonlinearity, for example torch.nn.ReLU.

    Raises:
        ValueError: neither shape is a signal, an image or a volume, there is no stage, or the data are too small to be halved
            that often.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        blocks: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        if blocks > _MOST:
            raise ValueError(f"blocks: expected at most {_MOST} for each halving, got {blocks}")
        if not channels or min(channels) < 1 or blocks < 0:
            raise ValueError(
                f"channels and blocks: expected numbers of at least 1, and at least 0, got {list(channels)} and {blocks}"
            )
        encodes, grid = _grid(self.in_shape, self.out_shape)
        sizes, axes = _halved(grid[1:], len(channels)), len(grid) - 1
        convolution, transposed, _ = _CONVOLUTIONS[axes]
        inner = channels[-1], *sizes[-1]
        self.layers = nn.Sequential()
        if encodes:
            if axes == 1 and grid[0] > max(_FEW, grid[1] // 2):
                logger.warning(
                    "Convolutional: data of %d×%d are read as signals of %d channels. Images need an axis of channels: "
                    "--data.channels none adds it",
                    *grid,
                    grid[0],
                )
            if len(self.in_shape) == 1:
                self.layers.append(nn.Unflatten(-1, grid))
            for before, after in pairwise((grid[0], *channels)):
                self.layers.append(convolution(before, after, 3, stride=2, padding=1))
                self.layers.extend([_Residual(after, activation, convolution) for _ in range(blocks)])
                self.layers.append(activation())
            self.layers.extend([nn.Flatten(), nn.Linear(prod(inner), prod(out_shape))])
        else:
            self.layers.extend([nn.Flatten(), nn.Linear(prod(in_shape), prod(inner)), nn.Unflatten(1, inner)])
            outwards = [*reversed(channels), grid[0]]
            for i, target in enumerate(reversed(sizes[:-1])):
                self.layers.append(activation())
                self.layers.extend([_Residual(outwards[i], activation, convolution) for _ in range(blocks)])
                odd = tuple(1 - size % 2 for size in target)
                up = transposed(outwards[i], outwards[i + 1], 3, stride=2, padding=1, output_padding=odd)
                self.layers.append(up)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(*lead, *in_shape)`` to ``(*lead, *out_shape)``."""
        return _per_datum(self.layers, inputs, self.in_shape, self.out_shape)


@final
class Backbone(Network):
    """A classifier of torchvision as an encoder, with a new last layer.

    Batch normalization would make the bound of one datum depend on the other data. It is therefore replaced by
    group normalization or, if trained weights are loaded, it always uses the statistics that come with them. Images are
    scaled up to a size that the classifier can take.

    Args:
        in_shape: the shape of one image (C, H, W), without leading dimensions.
        out_shape: the shape of one output, without leading dimensions.
        name: the name of a model that ``torchvision.models.get_model`` knows, for example resnet18.
        weights: the name of that model's trained weights, for example DEFAULT, which are downloaded; without a name,
            the model is trained from scratch.
        size: the height and width to which smaller images are scaled.

    Raises:
        ValueError: the input is no image, or the name or the weights are unknown.
        OSError: the weights can be neither read nor downloaded. A saved model needs none: its own are in its folder.
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, name: str = "resnet18", weights: str | None = None, size: int = 64
    ) -> None:
        from torchvision import ops  # noqa: PLC0415  (the import takes a second; only this network needs it)

        super().__init__(in_shape, out_shape)
        if len(in_shape) != 3:
            raise ValueError(f"Backbone: expected images (channels, height, width) as its input, got shape {in_shape}")
        self.model = _classifier(name, weights)
        self.size, last = size, ""
        for path, layer in list(self.model.named_modules()):
            if isinstance(layer, nn.BatchNorm2d):
                norm: nn.Module = nn.GroupNorm(gcd(8, layer.num_features), layer.num_features)
                if weights:
                    norm = ops.FrozenBatchNorm2d(layer.num_features, eps=layer.eps)
                    norm.load_state_dict(layer.state_dict(), strict=False)
                self._replace(path, norm)
            last = path if isinstance(layer, nn.Linear) else last
        self._replace(last, nn.Linear(self.model.get_submodule(last).get_parameter("weight").shape[1], prod(out_shape)))
        self.to_color = nn.Identity() if in_shape[0] == 3 else nn.Conv2d(in_shape[0], 3, 1)

    def _replace(self, path: str, layer: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(*lead, C, H, W)`` to ``(*lead, *out_shape)``."""
        return _per_datum(self._features, inputs, self.in_shape, self.out_shape)

    def _features(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.size:
            images = interpolate(images, (self.size, self.size), mode="bilinear")
        features: Tensor = self.model(self.to_color(images))
        return features


_TRAINED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False}
}
"""What trained weights change in the architecture of a model, beside its numbers."""


def _classifier(name: str, weights: str | None) -> nn.Module:
    """A model of torchvision, with trained weights if they are named, unless a file is about to give it its weights.

    Raises:
        ValueError: there is no such model, or it has no such weights.
        OSError: the weights are not at hand and cannot be downloaded.
    """
    from torchvision import models  # noqa: PLC0415

    try:
        if weights and is_rebuilt():
            return models.get_model(name, weights=None, **_TRAINED.get(name, {}))
        return models.get_model(name, weights=weights)
    except (ValueError, KeyError) as error:
        raise ValueError(f"name: torchvision has no model {name!r} with weights {weights!r} ({error})") from None
    except OSError as error:
        raise OSError(
            f"weights: {weights} of {name} could be neither read from {torch.hub.get_dir()} nor downloaded ({error}): connect "
            f"once, or leave weights out to train from scratch"
        ) from error


class _Residual(nn.Module):
    """The residual block h + conv(act(conv(act(h)))) (He et al. 2016b, figure 1)."""

    def __init__(
        self, channels: int, activation: Callable[[], nn.Module], convolution: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            activation(),
            convolution(channels, channels, 3, padding=1),
            activation(),
            convolution(channels, channels, 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Returns a tensor of the same shape."""
        return h + self.layers(h)


def _grid(in_shape: Shape, out_shape: Shape) -> tuple[bool, Shape]:
    """Returns whether the input is the signal, image or volume, and its shape with channels.

    Raises:
        ValueError: no side is one, or it cannot be told which.
    """
    encodes = len(in_shape) >= len(out_shape)
    grid = in_shape if encodes else out_shape
    if len(grid) - 1 in _CONVOLUTIONS:
        return encodes, grid
    expected = (
        "Convolutional: expected a signal (channels, length), an image (channels, height, width) or a volume (channels, depth, "
        f"height, width) on one side, got {in_shape} and {out_shape}"
    )
    if len(grid) - 1 > max(_CONVOLUTIONS):
        raise ValueError(f"{expected}: there are no convolutions over {len(grid) - 1} axes: use MLP")
    if len(in_shape) == len(out_shape) == 1:
        longer, shorter = max(*in_shape, *out_shape), min(*in_shape, *out_shape)
        if longer >= 2 * shorter and longer > _FEW:
            return in_shape == (longer,), (1, longer)
    raise ValueError(f"{expected}: use MLP for vectors, or give signals a channel, (N, 1, L), by --data.channels none")


def _halved(size: Shape, times: int) -> list[Shape]:
    """Returns the size before each halving and after the last one."""
    sizes = [size]
    for _ in range(times):
        if max(sizes[-1]) < 2:
            what = _CONVOLUTIONS[len(size)][2]
            raise ValueError(
                f"channels: {'×'.join(map(str, size))} {what} cannot be halved {times} times; give at most {len(sizes) - 1} of "
                f"them"
            )
        sizes.append(tuple((each + 1) // 2 for each in sizes[-1]))
    return sizes


def _per_datum(function: Callable[[Tensor], Tensor], inputs: Tensor, in_shape: Shape, out_shape: Shape) -> Tensor:
    """Flattens the leading dimensions into one, calls the function, and restores them."""
    lead = inputs.shape[: inputs.dim() - len(in_shape)]
    outputs: Tensor = function(inputs.reshape(-1, *in_shape))
    return outputs.reshape(*lead, *out_shape)
