"""Labels: a conditional model is exact on a linear-Gaussian one, and its labels reach every path that its data take."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from helpers import ESTIMATORS, NETWORK, agree, refusing_unknown_kl, update_of
from oracles import affine
from torch.distributions import MultivariateNormal

from pyro_vae import VAE, Dims, fit, load
from pyro_vae.data import Digits, Split, Splits, columns_of
from pyro_vae.estimators import ELBO, IWAE, Objective
from pyro_vae.evaluate import active_units, draw_gradients, encode, log_px, reconstruct, sample
from pyro_vae.guides import DiagonalNormal, PerDatum
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.models import Conditional
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.traces import library_path, particles
from pyro_vae.training.step import Update

Y = torch.tensor([0, 1, 2, 2, 1, 0])
BITS = torch.bernoulli(torch.full((6, 1, 4, 4), 0.5), generator=torch.Generator().manual_seed(0))


def linear() -> tuple[Conditional, torch.Tensor, torch.Tensor, torch.Tensor]:
    """p(x|t,y) = N(W t + V e_y + b, σ² I), with q the posterior; data, labels, and log p(x|y)."""
    torch.manual_seed(0)
    dims = Dims(2, (5,), classes=3)
    parts = StandardNormal, partial(DiagonalNormal, network=affine), partial(Normal, network=affine, scale=0.7)
    model = Conditional(dims, *parts).double()
    s2 = (2 * model.likelihood.log_scale).exp()
    decoder, encoder = model.likelihood.network.layers[0], model.posterior.network.layers[0]
    with torch.no_grad():
        W = torch.linalg.qr(torch.randn(5, 2).double())[0] * torch.tensor([1.5, 0.6])
        V, b = torch.randn(5, 3).double(), torch.randn(5).double()
        decoder.weight.copy_(torch.cat([W, V], 1))
        decoder.bias.copy_(b)
        model.embedding.weight.copy_(torch.eye(3))
        variances = 1 / (1 + (W**2).sum(0) / s2)  # of the posterior, whose covariance is diagonal
        gain = variances[:, None] * W.T / s2
        encoder.weight.zero_()
        encoder.weight[:2], encoder.bias[:2] = torch.cat([gain, -gain @ V], 1), -gain @ b
        encoder.bias[2:] = variances.log() / 2
        x = model.model(y=Y)
    exact = MultivariateNormal(V.T[Y] + b, W @ W.T + s2 * torch.eye(5).double()).log_prob(x)
    return model, x, Y, exact


def small() -> Conditional:
    torch.manual_seed(0)
    parts = StandardNormal, partial(DiagonalNormal, network=NETWORK), partial(Bernoulli, network=NETWORK)
    return Conditional(Dims(2, (1, 4, 4), classes=3), *parts)


def test_log_weights_are_log_px_given_the_label():
    model, x, y, exact = linear()
    log_w = particles(model.model, model.guide, x, y, K=4).log_w
    torch.testing.assert_close(log_w, exact.expand(4, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_px(model, Split(x, y), K=3), exact, rtol=0, atol=1e-9)
    other = log_px(model, Split(x, (y + 1) % 3), K=1000)
    assert ((other - exact).abs() > 0.01).all()


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_every_estimator_reaches_every_parameter(cls):
    model = small()
    with refusing_unknown_kl(cls):
        _, found = cls(K=4).gradients(model.model, model.guide, list(model.parameters()), BITS, Y)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found)


def test_the_compiled_step_is_the_eager_one(traced):
    model = small()
    update = update_of(model, BITS, IWAE(3), y=Y)
    agree(update, tolerance=1e-3)
    split = Split(BITS, Y)
    found = [log_px(model, split, 7, compile=compile) for compile in ("on", "off")]
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


def test_on_the_meta_device():
    model = small().to("meta")
    x, y, leaves = BITS.to("meta"), Y.to("meta"), list(model.parameters())
    columns = Split(x, y).columns(("x", "y"))
    step = Update(model, ELBO(K=3), Objective(), columns, torch.optim.Adam(leaves), {"both": leaves})
    with library_path():
        assert step(torch.arange(6, device="meta"), 1.0, "both").bound.device.type == "meta"
    assert log_px(model, columns, 5).device.type == "meta"


def test_stock_pyro_trains_all_of_it():
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    svi.step(BITS, Y)
    assert all((p != was).any() for p, was in zip(model.parameters(), before, strict=True))


class Recording(torch.nn.Module):
    """A conditional model that sees in each datum which label it has, and keeps count."""

    inputs = ("x", "y")

    def __init__(self):
        super().__init__()
        self.inner, self.seen = small(), 0

    def check(self, x, y):
        assert torch.equal(x.flatten(1)[:, :3].argmax(1), y)
        self.seen += 1

    def model(self, x, y):
        self.check(x, y)
        return self.inner.model(x, y)

    def guide(self, x, y):
        self.check(x, y)
        return self.inner.guide(x, y)


def test_labels_follow_their_data():
    """In training, in evaluation and in gradients, whatever the order."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (40,), generator=generator)
    x = torch.bernoulli(torch.full((40, 1, 4, 4), 0.5), generator=generator)
    x.view(40, 16)[:, :3] = torch.nn.functional.one_hot(y, 3).float()
    splits = Splits(*[Split(x, y)] * 3, torch.distributions.constraints.boolean)
    assert splits.classes == 3
    model = Recording()
    (record,) = fit(model, splits, epochs=1, batch_size=7)
    assert np.isfinite(record.train.bound)
    log_px(model, splits.test, 3, batch_size=9)
    active_units(model, splits.test)
    draw_gradients(model, Split(x, y), ELBO(), 20, "seed")
    assert model.seen > 100


def test_images_of_labels():
    model = small()
    assert encode(model, Split(BITS, Y))["t"].shape == (6, 2)
    assert reconstruct(model, Split(BITS, Y)).shape == sample(model, 6, y=Y).shape == BITS.shape
    with pytest.raises(ValueError, match="expected a label for each of 5 data, got 6"):
        sample(model, 5, y=Y)
    with pytest.raises(ValueError, match=r"expected labels 0..2, got 0 to 7"):
        sample(model, 2, y=torch.tensor([0, 7]))


def test_programs_declare_what_they_are_called_with():
    """No argument name is looked at: what is not declared is not given."""
    split = Split(BITS, Y)
    undeclared = SimpleNamespace(model=lambda x, y=None: None, guide=lambda x, y=None: None)
    assert [len(columns_of(programs, split).take(slice(0, 2))) for programs in (undeclared, small())] == [1, 2]
    turned = SimpleNamespace(inputs=("y", "x"))
    assert torch.equal(columns_of(turned, split).take(slice(0, 2))[0], Y[:2])
    with pytest.raises(ValueError, match=r"expected names among \['x', 'y', 'labelled'\], got \['z'\]"):
        columns_of(SimpleNamespace(inputs=("x", "z")), split)
    with pytest.raises(ValueError, match="y: expected a label for each of 6 data, got 5"):
        columns_of(small(), Split(BITS, Y[:5]))


@pytest.mark.slow
def test_a_digit_of_the_class_that_was_asked_for():
    """Of 40 samples a class of Digits, after 12 epochs, at least 95 % are nearest to the mean image of their class."""
    torch.manual_seed(0)
    binary = Digits(binarize="fixed").load()
    network = partial(MLP, hidden=[64])
    parts = StandardNormal, partial(DiagonalNormal, network=network), partial(Bernoulli, network=network)
    model = Conditional(binary.dims(8), *parts)
    for _ in fit(model, binary, epochs=12, batch_size=50, optimizer=partial(torch.optim.Adam, lr=3e-3)):
        pass
    centers = torch.stack([binary.train.x[binary.train.labels == y].mean(0).flatten() for y in range(10)])
    y = torch.arange(10).repeat_interleave(40)
    images = sample(model, len(y), y=y).flatten(1)
    assert (torch.cdist(images, centers).argmin(1) == y).float().mean() > 0.95


OPTIONS = ["--epochs", "1", "--latent", "4", "--test_images", "20", "--test_particles", "5", "--out", "run"]


def test_from_the_command_line(script, tmp_path):
    code, out, err = script("train", "--model", "Conditional", *OPTIONS)
    assert (code, err) == (0, "")
    assert "Conditional: StandardNormal, DiagonalNormal, Binomial; d = 4" in out
    assert "log p(x|y) (importance sampling, K = 5)" in out
    model = load(tmp_path / "run")
    assert isinstance(model, Conditional)
    assert (model.classes, model.dims.latent, model.likelihood.dims.latent) == (10, 4, 14)
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} >= {"samples.png", "latents.png"}


def test_gradients_of_a_run(script, tmp_path):
    assert script("train", "--model", "Conditional", *OPTIONS)[0] == 0
    options = ["--run", "run", "--estimators", "[ELBO]", "--particles", "[1]", "--draws", "20", "--reference", "ELBO"]
    code, out, err = script("compare_estimators", "gradients", *options)
    assert (code, err) == (0, "")
    assert "ELBO" in out


def test_labels_that_leave_most_classes_empty(script, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.random((60, 4)), labels=np.append(rng.integers(0, 3, 59), 2020.0))
    data = ["--data", "Arrays", "--data.path", "x.npz", "--data.valid", "10", "--data.test", "10", "--batch_size", "10"]
    code, _, err = script("train", "--model", "Conditional", *data, *OPTIONS)
    assert code == 1
    assert "there would be 2021 of them for 40 training data" in " ".join(err.split())


def test_data_without_labels_are_refused(script, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((50, 4)))
    data = ["--data", "Arrays", "--data.path", "x.npy", "--data.valid", "10", "--data.test", "10", "--batch_size", "10"]
    code, _, err = script("train", "--model", "Conditional", *data, *OPTIONS)
    assert code == 1
    assert "Conditional: needs data with a label for each datum" in " ".join(err.split())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small().model(BITS), "called with labels too"),
        (lambda: small().guide(BITS), "called with labels too"),
        (lambda: log_px(small(), Split(BITS), 2), "are given labels y with the data, and these data have none"),
        (
            lambda: Conditional(Dims(2, (4,), classes=2), VampPrior, DiagonalNormal, Bernoulli),
            "VampPrior uses the other parts",
        ),
        (
            lambda: Conditional(Dims(2, (1, 4, 4), train=BITS, classes=2), StandardNormal, PerDatum, Bernoulli),
            "PerDatum .* needs the training data",
        ),
    ],
)
def test_wrong_use_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_that_are_no_classes():
    def classes(labels):
        return Splits(*[Split(BITS, labels)] * 3, torch.distributions.constraints.boolean).classes

    assert classes(None) is classes(-Y) is classes(Y.float()) is None
    assert classes(Y + 1) == 4


def test_a_plain_model_takes_no_labels():
    dims = Dims(2, (1, 4, 4))
    vae = VAE(StandardNormal(dims), DiagonalNormal(dims, NETWORK), Bernoulli(dims, NETWORK))
    assert len(columns_of(vae, Split(BITS, Y)).take(slice(0, 2))) == 1
