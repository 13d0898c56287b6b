"""Objectives change what is optimized, by exactly their formula, and never the bound that is reported."""

from __future__ import annotations

import inspect
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from helpers import BITS, CASES, NETWORK, REAL_GUIDES, exact_gradients, independent_gradients, within
from oracles import LinearGaussian, elbo, kl_to_prior, oracle_and_data
from torch.distributions import constraints, kl_divergence
from torch.optim import SGD

from pyro_vae import VAE, Estimator, Guide, fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, AnalyticKL, Objective, ScoreFunction, divergence
from pyro_vae.guides import SemiAmortized
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal

CPU = torch.device("cpu")


OBJECTIVES = {
    "β = 2": (Objective(beta=2.0), None, 2.0),
    "warm-up, first of four epochs": (Objective(beta=2.0, warm_up=4), Objective(beta=2.0, warm_up=4).weight(1), 0.5),
    "free nats above the KL": (Objective(free_nats=100.0), None, 0.0),
    "free nats below the KL": (Objective(beta=0.7, free_nats=0.01), None, 0.7),
}
"""Objectives, the weight of the KL that a step is told, and c: log w becomes log p(x|t) + c (log p(t) - log q(t|x))."""


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", CASES)
def test_mean_gradient_of_every_objective(name, objective):
    """Every estimator's mean gradient is that of its own bound with c in the weights, by quadrature."""
    (estimator, exact), (chosen, kl_weight, c) = CASES[name], OBJECTIVES[objective]
    oracle, x = oracle_and_data()
    _, expected = exact_gradients(exact, oracle, x, c)
    copies = 10 if estimator.K >= 100 else 150
    options = {"objective": chosen, "kl_weight": kl_weight}
    _, found = independent_gradients(estimator, oracle, x, runs=60, copies=copies, **options)
    for gradient, estimates in zip(expected, found, strict=True):
        within(estimates, gradient)


def test_a_running_average_never_contains_the_draws_that_it_is_used_with():
    """One datum and one particle a step, and no memory: an average that held them would leave no gradient by φ at all."""
    oracle = LinearGaussian.random(d=1, n=2)
    x, runs = oracle.data(1), 300
    _, expected = exact_gradients(elbo, oracle, x, 2.0)
    estimator = ScoreFunction(1, control="running", decay=0.0)
    _, found = independent_gradients(estimator, oracle, x, runs=runs, copies=1, objective=Objective(beta=2.0))
    phi = [i for i, (name, _) in enumerate(oracle.vae.named_parameters()) if name.startswith("posterior")]
    for i in phi:
        within(found[i], expected[i])
    # The errors are small enough to tell this gradient from none, by 4.5 of them in one coordinate at least.
    assert max((expected[i].abs() / found[i].std(0) * runs**0.5).max() for i in phi) > 4.5


@pytest.mark.parametrize("objective", [Objective(beta=3.0), Objective(free_nats=100.0)])
def test_a_running_average_is_of_the_weights_that_are_optimized(objective):
    """With c in them, as in the surrogate that it is subtracted in, and not of those in the bound."""
    oracle = LinearGaussian.random()
    estimator, leaves = ScoreFunction(2, control="running"), list(oracle.vae.parameters())
    estimate, _ = estimator.gradients(oracle.vae.model, oracle.vae.guide, leaves, oracle.data(3), objective=objective)
    estimator.after_step(estimate)
    draws, c = estimate.particles, 0.0 if objective.free_nats else objective.beta
    expected = (draws.log_lik + c * (draws.log_prior - draws.log_q)).mean()
    assert estimator.state["average"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert estimator.state["average"].item() != pytest.approx(estimate.bound.mean().item(), rel=1e-3)


def test_the_state_moves_once_a_step_and_only_there():
    oracle = LinearGaussian.random()
    estimator, leaves = ScoreFunction(1, control="running"), list(oracle.vae.parameters())
    for objective in (None, Objective(beta=3.0), Objective(free_nats=1.0)):
        before = estimator.state["steps"].clone()
        estimate, _ = estimator.gradients(
            oracle.vae.model, oracle.vae.guide, leaves, oracle.data(3), objective=objective
        )
        assert estimator.state["steps"] == before
        estimator.after_step(estimate)
        assert estimator.state["steps"] == before + 1
    average = estimator.state["average"].clone()
    estimator.loss(oracle.vae.model, oracle.vae.guide, oracle.data(3))
    assert estimator.state["average"] == average
    estimator.loss_and_grads(oracle.vae.model, oracle.vae.guide, oracle.data(3))
    assert estimator.state["average"] != average


@pytest.mark.parametrize("objective", [Objective(), Objective(beta=2.0), Objective(beta=0.0, noise=False)])
def test_bound_and_surrogate_are_each_called_once(objective):
    calls = []

    class Counted(Estimator):
        def bound(self, draws):
            calls.append("bound")
            return draws.log_w.mean(0)

        def surrogate(self, draws):
            calls.append("surrogate")
            return draws.log_w.mean(0)

    oracle = LinearGaussian.random()
    Counted().estimate(oracle.vae.model, oracle.vae.guide, oracle.data(2), objective=objective)
    assert calls == ["bound", "surrogate"]


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


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_free_nats_meet_the_kl_in_closed_form(noise, beta):
    """On from just above the free nats, off from just below: by KL(q‖p) itself, also where t is the mean of q."""
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(50)
    kl = kl_to_prior(oracle, x).mean().item()
    m = vae.posterior(x).mean
    gap = (vae.posterior(x).log_prob(m) - vae.prior().log_prob(m)).mean().item() - kl
    assert gap > 0.5  # log q(m) - log p(m) is another number

    def surrogate(free_nats, beta):
        torch.manual_seed(1)
        objective = Objective(beta=beta, free_nats=free_nats, noise=noise)
        return AnalyticKL().estimate(vae.model, vae.guide, x, objective=objective).surrogate.mean().item()

    on, off = surrogate(0.0, beta), surrogate(0.0, 0.0)
    assert off - on == pytest.approx(beta * kl)
    for share in (1e-9, 0.5, 1 - 1e-9):
        assert surrogate(share * kl, beta) == on
    for more in (1e-9 * kl, gap / 2, gap, 2 * gap):
        assert surrogate(kl + more, beta) == off


@pytest.mark.parametrize("name", [name for name in CASES if name != "AnalyticKL"])
def test_free_nats_meet_the_mean_over_the_draws(name):
    """For estimators without a closed form: the mean of log q(t|x) - log p(t) over the batch and the particles."""
    estimator, _ = CASES[name]
    oracle = LinearGaussian.random()
    vae, x = oracle.vae, oracle.data(5)
    torch.manual_seed(1)
    draws = estimator.estimate(vae.model, vae.guide, x).particles
    kl = (draws.log_q - draws.log_prior).mean().item()
    for factor, c in ((1 - 1e-9, 0.3), (1 + 1e-9, 0.0)):
        torch.manual_seed(1)
        objective = Objective(beta=0.3, free_nats=factor * kl)
        found = estimator.estimate(vae.model, vae.guide, x, objective=objective).optimized
        torch.testing.assert_close(found.log_w, draws.log_lik + c * (draws.log_prior - draws.log_q))


@pytest.mark.parametrize(
    ("objective", "runs"),
    [(None, 1), (Objective(beta=2.0), 1), (Objective(free_nats=0.1), 1), (Objective(free_nats=0.1, noise=False), 2)],
)
def test_a_kl_in_closed_form_is_computed_once_for_each_run(objective, runs, monkeypatch):
    """Without noise, the programs run twice: with noise for the bound, and without it for the objective."""
    computed = []

    def counted(q, p):
        computed.append(1)
        return kl_divergence(q, p)

    monkeypatch.setattr(divergence, "kl_divergence", counted)
    oracle = LinearGaussian.random()
    leaves = list(oracle.vae.parameters())
    AnalyticKL(3).gradients(oracle.vae.model, oracle.vae.guide, leaves, oracle.data(4), objective=objective)
    assert len(computed) == runs


class Cauchy(Guide):
    """A guide of a user's own, whose distribution has no mean: PyTorch gives NaN."""

    def __init__(self, dims):
        super().__init__(dims)
        self.network = NETWORK(dims.x_shape, (2 * dims.latent,))

    def forward(self, x):
        loc, log_scale = self.network(x).chunk(2, -1)
        return dist.Cauchy(loc, log_scale.exp()).to_event(1)


def digits_vae(make, splits):
    dims = splits.dims(2)
    options = {"network": NETWORK} if "network" in inspect.signature(make).parameters else {}
    return VAE(StandardNormal(dims), make(dims, **options), Bernoulli(dims, NETWORK))


@pytest.mark.parametrize("cls", [*REAL_GUIDES, Cauchy, partial(SemiAmortized, guide=Cauchy)])
def test_without_noise_a_guide_has_a_mean_or_is_refused_before_training(cls):
    """By subclass: `fit` says so when it is called, or the step takes the mean; never a NaN in an epoch."""
    split = Split(BITS)
    data = Splits(split, split, split, constraints.boolean)
    vae = digits_vae(cls, data)
    objective = Objective(beta=0.0, noise=False)
    try:
        mean = vae.posterior(BITS).mean
        known = bool(mean.isfinite().all())
    except NotImplementedError:
        known = False
    if known:
        assert next(iter(fit(vae, data, epochs=1, batch_size=10, objective=objective, compile="off"))).train.bound < 0
        return
    with pytest.raises(
        ValueError, match=r"objective: without noise, t is the mean of q, which .* at site 't' of "
    ) as told:
        fit(vae, data, epochs=1, batch_size=10, objective=objective)
    assert type(vae.posterior).__name__ in str(told.value)


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
