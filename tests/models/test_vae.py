"""The VAE as an ordinary Pyro program: stock SVI, Predictive, handlers; estimators in stock SVI."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from oracles import LinearGaussian
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_vae import VAE, Dims, fit
from pyro_vae.estimators import ELBO
from pyro_vae.evaluate import evaluate_bound
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli, Binomial
from pyro_vae.priors import StandardNormal

DIMS = Dims(3, (1, 4, 4))
X = torch.bernoulli(torch.full((50, 1, 4, 4), 0.5), generator=torch.Generator().manual_seed(0))


def small(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(StandardNormal(DIMS), DiagonalNormal(DIMS), Bernoulli(DIMS))


def weights(vae: VAE) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in vae.parameters()])


def svi_steps(vae: VAE, steps: int = 30, loss=None) -> list[float]:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss or Trace_ELBO())
    return [svi.step(X) for _ in range(steps)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_vaes_both_learn_with_stock_svi(order):
    vaes = small(0), small(1)
    for i in order:
        before = weights(vaes[i])
        losses = svi_steps(vaes[i])
        assert sum(losses[-5:]) < sum(losses[:5])
        assert ((weights(vaes[i]) - before) != 0).double().mean() > 0.9


def test_a_deep_copy_learns_and_leaves_the_original_alone():
    vae = small()
    svi_steps(vae, 2)
    twin = copy.deepcopy(vae)
    kept, before = weights(vae), weights(twin)
    svi_steps(twin, 2)
    assert not torch.equal(weights(twin), before)
    assert torch.equal(weights(vae), kept)


def test_two_vaes_both_learn_with_fit_and_the_store_stays_empty(digits):
    for seed in (0, 1):
        dims = digits.dims(2)
        torch.manual_seed(seed)
        vae = VAE(StandardNormal(dims), DiagonalNormal(dims), Binomial(dims, total_count=16))
        untrained = evaluate_bound(vae, digits.valid, ELBO(), 100, 0).terms().bound
        first, second = (record.valid.bound for record in fit(vae, digits, epochs=2))
        assert second > first > untrained + 5
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("K", [1, 7])
def test_elbo_equals_trace_elbo(K):
    """Value and gradient, for the same random numbers."""
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(6)
    results = []
    for loss in (Trace_ELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1), ELBO(K)):
        vae.zero_grad()
        torch.manual_seed(3)
        with poutine.scale(scale=2.5):
            value = loss.loss_and_grads(vae.model, vae.guide, x)
        results.append([torch.tensor(value).double(), *(p.grad.clone() for p in vae.parameters())])
    for stock, own in zip(*results, strict=True):
        torch.testing.assert_close(own, stock, rtol=1e-6, atol=1e-9)


def test_elbo_in_stock_svi():
    vae = small()
    losses = svi_steps(vae, loss=ELBO(K=3))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert ELBO().loss(vae.model, vae.guide, X) > 0


def test_sites_and_plate():
    vae = small()
    trace = poutine.trace(vae.model).get_trace(X)
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["data", "t", "x"]
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["t"]["fn"].batch_shape == (50,)
    assert trace.nodes["t"]["fn"].event_shape == (3,)


def test_predictive_and_handlers():
    vae = small()
    drawn = Predictive(vae.model, num_samples=5)(None, n=7)
    assert drawn["x"].shape == (5, 7, 1, 4, 4)
    posterior = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=5)(X)
    assert posterior["x"].shape == (5, *X.shape)
    zero = poutine.condition(vae.model, data={"t": torch.zeros(50, 3)})
    assert (poutine.trace(zero).get_trace(X).nodes["t"]["value"] == 0).all()
    assert vae.model(n=4).shape == (4, 1, 4, 4)


def test_parts_that_do_not_fit_are_refused():
    other, wide = Dims(2, (1, 4, 4)), Dims(3, (1, 4, 5))
    with pytest.raises(ValueError, match="different latent sizes"):
        VAE(StandardNormal(other), DiagonalNormal(DIMS), Bernoulli(DIMS))
    with pytest.raises(ValueError, match=r"guide takes x of shape \(1, 4, 4\), likelihood gives \(1, 4, 5\)"):
        VAE(StandardNormal(DIMS), DiagonalNormal(DIMS), Bernoulli(wide))
    with pytest.raises(TypeError, match="guide"):
        VAE(StandardNormal(DIMS), StandardNormal(DIMS), Bernoulli(DIMS))
    with pytest.raises(ValueError, match=r"a batch of shape \(N, 1, 4, 4\) is expected, got shape \(50, 4, 4\)"):
        small().guide(X[:, 0])
