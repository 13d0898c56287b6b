"""What importance weights say about log p(x): every number against one computed from all weights at once, or in closed form."""

from __future__ import annotations

from itertools import pairwise
from math import erf, exp, log, sqrt

import numpy as np
import pytest
import torch
from oracles import LinearGaussian
from scipy.stats import genpareto

import pyro_vae.evaluate as ev
from pyro_vae.data import Split
from pyro_vae.evaluate.evidence import Evidence, Weights
from pyro_vae.evaluate.pareto import arviz, good_k, pareto_k, tail_size


def evidence_of(log_w, pieces):
    """The evidence of weights (K, B) that arrive in pieces of these sizes."""
    weights = Weights(len(log_w), log_w[0])
    for piece in log_w.split(pieces):
        weights.add(piece)
    return weights.found()


@pytest.mark.parametrize("K", [1, 9, 10, 73, 100, 250, 1000, 3001])
@pytest.mark.parametrize("piece", [1, 7, 64, 5000])
def test_pieces_give_what_all_weights_together_give(K, piece):
    log_w = 5 * torch.randn(K, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(K)) - 800
    found = evidence_of(log_w, piece)
    w = (log_w - log_w.max(0).values).exp()
    torch.testing.assert_close(found.log_px, log_w.logsumexp(0) - log(K))
    torch.testing.assert_close(found.ess, w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(found.largest, log_w.sort(0, descending=True).values[: tail_size(K) + 1])
    parts = len(found.parts)
    assert parts == (100 if K >= 100 else 10 if K >= 10 else 1)
    ends = [K * part // parts for part in range(parts + 1)]
    for part, (start, end) in enumerate(pairwise(ends)):
        torch.testing.assert_close(found.parts[part], log_w[start:end].logsumexp(0) - log(end - start))


def test_rise_and_noise_are_those_of_ten_and_a_hundred_parts():
    log_w = torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = evidence_of(log_w, 37)
    tenth, hundredth = ((log_w.unflatten(0, (n, -1)).logsumexp(1) - log(1000 / n)) for n in (10, 100))
    torch.testing.assert_close(found.rise(), found.log_px - tenth.mean(0))
    torch.testing.assert_close(found.rise(2), tenth.mean(0) - hundredth.mean(0))
    torch.testing.assert_close(found.noise, (tenth - found.log_px).exp().std(0) / sqrt(10))


def test_noise_is_the_spread_over_repetitions():
    """Log-normal weights of σ = 0.5: the standard deviation of log_px over data is √((e^σ² - 1)/K) within 5 %."""
    log_w = 0.5 * torch.randn(1000, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, exact = evidence_of(log_w, 1000), sqrt((exp(0.25) - 1) / 1000)
    assert found.log_px.std().item() == pytest.approx(exact, rel=0.05)
    assert found.noise.square().mean().sqrt().item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("shape", [-0.5, 0.1, 0.5, 0.9, 1.4])
@pytest.mark.parametrize("K", [100, 1000])
def test_k_is_arviz_own_of_all_weights_and_near_the_truth(shape, K):
    """Of generalized Pareto weights k̂ is their shape; its standard deviation is about (1 + k)/√M for a tail of M."""
    rng = np.random.default_rng(0)
    log_w = torch.from_numpy(np.log(genpareto.rvs(shape, size=(K, 40), random_state=rng)))
    found = evidence_of(log_w, 50).pareto_k.numpy()
    if hasattr(arviz(), "psislw"):
        _, own = arviz().psislw(log_w.T.numpy().copy())
        np.testing.assert_allclose(found, own, rtol=1e-9)
    # ArviZ weighs its fit with a prior at 0.5; and the tail of a tail has the same shape.
    M = tail_size(K)
    expected = (M * shape + 10 * 0.5) / (M + 10)
    assert abs(found.mean() - expected) < 4 * (1 + abs(shape)) / sqrt(M * 40) + 0.1


def test_k_of_equal_few_and_strange_weights():
    equal = torch.full((1000, 1), -90.0) + 1e-6 * torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    assert evidence_of(equal.float(), 1000).pareto_k.item() == 0
    alone = torch.full((1000, 1), -torch.inf)
    alone[7] = -3.0
    assert evidence_of(alone, 1000).pareto_k.item() == torch.inf
    assert evidence_of(alone, 1000).ess.item() == pytest.approx(1)
    for strange in (torch.nan, torch.inf):
        weights = torch.randn(1000, 1)
        weights[5] = strange
        found = evidence_of(weights, 100)
        assert found.pareto_k.isnan().item()
        assert found.unreliable == 1
        assert not found.trusted
        assert not any("[" in line for line in found.notices())
    assert evidence_of(torch.randn(29, 1), 24).pareto_k.isnan().item()
    assert not evidence_of(torch.randn(30, 1), 24).pareto_k.isnan().item()


def test_good_k_is_arviz_formula():
    assert good_k(1000) == pytest.approx(2 / 3)
    assert good_k(100_000) == 0.7
    assert np.isnan(good_k(29))
    assert np.isnan(pareto_k(np.zeros((7, 2)), 29, 1e-7)).all()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_what_is_missing_of_log_normal_weights(sigma):
    """For large K it is Var w / (2 K (E w)²) = (e^σ² - 1)/(2 K). K = 10 is not large: a factor of 1.6 is allowed."""
    generator = torch.Generator().manual_seed(2)
    left = evidence_of(sigma * torch.randn(1000, 2000, dtype=torch.float64, generator=generator), 1000).left
    exact = (exp(sigma**2) - 1) / 2000
    assert left.low < left.value < left.high < 1.2 * left.value
    assert exact / 1.6 < left.value < 1.6 * exact


def test_a_narrow_guide_is_not_trusted_and_the_posterior_is():
    """q too narrow by a factor of three: weights have no variance. k̂ tells it, log p(x) is too low, and a sentence says so."""
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    split = Split(oracle.data(200))
    exact = oracle.log_px(split.x).detach()
    good = ev.evidence(oracle.vae, split, 1000)
    torch.testing.assert_close(good.log_px, exact, rtol=0, atol=1e-9)
    assert good.notices() == []
    assert good.trusted
    assert good.unreliable == 0
    encoder = oracle.vae.posterior.network.layers[0]
    with torch.no_grad():
        encoder.bias[2:] -= log(3.0)
    bad = ev.evidence(oracle.vae, split, 1000)
    assert bad.pareto_k.median() > 0.7
    assert bad.unreliable > 100
    assert not bad.trusted
    short = (exact - bad.log_px).mean().item()
    assert 0.02 < bad.left.value < short
    lines = bad.notices("images")
    assert "too low: it rises by" in lines[0]
    assert f"k̂ is above 0.67 for {bad.unreliable} of 200 images" in lines[1]


def test_the_bias_of_one_normal_latent():
    """Weights of q = N(0, s²) for p = N(0, 1): E log w for K = 1 is -KL(q‖p)."""
    log_s = -0.3
    eps = torch.randn(1, 200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_w = -0.5 * (eps * exp(log_s)) ** 2 + 0.5 * eps**2 + log_s
    found = evidence_of(log_w, 1)
    kl = 0.5 * (exp(2 * log_s) - 1) - log_s
    assert abs(found.mean.mean + kl) < 4 * found.mean.error
    assert erf(found.mean.reach / found.mean.error / sqrt(2)) == pytest.approx(0.95, abs=1e-3)


@pytest.mark.parametrize("K", [1, 5, 10, 50, 100])
@pytest.mark.parametrize("N", [1, 2, 30])
def test_few_particles_and_few_data_are_told(K, N):
    oracle = LinearGaussian.random()
    found = ev.evidence(oracle.vae, Split(oracle.data(N)), K)
    text = " ".join(found.notices())
    held = found.as_dict()
    if K < 100:
        assert "that takes K of at least 100" in text
        assert held["left"]["value_missing"] == "that takes K of at least 100"
    elif N < 2:
        assert "that takes at least two data" in text
    assert "nan" not in text.lower()
    assert found.rise().isnan().all() == (K < 10)


def test_evidence_of_batches_is_joined_in_order():
    oracle = LinearGaussian.random()
    split = Split(oracle.data(23))
    found = ev.evidence(oracle.vae, split, 300, batch_size=10)
    assert isinstance(found, Evidence)
    assert found.parts.shape == (100, 23)
    assert found.largest.shape == (1 + tail_size(300), 23)
    assert torch.equal(found.log_px, ev.log_px(oracle.vae, split, 300, batch_size=10))


def test_on_the_meta_device():
    vae = LinearGaussian.random().vae.to("meta")
    found = ev.evidence(vae, Split(torch.empty(6, 5, device="meta", dtype=torch.float64)), 1000)
    for each in (found.log_px, found.ess, found.parts, found.largest, found.rise(), found.noise):
        assert each.device.type == "meta"
