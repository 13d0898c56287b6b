"""Every estimator against the exact value and the exact gradient of its own objective.

The oracle has d = 1, so that expectations over K particles are Gauss-Hermite quadratures over ε in K dimensions, and their
gradients follow by differentiating the quadrature. Monte Carlo means agree within N_SE of their standard errors.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pyro import poutine
from pyro.infer import RenyiELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from test_conformance import ESTIMATORS
from test_oracles import within
from torch import Tensor
from torch.distributions import Normal

from pyro_vae import Estimator, Guide
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
    Renyi,
    ScoreFunction,
    Stock,
)
from pyro_vae.objectives import Objective
from pyro_vae.particles import library_path, particles
from pyro_vae.programs import seeded

CPU = torch.device("cpu")
MEAN = Tensor.mean


def oracle_and_data() -> tuple[LinearGaussian, Tensor]:
    oracle = LinearGaussian.random(d=1, n=2)
    return oracle, oracle.data(2)


class Quadrature:
    """E over ε_1..ε_K of functions of the log weights, for x (B, n), with all parameters differentiable."""

    def __init__(self, oracle: LinearGaussian, x: Tensor, K: int, nodes: int):
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        points, weights = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
        self.weights = torch.cartesian_prod(*[weights] * K).reshape(-1, K).prod(1)
        eps = torch.cartesian_prod(*[points] * K).reshape(-1, K).T[..., None]  # (K, nodes^K, 1)
        m, log_s = oracle.vae.posterior.network(x).chunk(2, -1)
        self.t = m[:, 0] + log_s[:, 0].exp() * eps  # (K, nodes^K, B)
        self.m, self.s, self.oracle, self.x = m[:, 0], log_s[:, 0].exp(), oracle, x
        self.log_p = self.joint(self.t)
        self.log_q = Normal(self.m, self.s).log_prob(self.t)
        self.log_w = self.log_p - self.log_q

    def joint(self, t: Tensor) -> Tensor:
        """log p(x,t)."""
        loc = t[..., None] * self.oracle.W[:, 0] + self.oracle.b
        return Normal(loc, self.oracle.variance.sqrt()).log_prob(self.x).sum(-1) + Normal(self.oracle.a, 1.0).log_prob(
            t
        )

    def mean(self, value: Tensor) -> Tensor:
        """The expectation of (nodes^K, B), averaged over data."""
        return (self.weights @ value).mean()

    @property
    def log_q_fixed(self) -> Tensor:
        """log q at fixed t."""
        return Normal(self.m, self.s).log_prob(self.t.detach())

    @property
    def weights_over_particles(self) -> Tensor:
        return self.log_w.detach().softmax(0)


def log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - np.log(len(log_w))


def elbo(oracle, x):
    value = oracle.elbo(x).mean()
    return value, value, value


def iwae(oracle, x, K=2, nodes=60):
    q = Quadrature(oracle, x, K, nodes)
    value = q.mean(log_mean(q.log_w))
    return value, value, value


def iwae_stl(oracle, x):
    q = Quadrature(oracle, x, 2, 60)
    value = q.mean(log_mean(q.log_w))
    return value, value, q.mean((q.weights_over_particles * (q.log_w + q.log_q_fixed)).sum(0))


def rws(oracle, x):
    q = Quadrature(oracle, x, 2, 60)
    value = q.mean(log_mean(q.log_w))
    return value, value, q.mean((q.weights_over_particles * q.log_q_fixed).sum(0))


def renyi(alpha, oracle, x):
    q = Quadrature(oracle, x, 2, 60)
    value = q.mean(log_mean((1 - alpha) * q.log_w) / (1 - alpha))
    return value, value, value


def ciwae(beta, oracle, x):
    value = beta * elbo(oracle, x)[0] + (1 - beta) * iwae(oracle, x)[0]
    return value, value, value


def piwae(oracle, x):
    """M = 2, K = 2: w climbs L_4, φ climbs L_2."""
    by_w = iwae(oracle, x, K=4, nodes=22)[0]
    return by_w, by_w, iwae(oracle, x)[0]


def tvo(betas, oracle, x):
    """The limit of many particles: integrals over t."""
    q = Quadrature(oracle, x, 1, 4)
    t = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    log_p, log_q = q.joint(t), Normal(q.m, q.s).log_prob(t)
    value = torch.zeros((), dtype=torch.float64)
    for beta, after in pairwise(betas):
        pi = ((1 - beta) * log_q + beta * log_p).softmax(0)
        value = value + (after - beta) * (pi * (log_p - log_q)).sum(0).mean()
    return value, value, value


# estimator -> (value, the objective whose gradient w climbs, the objective whose gradient φ climbs)
CASES = {
    "ELBO": (ELBO(2), elbo),
    "AnalyticKL": (AnalyticKL(2), elbo),
    "STL": (STL(2), elbo),
    "ScoreFunction": (ScoreFunction(2), elbo),
    "ScoreFunction, running mean": (ScoreFunction(1, control="running"), elbo),
    "ScoreFunction, leave-one-out": (ScoreFunction(3, control="leave-one-out"), elbo),
    "IWAE": (IWAE(2), iwae),
    "IWAE, K = 1": (IWAE(1), elbo),
    "IWAE with STL": (IWAE(2, stl=True), iwae_stl),
    "DReG": (DReG(2), iwae),
    "VIMCO": (VIMCO(2), iwae),
    "VIMCO, K = 3": (VIMCO(3), partial(iwae, K=3, nodes=30)),
    "Renyi(0.5)": (Renyi(2, alpha=0.5), partial(renyi, 0.5)),
    "Renyi(-1)": (Renyi(2, alpha=-1.0), partial(renyi, -1.0)),
    "Renyi(2)": (Renyi(2, alpha=2.0), partial(renyi, 2.0)),
    "MIWAE": (MIWAE(M=3, K=2), iwae),
    "PIWAE": (PIWAE(M=2, K=2), piwae),
    "CIWAE": (CIWAE(2, beta=0.3), partial(ciwae, 0.3)),
    "RWS": (RWS(2), rws),
    "RWS with DReG": (RWS(2, dreg=True), rws),
    "TVO, one term": (TVO(2, partitions=1), elbo),
    "TVO": (TVO(500, partitions=3), partial(tvo, TVO(500, partitions=3).betas)),
}

STOCK = {
    "Stock(Trace_ELBO)": (Stock(2), elbo),
    "Stock(TraceMeanField_ELBO)": (Stock(1, TraceMeanField_ELBO), elbo),
    "Stock(TraceGraph_ELBO)": (Stock(2, TraceGraph_ELBO), elbo),
    "Stock(RenyiELBO)": (Stock(2, RenyiELBO, {"alpha": 0.5}), partial(renyi, 0.5)),
}
ALL = CASES | STOCK


def test_every_estimator_is_here():
    assert {type(estimator) for estimator, _ in ALL.values()} == set(ESTIMATORS)


def gradients(estimator: Estimator, oracle: LinearGaussian, x: Tensor, runs: int, copies: int):
    """Independent estimates: the value (runs,), and the gradient of each parameter (runs, ...), each of `copies` draws."""
    vae, values, found = oracle.vae, [], []
    parameters = list(vae.parameters())
    many = x.repeat(copies, 1)
    with library_path(), seeded(CPU, 7):
        for _ in range(runs):
            estimate = estimator.estimate(vae.model, vae.guide, many)
            values.append(estimate.bound.detach().mean())
            found.append(torch.autograd.grad(estimate.surrogate.mean(), parameters))
    return torch.stack(values), [torch.stack(one) for one in zip(*found, strict=True)]


@pytest.mark.parametrize("name", ALL)
def test_value_and_mean_gradient(name):
    estimator, exact = ALL[name]
    oracle, x = oracle_and_data()
    value, by_w, by_phi = exact(oracle, x)
    phi = list(oracle.vae.posterior.parameters())
    w = [*oracle.vae.prior.parameters(), *oracle.vae.likelihood.parameters()]
    expected = dict(zip(w, torch.autograd.grad(by_w, w, retain_graph=True), strict=True))
    expected |= dict(zip(phi, torch.autograd.grad(by_phi, phi, retain_graph=True), strict=True))
    many = estimator.K >= 100  # biased by O(1/K), and averaged over its own particles
    values, found = gradients(estimator, oracle, x, runs=100, copies=20 if many else 1000)
    within(values, value.detach())
    for parameter, estimates in zip(oracle.vae.parameters(), found, strict=True):
        within(estimates, expected[parameter])
        error = estimates.std(0) / len(estimates) ** 0.5
        assert (error < 0.05).all(), "the test could not tell a wrong gradient"


@pytest.mark.parametrize("name", [name for name in ALL if name != "Stock(RenyiELBO)"])
def test_scale_multiplies_the_loss_and_its_gradient(name):
    """Plate and handler scales stay out of the logarithms: at scale 2.5 loss and gradient are 2.5 times those at 1."""
    estimator, _ = ALL[name]
    if estimator.K >= 100:
        estimator = TVO(5, partitions=3)
    oracle = LinearGaussian.random(d=2)
    x, outcomes = oracle.data(5), []
    for scale in (1.0, 2.5):
        if isinstance(estimator, ScoreFunction):
            estimator = ScoreFunction(estimator.K, estimator.control)  # a new running mean
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
        _, found = gradients(estimator, oracle, x, runs=200, copies=20)
        return sum(estimates.var(0).sum() for estimates in found[1:3])  # of φ

    plain = variance(ScoreFunction(2))
    assert variance(ScoreFunction(2, control="running")) < plain
    assert variance(ScoreFunction(2, control="leave-one-out")) < plain
    assert variance(ELBO(2)) < plain


def test_encoder_runs_once_for_every_estimator():
    oracle = LinearGaussian.random()
    seen = []
    oracle.vae.posterior.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    for estimator, _ in CASES.values():
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
    found = torch.autograd.grad(VIMCO(4).combine(draws)[1].sum(), phi)
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
