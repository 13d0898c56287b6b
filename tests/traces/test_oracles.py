"""The linear-Gaussian oracle: bound, gradient, weights and log p(x) against their closed forms."""

from __future__ import annotations

import pytest
import torch
from helpers import CPU, independent_gradients, within
from oracles import LinearGaussian

from pyro_vae.data import Split
from pyro_vae.estimators import ELBO
from pyro_vae.evaluate import log_px
from pyro_vae.scopes import seeded
from pyro_vae.traces import particles


def test_elbo_is_log_px_minus_kl():
    oracle = LinearGaussian.random()
    x = oracle.data(4)
    with torch.no_grad(), seeded(CPU, 1):
        draws = particles(oracle.vae.model, oracle.vae.guide, x, K=100_000)
    within(draws.log_w, oracle.elbo(x).detach())
    # The gap to log p(x) is real, so the test above can tell one from the other.
    assert (oracle.log_px(x) - oracle.elbo(x) > 0.1).all()


def test_terms_are_the_exact_densities():
    oracle = LinearGaussian.random()
    x, vae = oracle.data(3), oracle.vae
    draws = particles(vae.model, vae.guide, x, K=7)
    t = draws.values["t"]
    m, log_s = vae.posterior.network(x).chunk(2, -1)
    normal = torch.distributions.Normal
    torch.testing.assert_close(draws.log_q, normal(m, log_s.exp()).log_prob(t).sum(-1))
    torch.testing.assert_close(draws.log_prior, normal(torch.zeros(2).double(), 1.0).log_prob(t).sum(-1))
    scale = oracle.variance.sqrt()
    torch.testing.assert_close(draws.log_lik, normal(t @ oracle.W.T + oracle.b, scale).log_prob(x).sum(-1))


def test_log_weights_are_constant_at_the_posterior():
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    x = oracle.data(5)
    draws = particles(oracle.vae.model, oracle.vae.guide, x, K=50)
    torch.testing.assert_close(draws.log_w, oracle.log_px(x).expand(50, 5), rtol=0, atol=1e-10)


@pytest.mark.parametrize("K", [1, 3])
def test_mean_gradient_is_the_closed_form(K):
    """By 60 estimates, each the mean over 40 copies of the data."""
    oracle = LinearGaussian.random()
    x = oracle.data(3)
    exact = torch.autograd.grad(oracle.elbo(x).mean(), list(oracle.vae.parameters()))
    _, found = independent_gradients(ELBO(K), oracle, x, runs=60, copies=40)
    for estimates, value in zip(found, exact, strict=True):
        within(estimates, value)
    assert max(value.abs().max() for value in exact) > 0.5


def test_importance_sampling_meets_log_px():
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    with torch.no_grad():  # wider than the posterior and off its mean: the weights vary and have a variance
        oracle.vae.posterior.network.layers[0].bias.add_(0.2)
    x = oracle.data(20)
    assert (oracle.log_px(x) - oracle.elbo(x) > 0.05).all()
    estimates = torch.stack([log_px(oracle.vae, Split(x), K=5_000, seed=seed) for seed in range(40)])
    # The logarithm of a mean is biased downwards by var(w)/2K: 40 times below the standard error of 40 runs here.
    within(estimates, oracle.log_px(x).detach())


def test_importance_sampling_is_exact_at_the_posterior():
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    x = oracle.data(7)
    torch.testing.assert_close(log_px(oracle.vae, Split(x), K=3), oracle.log_px(x).detach(), rtol=0, atol=1e-10)
