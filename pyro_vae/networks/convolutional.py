"""Convolutional networks, for images of any size and number of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import gcd, prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pyro_vae.parts import Network, Shape
from pyro_vae.scopes import is_rebuilt

_MOST = 1000
"""The largest number of residual blocks. He et al. 2016 trained a network of a thousand layers."""


@final
class Convolutional(Network):
    """An encoder, from an image (C, H, W) to any shape, or a decoder, from any other shape to an image.

    Each stage of an encoder halves height and width, rounded up, and a decoder restores exactly the same sizes. There
    is no batch normalization, because it would make the bound of one datum depend on the other data.

    Args:
        in_shape: the shape of one input, without leading dimensions.
        out_shape: the shape of one output, without leading dimensions.
        channels: the number of channels of each stage, from the image inwards.
        blocks: the number of residual blocks after each halving, 0 for none. Each block has two convolutions, with a
            nonlinearity before each (He et al. 2016).
        activation: the class of the nonlinearity.

    Raises:
        ValueError: neither shape is an image, there is no stage, or the image is too small to be halved that often.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        blocks: int = 0,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        if blocks > _MOST:
            raise ValueError(f"blocks: expected at most {_MOST} for each halving, got {blocks}")
        if not channels or min(channels) < 1 or blocks < 0:
            raise ValueError(
                f"channels and blocks: expected numbers of at least 1, and at least 0, got {list(channels)} and {blocks}"
            )
        if len(in_shape) == 3:
            sizes = _halved(in_shape, len(channels))
            self.layers = nn.Sequential()
            for before, after in pairwise((in_shape[0], *channels)):
                self.layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
                self.layers.extend([_Residual(after, activation) for _ in range(blocks)])
                self.layers.append(activation())
            self.layers.extend([nn.Flatten(), nn.Linear(channels[-1] * prod(sizes[-1]), prod(out_shape))])
        elif len(out_shape) == 3:
            sizes = _halved(out_shape, len(channels))
            inner = channels[-1], *sizes[-1]
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(prod(in_shape), prod(inner)), nn.Unflatten(1, inner))
            outwards = [*reversed(channels), out_shape[0]]
            for i, target in enumerate(reversed(sizes[:-1])):
                self.layers.append(activation())
                self.layers.extend([_Residual(outwards[i], activation) for _ in range(blocks)])
                odd = 1 - target[0] % 2, 1 - target[1] % 2
                up = nn.ConvTranspose2d(outwards[i], outwards[i + 1], 3, stride=2, padding=1, output_padding=odd)
                self.layers.append(up)
        else:
            raise ValueError(
                f"Convolutional: expected an image (channels, height, width) on one side, got {in_shape} and {out_shape}: "
                f"use MLP"
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(*lead, *in_shape)`` to ``(*lead, *out_shape)``."""
        return _per_image(self.layers, inputs, self.in_shape, self.out_shape)


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
        return _per_image(self._features, inputs, self.in_shape, self.out_shape)

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

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Returns a tensor of the same shape."""
        return h + self.layers(h)


def _halved(shape: Shape, times: int) -> list[tuple[int, int]]:
    """Returns height and width before each halving and after the last one."""
    sizes = [(shape[1], shape[2])]
    for _ in range(times):
        if max(sizes[-1]) < 2:
            raise ValueError(
                f"channels: {shape[1]}×{shape[2]} pixels cannot be halved {times} times; give at most {len(sizes) - 1} of them"
            )
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _per_image(function: Callable[[Tensor], Tensor], inputs: Tensor, in_shape: Shape, out_shape: Shape) -> Tensor:
    """Flattens the leading dimensions into one, calls the function, and restores them."""
    lead = inputs.shape[: inputs.dim() - len(in_shape)]
    outputs: Tensor = function(inputs.reshape(-1, *in_shape))
    return outputs.reshape(*lead, *out_shape)
