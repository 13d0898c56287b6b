"""The export to ArviZ, by whichever of its two lines is installed."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian

from pyro_vae.arviz import pit_to_arviz, to_arviz, to_elpd
from pyro_vae.data import Split
from pyro_vae.evaluate import calibrate, evidence
from pyro_vae.evaluate.pareto import arviz, smoothed
from pyro_vae.view import View

az = arviz()
NEW = not az.__version__.startswith("0.")


def groups_of(found):
    return set(found.children) if NEW else set(found.groups())


@pytest.fixture(scope="module")
def oracle():
    return LinearGaussian.random()


@pytest.mark.parametrize("resample", [True, False])
def test_groups_dimensions_and_attributes(oracle, resample):
    labels = torch.arange(12) % 3
    view = View(columns=("a", "b", "c", "d", "e"))
    found = to_arviz(oracle.vae, Split(oracle.data(12), labels), K=50, draws=20, resample=resample, view=view)
    assert groups_of(found) == {
        "posterior",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "constant_data",
    }
    assert found["posterior"]["t"].dims == ("chain", "draw", "datum", "latent")
    assert found["posterior"]["t"].shape == (1, 20, 12, 2)
    assert found["prior"]["t"].dims == ("chain", "draw", "latent")
    assert found["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "column")
    assert found["prior_predictive"]["x"].dims == ("chain", "draw", "column")
    assert list(found["observed_data"]["column"].values) == ["a", "b", "c", "d", "e"]
    assert found["log_likelihood"]["x"].dims == ("chain", "draw", "datum")
    assert found["sample_stats"]["log_w"].dims == ("chain", "draw", "datum")
    for name in ("log_px", "elbo", "ess", "pareto_k"):
        assert found["sample_stats"][name].dims == ("datum",)
    np.testing.assert_array_equal(found["constant_data"]["label"].values, labels.numpy())
    assert ("resampled" in found["posterior"].attrs["draws_from"]) == resample
    assert found["posterior"].attrs["K"] == 50


def test_numbers_are_those_of_the_model(oracle):
    """log p(x|t) and log w at the exported draws, and what is exported of each datum, beside closed forms."""
    x = oracle.data(9)
    found = to_arviz(oracle.vae, x, K=400, draws=30, seed=3)
    t = torch.as_tensor(found["posterior"]["t"].values[0])
    mean = t @ oracle.W.T.detach() + oracle.b.detach()
    log_lik = torch.distributions.Normal(mean, oracle.variance.detach().sqrt()).log_prob(x).sum(-1)
    np.testing.assert_allclose(found["log_likelihood"]["x"].values[0], log_lik.numpy(), rtol=1e-9)
    q = oracle.vae.posterior(x)
    log_prior = torch.distributions.Normal(oracle.a.detach(), 1.0).log_prob(t).sum(-1)
    log_w = log_lik + log_prior - q.log_prob(t).detach()
    np.testing.assert_allclose(found["sample_stats"]["log_w"].values[0], log_w.numpy(), rtol=1e-9)
    np.testing.assert_array_equal(found["observed_data"]["x"].values, x.numpy())


def test_resampled_draws_are_of_the_posterior_and_the_guides_own_are_not(oracle):
    """The guide's mean is wrong by more than 0.3 for some datum; the resampled mean is right within 4 standard errors.

    Their error is that of self-normalized importance sampling, which the effective sample size gives.
    """
    x = oracle.data(8)
    exact = oracle.posterior(x)
    errors = {}
    for resample in (True, False):
        found = to_arviz(oracle.vae, x, K=20_000, draws=4000, resample=resample, predictive=False, seed=1)
        errors[resample] = np.abs(found["posterior"]["t"].values[0].mean(0) - exact.mean.detach().numpy())
        ess = found["sample_stats"]["ess"].values
    assert errors[False].max() > 0.3
    spread = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().detach().numpy()
    allowed = 4 * spread * np.sqrt(1 / np.minimum(ess, 4000) + 1 / 4000)[:, None]
    enough = ess > 100  # a few particles say nothing of the mean
    assert enough.sum() >= 4
    assert (errors[True][enough] < allowed[enough]).all()


def test_predictive_draws_have_the_moments_of_the_model(oracle):
    """x ~ p(x) has covariance W Wᵀ + σ² I; within 5 standard errors of 4,000 draws."""
    found = to_arviz(oracle.vae, oracle.data(1), K=30, draws=4000)
    x = found["prior_predictive"]["x"].values[0]
    W, b = oracle.W.detach().numpy(), oracle.b.detach().numpy()
    variance = (W**2).sum(1) + oracle.variance.detach().numpy()
    assert (np.abs(x.mean(0) - b) < 5 * np.sqrt(variance / 4000)).all()
    assert (np.abs(x.var(0) / variance - 1) < 5 * np.sqrt(2 / 4000)).all()
    t, again = found["posterior"]["t"].values[0, :, 0], found["posterior_predictive"]["x"].values[0, :, 0]
    noise = again - (t @ W.T + b)
    assert (np.abs(noise.var(0) / oracle.variance.detach().numpy() - 1) < 5 * np.sqrt(2 / 4000)).all()


def test_smoothed_weights_keep_the_body_and_sum_to_one():
    log_w = 3 * np.random.default_rng(0).normal(size=(1000, 3))
    found = smoothed(log_w)
    np.testing.assert_allclose(np.exp(found).sum(0), 1)
    body = log_w < np.quantile(log_w, 0.85, axis=0)
    shift = (found - log_w)[body[:, 0], 0]
    assert np.ptp(shift) < 1e-9
    equal = np.full((100, 1), -900.0)
    np.testing.assert_allclose(smoothed(equal), -np.log(100))
    few = np.full((100, 1), -np.inf)
    few[:2] = -5.0
    np.testing.assert_allclose(np.exp(smoothed(few)).ravel()[:3], [0.5, 0.5, 0])


def test_compare_ranks_by_log_px_with_paired_errors(oracle):
    """The standard error of the difference is that of paired values; the order is that of the sums."""
    x = oracle.data(150)
    other = LinearGaussian.random()
    with torch.no_grad():
        other.vae.likelihood.network.layers[0].bias += 0.4
    found = {"true": evidence(oracle.vae, x, 300), "shifted": evidence(other.vae, x, 300)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = az.compare({name: to_elpd(each) for name, each in found.items()})
    assert list(table.index) == ["true", "shifted"]
    gap = (found["true"].log_px - found["shifted"].log_px).numpy()
    se = np.sqrt(len(gap)) * gap.std()
    assert abs(table.loc["shifted", "dse"]) == pytest.approx(se, rel=0.06 if NEW else 1e-9)  # 1.x rounds for the screen
    assert abs(table.loc["shifted", "elpd_diff"]) == pytest.approx(gap.sum(), rel=0.06 if NEW else 1e-9)


def test_elpd_is_that_of_the_evidence(oracle):
    found = evidence(oracle.vae, oracle.data(40), 200)
    elpd = to_elpd(found)
    pointwise = elpd.elpd_i if NEW else elpd.loo_i
    np.testing.assert_array_equal(pointwise.values, found.log_px.numpy())
    np.testing.assert_array_equal(elpd.pareto_k.values, found.pareto_k.numpy())
    assert elpd.good_k == found.good_k
    assert "elpd" in str(elpd)


def test_a_file_brings_all_back(oracle, tmp_path):
    found = to_arviz(oracle.vae, oracle.data(5), K=30, draws=10)
    file = str(tmp_path / "found.nc")
    found.to_netcdf(file)
    back = az.from_netcdf(file)
    assert groups_of(back) == groups_of(found)
    np.testing.assert_array_equal(back["posterior"]["t"].values, found["posterior"]["t"].values)
    assert back["posterior"].attrs["draws_from"] == found["posterior"].attrs["draws_from"]


def test_a_zarr_store_brings_all_back(oracle, tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    found = to_arviz(oracle.vae, oracle.data(5), K=30, draws=10)
    store = str(tmp_path / "found.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's own, about its format
        try:
            found.to_zarr(store)
        except ImportError as error:
            pytest.skip(str(error))
        assert groups_of(az.from_zarr(store)) == groups_of(found)


class Own:
    """A user's own programs: two latents, one of them discrete, and a site of another name."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            t = pyro.sample("t", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("seen", dist.Normal(t.sum(-1, keepdim=True) + z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("t", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_programs_of_ones_own_with_several_latents():
    found = to_arviz(Own(), torch.randn(4, 1), K=30, draws=7)
    assert found["posterior"]["z"].dims == ("chain", "draw", "datum")
    assert found["posterior"]["t"].dims == ("chain", "draw", "datum", "t_latent")
    assert "seen" in found["posterior_predictive"]
    assert "seen" in found["observed_data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"K": 0}, "K: expected at least 1"),
        ({"draws": 0}, "draws: expected at least 1"),
        ({"K": 5, "draws": 6, "resample": False}, "draws: there are K = 5 particles"),
    ],
)
def test_wrong_numbers_are_refused(oracle, arguments, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(oracle.vae, oracle.data(3), **arguments)


def test_it_is_reproducible_and_leaves_the_random_state(oracle):
    before = torch.get_rng_state()
    one, other = (to_arviz(oracle.vae, oracle.data(4), K=30, draws=5, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one["posterior"]["t"].values, other["posterior"]["t"].values)
    np.testing.assert_array_equal(one["prior"]["t"].values, other["prior"]["t"].values)
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_as_probability_integral_transforms(oracle):
    found = calibrate(oracle.vae, oracle.data(2), 60, 19)
    values = pit_to_arviz(found)["prior_sbc"]
    assert values["t"].dims == ("sample", "t_latent")
    assert values["log w"].dims == ("sample",)
    np.testing.assert_array_equal(np.floor(values["t"].values[:, 1] * 20), found.ranks[:, 1])
    if NEW:
        az.plot_ecdf_pit(pit_to_arviz(found), group="prior_sbc", var_names=["t"], sample_dims=["sample"])
