"""From any Pyro model and guide to log-probabilities (K, B)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pyro import poutine
from torch import nn
from torch.distributions import Distribution

from pyro_vae.traces import crossed, draw_latents, library_path, observed, parameters, particles, simulate, singles

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def two_layers(x):
    """t2 ~ N(0, 1), t1 ~ N(t2, 1), x_j ~ N(t1, 1), the pixels in a plate of their own."""
    with pyro.plate("data", len(x), dim=-2):
        t2 = pyro.sample("t2", dist.Normal(torch.zeros(()), 1.0))
        t1 = pyro.sample("t1", dist.Normal(t2, 1.0))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(t1, 1.0), obs=x)


def two_layers_guide(x):
    with pyro.plate("data", len(x), dim=-2):
        t1 = pyro.sample("t1", dist.Normal(x.mean(1, keepdim=True), 0.5))
        pyro.sample("t2", dist.Normal(t1 / 2, 0.7))


def test_plates_of_pixels_and_two_layers():
    draws = particles(two_layers, two_layers_guide, X, K=4, max_plate_nesting=2)
    t1, t2 = (draws.values[name].reshape(4, 6) for name in ("t1", "t2"))
    normal = torch.distributions.Normal
    torch.testing.assert_close(draws.model["x"], normal(t1[..., None], 1.0).log_prob(X).sum(-1))
    torch.testing.assert_close(draws.log_prior, normal(0.0, 1.0).log_prob(t2) + normal(t2, 1.0).log_prob(t1))
    torch.testing.assert_close(draws.log_q, normal(X.mean(1), 0.5).log_prob(t1) + normal(t1 / 2, 0.7).log_prob(t2))
    torch.testing.assert_close(draws.log_w, draws.log_lik + draws.log_prior - draws.log_q)
    assert draws.observed == {"x"}


def test_plate_dimensions_that_pyro_allocates():
    def model(x):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(t[..., None], 1.0).expand(t.shape + (3,)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Normal(x.mean(1), 0.5))

    assert particles(model, guide, X, K=5).log_w.shape == (5, 6)


def test_scales_stay_out_and_are_reported():
    oracle = LinearGaussian.random()
    x = oracle.data(6)

    def run(model, guide):
        torch.manual_seed(1)
        return particles(model, guide, x, K=2)

    plain = run(oracle.vae.model, oracle.vae.guide)
    scaled = run(poutine.scale(oracle.vae.model, 100.0), poutine.scale(oracle.vae.guide, 100.0))
    assert (plain.scale, scaled.scale) == (1.0, 100.0)
    torch.testing.assert_close(plain.log_w, scaled.log_w, rtol=0, atol=0)


def test_subsampled_plate():
    def model(x):
        with pyro.plate("data", 600, subsample_size=6):
            t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(t[..., None], 1.0).expand(t.shape + (3,)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 600, subsample_size=6):
            pyro.sample("t", dist.Normal(x.mean(1), 0.5))

    draws = particles(model, guide, X, K=2)
    assert draws.scale == 100.0
    t = draws.values["t"]
    torch.testing.assert_close(draws.log_lik, torch.distributions.Normal(t[..., None], 1.0).log_prob(X).sum(-1))


def test_model_and_guide_see_the_same_subsample():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(t, 1e-3), obs=x[index, 0])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("t", dist.Normal(x[index, 0], 1e-3))

    for latents in ("path", "fixed", "leaves"):
        for seed in range(5):
            torch.manual_seed(seed)
            assert (particles(model, guide, X, latents=latents).log_lik > -20).all()


@pytest.mark.parametrize(("model", "guide", "nesting"), [(two_layers, two_layers_guide, 2)])
def test_the_three_kinds_of_latents_have_the_same_densities(model, guide, nesting):
    draws = []
    for latents in ("path", "fixed", "leaves"):
        torch.manual_seed(2)
        draws.append(particles(model, guide, X, K=3, max_plate_nesting=nesting, latents=latents))
    for other in draws[1:]:
        torch.testing.assert_close(other.log_w, draws[0].log_w)
    at = draws[0].guide_at(draws[0].values)
    torch.testing.assert_close(sum(at.values()), draws[0].log_q)


def test_mask_counts():
    oracle = LinearGaussian.random()
    x, mask = oracle.data(4), torch.tensor([True, False, True, True])
    draws = particles(poutine.mask(oracle.vae.model, mask), oracle.vae.guide, x, K=3)
    assert (draws.log_lik[:, 1] == 0).all()
    assert (draws.log_lik[:, 0] != 0).all()


def test_different_scales_are_refused():
    oracle = LinearGaussian.random()
    with pytest.raises(ValueError, match="different scales"):
        particles(poutine.scale(oracle.vae.model, 0.5), oracle.vae.guide, oracle.data(2))


def no_plate(x):
    pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=x[0])


def no_plate_guide(x):
    del x
    pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))


def other_latent(x):
    with pyro.plate("other", len(x), dim=-1):
        pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))


def test_programs_that_do_not_fit_are_refused():
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(2)
    with pytest.raises(ValueError, match="data plate"):
        particles(no_plate, no_plate_guide, x)
    with pytest.raises(ValueError, match="does not sample the model's latent sites"):
        particles(vae.model, lambda x: None, x)
    with pytest.raises(ValueError, match="not latent sites of the model"):
        particles(vae.model, lambda x: (vae.guide(x), other_latent(x)), x)
    with pytest.raises(ValueError, match="max_plate_nesting above 1"):
        particles(two_layers, two_layers_guide, X)
    with pytest.raises(ValueError, match="observes nothing"):
        particles(lambda x: vae.model(n=len(x)), vae.guide, x)
    with pytest.raises(ValueError, match="at least 1"):
        particles(vae.model, vae.guide, x, K=0)


def test_encoder_runs_once_per_datum():
    oracle = LinearGaussian.random()
    seen = []
    oracle.vae.posterior.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    particles(oracle.vae.model, oracle.vae.guide, oracle.data(4), K=9)
    assert seen == [(4, 5)]


def test_library_path_leaves_store_and_flags_alone():
    oracle = LinearGaussian.random()
    flags = Distribution._validate_args
    with library_path():
        particles(oracle.vae.model, oracle.vae.guide, oracle.data(2))
        assert not Distribution._validate_args
    assert Distribution._validate_args is flags
    assert len(pyro.get_param_store()) == 0


def test_parameters_of_model_and_guide():
    oracle = LinearGaussian.random()
    vae = oracle.vae
    w, phi = parameters(vae.model, vae.guide, oracle.data(2))
    assert {id(p) for p in w.values()} == {id(p) for p in (*vae.prior.parameters(), *vae.likelihood.parameters())}
    assert {id(p) for p in phi.values()} == {id(p) for p in vae.posterior.parameters()}


def test_parameters_of_bare_pyro_params():
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(t[..., None], scale).expand(t.shape + (3,)).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Normal(loc, 1.0))

    w, phi = parameters(model, guide, X)
    torch.testing.assert_close(w["scale"].exp().detach(), torch.tensor(2.0))
    assert list(phi) == ["loc"]
    assert all(value.is_leaf for value in (*w.values(), *phi.values()))


def test_a_shared_parameter_counts_as_the_guides():
    shared = nn.Linear(1, 1)

    def model(x):
        pyro.module("shared", shared)
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(shared.bias[0], 1.0))
            pyro.sample("x", dist.Normal(t[..., None], 1.0).expand(t.shape + (3,)).to_event(1), obs=x)

    def guide(x):
        pyro.module("shared", shared)
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Normal(shared.bias[0], 1.0))

    w, phi = parameters(model, guide, X)
    assert (len(w), len(phi)) == (0, 2)


def test_observed_and_draw_latents():
    oracle = LinearGaussian.random()
    x = oracle.data(3)
    t = draw_latents(oracle.vae.guide, x)["t"]
    distribution = observed(oracle.vae.model, x, values={"t": t})["x"]
    torch.testing.assert_close(distribution.mean, t @ oracle.W.T + oracle.b)


def test_simulation_draws_what_is_observed_too():
    torch.manual_seed(0)
    latents, seen = simulate(two_layers, X)
    assert (list(latents), list(seen)) == (["t2", "t1"], ["x"])
    assert latents["t1"].shape == (6, 1)
    assert seen["x"].shape == X.shape
    assert not (seen["x"] == X).any()

    def factored(x):
        two_layers(x)
        pyro.factor("f", torch.zeros(()))

    with pytest.raises(ValueError, match=r"the factors \['f'\]"):
        simulate(factored, X)


def test_given_values_of_the_first_particle():
    """What the guide draws after them is given them, and all densities are at them; other particles are drawn as they are."""
    latents, _ = simulate(two_layers, X)
    first = {"t1": latents["t1"], "t2": latents["t2"]}
    torch.manual_seed(1)
    draws = particles(two_layers, two_layers_guide, X, K=4, max_plate_nesting=2, first=first)
    t1, t2 = (draws.vectors(name)[..., 0] for name in ("t1", "t2"))
    assert torch.equal(t1[0], first["t1"][:, 0])
    assert torch.equal(t2[0], first["t2"][:, 0])
    assert not (t1[1:] == t1[0]).any()
    normal = torch.distributions.Normal
    torch.testing.assert_close(draws.log_q, normal(X.mean(1), 0.5).log_prob(t1) + normal(t1 / 2, 0.7).log_prob(t2))
    torch.testing.assert_close(draws.model["x"], normal(t1[..., None], 1.0).log_prob(X).sum(-1))
    torch.manual_seed(1)
    alone = particles(two_layers, two_layers_guide, X, K=4, max_plate_nesting=2, first={"t1": torch.full((6, 1), 50.0)})
    assert ((alone.vectors("t2")[0] - 25).abs() < 5).all()
    torch.testing.assert_close(alone.vectors("t1")[1:], draws.vectors("t1")[1:])


def test_latents_as_vectors():
    """All numbers of a datum, in the order of its plates and of its event, whichever dimension the data have."""

    def program(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("times", 4, dim=-2):
            pyro.sample("t", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
            if x is X:
                return
            pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=x.mean(1))

    draws = particles(lambda x: program(x + 0), lambda x: program(X), X, K=5, max_plate_nesting=2)
    assert draws.values["t"].shape == (5, 4, 6, 2, 3)
    expected = draws.values["t"].movedim(2, 1).reshape(5, 6, 24)
    assert torch.equal(draws.vectors("t"), expected)


def test_crossed_is_the_density_of_every_draw_for_every_datum():
    """Two latents, of which the second depends on the first and on x, with the data left of another plate."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pair", 2, dim=-1):
            a = pyro.sample("a", dist.Normal(x, 1.0))
            pyro.sample("b", dist.Normal(torch.stack([a + x, a * x], -1), 0.5).to_event(1))

    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pair", 2, dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 2.0))
            pyro.sample("b", dist.Normal(torch.stack([a, a], -1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    x, K = torch.randn(3, 2), 4
    draws = particles(model, guide, x, K=K, max_plate_nesting=2)
    latents = singles(draws)
    assert {name: value.shape for name, value in latents.items()} == {"a": (12, 1, 2), "b": (12, 1, 2, 2)}
    found = crossed(guide, latents, x, max_plate_nesting=2)
    a, b = (draws.values[name].flatten(0, 1)[:, None] for name in ("a", "b"))  # (K B, 1, 2), (K B, 1, 2, 2)
    torch.testing.assert_close(found["a"], dist.Normal(x, 1.0).log_prob(a).sum(-1))
    exact = dist.Normal(torch.stack([a + x, a * x], -1), 0.5).log_prob(b).sum((-1, -2))
    torch.testing.assert_close(found["b"], exact)
    own = found["a"].unflatten(0, (K, 3)).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(own, draws.guide["a"])
    of_model = crossed(model, latents, x, max_plate_nesting=2)
    torch.testing.assert_close(of_model["a"], draws.model["a"].reshape(12, 1).expand(12, 3))
