"""Missing values: NaN in data. Every number that is reported is then one of the observed values, exact where it is known."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import (
    BITS,
    DIMS,
    DISCRETE,
    ESTIMATORS,
    GUIDES,
    LIKELIHOODS,
    NETWORK,
    PRIORS,
    agree,
    build,
    data_for,
    elbo_of,
    refusing_unknown_kl,
    update_of,
    vae_of,
    with_gaps,
    within,
)
from oracles import LinearGaussian, PosteriorOfObserved, affine, log_p_observed
from torch.distributions import constraints
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, Dims, Likelihood, ModelSpec, TrainingPlan, fit, load, models, save
from pyro_vae.data import Arrays, Split, Splits, make_splits, support_of
from pyro_vae.estimators import ELBO, IWAE, DReG, Objective, Stock
from pyro_vae.evaluate import active_units, encode, log_px, reconstruct, sample
from pyro_vae.figures import look_of
from pyro_vae.figures.look import MISSING as MISSING_COLOR
from pyro_vae.guides import DiagonalNormal, FullRankNormal, PerDatum
from pyro_vae.likelihoods import Bernoulli, Beta, Normal, default_likelihood
from pyro_vae.missing import Marginal
from pyro_vae.networks import MLP, Convolutional
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.reports import Latents, LearningCurves, LogLikelihood, Plane, Reconstructions, Samples, Trained
from pyro_vae.runs.weights import read_weights
from pyro_vae.traces import library_path
from pyro_vae.training.step import Update


def rng():
    return np.random.default_rng(0)


def table(N=400, n=5, d=2, share=0.25):
    """Draws of a linear-Gaussian model with columns of other scales and offsets, and with gaps, in float64."""
    W, t = rng().normal(size=(n, d)), np.random.default_rng(1).normal(size=(N, d))
    x = t @ W.T + 0.5 * np.random.default_rng(2).normal(size=(N, n))
    return with_gaps(torch.tensor(x * np.logspace(-1, 2, n) + np.linspace(-50, 50, n)), share)


def splits_of(x, labels=None, **options):
    third = len(x) // 4
    return make_splits(Split(x, labels), valid=third, test=third, **options)


def linear_vae(splits, standardize=True, guide=PosteriorOfObserved, latent=2):
    """A VAE with an affine decoder of random weights, and any guide."""
    torch.manual_seed(0)
    dims = splits._replace(standardize=standardize).dims(latent)
    normal = Normal(dims, affine, scale=0.7, learn_scale="pixel")
    vae = VAE(StandardNormal(dims), guide(dims), normal).double()
    with torch.no_grad():
        normal.log_scale.add_(0.2 * torch.randn(5))
        normal.network.layers[0].bias.add_(0.3 * torch.randn(5))
    return vae


# What is exact.


@pytest.mark.parametrize("standardize", [True, False])
def test_log_px_is_the_marginal_of_what_is_observed(standardize):
    """With the exact posterior given the gaps as the guide, every log weight is log p(x_obs), in the units of x."""
    splits = splits_of(table())
    x, vae = splits.train.x, linear_vae(splits, standardize)
    exact = log_p_observed(vae.likelihood, x).detach()
    for K in (1, 3):
        torch.testing.assert_close(log_px(vae, x, K), exact, rtol=1e-9, atol=1e-9)
    estimate = ELBO(2).estimate(vae.model, vae.guide, x)
    torch.testing.assert_close(estimate.bound, exact, rtol=1e-9, atol=1e-9)
    # A datum without any value says nothing: log p = 0.
    assert log_px(vae, torch.full_like(x[:3], torch.nan), 1).abs().max() < 1e-9
    assert not x.isnan().any(1).all()


class Moved(PosteriorOfObserved):
    """A Gaussian near the posterior, and wider."""

    def forward(self, x):
        exact = PosteriorOfObserved.forward(self, x)
        return dist.MultivariateNormal(exact.mean + 0.3, 2 * exact.covariance_matrix)


def test_importance_sampling_reaches_the_marginal():
    """By a guide that is not the posterior: the estimate of p(x) has the exact value as its mean."""
    splits = splits_of(table(40))
    vae, x = linear_vae(splits, guide=Moved), splits.train.x
    exact = log_p_observed(vae.likelihood, x).detach()
    draws = torch.stack([log_px(vae, x, 2000, seed=seed) for seed in range(30)])
    within((draws - exact).exp(), torch.ones(()))
    assert (draws.mean(0) - exact).abs().max() < 0.02


def test_gradients_are_those_of_the_marginal():
    """At the exact posterior the gradient of the bound by w is that of log p(x_obs)."""
    splits = splits_of(table(60))
    vae, x = linear_vae(splits), splits.train.x
    w = list(vae.likelihood.parameters())
    exact = torch.autograd.grad(log_p_observed(vae.likelihood, x).mean(), w)
    with library_path():
        vae.posterior.requires_grad_(False)
        found = []
        for _ in range(200):
            estimate = IWAE(20).estimate(vae.model, vae.guide, x)
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(estimate.surrogate.mean(), w)]))
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    gap = found.mean(0) - torch.cat([g.flatten() for g in exact])
    assert (gap.abs() <= 4.5 * error + 1e-9).all()


def maximum_likelihood(x, latent, start):
    """The largest mean log p(x_obs) of a linear-Gaussian model with a variance for each column, by L-BFGS from a start."""
    likelihood = copy.deepcopy(start).double()
    leaves = list(likelihood.parameters())
    optimizer = torch.optim.LBFGS(leaves, lr=1, max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -log_p_observed(likelihood, x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_p_observed(likelihood, x).mean().item()


@pytest.mark.slow
def test_training_with_missing_values_reaches_the_maximum_likelihood():
    x = table(300, share=0.2).float()
    data = Splits(Split(x), Split(x[:10]), Split(x[:10]), constraints.real, standardize=True)
    dims = data.dims(2)
    torch.manual_seed(0)
    guide = FullRankNormal(dims, partial(MLP, hidden=[64, 64]))
    vae = VAE(StandardNormal(dims), guide, Normal(dims, affine, learn_scale="pixel"))
    before = log_p_observed(vae.likelihood, x).mean().item()
    schedule = partial(CosineAnnealingLR, T_max=80)
    for _ in fit(
        vae, data, epochs=80, batch_size=50, estimator=IWAE(5), optimizer=partial(Adam, lr=1.5e-2), schedule=schedule
    ):
        pass
    reached = log_p_observed(vae.likelihood, x).mean().item()
    torch.manual_seed(1)
    starts = vae.likelihood, Normal(dims, affine, learn_scale="pixel")
    best = max(maximum_likelihood(x, 2, start) for start in starts)
    assert best > before + 0.5
    assert best - 0.1 < reached <= best + 1e-6
    assert abs(log_px(vae, x, 200).mean().item() - reached) < 0.1


def test_a_change_of_units_moves_log_px_by_the_jacobian_of_what_is_observed():
    x, factor = table().double(), torch.logspace(-2, 2, 5, dtype=torch.float64)
    found = []
    for data in (x, x * factor):
        splits = splits_of(data)
        found.append(log_px(linear_vae(splits), splits.test, 3))
    observed = (~splits.test.x.isnan()).double()
    torch.testing.assert_close(found[1], found[0] - observed @ factor.log(), rtol=1e-6, atol=1e-6)


def test_units_are_of_the_observed_values():
    x = table().double()
    train = splits_of(x).train.x
    mean, spread = splits_of(x).dims(2).x_units
    np.testing.assert_allclose(mean, np.nanmean(train.numpy(), 0), rtol=1e-12)
    np.testing.assert_allclose(spread, np.nanstd(train.numpy(), 0), rtol=1e-12)
    dims = splits_of(x, standardize=False).dims(2)
    np.testing.assert_allclose(dims.x_mean, np.nanmean(train.numpy(), 0), rtol=1e-12)
    assert dims.x_scale == np.nanmax(np.abs(train.numpy()))


# Every part.

GAPS = with_gaps(BITS)
MISSING = replace(DIMS, train=GAPS, missing=True)


def vae_with_gaps(cls, **options):
    """A VAE with this part, for data with gaps that its likelihood can score."""
    open_ends = replace(MISSING, train=0.2 + 0.6 * GAPS)
    return vae_of(cls, dims=open_ends if cls is Beta else MISSING, **options)


def gaps_for(cls, vae, size):
    """Data that this likelihood gives, with gaps."""
    return GAPS[:size] if cls not in LIKELIHOODS else with_gaps(data_for(cls, vae, size))


@pytest.mark.parametrize("cls", LIKELIHOODS)
@pytest.mark.parametrize("fill", [0.0, 30.0, -30.0])
def test_every_likelihood_scores_the_observed_numbers_alone(cls, fill):
    """The sum of the terms of these numbers, with the gradient of that sum, also where the missing ones would be impossible."""
    whole = data_for(cls, vae_of(cls), 6)
    x = with_gaps(whole)
    with_missing = build(cls, replace(MISSING, train=x.nan_to_num(nan=whole.flatten()[0].item())))
    without = build(cls, replace(DIMS, train=None))
    without.load_state_dict({k: v for k, v in with_missing.state_dict().items() if k != "units.filling"})
    with torch.no_grad():
        for value in [*with_missing.parameters(), *without.parameters()]:
            value.add_(fill)
    found = []
    for part in (with_missing, without):
        t = torch.full((4, 6, 2), 0.3, requires_grad=True)
        distribution = part(t)
        if part is with_missing:
            assert type(distribution) is Marginal
            log_prob = distribution.log_prob(x)
            torch.testing.assert_close(distribution.mean, without(t).mean)
            assert not distribution.sample().isnan().any()
            assert distribution.support.check(x).shape == (6,)
            assert distribution.support.check(x).all()
        else:
            terms = distribution.base_dist.log_prob(whole)
            log_prob = torch.where(x.isnan(), 0.0, terms).sum((-3, -2, -1))
        leaves = [t, *part.parameters()]
        found.append((log_prob, *torch.autograd.grad(log_prob.sum(), leaves)))
    assert log_prob.shape == (4, 6)
    assert (found[0][0][:, 1] == 0).all()  # nothing is observed of the second datum
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.detach().abs().max()))


@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_every_part_takes_missing_values_and_comes_back(cls, tmp_path):
    """A finite bound and gradient, the encoder told of the gaps, no NaN in predictions, and the same after save and load."""
    vae = vae_with_gaps(cls)
    x = gaps_for(cls, vae, 8)
    with torch.no_grad():
        for value in vae.parameters():
            value.add_(0.1)
    estimator = elbo_of(vae, 3) if cls in DISCRETE else DReG(3)
    estimate, gradients = estimator.gradients(vae.model, vae.guide, list(vae.parameters()), x)
    assert estimate.bound.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert reconstruct(vae, x).isfinite().all()
    assert sample(vae, 5, noise=True).isfinite().all()
    assert all(t.isfinite().all() for t in encode(vae, x).values())
    assert active_units(vae, x).shape == (2,)
    assert log_px(vae, x, 3).isfinite().all()
    save(vae, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.dims.missing
    torch.testing.assert_close(log_px(again, x, 3), log_px(vae, x, 3), rtol=0, atol=0)


@pytest.mark.parametrize("cls", [cls for cls in GUIDES if cls is not PerDatum])
def test_every_encoder_sees_which_values_are_missing(cls):
    """Zero and missing are the same number to a network, and not the same datum."""
    vae = vae_of(cls, dims=replace(MISSING, x_scale=1.0))
    x = torch.zeros(1, 1, 4, 4)
    gone = x.clone()
    gone[..., 0, 0] = torch.nan
    one, other = (vae.posterior(each) for each in (x, gone))
    at = one.sample()
    assert (one.log_prob(at) - other.log_prob(at)).abs() > 1e-6


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator(estimator):
    vae = vae_of(Normal, dims=MISSING)
    with refusing_unknown_kl(estimator):
        estimate, gradients = estimator(K=4).gradients(vae.model, vae.guide, list(vae.parameters()), GAPS[:6])
    assert estimate.bound.isfinite().all()
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_a_training_step_with_missing_values_on_the_meta_device(cls):
    vae = vae_with_gaps(cls, device="meta")
    x = torch.empty(6, 1, 4, 4, device="meta")
    optimizer = Adam(vae.parameters())
    step = Update(vae, elbo_of(vae, 3), Objective(), Split(x).columns(), optimizer, {"both": list(vae.parameters())})
    with library_path():
        assert step(torch.arange(6, device="meta"), 1.0, "both").bound.device.type == "meta"


@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_compiled_steps_with_missing_values_are_the_eager_ones(cls, traced):
    vae = vae_with_gaps(cls)
    x = gaps_for(cls, vae, 8)
    agree(update_of(vae, x, elbo_of(vae), clip_norm=1.0))


@pytest.mark.slow
def test_compiled_in_full():
    """A mixture as the prior, and a density that is infinite at what fills the gaps."""
    x = 0.2 + 0.6 * GAPS[:8]
    dims, small = replace(MISSING, train=x), partial(MLP, hidden=[4])
    vae = VAE(VampPrior(dims, components=3), DiagonalNormal(dims, small), Beta(dims, small))
    agree(update_of(vae, x))
    torch.testing.assert_close(
        log_px(vae, x, 50, compile="on"), log_px(vae, x, 50, compile="off"), rtol=1e-4, atol=1e-3
    )


def test_an_optimal_scale_is_that_of_the_observed_errors():
    x = with_gaps(torch.randn(50, 1, 4, 4))
    dims = Dims(2, (1, 4, 4), train=x, missing=True)
    normal = Normal(dims, NETWORK, learn_scale="optimal").train()
    t = torch.randn(3, 50, 2)
    with torch.enable_grad():
        distribution = normal(t)
        distribution.log_prob(x)
    error = (x - distribution.mean)[(~x.isnan()).expand(3, -1, -1, -1, -1)]
    torch.testing.assert_close((2 * normal.log_scale).exp(), error.square().mean())
    kept = normal.log_scale.clone()
    with torch.enable_grad():
        normal(t[:, 1:2]).log_prob(x[1:2])  # nothing is observed
    torch.testing.assert_close(normal.log_scale, kept)


def test_a_datum_is_recognized_with_its_gaps():
    x = with_gaps(torch.randn(20, 3))
    dims = Dims(2, (3,), train=x, missing=True)
    guide = PerDatum(dims)
    with torch.no_grad():
        guide.loc.copy_(torch.randn(20, 2))
    known = guide(x).mean
    assert torch.equal(guide(x.flip(0)).mean.flip(0), known)
    assert len(known.unique(dim=0)) == len(
        x.nan_to_num(nan=99.0).unique(dim=0)
    )  # data without any value are the same one
    filled = torch.where(x.isnan(), 0.0, x)[x.isnan().any(1)]
    assert not (guide(filled).mean[:, None] == known).all(-1).any()


class OneForAll(Likelihood):
    """A Gaussian with correlations."""

    def __init__(self, dims):
        super().__init__(dims)
        self.network = MLP((dims.latent,), dims.x_shape)

    def forward(self, t):
        return dist.MultivariateNormal(self.network(t), torch.eye(self.dims.x_shape[0]))


def test_a_likelihood_of_dependent_numbers_is_refused():
    splits = splits_of(table().float())
    model = ModelSpec(likelihood=OneForAll).build(splits, 0)
    with pytest.raises(ValueError, match="under MultivariateNormal the numbers of x are not independent given t"):
        fit(model, splits, epochs=1)
    whole = splits_of(table().float().nan_to_num())
    assert list(fit(ModelSpec(likelihood=OneForAll).build(whole, 0), whole, epochs=1))


# Data of every kind, and models of every kind.

COUNTS = torch.randint(0, 9, (200, 4), generator=torch.Generator().manual_seed(0)).float()
KINDS = {
    "table": torch.randn(200, 4),
    "signals": torch.randn(200, 2, 9),
    "volumes": torch.randn(200, 1, 4, 4, 4),
    "images": torch.rand(200, 1, 8, 8) * 3 - 1,
    "gray images": torch.rand(200, 1, 8, 8),
    "levels": torch.randint(0, 256, (200, 1, 8, 8)).float(),
    "counts": COUNTS,
    "large counts": 1000 * COUNTS,
    "dispersed counts": (COUNTS - 4).relu() ** 2,
    "binary": (COUNTS > 4).float(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_every_kind_with_missing_values(kind):
    """The support, the likelihood and the range of pictures are those of the observed values."""
    whole = KINDS[kind]
    x = with_gaps(whole, 0.1)
    assert str(support_of(x)) == str(support_of(x[~x.isnan()]))
    splits = splits_of(x)
    assert splits.missing
    choice = default_likelihood(splits.support, splits.train.x, splits.standardize)
    assert choice.reason.split(" times")[-1] == default_likelihood(support_of(whole), whole).reason.split(" times")[
        -1
    ] or (splits.standardize)
    model = ModelSpec(latent=2).build(splits, seed=0)
    record = list(fit(model, splits, epochs=1, batch_size=50))[-1]
    assert np.isfinite(record.valid.bound)
    look = look_of(splits)
    assert look.low < look.high


@pytest.mark.parametrize("model", ["TwoLayer", "Ladder", "Conditional"])
def test_every_model_takes_missing_values(model, tmp_path):
    splits = splits_of(table(400).float(), torch.arange(400) % 3)
    built = ModelSpec(model=getattr(models, model), latent=2).build(splits, seed=0)
    record = list(fit(built, splits, epochs=1, batch_size=50))[-1]
    assert abs(record.valid.bound) < 100
    save(built, tmp_path / "run")
    torch.testing.assert_close(log_px(load(tmp_path / "run"), splits.test, 5), log_px(built.eval(), splits.test, 5))


def test_convolutions_see_a_mask_as_channels():
    x = with_gaps(torch.randn(100, 2, 31))
    splits, network = splits_of(x), partial(Convolutional, channels=[4])
    model = ModelSpec(partial(StandardNormal), partial(DiagonalNormal, network=network), latent=2).build(splits, 0)
    assert model.posterior.network.in_shape == (4, 31)
    assert list(fit(model, splits, epochs=1, batch_size=20))
    splits = splits_of(x[:, 0])  # signals without channels have two then
    model = ModelSpec(partial(StandardNormal), partial(DiagonalNormal, network=network), latent=2).build(splits, 0)
    assert model.posterior.network.in_shape == (2, 31)
    seen = model.posterior.scaled(splits.train.x)
    torch.testing.assert_close(seen[:, 1], (~splits.train.x.isnan()).float())
    assert (seen[:, 0][splits.train.x.isnan()] == 0).all()
    assert list(fit(model, splits, epochs=1, batch_size=20))


def test_values_may_be_missing_in_the_test_data_alone():
    x = torch.randn(100, 3)
    parts = [Split(x[:60]), Split(x[60:80]), Split(with_gaps(x[80:]))]
    splits = Splits(*parts, constraints.real, standardize=True)
    model = ModelSpec(latent=2).build(splits, 0)
    assert model.dims.missing
    list(fit(model, splits, epochs=1, batch_size=20))
    assert log_px(model, splits.test, 10).isfinite().all()
    # A model that was not built for them says so.
    plain = ModelSpec(latent=2).build(splits._replace(test=parts[1]), 0)
    assert not plain.dims.missing
    for use in (encode, reconstruct, partial(log_px, K=2)):
        with pytest.raises(
            ValueError, match=r"the data hold values .* and missing ones \(NaN\) that Normal at site 'x' cannot"
        ):
            use(plain, splits.test)
    with pytest.raises(
        ValueError, match=r"test data hold values .* and missing ones \(NaN\) that Normal at site 'x'.*missing=True"
    ):
        fit(plain, splits, epochs=1)


def test_a_column_that_is_missing_in_all_training_data():
    """By chance, while it is there in others: its unit is 1, and training goes on."""
    x = torch.randn(100, 3)
    gone = x.clone()
    gone[:60, 1] = torch.nan
    splits = Splits(Split(gone[:60]), Split(gone[60:80]), Split(gone[80:]), constraints.real, standardize=True)
    assert splits.dims(2).x_units[:, 1].tolist() == [0, 1]
    model = ModelSpec(latent=2).build(splits, 0)
    assert np.isfinite(list(fit(model, splits, epochs=1, batch_size=20))[-1].valid.bound)
    plain = splits._replace(standardize=False)
    assert plain.dims(2).x_mean.isfinite().all()
    assert np.isfinite(list(fit(ModelSpec(latent=2).build(plain, 0), plain, epochs=1, batch_size=20))[-1].valid.bound)


def test_what_cannot_be_left_out_is_refused(tmp_path):
    x = with_gaps(torch.rand(60, 3))
    with pytest.raises(ValueError, match=r"binarize: some values are missing \(NaN\)"):
        splits_of(x, binarize="fixed")
    x[:, 2] = torch.nan
    with pytest.raises(ValueError, match=r"x: 1 of 3 numbers of a datum are missing \(NaN\) in all data"):
        splits_of(x)
    np.save(tmp_path / "x.npy", x.numpy())
    with pytest.raises(ValueError, match=r"x\[:, 2\] has no value"):
        Arrays(tmp_path / "x.npy").load()
    (tmp_path / "x.csv").write_text("a,b\n" + "1.5,\n" * 9)
    with pytest.raises(ValueError, match=r"column 'b' has no value.*--data.leave_out \"\[b\]\""):
        Arrays(tmp_path / "x.csv").load()


def test_numbers_that_float32_cannot_hold_are_refused_beside_gaps(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[::5, 0], x[1::5, 1] = np.nan, np.nan
    np.save(tmp_path / "x.npy", x)
    assert Arrays(tmp_path / "x.npy", valid=10, test=10).load().missing
    x[:, 1] += 1e9
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"float32.*cannot hold 1 of the 3 .*x\[:, 1\]"):
        Arrays(tmp_path / "x.npy", valid=10, test=10).load()


# Without missing values nothing changes.


def test_without_missing_values_nothing_is_added():
    splits = splits_of(torch.randn(100, 3))
    model = ModelSpec(latent=2).build(splits, 0)
    assert not model.dims.missing
    assert not [name for name in model.state_dict() if "filling" in name]
    assert model.posterior.network.in_shape == (3,)
    assert type(model.likelihood(torch.zeros(2))).__name__ == "Rescaled"


def test_stock_svi_trains_with_missing_values():
    splits = splits_of(table().float())
    model = ModelSpec(latent=2).build(splits, 0)
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    losses = [svi.step(splits.train.x) for _ in range(60)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert Stock in ESTIMATORS


def test_weights_say_whether_values_may_be_missing(tmp_path):
    for missing in (False, True):
        dims = Dims(2, (3,), missing=missing)
        vae = VAE(StandardNormal(dims), DiagonalNormal(dims, NETWORK), Bernoulli(dims, NETWORK))
        save(vae, tmp_path / str(missing))
        assert read_weights(tmp_path / str(missing) / "model.safetensors").dims.missing is missing
    assert "missing" in inspect.signature(Dims).parameters


def test_the_linear_oracle_agrees_with_the_other_one():
    """Without gaps, the two oracles of this project give the same numbers."""
    oracle = LinearGaussian.random()
    torch.testing.assert_close(log_p_observed(oracle.vae.likelihood, oracle.data(5)), oracle.log_px(oracle.data(5)))


def test_the_whole_way_on_the_command_line(script, tmp_path, caplog):
    x = table(400).numpy()
    header = ",".join("abcde")
    np.savetxt(tmp_path / "t.csv", x, delimiter=",", header=header, fmt="%.6g")
    data = ["--data", "Arrays", "--data.path", "t.csv", "--data.valid", "50", "--data.test", "100"]
    code, out, err = script("train", *data, "--latent", "2", "--epochs", "2", "--test_particles", "20", "--out", "run")
    assert (code, err) == (0, "")
    assert "t.csv: 1 of 400 data have no value, so that their log p(x) is 0" in caplog.text
    assert "% of the values are missing: every log p(x) is that of the others" in " ".join(out.split())
    assert not any(f"Left out: {what}" in out for what in ("metric", "figure"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["log_px"]["n"] == 100
    job = ["gradients", "--run", "run", "--draws", "20", "--particles", "[2]", "--estimators", "[DReG]"]
    code, out, err = script("compare_estimators", *job)
    assert (code, err) == (0, "")
    assert "Data: Arrays(path=t.csv" in " ".join(out.split())


@pytest.mark.parametrize("shape", [(4,), (2, 9), (1, 8, 8), (3, 8, 8), (1, 4, 4, 4)], ids=str)
def test_pictures_show_imputations_as_such(shape):
    """Every picture can be drawn; the title says that missing values are imputed, and tables mark these apart."""
    splits = splits_of(with_gaps(torch.randn(120, *shape), 0.2))
    model = ModelSpec(latent=2).build(splits, 0)
    records = list(fit(model, splits, epochs=1, batch_size=20))
    trained = Trained(model, splits, TrainingPlan(), records)
    for picture in (Reconstructions, Samples, Latents, Plane, LearningCurves):
        for figure in picture().draw(trained).values():
            figure.canvas.draw()
    figure = Reconstructions().draw(trained)["reconstructions"]
    assert "impute missing values (pink" in figure.get_suptitle()
    if shape == (4,):
        gaps = splits.test.x.isnan().sum(0).tolist()
        drawn = [next(line for line in axes.lines if line.get_color() == MISSING_COLOR) for axes in figure.axes]
        assert [len(line.get_xdata()) for line in drawn] == gaps
        points = [len(axes.collections[0].get_offsets()) for axes in figure.axes]
        assert points == [len(splits.test.x) - gap for gap in gaps]
        assert "imputed" in figure.legends[0].get_texts()[0].get_text()


def test_bits_per_dimension_are_of_whole_data_alone():
    for share, expected in ((0.0, True), (0.2, False)):
        x = torch.randint(0, 9, (100, 4), generator=torch.Generator().manual_seed(0)).float()
        splits = splits_of(with_gaps(x, share) if share else x)
        model = ModelSpec(latent=2).build(splits, 0)
        measured = LogLikelihood().measure(Trained(model, splits, TrainingPlan(), [], test_particles=3))
        assert ("bits_per_dim" in measured.values) is expected
