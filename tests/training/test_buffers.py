"""Batch normalization and other buffers: set-up and validation leave them alone, training moves them, compiled or not."""

from __future__ import annotations

import logging
from functools import partial
from math import prod

import pytest
import torch
from torch import nn
from torch.distributions import constraints
from torch.optim.lr_scheduler import OneCycleLR

from pyro_vae import VAE, Dims, Network, fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, IWAE
from pyro_vae.evaluate import active_units, draw_gradients, encode, evaluate_bound, log_px, reconstruct, sample
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Normal
from pyro_vae.networks import MLP, Convolutional
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.scopes import mode, unmoved
from pyro_vae.training import TrainingPlan
from pyro_vae.training.schedules import MovingSchedule


class Normalized(Network):
    """A layer with batch normalization, over data and particles together."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape)
        self.first, self.norm, self.last = (
            nn.Linear(prod(in_shape), 4),
            nn.BatchNorm1d(4),
            nn.Linear(4, prod(out_shape)),
        )

    def forward(self, inputs):
        lead = inputs.shape[: inputs.dim() - len(self.in_shape)]
        h = self.norm(self.first(inputs.reshape(lead.numel(), -1)))
        return self.last(h.tanh()).reshape(*lead, *self.out_shape)


class Pictures(Network):
    """Convolutions with batch normalization of the image."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape)
        self.convolutional = Convolutional(in_shape, out_shape, channels=[2])
        self.norm = nn.BatchNorm2d((in_shape if len(in_shape) == 3 else out_shape)[0])

    def forward(self, inputs):
        if len(self.in_shape) == 3:
            lead = inputs.shape[:-3]
            return self.convolutional(self.norm(inputs.reshape(-1, *self.in_shape))).reshape(*lead, *self.out_shape)
        outputs = self.convolutional(inputs)
        return self.norm(outputs.reshape(-1, *self.out_shape)).reshape(outputs.shape)


AFFINE = partial(MLP, hidden=[])
NETWORKS = {
    "encoder": (Normalized, AFFINE),
    "decoder": (AFFINE, Normalized),
    "both": (Normalized, Normalized),
    "pictures": (Pictures, Pictures),
}


def model_of(where, shape=(1, 4, 4), prior=StandardNormal):
    torch.manual_seed(0)
    encoder, decoder = NETWORKS[where]
    dims = Dims(2, shape)
    return VAE(prior(dims), DiagonalNormal(dims, encoder), Normal(dims, decoder, learn_scale=True))


def splits_of(size, shape=(1, 4, 4)):
    x = torch.randn(size + 7, *shape, generator=torch.Generator().manual_seed(0))
    return Splits(Split(x[:size]), Split(x[size:]), Split(x[size : size + 1]), constraints.real)


def state_of(vae):
    return {name: value.clone() for name, value in vae.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("where", NETWORKS)
def test_set_up_and_evaluation_leave_everything_as_it_was(where):
    vae, data = model_of(where), splits_of(20)
    before, random = state_of(vae), torch.get_rng_state()
    fit(vae, data, batch_size=10, estimator=IWAE(2))
    evaluate_bound(vae, data.test, ELBO())
    log_px(vae, data.test, 4), encode(vae, data.test), reconstruct(vae, data.test), sample(vae, 1, like=data.test)
    active_units(vae, data.valid), draw_gradients(vae, data.test, ELBO(), 20)
    assert same(before, state_of(vae))
    assert torch.equal(random, torch.get_rng_state())
    assert vae.training


@pytest.mark.parametrize("where", NETWORKS)
@pytest.mark.parametrize("size", [20, 21, 25])
def test_a_compiled_training_moves_buffers_as_the_eager_one(where, size, traced, caplog):
    """With 21 data, 10 at a time, the last batch holds 11."""
    ends = []
    for compile in ("on", "off"):
        vae = model_of(where)
        before = state_of(vae)
        options = {"epochs": 3, "batch_size": 10, "compile": compile, "schedule": partial(OneCycleLR, max_lr=0.01)}
        with caplog.at_level(logging.WARNING, "pyro_vae"):
            records = list(fit(vae, splits_of(size), **options))
        assert len(records) == 3
        ends.append(state_of(vae))
        assert not any(torch.equal(value, before[name]) for name, value in ends[-1].items() if "running" in name)
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)
    steps = 2 if size < 25 else 3
    counts = [value.item() for name, value in ends[0].items() if "num_batches" in name]
    assert counts == [3 * steps] * len(counts)
    assert not caplog.records


def test_validation_moves_no_buffer_and_no_mode():
    vae, data = model_of("both"), splits_of(20)
    vae.posterior.network.norm.eval()
    vae.likelihood.network.last.eval()
    before, kept = state_of(vae), {name: each.training for name, each in vae.named_modules()}
    training = fit(vae, data, epochs=1, batch_size=10)
    next(training)
    after = state_of(vae)
    for name in before:
        if "posterior.network.norm.running" in name:
            assert torch.equal(before[name], after[name])
        elif "likelihood.network.norm.running" in name:
            assert not torch.equal(before[name], after[name])
    assert {name: each.training for name, each in vae.named_modules()} == kept
    evaluate_bound(vae, data.valid, ELBO())
    assert same(after, state_of(vae))
    assert {name: each.training for name, each in vae.named_modules()} == kept


def test_a_single_input_in_a_large_batch_is_not_blamed_on_the_batch():
    data = splits_of(20)
    guide = model_of("encoder").posterior
    dims = data.dims(guide.dims.latent)
    vae = VAE(VampPrior(dims, components=1), guide, model_of("encoder").likelihood)
    with pytest.raises(ValueError, match=r"a single input, as an encoder is by VampPrior\(components=1\)"):
        fit(vae, data, batch_size=10)


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (20, 1)])
def test_batches_of_one_are_refused_with_batch_normalization_alone(size, batch_size):
    data = splits_of(size)
    with pytest.raises(ValueError, match=r"batch_size: batch normalization needs batches of at least 2 data .*, got 1"):
        fit(model_of("encoder"), data, batch_size=batch_size)
    list(fit(model_of("decoder"), data, batch_size=batch_size, epochs=1, estimator=ELBO(2)))  # on two particles
    vae = model_of("encoder")
    vae.posterior.eval()
    list(fit(vae, data, batch_size=batch_size, epochs=1))


def test_a_single_datum_is_not_left_over():
    for size in range(1, 12):
        for batch_size in range(1, size + 1):
            plan, order = TrainingPlan(batch_size=batch_size), torch.randperm(size)
            batches = plan.batches(order)
            assert len(batches) == plan.steps(size)
            assert torch.equal(torch.cat(batches), order)
            assert batch_size == 1 or size == 1 or min(map(len, batches)) > 1
            if size % batch_size != 1:
                assert [len(batch) for batch in batches] == [len(each) for each in order.split(batch_size)]


def test_a_schedule_is_told_the_number_of_steps(monkeypatch):
    told = []
    monkeypatch.setattr(
        MovingSchedule, "__init__", lambda self, factory, optimizer, by, epochs, steps: told.append((epochs, steps))
    )
    monkeypatch.setattr(MovingSchedule, "scheduler", None, raising=False)
    fit(model_of("both"), splits_of(21), epochs=5, batch_size=10)
    assert told == [(5, 10)]


def test_a_prior_made_of_the_guide_moves_no_buffer_when_it_is_built():
    torch.manual_seed(0)
    dims = Dims(2, (1, 4, 4))
    for components in (1, 5):
        guide = DiagonalNormal(dims, Normalized)
        before = state_of(guide)
        vae = VAE(VampPrior(dims, components), guide, Normal(dims, AFFINE))
        assert same(before, state_of(guide))
        assert vae.training


def test_modes_of_submodules():
    class Frozen(nn.Module):
        """Keeps its normalization in evaluation mode, as users write it."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), Frozen()))
    module[1].eval()
    with mode(module, training=True):
        assert [module.training, module[0].training, module[1].training] == [True, True, False]
    with mode(module, training=False):
        assert not any(each.training for each in module.modules())
    assert [module.training, module[0].training, module[1].training] == [True, True, False]
    module.eval()
    with mode(module, training=True):  # a loaded model, which is trained again
        assert module[1][0].training
        assert not module[1][1].norm.training
    assert not any(each.training for each in module.modules())


def test_buffers_are_put_back_after_an_error_too():
    module = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="expected 2D"), unmoved(module):
        module(module(torch.randn(5, 2) + 3)[None, None])
    assert torch.equal(module.running_mean, torch.zeros(2))
    assert module.num_batches_tracked == 0
