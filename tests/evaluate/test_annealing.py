"""Annealed importance sampling: unbiased weights, moves that leave their densities, and both bounds against exact answers."""

from __future__ import annotations

from functools import partial
from math import log, pi, sqrt
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from helpers import BITS, CPU, DIMS, N_SE, NETWORK, with_gaps, within
from oracles import LinearGaussian, PosteriorOfObserved, affine, log_p_observed
from pyro import poutine
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae import VAE, Dims, fit, models
from pyro_vae.data import Split
from pyro_vae.evaluate import Annealed, Annealing, Bracket, ais, bracket, evidence, log_px
from pyro_vae.evaluate.annealing import chains
from pyro_vae.evaluate.annealing.chains import State, gradient_of, move
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli, Binomial, Normal
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal
from pyro_vae.scopes import seeded
from pyro_vae.traces import Unconstrained


@pytest.fixture(autouse=True)
def short_preliminary_run(monkeypatch):
    """60 moves, not 200: the bounds are bounds with any steps, and these models are easy."""
    monkeypatch.setattr(chains, "_MOVES", 3)


SHORT = Annealing(temperatures=6, leapfrog=2)
FROM_PRIOR = Annealing(temperatures=6, leapfrog=2, start="prior")


@pytest.mark.parametrize("path", [SHORT, FROM_PRIOR], ids=lambda path: path.start)
def test_weights_are_unbiased_with_few_temperatures(path):
    """E[w] = p(x): 3,000 chains of each of two data. A missing term, or a wrong acceptance, is seen at once."""
    oracle = LinearGaussian.random(d=2, n=3)
    x = oracle.data(2)
    many = x.repeat(3000, 1)
    found = ais(oracle.vae, many, K=1, annealing=path, batch_size=len(many), compile="off")
    w = (found.log_px - oracle.log_px(many)).detach().exp().reshape(3000, 2)
    within(w, torch.ones(2))
    assert (w.std(0) < 3).all()  # so that the check can fail
    assert 0.4 < found.acceptance.mean() < 0.98  # and moves are rejected


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_move_leaves_the_density_as_it_is(beta):
    """Chains that start at draws of the exact N(m, S) at β have its mean and covariance after 10 moves, of poor acceptance."""
    oracle, K = LinearGaussian.random(d=2, n=3), 20_000
    x = oracle.data(1)
    exact = tempered(oracle, x, beta)
    with seeded(CPU, 0), torch.no_grad():
        density = Unconstrained(oracle.vae.model, None, x, K=K)
        z = exact.sample((K,))
        state, rates = State(z, density(z)), []
        step = 2.0 * exact.variance.sqrt()
        for _ in range(10):
            state, accepted = move(partial(gradient_of, density), state, torch.tensor(beta).double(), step, 3)
            rates.append(accepted.mean())
    away = state.z[:, 0] - exact.mean[0]
    assert ((state.z - z).abs().amax(-1) > 0).double().mean() > 0.9
    assert 0.1 < torch.stack(rates).mean() < 0.8
    within(away, torch.zeros(2))
    within(away[:, :, None] * away[:, None, :], exact.covariance_matrix[0])


def tempered(oracle, x, beta):
    """The density that is proportional to p(t) p(x|t)^β (B, d)."""
    precision = torch.eye(oracle.W.shape[1]).double() + beta * oracle.W.T @ oracle.W / oracle.variance
    covariance = torch.linalg.inv(precision)
    loc = beta * (x - oracle.b) @ oracle.W / oracle.variance @ covariance
    return MultivariateNormal(loc.detach(), covariance.detach())


def test_both_bounds_contain_the_exact_value():
    """Of 300 data that the model draws."""
    oracle = LinearGaussian.random(d=3, n=6)
    found = bracket(oracle.vae, oracle.data(300), K=8, annealing=Annealing(60, 2), batch_size=300, compile="off")
    exact = oracle.log_px(found.x).detach()
    low, high = (found.lower - exact), (found.upper - exact)
    assert low.mean() < N_SE * low.std() / sqrt(300)
    assert high.mean() > -N_SE * high.std() / sqrt(300)
    assert found.mean_width.high > 0
    assert found.mean_width.mean < 0.2
    ends = found.interval()
    assert ((ends[0] < exact) & (exact < ends[1])).double().mean() >= 0.95
    assert found.mean_lower.mean < found.mean_upper.mean
    assert found.notices() == []


def test_a_long_path_gives_log_px_and_its_error():
    """The stated error is the error: z-scores of 200 data have a standard deviation near 1."""
    oracle = LinearGaussian.random(d=2, n=5)
    x = oracle.data(200)
    found = ais(oracle.vae, x, K=16, annealing=Annealing(60, 2), batch_size=200, compile="off")
    away = found.log_px - oracle.log_px(x).detach()
    assert away.abs().mean() < 0.15
    assert 0.7 < (away / found.error).std() < 1.4
    assert abs(away.mean()) < N_SE * found.error_of_chains + found.error.square().mean() / 2
    assert found.mean.mean == pytest.approx(found.log_px.mean().item())
    assert found.curve is None
    assert found.notices() == []


def test_rate_and_distortion_are_those_of_the_tempered_posteriors():
    """R = KL(p_β(t|x)‖p(t)) and D = E[-log p(x|t)] in closed form, at every β."""
    oracle = LinearGaussian.random(d=2, n=3)
    x = oracle.data(50)
    path = Annealing(100, 2, start="prior")
    found = ais(oracle.vae, x, K=32, annealing=path, batch_size=30, compile="off").curve
    rate, distortion = [], []
    for beta in found.beta:
        q = tempered(oracle, x, beta)
        prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        rate.append(kl_divergence(q, prior).mean())
        error = (x - oracle.b - q.mean @ oracle.W.T).square().sum(-1)
        error = error + (oracle.W @ q.covariance_matrix @ oracle.W.T).diagonal(dim1=-2, dim2=-1).sum(-1)
        distortion.append((error / oracle.variance / 2 + 1.5 * (2 * pi * oracle.variance).log()).mean())
    rate, distortion = torch.stack(rate).detach(), torch.stack(distortion).detach()
    assert len(found.beta) == 101
    assert (found.beta[0], found.beta[-1], found.n) == (0, 1, 50)
    # The means are over these data, so that only the chains' errors count, which are about 1 / √(32 · 50) of their spread.
    assert ((found.rate - rate).abs() < 0.1).all()
    assert (((found.distortion - distortion) / distortion).abs() < 0.1).all()
    total = -oracle.log_px(x).mean().item()
    assert (found.rate + found.distortion)[-1].item() == pytest.approx(total, abs=0.05)
    assert found.rate[0] == 0


def test_every_support_against_conjugate_models():
    """Gamma with Poisson, beta with binomial, Dirichlet with multinomial: log p(x) is a sum of closed forms."""
    one = partial(torch.tensor, dtype=torch.float64)
    alpha = one([0.8, 1.5, 3.0])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(one(2.0), 0.5))
            chance = pyro.sample("chance", dist.Beta(one(2.0), 3.0))
            shares = pyro.sample("shares", dist.Dirichlet(alpha))
            pyro.sample("a", dist.Poisson(rate), obs=x[:, 0])
            pyro.sample("b", dist.Binomial(9, chance), obs=x[:, 1])
            pyro.sample("c", dist.Multinomial(5, shares), obs=x[:, 2:])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("shares", dist.Dirichlet(1.0 + x[:, 2:]))
            pyro.sample("rate", dist.LogNormal((1 + x[:, 0]).log(), 0.8))
            pyro.sample("chance", dist.Beta(1.5 + x[:, 1], 11.0 - x[:, 1]))

    x = torch.tensor([[3.0, 2, 1, 1, 3], [0, 9, 0, 0, 5], [12, 4, 2, 3, 0]], dtype=torch.float64)
    a, b, c = x.numpy()[:, 0], x.numpy()[:, 1], x.numpy()[:, 2:]
    exact = scipy.stats.nbinom(2.0, 1 / 3).logpmf(a) + scipy.stats.betabinom(9, 2.0, 3.0).logpmf(b)
    exact = torch.from_numpy(exact + scipy.stats.dirichlet_multinomial(alpha.numpy(), 5).logpmf(c))
    for start in ("prior", "guide"):
        path = Annealing(80, 2, start=start)
        found = ais(SimpleNamespace(model=model, guide=guide), x, K=64, annealing=path)
        assert ((found.log_px - exact).abs() < N_SE * found.error).all()
        assert (found.error < 0.3).all()


def test_a_support_that_depends_on_another_latent_against_quadrature():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            t1 = pyro.sample("t1", dist.Uniform(torch.zeros((), dtype=x.dtype), 2.0))
            t2 = pyro.sample("t2", dist.Uniform(-t1, t1 / 2))
            pyro.sample("x", dist.Normal(t2, 0.3), obs=x)

    def density(t2, t1, x):
        return scipy.stats.norm.pdf(x, t2, 0.3) / (1.5 * t1) / 2

    x = [-1.2, 0.1, 0.7]
    exact = [log(scipy.integrate.dblquad(density, 0, 2, lambda t: -t, lambda t: t / 2, args=(each,))[0]) for each in x]
    found = ais(
        SimpleNamespace(model=model, guide=model),
        torch.tensor(x).double(),
        K=64,
        annealing=Annealing(100, 2, start="prior"),
    )
    assert ((found.log_px - torch.tensor(exact)).abs() < N_SE * found.error).all()
    assert (found.error < 0.1).all()


def test_a_nonlinear_decoder_against_quadrature():
    """Within 0.01 nat, from the prior and from the guide: p(x) by the trapezoidal rule on a grid over t, in NumPy."""
    torch.manual_seed(3)
    dims = Dims(2, (1, 4, 4), train=BITS)
    net = partial(MLP, hidden=[8])
    vae = VAE(StandardNormal(dims), DiagonalNormal(dims, net), Bernoulli(dims, net)).double()
    with torch.no_grad():
        for parameter in vae.likelihood.parameters():
            parameter.mul_(1.2)
    x = BITS[:4].double()
    axis = np.linspace(-8, 8, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    with torch.no_grad():
        logits = vae.likelihood.network(torch.from_numpy(grid).reshape(-1, 2)) + vae.likelihood.offset
        logits = logits.reshape(-1, 16).numpy()
    log_prior = -(grid**2).sum(-1).ravel() / 2 - log(2 * pi)
    pixels = x.reshape(4, 16).numpy()
    log_lik = pixels @ logits.T - np.logaddexp(0, logits).sum(-1)
    exact = torch.from_numpy(scipy.special.logsumexp(log_lik + log_prior, axis=-1) + 2 * log(axis[1] - axis[0]))
    for start in ("prior", "guide"):
        found = ais(vae, x, K=4000, annealing=Annealing(80, 2, start=start), compile="off")
        assert found.error.max() < 0.005
        assert (found.log_px - exact).abs().max() < 0.01


@pytest.mark.slow
def test_a_trained_decoder_on_digits_against_quadrature(digits):
    """log p(x) by importance sampling, where k̂ trusts it, and by annealing, within 0.01 nat of an integral in NumPy, SciPy."""
    torch.manual_seed(0)
    dims, net = digits.dims(2), partial(MLP, hidden=[32])
    vae = VAE(StandardNormal(dims), DiagonalNormal(dims, net), Binomial(dims, total_count=16, network=net))
    for _ in fit(vae, digits, epochs=15):
        pass
    vae, x = vae.double().eval(), digits.test.x[:4].double()
    exact = integrals(vae.likelihood, x.flatten(1).numpy(), 16)
    found = evidence(vae, x, 100_000)
    trusted = found.pareto_k < found.good_k
    assert trusted.sum() >= 3
    assert (found.log_px - exact)[trusted].abs().max() < 0.01
    assert ((found.log_px - exact).abs() < N_SE * found.noise).all()
    annealed = ais(vae, x, K=1000, annealing=Annealing(60, 2))
    assert (annealed.log_px - exact).mean().abs() < 0.01
    assert ((annealed.log_px - exact).abs() < N_SE * annealed.error).all()


def integrals(likelihood: Binomial, k: np.ndarray, n: int) -> torch.Tensor:
    """log ∫ Binomial(k; n, σ(f(t))) N(t; 0, I) dt of each row of k, by the trapezoidal rule where the integrand is not tiny."""

    def log_joint(t):
        with torch.no_grad():
            logits = (likelihood.network(torch.from_numpy(t)) + likelihood.offset).flatten(1).numpy()
        choose = scipy.special.gammaln([n + 1]) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(n - k + 1)
        log_lik = k @ logits.T - n * np.logaddexp(0, logits).sum(-1) + choose.sum(-1, keepdims=True)
        return log_lik - (t**2).sum(-1) / 2 - log(2 * pi)

    def grid(low, high, points):
        axes = [np.linspace(a, b, points) for a, b in zip(low, high, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2), log(np.prod([a[1] - a[0] for a in axes]))

    rough, _ = grid((-6, -6), (6, 6), 241)
    found = []
    for i, row in enumerate(log_joint(rough)):
        near = rough[row > row.max() - 25]
        fine = [grid(near.min(0) - 0.1, near.max(0) + 0.1, points) for points in (200, 400)]
        coarser, finer = (scipy.special.logsumexp(log_joint(t)[i]) + volume for t, volume in fine)
        assert abs(coarser - finer) < 1e-6
        found.append(finer)
    return torch.tensor(found)


CLASSES = Dims(2, (1, 4, 4), train=BITS, classes=3)


@pytest.mark.parametrize("cls", [models.TwoLayer, models.Ladder, models.Conditional], ids=lambda cls: cls.__name__)
def test_every_model_against_importance_sampling(cls):
    """From the prior, with so many particles that no guide is needed."""
    torch.manual_seed(0)
    dims = CLASSES if cls is models.Conditional else DIMS
    options = {} if cls is models.Conditional else {"top": 2}
    model = cls(
        dims, StandardNormal, partial(DiagonalNormal, network=NETWORK), partial(Bernoulli, network=NETWORK), **options
    )
    split = Split(BITS[:4], torch.tensor([0, 1, 2, 1]))
    from_prior = poutine.block(model.model, hide=["x"])
    exact = log_px(SimpleNamespace(model=model.model, guide=from_prior, inputs=model.inputs), split, 20_000)
    for start in ("prior", "guide"):
        found = ais(model, split, K=64, annealing=Annealing(16, 2, start=start))
        assert ((found.log_px - exact).abs() < N_SE * found.error + 0.03).all()
        assert (found.error < 0.35).all()
    both = bracket(model, split, K=16, annealing=Annealing(8, 2))
    assert both.x.shape == split.x.shape
    assert both.mean_width.mean < 0.5


def test_missing_values_are_left_out():
    """log p of the observed numbers, exactly; what is drawn has the gaps of the data."""
    generator = torch.Generator().manual_seed(0)
    x = with_gaps(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    dims = Dims(2, (4,), missing=True)
    torch.manual_seed(1)
    vae = VAE(StandardNormal(dims), PosteriorOfObserved(dims), Normal(dims, affine, scale=0.8)).double()
    exact = log_p_observed(vae.likelihood, x).detach()
    found = ais(vae, x, K=16, annealing=Annealing(60, 2, start="prior"))
    assert ((found.log_px - exact).abs() < N_SE * found.error + 1e-6).all()
    assert found.log_px[1] == 0  # no value at all
    both = bracket(vae, x, K=4, annealing=SHORT)
    assert torch.equal(both.x.isnan(), x.isnan())
    torch.testing.assert_close(both.width, torch.zeros(6).double(), rtol=0, atol=1e-6)  # the guide is the posterior


def test_data_that_a_mask_leaves_out():
    """Their log p(x) is 0, and their chains, which nothing holds, do not disturb those of others."""

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            t = pyro.sample("t", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(t, 1.0), obs=x)

    x = torch.tensor([-1.0, 2.0, -0.5, 1.0], dtype=torch.float64)
    programs = SimpleNamespace(model=model, guide=poutine.block(model, hide=["x"]))
    exact = torch.where(x > 0, torch.distributions.Normal(0.0, sqrt(2)).log_prob(x), 0.0)
    found = ais(programs, x, K=64, annealing=Annealing(30, 2))
    assert ((found.log_px - exact).abs() <= N_SE * found.error).all()
    assert (found.error < 0.1).all()
    assert (found.log_px[x < 0] == 0).all()


def test_what_the_weights_say():
    """The error, the effective sample size and the spread from their definitions."""
    from pyro_vae.evaluate.annealing.bounds import _summary
    from pyro_vae.evaluate.annealing.chains import Run

    log_w = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1000
    found = _summary(Run(log_w, torch.ones(3).double()))
    w = (log_w + 1000).exp()
    torch.testing.assert_close(found.log_mean, w.mean(0).log() - 1000)
    torch.testing.assert_close(found.ess, w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(found.error, w.std(0) / 7**0.5 / w.mean(0))
    torch.testing.assert_close(found.spread, log_w.std(0))


def test_the_schedules():
    for schedule in ("linear", "sigmoidal"):
        betas = Annealing(schedule=schedule).betas(4)
        assert (betas[0], betas[2], betas[-1]) == (0, 0.5, 1)
    s = 1 / (1 + np.exp(-4 * np.array([-1, -0.5, 0, 0.5, 1])))  # Wu et al. 2017, with δ = 4
    np.testing.assert_allclose(Annealing().betas(4), (s - s[0]) / (s[-1] - s[0]))
    np.testing.assert_allclose(Annealing(schedule="linear").betas(4), [0, 0.25, 0.5, 0.75, 1])


def test_batches_and_seeds():
    oracle = LinearGaussian.random()
    x = oracle.data(5)
    first, again = (ais(oracle.vae, x, 3, annealing=SHORT, batch_size=3) for _ in range(2))
    assert torch.equal(first.log_px, again.log_px)
    assert not torch.equal(first.log_px, ais(oracle.vae, x, 3, annealing=SHORT, batch_size=3, seed=1).log_px)
    one = ais(oracle.vae, x[:1], 1, annealing=Annealing(1, 1, start="prior"))  # no move: simple importance sampling
    assert one.error.isnan().all()
    assert one.acceptance.isnan().all()
    assert one.notices() == ["With one chain, log p(x) has no error: use more chains."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": 0}, "temperatures: expected at least 1, got 0"),
        ({"leapfrog": 0}, "leapfrog: expected at least 1, got 0"),
        ({"acceptance": 1.0}, "acceptance: expected a rate between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Annealing(**options)


def test_wrong_arguments_are_refused():
    oracle = LinearGaussian.random()
    for run in (ais, bracket):
        with pytest.raises(ValueError, match="K: expected at least 1, got 0"):
            run(oracle.vae, oracle.data(2), 0)
        with pytest.raises(ValueError, match="batch_size: expected at least 1"):
            run(oracle.vae, oracle.data(2), batch_size=0)
        with pytest.raises(ValueError, match="expected at least one datum"):
            run(oracle.vae, oracle.data(0))
    with pytest.raises(ValueError, match="missing ones"):
        ais(oracle.vae, with_gaps(oracle.data(5)), annealing=Annealing(2, 1, start="prior"))


def result(**changed):
    """An `Annealed` of 10 data without anything to notice, but for what is changed."""
    values = {name: torch.zeros(10).double() for name in ("log_px", "error", "ess", "spread")}
    values |= {"acceptance": torch.full((10,), 0.65).double(), "chains": 4, "annealing": Annealing()}
    return Annealed(**values | changed)


def test_notices():
    assert result().notices() == []
    (few,) = result(error=torch.tensor([0.1] * 8 + [0.9, 0.9]).double()).notices()
    assert few.startswith("For 2 of 10 data the standard error of log p(x) over 4 chains is above 0.5 nats")
    (none,) = result(log_px=torch.tensor([-torch.inf] + [0.0] * 9).double()).notices()
    assert none.startswith("Log p(x) is infinite or NaN for 1 of 10 data")
    (stuck,) = result(acceptance=torch.full((10,), 0.05).double()).notices()
    assert stuck.startswith("For 10 of 10 data the acceptance rate of the moves is below 0.3 (the median is 0.05)")
    zeros, noise = torch.zeros(10).double(), 0.01 * torch.arange(10).double()
    parts = (zeros, zeros, torch.full((10,), 0.65).double(), 4, Annealing())
    (wide,) = Bracket(zeros, zeros, zeros + noise + 3, *parts).notices()
    assert wide.startswith("The bracket of log p(x) is 3.0")
    (crossed,) = Bracket(zeros, zeros, zeros + noise - 3, *parts).notices()
    assert "below the lower bound" in crossed


def test_poor_chains_are_noticed():
    """Six temperatures for eight narrow dimensions."""
    oracle = LinearGaussian.random(d=8, n=20)
    found = bracket(oracle.vae, oracle.data(20), K=4, annealing=SHORT)
    assert any("standard error of the lower bound" in each for each in found.notices())
    assert any("nats wide" in each for each in found.notices())


def test_on_the_meta_device(monkeypatch):
    """A tensor made on the wrong device raises here."""
    monkeypatch.setattr(chains, "_MOVES", 1)
    vae = LinearGaussian.random().vae.to("meta")
    x = torch.empty(6, 5, device="meta", dtype=torch.float64)
    for start in ("prior", "guide"):
        path = Annealing(2, 1, start=start)
        assert ais(vae, x, 3, annealing=path).log_px.device.type == "meta"
        assert bracket(vae, x, 3, annealing=path).upper.device.type == "meta"


@pytest.mark.slow
def test_compiled_chains_are_the_eager_ones():
    """Until rounding sends a chain another way: so in float64, and for few moves. The last batch is smaller."""
    oracle = LinearGaussian.random()
    on, off = (bracket(oracle.vae, oracle.data(5), 4, annealing=SHORT, batch_size=3, compile=c) for c in ("on", "off"))
    torch.testing.assert_close(on.lower, off.lower, rtol=0, atol=1e-6)
    torch.testing.assert_close(on.upper, off.upper, rtol=0, atol=1e-6)
