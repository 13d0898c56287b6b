"""Densities of given latents: the same as those of a run of the programs, in coordinates that are all real numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import BITS, DIMS, REAL_GUIDES, REAL_PRIORS, build, vae_of
from torch.distributions import constraints

from pyro_vae import models
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal
from pyro_vae.traces import Unconstrained, inputs_of, library_path, observed, particles, simulate_arguments

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def one(values):
    """A parameter of a distribution, in float64."""
    return torch.tensor(values, dtype=torch.float64)


def many_supports(x):
    """Latents of many supports, some in plates of their own; that of t2 depends on t1."""
    with pyro.plate("data", len(x), dim=-2):
        t1 = pyro.sample("t1", dist.Gamma(one(2.0), 1.5))
        t2 = pyro.sample("t2", dist.Uniform(0.0, t1))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            t3 = pyro.sample("t3", dist.Normal(t2, 1.0))
        t4 = pyro.sample("t4", dist.Dirichlet(torch.ones(3, dtype=x.dtype)))
        t5 = pyro.sample("t5", dist.Beta(one([2.0, 3.0]), 1.5).to_event(1))
        t6 = pyro.sample("t6", dist.LKJCholesky(3, one(1.3)))
        scale = (t4[..., 0] + t5.sum(-1) + t6[..., 2, 1] ** 2).exp()
        with pyro.plate("pixels again", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(t3, scale), obs=x)


def guide_of_many_supports(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("t6", dist.LKJCholesky(3, one(2.0)))
        t1 = pyro.sample("t1", dist.LogNormal(x.mean(1, keepdim=True), 0.5))
        pyro.sample("t2", dist.Uniform(0.2 * t1, 0.9 * t1))
        pyro.sample("t4", dist.Dirichlet(one([1.0, 2.0, 3.0])))
        pyro.sample("t5", dist.Beta(one(2.0), 2.0).expand([2]).to_event(1))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("t3", dist.Normal(x, 0.7))


def test_the_ratio_is_the_importance_weight_whatever_the_supports_and_plates():
    draws = particles(many_supports, guide_of_many_supports, X, K=4, max_plate_nesting=2)
    joint = Unconstrained(many_supports, guide_of_many_supports, X, K=4, max_plate_nesting=2)
    z = joint.at(draws.values, 4)
    assert z.shape == (4, 6, 1 + 1 + 3 + 2 + 2 + 3)
    torch.testing.assert_close(joint(z).ratio, draws.log_w)
    prior = Unconstrained(many_supports, None, X, K=4, max_plate_nesting=2)
    torch.testing.assert_close(prior(z).ratio, draws.log_lik)
    torch.testing.assert_close(sum(prior(z)), sum(joint(z)))  # log p(x,t) with the Jacobian


def test_the_jacobian_is_that_of_the_coordinates():
    """Of a Gamma, a uniform whose end depends on it, and a Dirichlet with a free coordinate less."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            t1 = pyro.sample("t1", dist.Gamma(one(2.0), 1.5))
            t2 = pyro.sample("t2", dist.Uniform(0.0, t1))
            t3 = pyro.sample("t3", dist.Dirichlet(one([1.0, 2.0, 3.0])))
            pyro.sample("x", dist.Normal(t1 + t2 + t3[..., 0], 1.0), obs=x[:, 0])

    joint = Unconstrained(model, None, X[:1], K=1)
    z = torch.randn(1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def latents(z):
        t1 = z[0].exp()
        t3 = torch.distributions.biject_to(constraints.simplex)(z[2:])
        return torch.cat([torch.stack([t1, t1 * z[1].sigmoid()]), t3[:-1]])

    log_det = torch.autograd.functional.jacobian(latents, z[0, 0]).slogdet().logabsdet
    t1, t2, *t3 = latents(z[0, 0])
    whole = torch.stack([*t3, 1 - sum(t3)])
    log_prior = dist.Gamma(one(2.0), 1.5).log_prob(t1) - t1.log() + dist.Dirichlet(one([1.0, 2.0, 3.0])).log_prob(whole)
    torch.testing.assert_close(joint(z).start[0, 0], log_prior + log_det)
    assert 0 < t2 < t1


@pytest.mark.parametrize("cls", [*REAL_PRIORS, *REAL_GUIDES], ids=lambda cls: cls.__name__)
def test_every_prior_and_guide(cls):
    """Also those that are random beyond their sites, whose distribution is kept."""
    vae, x = vae_of(cls), BITS[:5]
    with library_path(), torch.no_grad():
        vae.eval()
        joint = Unconstrained(vae.model, vae.guide, x, K=3)
        z = joint.draw()
        found = joint(z)
        log_p = vae.prior().log_prob(z) + vae.likelihood(vae.prior.seen(z)).log_prob(x)
    torch.testing.assert_close(sum(found), log_p, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(joint(z).start, found.start)
    assert joint.repeats == (cls.__name__ != "SemiAmortized")


@pytest.mark.parametrize("cls", [models.TwoLayer, models.Ladder, models.Conditional], ids=lambda cls: cls.__name__)
def test_every_model(cls):
    dims = DIMS if cls is not models.Conditional else vae_dims_with_classes()
    model = cls(
        dims, lambda d: build(StandardNormal, d), lambda d: build(DiagonalNormal, d), lambda d: build(Bernoulli, d)
    )
    batch = (BITS[:4], torch.tensor([0, 1, 2, 1]))[: len(inputs_of(model))]
    with library_path(), torch.no_grad():
        draws = particles(model.model, model.guide, *batch, K=3)
        joint = Unconstrained(model.model, model.guide, *batch, K=3)
        torch.testing.assert_close(joint(joint.at(draws.values, 3)).ratio, draws.log_w, rtol=1e-4, atol=1e-4)
        latents, drawn = simulate_arguments(model.model, *batch, inputs=inputs_of(model))
    assert set(latents) == set(draws.values)
    assert drawn[0].shape == batch[0].shape
    assert not torch.equal(drawn[0], batch[0])
    assert all(torch.equal(a, b) for a, b in zip(drawn[1:], batch[1:], strict=True))  # labels stay


def vae_dims_with_classes():
    return DIMS.__class__(2, (1, 4, 4), train=BITS, classes=3)


def programs(latent, guide=None):
    """A model whose latent has this distribution, and a guide."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", latent())
            t = t.flatten(t.dim() - 1).sum(-1) if t.dim() > 1 and t.shape[-1] != len(x) else t
            pyro.sample("x", dist.Normal(t.to(x.dtype), 1.0), obs=x)

    def default(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", (guide or latent)())

    return SimpleNamespace(model=model, guide=default)


def noisy(x):
    with pyro.plate("data", len(x), dim=-1):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(t + torch.rand(()), 1.0), obs=x)


def without_latents(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def without_data(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("t", dist.Normal(0.0, 1.0))


REFUSED = {
    "'t' is discrete .Categorical.": programs(lambda: dist.Categorical(torch.ones(3))),
    "'t' is discrete .Bernoulli.": programs(lambda: dist.Bernoulli(torch.tensor(0.5))),
    "'t' is a point mass": programs(lambda: dist.Normal(0.0, 1.0), lambda: dist.Delta(torch.tensor(0.3))),
    "no bijection .* .ProjectedNormal.": programs(lambda: dist.ProjectedNormal(torch.zeros(2))),
    "not in the support of the model": programs(lambda: dist.Uniform(0.0, 1.0), lambda: dist.Uniform(0.0, 2.0)),
    "from all real numbers": programs(lambda: dist.Gamma(2.0, 1.0), lambda: dist.Normal(0.0, 1.0)),
    "model is random beyond its sample sites": SimpleNamespace(model=noisy, guide=without_data),
    "no latent site": SimpleNamespace(model=without_latents, guide=without_data),
    "observes nothing": SimpleNamespace(model=without_data, guide=without_data),
}


@pytest.mark.parametrize("message", REFUSED)
def test_programs_that_do_not_fit_are_refused(message):
    of = REFUSED[message]
    with pytest.raises(ValueError, match=message), library_path():
        Unconstrained(of.model, of.guide, X[:, 0].float(), K=3)


def test_a_guide_without_an_inverse_is_refused():
    flow = dist.transforms.Planar(2)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(t[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow]))

    with pytest.raises(ValueError, match="cannot score latents that it did not draw"):
        Unconstrained(model, guide, X[:, 0].float(), K=3)


def test_what_cannot_be_simulated_is_refused():
    def parts(x):
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(t, 1.0), obs=x[:, 0])

    def autoregressive(x):
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
            pyro.sample("x", dist.Normal(before + t[..., None], 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="observes at site 'a' is none of its arguments"):
        simulate_arguments(parts, X, inputs=("x",))
    with pytest.raises(ValueError, match="the distribution at site 'x' depends on what the model observes"):
        simulate_arguments(autoregressive, X, inputs=("x",))


def test_gaps_of_the_data_are_gaps_of_what_is_drawn():
    """Also where a model fills in and masks missing values itself."""

    def model(x):
        there = ~x.isnan()
        with pyro.plate("data", len(x), dim=-2):
            t = pyro.sample("t", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("pixels", x.shape[1], dim=-1):
                pyro.sample("x", dist.Normal(t, 1.0).mask(there), obs=torch.where(there, x, 0.0))

    x = X.masked_fill(X > 0.5, torch.nan)
    _, (drawn,) = simulate_arguments(model, x, inputs=("x",))
    assert torch.equal(drawn.isnan(), x.isnan())
    assert x.isnan().any()


def test_deterministic_values_are_not_drawn():
    """Pyro counts them as observed, so that to draw what is observed would give them another shape."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            s = pyro.deterministic("s", 2 * t)
            pyro.sample("x", dist.Normal(s, 1.0), obs=x)

    latents, (drawn,) = simulate_arguments(model, X[:, 0], inputs=("x",))
    assert list(latents) == ["t"]
    assert drawn.shape == (6,)
    assert observed(model, X[:, 0])["x"].batch_shape == (6,)
