"""Posteriors, samples without an x, ways between data, predictive draws, and exported encoders and decoders."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import BITS, DIMS, LIKELIHOODS, N_SE, parts_of, vae_of, with_gaps, within
from oracles import LinearGaussian

import pyro_vae.evaluate as ev
from pyro_vae.data import Split
from pyro_vae.guides import (
    DiagonalNormal,
    Householder,
    InverseAutoregressive,
    MixtureOfNormals,
    SemiAmortized,
)
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.models import Conditional, Ladder, TwoLayer
from pyro_vae.priors import VampPrior

Y = torch.arange(20) % 3


MODELS = {
    "Gaussian": lambda: vae_of(DiagonalNormal),
    "affine flow": lambda: vae_of(Householder),
    "flow": lambda: vae_of(InverseAutoregressive),
    "mixture": lambda: vae_of(MixtureOfNormals),
    "prior of the guide": lambda: vae_of(VampPrior),
    "two layers": lambda: parts_of(TwoLayer, top=3),
    "ladder": lambda: parts_of(Ladder, top=3),
    "labels": lambda: parts_of(Conditional, dims=replace(DIMS, classes=3)),
    "missing": lambda: vae_of(DiagonalNormal, dims=replace(DIMS, missing=True)),
}


def data_of(name, size=6):
    x = with_gaps(BITS[:size]) if name == "missing" else BITS[:size]
    return Split(x, Y[:size]) if name == "labels" else x


class Chosen(torch.nn.Module):
    """A program of a user's own with a discrete latent."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(16, 3)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample(
                "x", dist.Normal(z[..., None, None, None].expand(*z.shape, 1, 4, 4).float(), 1.0).to_event(3), obs=x
            )

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x.flatten(1))))


def test_the_posterior_of_a_gaussian_is_in_closed_form_and_so_are_its_draws():
    oracle = LinearGaussian.random(2, 5)
    oracle.set_guide_to_posterior()
    x = oracle.data(7)
    found = ev.posterior(oracle.vae, x, draws=2000, batch_size=3)["t"]
    exact = oracle.posterior(x)
    assert found.exact
    torch.testing.assert_close(found.mean, exact.mean.detach())
    torch.testing.assert_close(found.scale, exact.stddev.expand(7, 2).detach())
    within(found.draws, found.mean)
    within((found.draws - found.mean) ** 2, found.scale**2)
    assert torch.equal(ev.posterior(oracle.vae, x, draws=2000, batch_size=3)["t"].draws, found.draws)


def test_a_posterior_without_a_closed_form_is_that_of_its_draws():
    found = ev.posterior(vae_of(InverseAutoregressive), BITS[:4], draws=50)["t"]
    assert not found.exact
    torch.testing.assert_close(found.mean, found.draws.mean(0))
    torch.testing.assert_close(found.scale, found.draws.std(0))
    discrete = ev.posterior(Chosen(), BITS[:4], draws=50)["z"]
    torch.testing.assert_close(discrete.mean, discrete.draws.float().mean(0))


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_has_posteriors_samples_predictions_and_ways(name):
    model, data = MODELS[name](), data_of(name)
    y = Y[:5] if name == "labels" else None
    found = ev.posterior(model, data, draws=20, batch_size=4)
    sizes = {"t": 2} | ({"t2": 3} if name in ("two layers", "ladder") else {})
    assert {site: each.draws.shape for site, each in found.items()} == {k: (20, 6, d) for k, d in sizes.items()}
    assert all(each.mean.isfinite().all() and (each.scale > 0).all() for each in found.values())
    in_closed_form = {"two layers": {"t"}, "ladder": {"t2"}, "flow": set(), "affine flow": set()}.get(name, {"t"})
    assert {site for site, each in found.items() if each.exact} == in_closed_form
    assert ev.sample(model, 5, y=y).shape == (5, 1, 4, 4)
    drawn = ev.posterior_predictive(model, data, 3, batch_size=4)
    assert drawn.shape == (3, 6, 1, 4, 4)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    for how in ("linear", "spherical"):
        way = ev.interpolate(model, data, data, 3, how)
        assert way.shape == (3, 6, 1, 4, 4)
        torch.testing.assert_close(way[0], way[2])


def test_samples_without_an_x_are_those_like_an_x():
    vae = vae_of(Bernoulli).double()
    assert torch.equal(ev.sample(vae, 4), ev.sample(vae, 4, like=BITS.double()))
    assert ev.sample(vae, 4).dtype == torch.float64
    with pytest.raises(ValueError, match="like: these programs do not say what shape a datum has"):
        ev.sample(Chosen(), 4)
    assert ev.sample(Chosen(), 4, like=BITS).shape == (4, 1, 4, 4)
    with pytest.raises(ValueError, match="n: expected at least 1"):
        ev.sample(vae, 0)


def test_predictive_draws_have_the_moments_of_the_model():
    """x' = W t + b + σ ε with t ~ N(m, s²)."""
    oracle = LinearGaussian.random(2, 5)
    x = oracle.data(3)
    drawn = ev.posterior_predictive(oracle.vae, x, 4000)
    m, log_s = oracle.vae.posterior.network(x).chunk(2, -1)
    mean = (m @ oracle.W.T + oracle.b).detach()
    within(drawn, mean)
    variance = (2 * log_s).exp() @ (oracle.W**2).T + oracle.variance
    within((drawn - mean) ** 2, variance.detach())
    assert N_SE * drawn.std() / 4000**0.5 < 0.2


def test_ways_are_straight_or_turn_at_a_constant_angle():
    oracle = LinearGaussian.random(2, 5)
    with torch.no_grad():
        oracle.b.zero_()
        oracle.vae.likelihood.network.layers[0].bias.zero_()
        oracle.vae.likelihood.offset.zero_()
    x_a, x_b = oracle.data(3, 1), oracle.data(3, 2)
    a, b = (ev.posterior(oracle.vae, x)["t"].mean for x in (x_a, x_b))
    inverse = torch.linalg.pinv(oracle.W.detach())
    straight = ev.interpolate(oracle.vae, x_a, x_b, 5) @ inverse.T
    for k in range(5):
        torch.testing.assert_close(straight[k], a + k / 4 * (b - a))
    turned = ev.interpolate(oracle.vae, x_a, x_b, 5, "spherical") @ inverse.T
    torch.testing.assert_close(turned[0], a)
    torch.testing.assert_close(turned[4], b)
    lengths = turned.norm(dim=-1)
    torch.testing.assert_close(lengths.diff(dim=0), ((lengths[4] - lengths[0]) / 4).expand(4, 3))
    unit = turned / lengths[..., None]
    angles = (unit[1:] * unit[:-1]).sum(-1).arccos()
    torch.testing.assert_close(angles, angles[0].expand(4, 3))


def test_refusals():
    vae, conditional = vae_of(DiagonalNormal), MODELS["labels"]()
    for function, message in (
        (lambda: ev.posterior(vae, BITS[:2], draws=1), "draws and batch_size"),
        (lambda: ev.posterior_predictive(vae, BITS[:2], draws=0), "draws and batch_size"),
        (lambda: ev.posterior(vae, with_gaps(BITS[:4])), "build the model for such data"),
        (lambda: ev.interpolate(vae, BITS[:2], BITS[:2], 1), "steps: expected at least 2"),
        (lambda: ev.interpolate(vae, BITS[:2], BITS[:3]), "x_a and x_b: expected equal shapes"),
        (lambda: ev.interpolate(Chosen(), BITS[:2], BITS[:2]), "no way between values of 'z', which is discrete"),
        (lambda: ev.interpolate(conditional, Split(BITS[:2], Y[:2]), Split(BITS[:2], Y[1:3])), "their labels differ"),
        (lambda: ev.sample(conditional, 4), "these data have none"),
        (lambda: ev.export_encoder(vae_of(SemiAmortized)), "guide: it cannot be exported"),
    ):
        with pytest.raises(ValueError, match=message):
            function()

    class Functions:
        model, guide = vae.model, vae.guide

    with pytest.raises(ValueError, match=r"programs: export takes a model and a guide in one nn\.Module"):
        ev.export_encoder(Functions(), like=BITS)


def loaded(program, path):
    torch.export.save(program, path)
    return torch.export.load(path).module()


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_encoder_and_decoder_give_the_same_numbers_for_any_number_of_data(name, tmp_path):
    model, data = MODELS[name](), data_of(name, 7)
    given = (data.x, data.labels) if name == "labels" else (data,)
    encoder = loaded(ev.export_encoder(model), tmp_path / "encoder.pt2")
    torch.manual_seed(3)
    found, posterior = encoder(*given), ev.posterior(model, data, draws=3)
    for site, each in posterior.items():
        assert (f"{site}_mean" in found) == each.exact
        if each.exact:
            torch.testing.assert_close(found[f"{site}_mean"], each.mean)
            torch.testing.assert_close(found[f"{site}_scale"], each.scale)
        if name != "mixture":
            assert found[site].shape == each.mean.shape
    if name != "mixture":  # whose draws are not exported
        model.eval()
        torch.manual_seed(3)
        with torch.no_grad():
            drawn = model.guide(*given)
        for value, t in zip(
            drawn if isinstance(drawn, tuple) else (drawn,), (found[site] for site in posterior), strict=True
        ):
            torch.testing.assert_close(t, value)
    decoder = loaded(ev.export_decoder(model), tmp_path / "decoder.pt2")
    for size in (1, 7):
        t, y = torch.randn(size, 2), Y[:size] if name == "labels" else None
        made = decoder(t) if y is None else decoder(t, y)
        torch.testing.assert_close(made, ev.decode(model, {"t": t}, y=y))


@pytest.mark.parametrize("cls", [each for each in LIKELIHOODS if each.__name__ != "DiscretizedLogistic"])
def test_the_decoder_of_every_likelihood_is_exported(cls):
    """That of DiscretizedLogistic too; its mean is a sum over 256 levels, which takes 20 seconds here."""
    vae = vae_of(cls)
    t = torch.randn(5, 2)
    torch.testing.assert_close(ev.export_decoder(vae).module()(t), ev.decode(vae, {"t": t}))


def test_both_are_written_into_a_folder(tmp_path):
    vae = vae_of(DiagonalNormal)
    state = {name: value.clone() for name, value in vae.state_dict().items()}
    encoder, decoder = ev.export(vae, tmp_path / "new" / "folder")
    t = torch.export.load(encoder).module()(BITS[:4])["t_mean"]
    torch.testing.assert_close(torch.export.load(decoder).module()(t), ev.decode(vae, {"t": t}))
    assert vae.training
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    Chosen_ = Chosen()
    with pytest.raises(ValueError, match="like: these programs do not say"):
        ev.export(Chosen_, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_program_of_a_users_own_with_a_discrete_latent_is_exported():
    programs = Chosen()
    decoder = ev.export_decoder(programs, like=BITS).module()
    z = torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(decoder(z), ev.decode(programs, {"z": z}, BITS))
