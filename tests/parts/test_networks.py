"""Networks: the shapes they map, and that no datum sees another."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.networks import MLP, Backbone, Convolutional, GatedMLP


@pytest.mark.parametrize("image", [(1, 28, 28), (3, 32, 32), (1, 17, 23), (2, 5, 4)])
@pytest.mark.parametrize("blocks", [0, 1])
def test_convolutions_map_any_image_both_ways(image, blocks):
    encoder = Convolutional(image, (7,), channels=[4, 8], blocks=blocks)
    decoder = Convolutional((7,), image, channels=[4, 8], blocks=blocks)
    x = torch.rand(3, 2, *image)
    assert encoder(x).shape == (3, 2, 7)
    assert decoder(encoder(x)).shape == x.shape
    torch.testing.assert_close(encoder(x)[1, 0], encoder(x[1, 0]))


def test_a_decoder_reaches_every_pixel():
    decoder = Convolutional((3,), (1, 17, 23), channels=[4, 8])
    images = decoder(torch.randn(50, 3))
    assert (images.std(0) > 0).all()


def test_gates_by_hand():
    network = GatedMLP((4,), (2,), hidden=[3])
    x = torch.randn(5, 4)
    a, b = network.layers[0](x).chunk(2, -1)
    torch.testing.assert_close(network(x), network.head(a * b.sigmoid()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_backbone_keeps_data_apart(name):
    network = Backbone((1, 28, 28), (5,), name=name, size=32).train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(network(x)[:2], network(x[:2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Convolutional((16,), (4,)), "expected an image .* on one side"),
        (
            lambda: Convolutional((1, 4, 4), (4,), channels=[2, 2, 2]),
            "4×4 pixels cannot be halved 3 times; give at most 2",
        ),
        (lambda: Convolutional((4,), (1, 2, 2), channels=[2, 2]), "2×2 pixels cannot be halved 2 times"),
        (lambda: Convolutional((1, 4, 4), (4,), channels=[]), "channels and blocks: expected"),
        (lambda: Backbone((4,), (2,)), "expected images"),
        (lambda: Backbone((1, 8, 8), (2,), name="resnet0"), "torchvision has no model 'resnet0'"),
        (lambda: Backbone((1, 8, 8), (2,), weights="BEST"), "no model 'resnet18' with weights 'BEST'"),
        (lambda: MLP((2,), (2,), hidden=[0]), "hidden"),
        (lambda: GatedMLP((2,), (2,), hidden=[0]), "hidden"),
    ],
)
def test_wrong_use_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
