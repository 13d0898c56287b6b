"""Standardized data: parts see standard deviations, and every number that is reported is a density of the data themselves."""

from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from sklearn.decomposition import FactorAnalysis
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, Likelihood, ModelSpec, fit, load, save
from pyro_vae.data import Arrays, Split, make_splits
from pyro_vae.evaluate import log_px, mean, reconstruct
from pyro_vae.guides import FullRankNormal
from pyro_vae.likelihoods import Beta, ContinuousBernoulli, Normal
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal

LINEAR = partial(MLP, hidden=())


def _table(N=3000, columns=12, factors=3):
    """Draws of a factor analysis whose columns have scales from 0.1 to 100 and offsets to 1,000."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, factors)) @ rng.normal(size=(factors, columns))
    z += rng.normal(size=(N, columns)) * rng.uniform(0.2, 0.8, columns) ** 0.5
    return torch.tensor(z * np.logspace(-1, 2, columns) + rng.uniform(-1000, 1000, columns), dtype=torch.float32)


def _spec(latent):
    likelihood = partial(Normal, network=LINEAR, learn_scale="pixel")
    return ModelSpec(guide=partial(FullRankNormal, network=LINEAR), likelihood=likelihood, latent=latent)


def _splits(x, standardize=None):
    return make_splits(Split(x), valid=300, test=300, standardize=standardize)


@pytest.mark.slow
def test_a_linear_vae_reaches_the_likelihood_of_factor_analysis_on_columns_of_all_scales():
    splits = make_splits(Split(_table(1200)), valid=100, test=100)
    model = _spec(3).build(splits, seed=0)
    adam, schedule = partial(torch.optim.Adam, lr=2e-2), partial(CosineAnnealingLR, T_max=50)
    records = list(fit(model, splits, epochs=50, batch_size=50, optimizer=adam, schedule=schedule))
    # scikit-learn's score in the units of x: that of standardized data, and the Jacobian.
    train = splits.train.x.double().numpy()
    loc, scale = train.mean(0), train.std(0)
    analysis = FactorAnalysis(3, tol=1e-5, max_iter=2000).fit((train - loc) / scale)
    exact = analysis.score_samples((train - loc) / scale) - np.log(scale).sum()
    ours = log_px(model, splits.train, 300).numpy()
    # The same data on both sides: the standard error of the mean difference is below 0.01.
    assert (ours - exact).mean() == pytest.approx(0, abs=0.1)
    assert records[-1].train.bound == pytest.approx(exact.mean(), abs=0.2)


def test_bounds_are_those_of_the_data_themselves():
    """Without standardizing, the same density: parts of the standardized model, moved by hand into the data's units."""
    splits = _splits(_table())
    model = _spec(2).build(splits, seed=0)
    x, (loc, scale) = splits.test.x[:50], model.likelihood.units.of_x
    torch.testing.assert_close(loc, splits.train.x.mean(0), rtol=1e-5, atol=1e-4)
    t = torch.randn(50, 2)
    likelihood = model.likelihood
    by_hand = torch.distributions.Normal(
        loc + scale * likelihood.network(t), scale * likelihood.log_scale.exp()
    ).log_prob(x)
    torch.testing.assert_close(likelihood(t).log_prob(x), by_hand.sum(-1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(likelihood(t).mean, loc + scale * likelihood.network(t))
    assert likelihood(t).sample().shape == x.shape
    torch.testing.assert_close(model.posterior.scaled(splits.train.x).std(0), torch.ones(12), rtol=1e-3, atol=1e-3)
    # In the units of the data; an untrained decoder gives several standard deviations, and not hundreds.
    assert bool(((reconstruct(model, splits.test) - loc).abs() < 50 * scale).all())


def test_a_change_of_units_moves_the_bound_by_its_jacobian_alone():
    x = _table()
    factor = torch.logspace(-2, 2, 12)
    found = []
    for data in (x, x * factor):
        splits = _splits(data)
        model = _spec(2).build(splits, seed=0)
        last = list(fit(model, splits, epochs=2, batch_size=100))[-1]
        found.append((last.valid.bound, mean(log_px(model, splits.test, 50)).mean))
    for before, after in zip(*found, strict=True):
        assert after == pytest.approx(before - factor.log().sum().item(), abs=0.05)


def test_standardized_models_are_saved_loaded_and_compiled(tmp_path, traced):
    splits = _splits(_table(1000))
    model = _spec(2).build(splits, seed=0)
    list(fit(model, splits, epochs=1, batch_size=100))
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    torch.testing.assert_close(log_px(again, splits.test, 5), log_px(model.eval(), splits.test, 5))
    compiled = _spec(2).build(splits, seed=0)
    one = list(fit(compiled, splits, epochs=1, batch_size=100, compile="on"))[-1]
    other = list(fit(_spec(2).build(splits, seed=0), splits, epochs=1, batch_size=100))[-1]
    assert one.valid.bound == pytest.approx(other.valid.bound, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8), (6, 6), (1, 4, 4, 4)], ids=str)
def test_images_are_not_standardized_unless_it_is_wanted(shape):
    x = torch.randn(100, *shape, generator=torch.Generator().manual_seed(0))
    assert not make_splits(Split(x), valid=10, test=10).standardize
    assert make_splits(Split(x), valid=10, test=10, standardize=True).standardize


@pytest.mark.parametrize("shape", [(5,), (100,), (2, 50)], ids=str)
def test_tables_and_signals_are_standardized_unless_it_is_not_wanted(shape):
    x = torch.randn(100, *shape, generator=torch.Generator().manual_seed(0))
    assert make_splits(Split(x), valid=10, test=10).standardize
    assert not make_splits(Split(x), valid=10, test=10, standardize=False).standardize


def test_a_constant_column_has_the_unit_one():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 1234.567
    spread = _splits_of(x).dims(2).x_units[1]
    assert spread[1] == 1
    assert bool((spread != 1)[[0, 2]].all())


def _splits_of(x):
    return make_splits(Split(x), valid=10, test=10)


@pytest.mark.parametrize("values", [torch.arange(5.0), torch.tensor([0.0, 1.0])], ids=str)
def test_only_real_numbers_are_standardized(values):
    x = values[torch.randint(len(values), (100, 3), generator=torch.Generator().manual_seed(0))]
    assert not _splits_of(x).standardize
    with pytest.raises(ValueError, match="standardize: only real numbers"):
        make_splits(Split(x), valid=10, test=10, standardize=True)


def _in_unit_interval():
    x = _table()
    low, high = x.amin(0), x.amax(0)
    return ((x - low) / (high - low)).clamp(0, 1) * torch.tensor(
        [1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1, 1, 1, 1]
    )


@pytest.mark.parametrize("binarize", ["none", "fixed"])
def test_tables_and_signals_in_the_unit_interval_are_real_numbers_too(binarize):
    """Images in [0, 1] are not standardized unless it is wanted, and nothing is where pixels are drawn."""
    x = _in_unit_interval()
    for shape, expected in (((12,), True), ((1, 12), True), ((3, 2, 2), False)):
        splits = make_splits(Split(x.reshape(-1, *shape)), valid=10, test=10, binarize=binarize)
        assert splits.standardize is (expected and binarize == "none")
    if binarize == "none":
        assert make_splits(Split(x.reshape(-1, 3, 2, 2)), valid=10, test=10, standardize=True).standardize


@pytest.mark.slow
def test_a_table_in_the_unit_interval_reaches_the_likelihood_of_factor_analysis():
    x = _in_unit_interval()
    found = []
    for data in (x, x - 0.001):  # of which the second is in no unit interval
        splits = make_splits(Split(data), valid=300, test=300)
        model = ModelSpec(latent=3).build(splits, 0)
        list(fit(model, splits, epochs=5, batch_size=50, optimizer=partial(torch.optim.Adam, lr=3e-3)))
        found.append(mean(log_px(model, splits.test, 100)).mean)
    loc, scale = x.double().numpy().mean(0), x.double().numpy().std(0)
    analysis = FactorAnalysis(3, tol=1e-5, max_iter=2000).fit((x.numpy() - loc) / scale)
    exact = analysis.score((x.numpy() - loc) / scale) - np.log(scale).sum()
    assert found[0] == pytest.approx(found[1], abs=0.3)
    assert found[0] == pytest.approx(exact, abs=3)  # 5 epochs of a network; without units it is 30 nats below


class OwnBeta(Likelihood):
    """A user's likelihood on [0, 1], which knows of no units."""

    def __init__(self, dims):
        super().__init__(dims)
        self.network = MLP((dims.latent,), dims.x_shape, hidden=(4,))
        self.register_buffer("offset", dims.x_mean.logit())

    def forward(self, t):
        a = (self.network(t) + self.offset).sigmoid()
        return dist.Beta(5 * a, 5 * (1 - a)).to_event(1)


@pytest.mark.parametrize("cls", [Beta, ContinuousBernoulli, OwnBeta])
def test_a_likelihood_on_the_unit_interval_describes_the_table_itself(cls, tmp_path):
    x = _in_unit_interval()[:400, 8:].clamp(0.01, 0.99)
    splits = make_splits(Split(x), valid=50, test=50)
    assert splits.standardize
    model = ModelSpec(likelihood=cls, latent=2).build(splits, 0)
    plain = make_splits(Split(x), valid=50, test=50, standardize=False)
    other = ModelSpec(likelihood=cls, latent=2).build(plain, 0)
    ends = [list(fit(each, data, epochs=1, batch_size=50))[-1] for each, data in ((model, splits), (other, plain))]
    assert ends[0].valid.bound == ends[1].valid.bound


@pytest.mark.parametrize("cls", [Beta, ContinuousBernoulli])
def test_a_likelihood_on_the_unit_interval_in_a_model_made_by_hand(cls, tmp_path):
    x = _in_unit_interval()[:400, 8:].clamp(0.01, 0.99)
    splits = make_splits(Split(x), valid=50, test=50)
    dims = splits.dims(2)
    torch.manual_seed(0)
    model = VAE(StandardNormal(dims), FullRankNormal(dims), cls(dims))
    assert bool((model.likelihood(torch.zeros(2)).mean - splits.train.x.mean(0)).abs().max() < 0.2)
    list(fit(model, splits, epochs=1, batch_size=50))
    save(model, tmp_path / "run")
    torch.testing.assert_close(log_px(load(tmp_path / "run"), splits.test, 5), log_px(model.eval(), splits.test, 5))


def test_the_option_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", _table(200).numpy())
    for given, expected in ((None, True), (True, True), (False, False)):
        assert Arrays(tmp_path / "x.npy", valid=20, test=20, standardize=given).load().standardize is expected


@pytest.mark.parametrize("model", ["Conditional", "TwoLayer", "Ladder"])
def test_every_model_sees_standardized_data(model):
    from pyro_vae import models

    x = _table(400)
    splits = make_splits(Split(x, torch.arange(400) % 3), valid=50, test=50)
    built = ModelSpec(model=getattr(models, model), latent=2).build(splits, seed=0)
    last = list(fit(built, splits, epochs=1, batch_size=50))[-1]
    # The Jacobian alone is about 14 nats; unscaled columns would give thousands.
    assert abs(last.valid.bound) < 100
