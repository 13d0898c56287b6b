"""Every estimator against the exact value and the exact gradient of its own objective.

The oracle has d = 1, so that expectations over K particles are Gauss-Hermite quadratures over ε in K dimensions, and their
gradients follow by differentiating the quadrature. Monte Carlo means agree within N_SE of their standard errors.
"""

from __future__ import annotations

from copy import deepcopy

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import ALL, CASES, ESTIMATORS, exact_gradients, independent_gradients, within
from oracles import LinearGaussian, log_mean, oracle_and_data
from pyro import poutine
from pyro.infer import RenyiELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vae import Guide
from pyro_vae.estimators import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    RWS,
    STL,
    TVO,
    VIMCO,
    AnalyticKL,
    DReG,
    Objective,
    Renyi,
    ScoreFunction,
    Stock,
)
from pyro_vae.traces import particles

CPU = torch.device("cpu")
MEAN = Tensor.mean


def test_every_estimator_is_here():
    assert {type(estimator) for estimator, _ in ALL.values()} == set(ESTIMATORS)


@pytest.mark.parametrize("name", ALL)
def test_value_and_mean_gradient(name):
    estimator, exact = ALL[name]
    oracle, x = oracle_and_data()
    value, expected = exact_gradients(exact, oracle, x)
    many = estimator.K >= 100  # biased by O(1/K), and averaged over its own particles
    values, found = independent_gradients(estimator, oracle, x, runs=100, copies=20 if many else 1000)
    within(values, value)
    for gradient, estimates in zip(expected, found, strict=True):
        within(estimates, gradient)
        error = estimates.std(0) / len(estimates) ** 0.5
        assert (error < 0.05).all(), "the test could not tell a wrong gradient"


@pytest.mark.parametrize("name", [name for name in ALL if name != "Stock(RenyiELBO)"])
def test_scale_multiplies_the_loss_and_its_gradient(name):
    """Plate and handler scales stay out of the logarithms: at scale 2.5 loss and gradient are 2.5 times those at 1."""
    oracle = LinearGaussian.random(d=2)
    x, outcomes = oracle.data(5), []
    for scale in (1.0, 2.5):
        estimator = deepcopy(ALL[name][0])  # which begins to learn anew
        if estimator.K >= 100:
            estimator = TVO(5, partitions=3)
        oracle.vae.zero_grad()
        torch.manual_seed(3)
        with poutine.scale(scale=scale):
            loss = estimator.loss_and_grads(oracle.vae.model, oracle.vae.guide, x)
        outcomes.append([torch.tensor(loss).double(), *(p.grad.clone() for p in oracle.vae.parameters())])
    for one, scaled in zip(*outcomes, strict=True):
        torch.testing.assert_close(2.5 * one, scaled, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", [STL(3), IWAE(3, stl=True), DReG(3), RWS(3, dreg=True)])
def test_zero_gradient_at_the_posterior(estimator):
    """By φ the gradient of each draw is zero, not only its mean; those of ELBO and IWAE are not."""

    def largest(estimator):
        estimate = estimator.estimate(oracle.vae.model, oracle.vae.guide, x)
        return max(g.abs().max() for g in torch.autograd.grad(estimate.surrogate.mean(), phi))

    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    x, phi = oracle.data(4), list(oracle.vae.posterior.parameters())
    assert largest(estimator) < 1e-12
    assert largest(ELBO(3)) > 1e-2
    assert largest(IWAE(3)) > 1e-2


@pytest.mark.parametrize("stl_like", [STL(2), DReG(2), IWAE(2, stl=True)])
def test_two_stochastic_layers(stl_like):
    """STL and DReG through a chain t1 -> t2 of the guide: means agree with ELBO's and IWAE's."""
    torch.manual_seed(0)
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.8], [-0.5]], dtype=torch.float64).repeat(4000, 1)
    zero = torch.zeros((), dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            t2 = pyro.sample("t2", dist.Normal(zero, 1.0))
            t1 = pyro.sample("t1", dist.Normal(t2, 1.0))
            pyro.sample("x", dist.Normal(t1, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            t1 = pyro.sample("t1", dist.Normal(a * x[:, 0], 0.8))
            pyro.sample("t2", dist.Normal(a * t1, (0.5 * a).exp()))

    def mean_gradient(estimator):
        draws = []
        for _ in range(60):
            surrogate = estimator.estimate(model, guide, x).surrogate.mean()
            draws.append(torch.autograd.grad(surrogate, a)[0])
        return torch.stack(draws)

    plain = mean_gradient(ELBO(2) if isinstance(stl_like, STL) else IWAE(2))
    other = mean_gradient(stl_like)
    error = (plain.var() / 60 + other.var() / 60).sqrt()
    difference = (plain.mean() - other.mean()).abs()
    if isinstance(stl_like, IWAE):  # known to be biased
        assert difference > 4.5 * error
    else:
        assert difference < 4.5 * error
    assert error < 0.01


def same_numbers(estimator, stock, vae, x):
    outcomes = []
    for loss in (stock, estimator):
        vae.zero_grad()
        torch.manual_seed(3)
        value = loss.loss_and_grads(vae.model, vae.guide, x)
        outcomes.append([torch.tensor(value).double(), *(p.grad.clone() for p in vae.parameters())])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("K", [1, 4])
def test_analytic_kl_equals_trace_mean_field(K):
    oracle = LinearGaussian.random()
    stock = TraceMeanField_ELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    same_numbers(AnalyticKL(K), stock, oracle.vae, oracle.data(5))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_renyi_equals_pyros(alpha):
    oracle = LinearGaussian.random()
    stock = RenyiELBO(alpha, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    same_numbers(Renyi(4, alpha=alpha), stock, oracle.vae, oracle.data(5))


def test_score_function_takes_guides_without_rsample():
    """q = Poisson(exp φ), p(t) = Poisson(2), p(x|t) = N(t, 1): the mean gradient against the sum over t."""
    phi = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.3]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Poisson(torch.tensor(2.0, dtype=torch.float64)))
            pyro.sample("x", dist.Normal(t, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Poisson(phi.exp()))

    t = torch.arange(60, dtype=torch.float64)
    log_q = dist.Poisson(phi.exp()).log_prob(t)
    log_p = dist.Poisson(torch.tensor(2.0).double()).log_prob(t) + dist.Normal(t, 1.0).log_prob(x[0, 0])
    (exact,) = torch.autograd.grad((log_q.exp() * (log_p - log_q)).sum(), phi)
    many = x.repeat(2000, 1)
    for estimator in (ScoreFunction(1), ScoreFunction(2, control="leave-one-out"), ScoreFunction(1, control="running")):
        draws = [
            torch.autograd.grad(estimator.estimate(model, guide, many).surrogate.mean(), phi)[0] for _ in range(100)
        ]
        within(torch.stack(draws), exact)
    for estimator in (VIMCO(3), RWS(3), TVO(3)):
        assert estimator.estimate(model, guide, many).surrogate.requires_grad
    for estimator in (ELBO(), STL(), IWAE(), DReG(), Renyi(), MIWAE(), PIWAE(), CIWAE(), RWS(dreg=True), AnalyticKL()):
        with pytest.raises(ValueError, match=rf"{type(estimator).__name__} .*sites \['t'\] have no rsample"):
            estimator.estimate(model, guide, x)


def test_control_variates_lower_the_variance():
    oracle, x = oracle_and_data()

    def variance(estimator):
        _, found = independent_gradients(estimator, oracle, x, runs=200, copies=20)
        return sum(estimates.var(0).sum() for estimates in found[1:3])  # of φ

    plain = variance(ScoreFunction(2))
    assert variance(ScoreFunction(2, control="running")) < plain
    assert variance(ScoreFunction(2, control="leave-one-out")) < plain
    assert variance(ELBO(2)) < plain


def test_encoder_runs_once_for_every_estimator():
    oracle = LinearGaussian.random()
    seen = []
    oracle.vae.posterior.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    for case, _ in CASES.values():
        estimator = deepcopy(case)
        estimator.prepare(oracle.vae.model, oracle.vae.guide, oracle.data(4))
        seen.clear()
        estimator.estimate(oracle.vae.model, oracle.vae.guide, oracle.data(4))
        assert seen == [(4, 5)], estimator


class StudentT(Guide):
    """A guide whose KL to a Normal is not known to PyTorch."""

    def __init__(self, dims):
        super().__init__(dims)
        self.loc = torch.nn.Parameter(torch.zeros(dims.latent, dtype=torch.float64))

    def forward(self, x):
        return dist.StudentT(5.0, self.loc.expand(len(x), -1), 1.0).to_event(1)


def test_analytic_kl_never_samples():
    oracle = LinearGaussian.random()
    oracle.vae.posterior = StudentT(oracle.vae.dims)
    with pytest.raises(ValueError, match="no closed-form KL is known at site 't' from StudentT to Normal"):
        AnalyticKL().estimate(oracle.vae.model, oracle.vae.guide, oracle.data(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IWAE(0), "K: expected at least 1"),
        (lambda: VIMCO(1), "VIMCO: expected K of at least 2, got 1"),
        (lambda: RWS(1), "RWS: expected K of at least 2"),
        (lambda: TVO(1), "TVO: expected K of at least 2"),
        (lambda: TVO(2, partitions=0), "TVO: expected a partition"),
        (lambda: Renyi(2, alpha=1.0), "alpha = 1 is a limit"),
        (lambda: CIWAE(2, beta=-0.1), r"beta in \[0, 1\], got -0.1"),
        (lambda: MIWAE(M=0), "MIWAE: expected M of at least 1"),
        (lambda: PIWAE(M=0), "PIWAE: expected M of at least 1"),
        (lambda: ScoreFunction(1, control="leave-one-out"), "ScoreFunction: expected K of at least 2"),
        (lambda: ScoreFunction(1, decay=1.0), r"decay in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pyros_renyi_is_wrong_under_a_scale():
    """It leaves the scale inside the logarithm; this is why ours exists, and what a comparison shows."""
    oracle = LinearGaussian.random()
    losses = []
    for estimator in (Stock(4, RenyiELBO, {"alpha": 0.0}), Renyi(4, alpha=0.0)):
        for scale in (1.0, 2.5):
            torch.manual_seed(3)
            with poutine.scale(scale=scale):
                losses.append(estimator.loss(oracle.vae.model, oracle.vae.guide, oracle.data(5)))
    assert losses[3] == pytest.approx(2.5 * losses[2])
    assert losses[1] != pytest.approx(2.5 * losses[0], rel=0.01)


def test_stock_refuses_an_objective():
    oracle = LinearGaussian.random()
    with pytest.raises(ValueError, match="no weight of the KL"):
        Stock().estimate(oracle.vae.model, oracle.vae.guide, oracle.data(2), objective=Objective(beta=2.0))


def test_vimco_replaces_each_weight_by_the_geometric_mean_of_the_others():
    """The signal L - L^(-k) by its definition: the mean of the gradient does not depend on it, its variance does."""
    oracle = LinearGaussian.random()
    draws = particles(oracle.vae.model, oracle.vae.guide, oracle.data(3), K=4, latents="fixed")
    log_w = draws.log_w.detach()
    expected = torch.zeros_like(log_w)
    for k in range(4):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        replaced = torch.cat([others, others.mean(0, keepdim=True)])
        expected[k] = log_mean(log_w) - log_mean(replaced)
    surrogate = (expected * draws.log_q + log_w.softmax(0) * draws.log_w).sum(0)
    phi = list(oracle.vae.posterior.parameters())
    exact = torch.autograd.grad(surrogate.sum(), phi, retain_graph=True)
    found = torch.autograd.grad(VIMCO(4).surrogate(draws).sum(), phi)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


def test_many_particles_are_stable():
    """A weight that is all of the sum leaves VIMCO's signals finite."""
    oracle = LinearGaussian.random()
    with torch.no_grad():
        oracle.vae.likelihood.log_scale.fill_(-6.0)
    x = oracle.data(3)
    assert particles(oracle.vae.model, oracle.vae.guide, x, K=50).log_w.std() > 1000
    for estimator in (VIMCO(50), DReG(50), RWS(50), TVO(50), PIWAE(K=10, M=5)):
        estimate = estimator.estimate(oracle.vae.model, oracle.vae.guide, x)
        found = torch.autograd.grad(estimate.surrogate.sum(), list(oracle.vae.parameters()))
        assert all(g.isfinite().all() for g in found)
