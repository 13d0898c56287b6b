"""Mutual information, marginal KL, KL and activity per dimension against closed forms; what is told of collapse."""

from __future__ import annotations

from math import log

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import BITS, KINDS_OF_MODEL, N_SE, vae_of, with_gaps
from oracles import LinearGaussian, kl_to_prior
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vae.evaluate as ev
from pyro_vae.data import Split
from pyro_vae.evaluate.surgery import _Pairs
from pyro_vae.guides import DiagonalNormal
from pyro_vae.traces import library_path

BAD = ["prior", "narrow", "wide", "shifted", "correlations dropped"]


def oracle_of(how: str, d: int, n: int) -> LinearGaussian:
    oracle = LinearGaussian.random(d, n)
    if how == "posterior":
        oracle.set_guide_to_posterior()
    else:
        oracle.correlate()
        oracle.spoil(how)
    return oracle


@pytest.mark.parametrize(("d", "n"), [(1, 2), (2, 5), (3, 6)])
@pytest.mark.parametrize("how", ["posterior", *BAD])
def test_the_bracket_holds_the_closed_forms_of_other_data(how, d, n):
    """q(t) is a Gaussian here. At these sizes the two ends are close, so that a wrong one would be seen."""
    oracle = oracle_of(how, d, n)
    found = ev.elbo_surgery(oracle.vae, oracle.data(400), draws=4).population()
    with torch.no_grad():
        q, information = oracle.aggregate()
        marginal = kl_divergence(q, MultivariateNormal(oracle.a, torch.eye(d, dtype=torch.float64)))
    for name, exact in (("information", information.item()), ("marginal_kl", marginal.item())):
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert low.mean <= exact + N_SE * low.error + 1e-9
        assert high.mean >= exact - N_SE * high.error - 1e-9
        assert high.mean - low.mean < 0.15 + 0.1 * information
        assert max(low.error, high.error) < 0.12
    assert found["kl"].mean == pytest.approx((information + marginal).item(), abs=N_SE * found["kl"].error + 1e-9)


@pytest.mark.parametrize("how", ["posterior", "narrow"])
def test_over_the_given_data_q_is_their_mixture(how):
    """Against an integral of the mixture's density over a grid (d = 1), in NumPy and SciPy."""
    oracle = oracle_of(how, 1, 2)
    x = oracle.data(25)
    m, log_s = (each.detach().numpy()[:, 0] for each in oracle.vae.posterior.network(x).chunk(2, -1))
    t = np.linspace(-9, 9, 20_001)[:, None]
    each = norm.logpdf(t, m, np.exp(log_s))
    mixture, width = logsumexp(each, 1) - log(25), t[1, 0] - t[0, 0]
    marginal = (np.exp(mixture) * (mixture - norm.logpdf(t[:, 0]))).sum() * width
    information = (np.exp(each) * (each - mixture[:, None])).sum() * width / 25
    found = ev.elbo_surgery(oracle.vae, x, draws=400, batch_size=7).given()
    assert found["information"].mean == pytest.approx(information, abs=N_SE * found["information"].error)
    assert found["marginal_kl"].mean == pytest.approx(marginal, abs=N_SE * found["marginal_kl"].error)
    assert found["bound"].mean == pytest.approx(oracle.elbo(x).mean().item(), abs=N_SE * found["bound"].error)
    assert found["information"].error < 0.02
    assert found["information"].mean < log(25)


def test_the_terms_add_up_to_the_elbo_to_rounding():
    oracle = LinearGaussian.random(3, 6)
    found = ev.elbo_surgery(oracle.vae, oracle.data(30), batch_size=8)
    given, whole = found.given(), found.population()
    sum_of_terms = given["reconstruction"].mean - given["information"].mean - given["marginal_kl"].mean
    assert given["bound"].mean == pytest.approx(sum_of_terms, abs=1e-12)
    assert whole["bound"].mean == pytest.approx(given["bound"].mean, abs=1e-12)
    assert whole["information_low"].mean == pytest.approx(given["information"].mean, abs=1e-12)
    assert sum(each.mean().item() for each in found.kl.values()) == pytest.approx(whole["kl"].mean, abs=1e-12)
    assert torch.equal(found.bound, found.reconstruction - found.information - found.marginal_kl)


def test_batches_change_nothing():
    """A guide's draws depend on the batch; what is done with them does not."""
    oracle = LinearGaussian.random(2, 5)
    x = oracle.data(12)
    pairs = _Pairs(oracle.vae, [(x[:5],), (x[5:],)], 3, 1, 0)
    with torch.no_grad(), library_path():
        own = pairs.draw()["log_q"]
        low, high = pairs.mixtures(own)
        m, log_s = oracle.vae.posterior.network(x).chunk(2, -1)
        t = pairs.latents["t"][:, 0]
        every = dist.Normal(m, log_s.exp()).to_event(1).log_prob(t[:, None])  # (draws of all data, data)
    foreign = every.masked_fill(pairs.owner[:, None] == torch.arange(12), -torch.inf)
    torch.testing.assert_close(every.gather(1, pairs.owner[:, None])[:, 0], own)
    torch.testing.assert_close(low.log_q, every.logsumexp(1) - log(12))
    torch.testing.assert_close(high.log_q, foreign.logsumexp(1) - log(11))
    torch.testing.assert_close(low.share, (every - every.logsumexp(1, keepdim=True)).exp().sum(0) / 3)
    torch.testing.assert_close(high.share, (foreign - foreign.logsumexp(1, keepdim=True)).exp().sum(0) / 3)


def test_pairs_that_do_not_fit_into_memory_are_computed_twice(monkeypatch):
    oracle = LinearGaussian.random(2, 5)
    kept = ev.elbo_surgery(oracle.vae, oracle.data(30), batch_size=8)
    monkeypatch.setattr("pyro_vae.evaluate.surgery._KEPT", 10)
    monkeypatch.setattr("pyro_vae.evaluate.surgery.EVALUATED", 100)
    again = ev.elbo_surgery(oracle.vae, oracle.data(30), batch_size=8)
    torch.testing.assert_close(again.information_high, kept.information_high)
    torch.testing.assert_close(again.information_low, kept.information_low)


def test_errors_over_other_data_are_those_of_a_jackknife():
    """Each datum is left out in turn, with its draws and its part of every mixture."""
    oracle = LinearGaussian.random(2, 5)
    x, N, S = oracle.data(60), 60, 3
    found = ev.elbo_surgery(oracle.vae, x, draws=S).population()
    pairs = _Pairs(oracle.vae, [(x,)], S, 1, 0)
    with torch.no_grad(), library_path():
        pairs.draw()
        m, log_s = oracle.vae.posterior.network(x).chunk(2, -1)
        every = dist.Normal(m, log_s.exp()).to_event(1).log_prob(pairs.latents["t"][:, 0][:, None]).numpy()
    owner = pairs.owner.numpy()
    own, foreign = every[np.arange(N * S), owner], np.where(owner[:, None] == np.arange(N), -np.inf, every)

    def value(pool, keep):
        rows = np.isin(owner, keep)
        return (own[rows] - logsumexp(pool[rows][:, keep], 1) + log(len(keep) - (pool is foreign))).mean()

    for name, pool in (("information_low", every), ("information_high", foreign)):
        assert found[name].mean == pytest.approx(value(pool, np.arange(N)))
        without = [value(pool, np.delete(np.arange(N), k)) for k in range(N)]
        jackknife = ((N - 1) * np.var(without)) ** 0.5
        assert found[name].error == pytest.approx(jackknife, rel=0.1)


def test_kl_and_activity_of_each_dimension():
    oracle = LinearGaussian.random(3, 6)
    x = oracle.data(200)
    found = ev.elbo_surgery(oracle.vae, x)
    assert found.closed_form == {"t": True}
    assert found.kl_per_dimension["t"].sum().item() == pytest.approx(kl_to_prior(oracle, x).mean().item())
    means = oracle.vae.posterior.network(x)[:, :3]
    torch.testing.assert_close(found.activity["t"], means.var(0).detach(), rtol=0.2, atol=0.02)
    torch.testing.assert_close(found.used["t"], found.activity["t"] > 0.01)


def test_a_collapsed_posterior_is_told_and_whose_fault_it_is():
    oracle = oracle_of("prior", 3, 6)
    found = ev.elbo_surgery(oracle.vae, oracle.data(60))
    given = found.given()
    assert abs(given["information"].mean) < 1e-9
    assert abs(found.population()["information_high"].mean) < 1e-9
    assert given["marginal_kl"].mean == pytest.approx(0, abs=1e-9)
    (notice,) = found.notices()
    assert "collapsed" in notice
    assert "the guide that ignores x" in notice
    with torch.no_grad():
        oracle.W.zero_()
    (notice,) = ev.elbo_surgery(oracle.vae, oracle.data(60)).notices()
    assert "The decoder ignores t" in notice


def test_unused_latents_are_named():
    oracle = oracle_of("correlations dropped", 3, 6)
    with torch.no_grad():
        oracle.vae.posterior.network.layers[0].weight[1] = 0.0
    found = ev.elbo_surgery(oracle.vae, oracle.data(100))
    assert found.used["t"].tolist() == [True, False, True]
    assert found.notices()[0] == "Not in use: 1 of 3 latents, where q(t_j|x) has the same mean for all x: t[1]."


def test_latents_of_a_small_scale_are_not_taken_for_collapsed():
    """Their means vary by less than the threshold, and tell x apart."""

    class Small(torch.nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                t = pyro.sample("t", dist.Normal(0.0, 0.01))
                pyro.sample("x", dist.Normal(100 * t, 0.1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("t", dist.Normal(x / 100, 0.001))

    notices = ev.elbo_surgery(Small(), torch.randn(50)).notices()
    assert "tell x apart" in notices[0]


def test_the_cap_of_log_n_is_told():
    oracle = oracle_of("narrow", 3, 6)
    with torch.no_grad():
        oracle.vae.posterior.network.layers[0].bias[3:] -= 4
    found = ev.elbo_surgery(oracle.vae, oracle.data(40))
    information = found.given()["information"]
    assert log(40) - 0.1 < information.mean <= log(40) + 1e-9
    assert oracle.aggregate()[1] > log(40) + 5
    assert found.population()["information_high"].mean > oracle.aggregate()[1]
    assert any(f"cannot be above log N = {log(40):.2f}" in each for each in found.notices())


class Bits(torch.nn.Module):
    """A program of a user's own: three Bernoulli latents in a second plate."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(16, 3)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("bits", 3, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.flatten(1)[:, :3])

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("bits", 3, dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x.flatten(1))))


MODELS = {**KINDS_OF_MODEL, "bits": Bits}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_has_these_terms(name):
    model, x = MODELS[name](), with_gaps(BITS[:8]) if name == "missing" else BITS[:8]
    data = Split(x, torch.arange(8) % 3) if name == "labels" else x
    if name == "refined":
        model.posterior.steps = 1
    options = {"draws": 5, "batch_size": 3, "max_plate_nesting": 2 if name == "bits" else 1}
    found = ev.elbo_surgery(model, data, **options)
    whole = found.population()
    assert all(np.isfinite(each.mean) for each in whole.values())
    low = whole["information_low"]
    assert -N_SE * low.error - 1e-4 < low.mean <= min(log(8), whole["information_high"].mean) + 1e-4
    assert sum(each.mean().item() for each in found.kl.values()) == pytest.approx(whole["kl"].mean, abs=1e-4)
    for site, each in found.kl_per_dimension.items():
        assert each.shape == found.activity[site].shape
        if not found.closed_form[site]:
            assert each.sum().item() == pytest.approx(found.kl[site].mean().item(), abs=1e-4)
    assert found.closed_form == {
        "two layers": {"t": False, "t2": False},
        "two layers, flow": {"t2": False},
        "ladder": {"t2": True, "t": True},
        "bits": {"z": True},
    }.get(name, {} if name in ("flow", "mixture", "refined", "prior of the guide") else {"t": True})
    again = ev.elbo_surgery(model, data, **options)
    assert torch.equal(again.information_high, found.information_high)


def test_the_whole_path_on_the_meta_device():
    """A tensor made on the wrong device raises here."""
    vae = LinearGaussian.random().vae.to("meta")
    found = ev.elbo_surgery(vae, torch.empty(6, 5, device="meta", dtype=torch.float64), batch_size=4)
    assert found.information_high.device.type == "meta"


def test_refusals():
    vae = vae_of(DiagonalNormal)
    for x, options in ((BITS[:1], {}), (BITS[:5], {"draws": 1}), (BITS[:5], {"batch_size": 0})):
        with pytest.raises(ValueError, match="data, draws and batch_size: expected at least 2, 2 and 1"):
            ev.elbo_surgery(vae, x, **options)
    with pytest.raises(ValueError, match="build the model for such data"):
        ev.elbo_surgery(vae, with_gaps(BITS[:5]))

    class Moving(Bits):
        calls = 0

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                t = pyro.sample("t", dist.Normal(self.prior(x), 1.0))
                pyro.sample("x", dist.Normal(t, 1.0), obs=x.flatten(1)[:, 0])

        def prior(self, x):
            return 0.0

        def guide(self, x):
            self.calls += 1
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("t", dist.Normal(x.flatten(1)[:, 0] + self.calls, 1.0))

    with pytest.raises(ValueError, match=r"guide: .* random beyond its sample sites"):
        ev.elbo_surgery(Moving(), BITS[:5])

    class OwnPrior(Moving):
        def prior(self, x):
            return x.flatten(1)[:, 1]

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("t", dist.Normal(x.flatten(1)[:, 0], 1.0))

    with pytest.raises(ValueError, match=r"model: p\(t\) is not the same for each datum"):
        ev.elbo_surgery(OwnPrior(), BITS[:5])
