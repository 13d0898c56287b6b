"""Evaluation: chunks do not change log p(x), and means carry their errors."""

from __future__ import annotations

from math import log

import pytest
import torch
from helpers import vae_of
from oracles import LinearGaussian

import pyro_vae.evaluate as ev
from pyro_vae.data import Split
from pyro_vae.evaluate import bits_per_dim, importance_sampling
from pyro_vae.likelihoods import Bernoulli


def test_mean_and_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    result = ev.mean(values)
    assert result.mean == 3.0
    assert result.error == pytest.approx((14 / 3 / 4) ** 0.5)
    assert result.n == 4
    assert ev.mean(torch.tensor([1.0])).error != ev.mean(torch.tensor([1.0])).error  # NaN


def test_log_px_in_chunks_is_log_px(monkeypatch):
    """At the posterior every weight is p(x): any chunking, batching and K give the same number."""
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    split = Split(oracle.data(11))
    for chunk, K, size in ((1, 7, 4), (60, 5, 11), (2**20, 1, 3)):
        monkeypatch.setattr(importance_sampling, "_CHUNK", chunk)
        estimates = ev.log_px(oracle.vae, split, K, batch_size=size)
        torch.testing.assert_close(estimates, oracle.log_px(split.x).detach(), rtol=0, atol=1e-10)


def test_chunks_weigh_particles_equally(monkeypatch):
    """Chunks of 1 or 3 of K = 7 particles, in graphs of 4 and 3 or of 7: the average over copies is that of one chunk."""
    oracle, copies = LinearGaussian.random(), 2000
    split = Split(oracle.data(6).repeat(copies, 1))

    def estimates(chunk):
        monkeypatch.setattr(importance_sampling, "_CHUNK", chunk)
        return ev.log_px(oracle.vae, split, 7, batch_size=len(split.x)).reshape(copies, 6)

    one = estimates(2**20)
    for size in (1, 3):
        many = estimates(size * split.x.numel())
        error = ((one.var(0) + many.var(0)) / copies).sqrt()
        assert ((one.mean(0) - many.mean(0)).abs() < 4 * error).all()


def test_log_px_rises_with_k():
    oracle = LinearGaussian.random()
    split = Split(oracle.data(200))
    one, many = (ev.log_px(oracle.vae, split, K).mean() for K in (1, 100))
    assert one < many < oracle.log_px(split.x).mean() + 0.05


def test_log_px_is_reproducible_and_refuses_no_particles():
    oracle = LinearGaussian.random()
    split = Split(oracle.data(5))
    assert torch.equal(ev.log_px(oracle.vae, split, 10), ev.log_px(oracle.vae, split, 10))
    with pytest.raises(ValueError, match="K: expected at least 1"):
        ev.log_px(oracle.vae, split, 0)


def test_images():
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    vae, x = oracle.vae, oracle.data(5)
    assert ev.reconstruct(vae, x).shape == x.shape
    assert ev.sample(vae, 7).shape == (7, 5)
    assert ev.encode(vae, x)["t"].shape == (5, 2)
    t = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(ev.decode(vae, {"t": t}, x), (t @ oracle.W.T + oracle.b).detach())


def test_the_whole_evaluation_on_the_meta_device():
    """A tensor made on the wrong device raises here."""
    vae = LinearGaussian.random().vae.to("meta")
    x = torch.empty(6, 5, device="meta", dtype=torch.float64)
    assert ev.log_px(vae, Split(x), 10).device.type == "meta"
    for image in (ev.reconstruct(vae, x), ev.sample(vae, 6), ev.decode(vae, ev.encode(vae, x), x)):
        assert image.shape == x.shape
        assert image.device.type == "meta"


@pytest.mark.slow
def test_compiled_chunks_are_the_eager_ones():
    """Also where K is no multiple of the chunk and the last batch is smaller."""
    oracle = LinearGaussian.random()
    split = Split(oracle.data(25))
    found = [ev.log_px(oracle.vae, split, 7, batch_size=10, compile=compile, seed=2) for compile in ("on", "off")]
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_compiled_chunks_draw_dynamic_pixels_as_eager_ones_do():
    vae, split = vae_of(Bernoulli), Split(torch.rand(12, 1, 4, 4), dynamic=True)
    found = [ev.log_px(vae, split, 7, batch_size=5, compile=compile) for compile in ("on", "off")]
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


def test_bits_per_dimension_of_a_uniform_distribution():
    """Levels 0..15 with equal chances take four bits a pixel."""
    torch.testing.assert_close(bits_per_dim(torch.tensor([-64 * log(16.0)]), (1, 8, 8)), torch.tensor([4.0]))
