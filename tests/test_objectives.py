"""Objectives change what is optimized, by exactly their formula, and never the bound that is reported."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from oracles import LinearGaussian
from test_estimators import CASES, Quadrature, log_mean
from test_oracles import within
from torch.distributions import Normal, constraints, kl_divergence
from torch.optim import SGD

from pyro_vae import fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, IWAE, STL, VIMCO, AnalyticKL, DReG, ScoreFunction
from pyro_vae.objectives import Objective
from pyro_vae.particles import library_path
from pyro_vae.programs import seeded

CPU = torch.device("cpu")


def kl_to_prior(oracle, x):
    m, log_s = oracle.vae.posterior.network(x).chunk(2, -1)
    return kl_divergence(Normal(m, log_s.exp()), Normal(oracle.a, torch.ones_like(oracle.a))).sum(-1)


def weighted_elbo(beta, oracle, x):
    return (oracle.elbo(x) + (1 - beta) * kl_to_prior(oracle, x)).mean()


def weighted_iwae(beta, oracle, x):
    q = Quadrature(oracle, x, 2, 60)
    log_prior = Normal(oracle.a, 1.0).log_prob(q.t)
    return q.mean(log_mean(q.log_p - log_prior + beta * (log_prior - q.log_q)))


@pytest.mark.parametrize("beta", [0.3, 2.0])
@pytest.mark.parametrize(
    ("estimator", "exact"),
    [
        (ELBO(2), weighted_elbo),
        (AnalyticKL(2), weighted_elbo),
        (STL(2), weighted_elbo),
        (ScoreFunction(2, control="leave-one-out"), weighted_elbo),
        (IWAE(2), weighted_iwae),
        (DReG(2), weighted_iwae),
        (VIMCO(2), weighted_iwae),
    ],
)
def test_beta_weighs_the_kl(estimator, exact, beta):
    oracle = LinearGaussian.random(d=1, n=2)
    vae, x = oracle.vae, oracle.data(2)
    parameters = list(vae.parameters())
    expected = torch.autograd.grad(exact(beta, oracle, x), parameters)
    many, found = x.repeat(1000, 1), []
    with library_path(), seeded(CPU, 5):
        for _ in range(100):
            estimate = estimator.estimate(vae.model, vae.guide, many, objective=Objective(beta=beta))
            found.append(torch.autograd.grad(estimate.surrogate.mean(), parameters))
    for estimates, value in zip(zip(*found, strict=True), expected, strict=True):
        within(torch.stack(estimates), value)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("objective", [Objective(beta=0.0), Objective(beta=4.0), Objective(free_nats=100.0)])
def test_the_reported_bound_is_the_bound(name, objective):
    estimator, _ = CASES[name]
    oracle = LinearGaussian.random()
    bounds = []
    for chosen in (None, objective):
        torch.manual_seed(1)
        bounds.append(estimator.estimate(oracle.vae.model, oracle.vae.guide, oracle.data(3), objective=chosen).bound)
    assert torch.equal(*bounds)


def test_warm_up():
    objective = Objective(beta=2.0, warm_up=4)
    assert [objective.weight(epoch) for epoch in (1, 2, 4, 5, 100)] == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_free_nats_cost_nothing():
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(50)
    kl = kl_to_prior(oracle, x).mean().item()

    def surrogate(objective):
        torch.manual_seed(1)
        return AnalyticKL().estimate(vae.model, vae.guide, x, objective=objective).surrogate.mean().item()

    assert surrogate(Objective(free_nats=2 * kl)) == surrogate(Objective(beta=0.0))
    assert surrogate(Objective(free_nats=kl / 2)) == surrogate(Objective())
    assert surrogate(Objective(beta=0.0)) - surrogate(Objective()) == pytest.approx(kl)


def test_without_noise_and_kl_it_is_the_plain_autoencoder():
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(6)
    estimate = ELBO(2).estimate(vae.model, vae.guide, x, objective=Objective(beta=0.0, noise=False))
    m = vae.posterior(x).mean
    torch.testing.assert_close(estimate.surrogate, vae.likelihood(m).log_prob(x))
    # The bound beside it is that of the noisy guide.
    assert not torch.allclose(estimate.bound, vae.likelihood(m).log_prob(x))
    found = torch.autograd.grad(estimate.surrogate.sum(), list(vae.posterior.parameters()))
    exact = torch.autograd.grad(vae.likelihood(m).log_prob(x).sum(), list(vae.posterior.parameters()))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


def test_without_noise_with_kl():
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(6)
    estimate = AnalyticKL().estimate(vae.model, vae.guide, x, objective=Objective(noise=False))
    expected = vae.likelihood(vae.posterior(x).mean).log_prob(x) - kl_to_prior(oracle, x)
    torch.testing.assert_close(estimate.surrogate, expected)


def test_refusals():
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(2)
    for make, message in (
        (lambda: Objective(beta=-1.0), "beta of at least 0, got -1"),
        (lambda: Objective(warm_up=-1), "warm_up"),
        (lambda: Objective(free_nats=-1.0), "free_nats"),
        (
            lambda: ELBO().estimate(vae.model, vae.guide, x, objective=Objective(noise=False)),
            "use the estimator AnalyticKL",
        ),
        (
            lambda: ScoreFunction().estimate(vae.model, vae.guide, x, objective=Objective(beta=0.0, noise=False)),
            "φ acts through t alone, which ScoreFunction does not differentiate",
        ),
        (lambda: fit(vae, splits(oracle), epochs=1, e_steps=2), "e_steps and m_steps: expected both 0 or both"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def splits(oracle):
    split = Split(oracle.data(120))
    return Splits(split, split, split, constraints.real)


def test_em_steps_move_one_side_at_a_time():
    """Cycles of 2 E and 1 M steps run on over epochs of 4 steps."""
    oracle = LinearGaussian.random()
    vae, moved = oracle.vae, []
    state = {"w": None, "phi": None}

    def flat(*modules):
        return torch.cat([p.detach().flatten().clone() for module in modules for p in module.parameters()])

    class Watch(SGD):
        def step(self, closure=None):
            state.update(w=flat(vae.prior, vae.likelihood), phi=flat(vae.posterior))
            super().step(closure)
            now = {"w": flat(vae.prior, vae.likelihood), "phi": flat(vae.posterior)}
            moved.append({name for name in now if not torch.equal(now[name], state[name])})

    optimizer = partial(Watch, lr=1e-3)
    for _ in fit(vae, splits(oracle), epochs=3, batch_size=30, optimizer=optimizer, e_steps=2, m_steps=1):
        pass
    assert moved == [{"phi"}, {"phi"}, {"w"}] * 4
