"""Networks: the shapes they map, and that no datum sees another."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import agree, update_of
from torch import autograd, nn

from pyro_vae import VAE, Dims
from pyro_vae.compilation import compiled
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Normal
from pyro_vae.networks import MLP, Backbone, Convolutional, GatedMLP
from pyro_vae.priors import StandardNormal
from pyro_vae.traces import library_path


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


SIZES = [(1,), (2,), (3,), (7,), (100,), (101,), (1, 2), (5, 4), (3, 17), (2, 3, 4), (1, 9, 1), (5, 5, 5), (7, 2, 11)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("lead", [(), (3,), (4, 3)], ids=str)
def test_signals_images_and_volumes_of_any_size(size, blocks, lead):
    """Also odd sizes, and such as are smaller than the kernel of 3."""
    times = (max(size) - 1).bit_length()  # how often the longest axis can be halved
    if not times:
        with pytest.raises(ValueError, match="cannot be halved 1 times; give at most 0"):
            Convolutional((2, *size), (7,), channels=[3])
        return
    channels = [3, 4, 2][: min(3, times)]
    encoder = Convolutional((2, *size), (7,), channels=channels, blocks=blocks)
    decoder = Convolutional((7,), (2, *size), channels=channels, blocks=blocks)
    x = torch.rand(*lead, 2, *size)
    h = encoder(x)
    assert h.shape == (*lead, 7)
    assert decoder(h).shape == x.shape
    if lead == (4, 3):  # each datum by itself
        torch.testing.assert_close(h[1, 2], encoder(x[1, 2]))
        torch.testing.assert_close(decoder(h)[1, 2], decoder(h[1, 2]))


def test_images_have_the_weights_that_they_had():
    """By name and shape, so that runs of before are loaded."""
    names = [name for name, _ in Convolutional((1, 8, 8), (4,), blocks=1).named_parameters()]
    assert names[:3] == ["layers.0.weight", "layers.0.bias", "layers.1.layers.1.weight"]
    assert Convolutional((4,), (1, 8, 8)).layers[4].weight.shape == (64, 32, 3, 3)


@pytest.mark.parametrize("size", [(64,), (33, 40), (17, 18, 20)], ids=str)
def test_every_number_depends_on_its_neighborhood_alone(size):
    """Two stages see 7 numbers on an axis, and a decoder's number those that 7 numbers around it come from."""
    encoder = Convolutional((2, *size), (5,), channels=[3, 4]).double()
    decoder = Convolutional((5,), (2, *size), channels=[3, 4]).double()
    x = torch.rand(1, 2, *size, dtype=torch.float64).requires_grad_()
    features = encoder.layers[:-2](x)
    at = tuple(each // 2 for each in features.shape[2:])
    (gradient,) = torch.autograd.grad(features[(0, 0, *at)], x)
    reached = gradient.abs().sum((0, 1)).nonzero()
    for axis, place in enumerate(at):
        assert reached[:, axis].min() == 4 * place - 3
        assert reached[:, axis].max() == 4 * place + 3
    inner = torch.randn(1, *features.shape[1:], dtype=torch.float64).requires_grad_()
    made = decoder.layers[3:](inner)
    assert made.shape == x.shape
    place = tuple(each // 2 for each in size)
    (gradient,) = torch.autograd.grad(made[(0, 1, *place)], inner)
    reached = gradient.abs().sum((0, 1)).nonzero()
    for axis, there in enumerate(place):
        assert (4 * reached[:, axis] - there).abs().max() <= 3
        assert len(reached[:, axis].unique()) <= 2


def test_a_decoder_reaches_every_number_of_signals_and_volumes():
    for shape in ((3, 101), (1, 5, 6, 7)):
        assert (Convolutional((3,), shape, channels=[4, 8])(torch.randn(50, 3)).std(0) > 0).all()


@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((100,), (16,)), ((16,), (100,)), ((6,), (3,)), ((2, 3), (1, 4, 4))]
)
def test_vectors_are_signals_of_one_channel_where_that_is_clear(in_shape, out_shape):
    network = Convolutional(in_shape, out_shape, channels=[4])
    assert network(torch.randn(5, *in_shape)).shape == (5, *out_shape)
    kinds = {type(layer).__name__ for layer in network.layers}
    assert (len(in_shape) == 1) == bool(kinds & {"Conv1d", "ConvTranspose1d"})
    assert ("Conv1d" in kinds) == (in_shape in ((100,), (6,)))


def test_images_without_channels_are_told(caplog):
    Convolutional((28, 28), (7,))
    assert "28×28 are read as signals of 28 channels" in caplog.text
    assert "--data.channels none" in caplog.text
    caplog.clear()
    for shape in ((4, 28), (32, 1000), (1, 3), (1, 28, 28)):
        Convolutional(shape, (7,), channels=[4])
    assert not caplog.text


@pytest.mark.parametrize("shape", [(40,), (2, 33), (1, 5, 6, 7)], ids=str)
def test_a_training_step_of_convolutions_on_the_meta_device(shape):
    network = partial(Convolutional, channels=[3, 4], blocks=1)
    with torch.device("meta"):
        dims = Dims(2, shape)
        vae = VAE(StandardNormal(dims), DiagonalNormal(dims, network), Normal(dims, network))
    update = update_of(vae, torch.empty(6, *shape, device="meta"))
    with library_path():
        assert update(torch.arange(6, device="meta"), 1.0, "both").bound.device.type == "meta"


@pytest.mark.parametrize("shape", [(40,), (2, 33), (1, 5, 6, 7)], ids=str)
def test_compiled_convolutions_are_the_eager_ones(shape, traced):
    network, dims = partial(Convolutional, channels=[3, 4], blocks=1), Dims(2, shape)
    vae = VAE(StandardNormal(dims), DiagonalNormal(dims, network), Normal(dims, network))
    agree(update_of(vae, torch.randn(8, *shape)))


@pytest.mark.slow
def test_compiled_convolutions_in_full():
    """Signals with channels both ways, and volumes into numbers, in one graph with its gradient."""
    networks = nn.ModuleList(
        [
            Convolutional((2, 9), (3,), channels=[3], blocks=1),
            Convolutional((3,), (2, 9), channels=[3]),
            Convolutional((1, 5, 4, 3), (2,), channels=[3]),
        ]
    )

    def all_of(swapped, held, x, t, v):
        found = [network(each) for network, each in zip(networks, (x, t, v), strict=True)]
        return [each.detach() for each in found] + list(
            autograd.grad(sum(each.square().sum() for each in found), swapped)
        )

    leaves, inputs = list(networks.parameters()), [torch.randn(4, 2, 9), torch.randn(4, 3), torch.randn(4, 1, 5, 4, 3)]
    found = compiled(networks, all_of, leaves, inputs, {})(*inputs)
    for one, other in zip(found, all_of(leaves, leaves, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


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
        (lambda: Convolutional((16,), (9,)), "expected a signal .* on one side, got .*use MLP.*--data.channels none"),
        (lambda: Convolutional((4,), (2,)), "expected a signal"),
        (lambda: Convolutional((), (2,)), "expected a signal"),
        (lambda: Convolutional((), ()), "expected a signal"),
        (lambda: Convolutional((1, 4, 4, 4, 4), (2,)), "no convolutions over 4 axes: use MLP"),
        (lambda: Convolutional((2,), (1, 4, 4, 4, 4)), "no convolutions over 4 axes: use MLP"),
        (
            lambda: Convolutional((1, 5), (4,), channels=[2] * 4),
            "5 time steps cannot be halved 4 times; give at most 3",
        ),
        (lambda: Convolutional((4,), (1, 2, 2, 2), channels=[2, 2]), "2×2×2 voxels cannot be halved 2 times"),
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
