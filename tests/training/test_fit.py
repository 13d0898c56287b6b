"""Training: reproducible, leaving nothing behind, honest about divergence and averages."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from torch.distributions import constraints
from torch.optim import SGD, Adam

from pyro_vae import VAE, Dims, Network, fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO
from pyro_vae.evaluate import bound, evaluate_bound
from pyro_vae.evaluate.bound import DivergedError, Totals, names_of, sums
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli, Binomial, Normal
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path
from pyro_vae.training import BurdaSchedule

NETWORK = partial(MLP, hidden=[16])


def digits_vae(digits: Splits, seed: int = 0) -> VAE:
    dims = digits.dims(2)
    torch.manual_seed(seed)
    return VAE(StandardNormal(dims), DiagonalNormal(dims, NETWORK), Binomial(dims, NETWORK, total_count=16))


def weights(vae) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in vae.parameters()])


def oracle_data(oracle: LinearGaussian) -> Splits:
    split = Split(oracle.data(50))
    return Splits(split, split, split, constraints.real)


def test_the_same_seed_is_the_same_run_bit_for_bit(digits):
    outcomes = []
    for seed in (3, 3, 4):
        vae = digits_vae(digits)
        torch.manual_seed(seed + 100)  # what ran before does not matter
        records = list(fit(vae, digits, epochs=2, seed=seed))
        outcomes.append((weights(vae), [record.valid for record in records]))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1] == outcomes[1][1]
    assert not torch.equal(outcomes[0][0], outcomes[2][0])


def test_global_random_numbers_are_left_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training = fit(digits_vae_kept(digits), digits, epochs=2)
    torch.manual_seed(5)
    next(training)
    assert torch.equal(torch.rand(3), expected)


def digits_vae_kept(digits):
    state = torch.get_rng_state()
    vae = digits_vae(digits)
    torch.set_rng_state(state)
    return vae


def test_an_interrupted_epoch_leaves_random_numbers_and_flags_alone(digits):
    def stop(_):
        raise KeyboardInterrupt

    flags = torch.distributions.Distribution._validate_args
    vae = digits_vae(digits)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        next(fit(vae, digits, epochs=1, batch_size=1, on_step=stop))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.distributions.Distribution._validate_args is flags


def test_records(digits):
    seen = []
    records = list(fit(digits_vae(digits), digits, epochs=3, batch_size=400, on_step=seen.append))
    assert [record.epoch for record in records] == [1, 2, 3]
    for record in records:
        assert record.train.bound == pytest.approx(record.train.reconstruction - record.train.kl)
        assert record.valid.bound == pytest.approx(record.valid.reconstruction - record.valid.kl)
    assert seen[0].steps == 12  # 1300 data, 400 at a time, are 4 steps an epoch


def test_an_uneven_last_batch_has_its_own_weight(monkeypatch):
    monkeypatch.setattr(bound, "EVALUATED", 0)
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()  # the bound of each datum is then exact
    split = Split(oracle.data(10))
    exact = oracle.log_px(split.x).mean().item()
    for size in (10, 4, 3):
        tally = evaluate_bound(oracle.vae, split, ELBO(), size, seed=0)
        assert tally.terms().bound == pytest.approx(exact, abs=1e-12)
        torch.testing.assert_close(tally.per_datum(), oracle.log_px(split.x).detach())


def test_one_sgd_step_is_the_gradient_of_the_mean():
    oracle = LinearGaussian.random()
    vae, data = oracle.vae, oracle_data(oracle)
    before, phi = weights(vae), list(vae.parameters())
    with seeded(torch.device("cpu"), 0, "epoch", 1):
        (x,) = data.train.columns().take(data.train.columns().order())
    with seeded(torch.device("cpu"), 0, "epoch", 1, "step", 1):
        gradient = torch.autograd.grad(ELBO().estimate(vae.model, vae.guide, x).surrogate.mean(), phi)
    next(fit(vae, data, epochs=1, batch_size=50, optimizer=partial(SGD, lr=0.01)))
    expected = before + 0.01 * torch.cat([g.flatten() for g in gradient])
    torch.testing.assert_close(weights(vae), expected, rtol=0, atol=1e-12)


def test_a_bound_that_becomes_nan_names_its_place_and_keeps_the_weights():
    oracle = LinearGaussian.random()
    vae, data = oracle.vae, oracle_data(oracle)

    def optimizer(parameters):
        return SGD(parameters, lr=1e-3)

    def explode(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 2 else 1e200)

    training = fit(vae, data, epochs=5, batch_size=10, optimizer=optimizer, schedule=explode)
    next(training), next(training)
    good = weights(vae)
    with pytest.raises(DivergedError, match=r"in epoch 3, step 2, at the sites .*'model x'"):
        next(training)
    assert torch.equal(weights(vae), good)


def test_divergence_on_the_validation_data_is_told():
    oracle = LinearGaussian.random()
    x = oracle.data(20)
    data = Splits(Split(x), Split(x * 1e200), Split(x), constraints.real)
    with pytest.raises(DivergedError, match="on the validation data after epoch 1, step 1"):
        next(fit(oracle.vae, data, epochs=1, batch_size=20))


def test_bad_arguments_are_refused_before_training(digits):
    vae = digits_vae(digits)
    with pytest.raises(ValueError, match="batch_size: expected between 1 and the 1300 training data, got 2000"):
        fit(vae, digits, epochs=1, batch_size=2000)
    with pytest.raises(ValueError, match="epochs: expected at least 1"):
        fit(vae, digits, epochs=0)
    fixed = SimpleNamespace(model=lambda x: vae.model(x.detach()), guide=vae.guide)
    vae.requires_grad_(False)
    with pytest.warns(UserWarning, match="requires_grad"), pytest.raises(ValueError, match="no parameters"):
        fit(fixed, digits, epochs=1)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (Bernoulli, "the training data hold values from 0 to 16 that Bernoulli at site 'x' cannot score.*binarize"),
        (partial(Binomial, total_count=15), "that Binomial at site 'x' cannot score"),
    ],
)
def test_data_outside_the_support_are_refused(digits, likelihood, message):
    dims = Dims(2, (1, 8, 8))
    vae = VAE(StandardNormal(dims), DiagonalNormal(dims, NETWORK), likelihood(dims, NETWORK))
    with pytest.raises(ValueError, match=message):
        fit(vae, digits, epochs=1)


def test_bare_pyro_programs_are_trained():
    """p(t) = N(a, 1), p(x|t) = N(t, 1), q = N(m, s): at the optimum a is the mean of x."""

    def model(x):
        a = pyro.param("a", torch.zeros(()))
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(t, 1.0), obs=x[:, 0])

    def guide(x):
        gain = pyro.param("gain", torch.tensor(0.1))
        bias = pyro.param("bias", torch.zeros(()))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Normal(gain * x[:, 0] + bias, scale))

    split = Split(torch.randn(200, 1, generator=torch.Generator().manual_seed(0)) + 3)
    data = Splits(split, split, split, constraints.real)
    programs = SimpleNamespace(model=model, guide=guide)
    to_zero = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=150)
    for _ in fit(programs, data, epochs=150, batch_size=50, optimizer=partial(Adam, lr=0.05), schedule=to_zero):
        pass
    store = pyro.get_param_store()
    assert store["a"].item() == pytest.approx(split.x.mean().item(), abs=0.05)
    assert store["gain"].item() == pytest.approx(0.5, abs=0.05)
    assert store["scale"].item() == pytest.approx(0.5**0.5, abs=0.05)


def test_schedule_of_burda():
    rates = [BurdaSchedule.factor(epoch) for epoch in range(3280)]
    for stage in range(8):
        assert sum(abs(rate - 10 ** (-stage / 7)) < 1e-12 for rate in rates) == 3**stage
    assert rates == sorted(rates, reverse=True)


def test_the_learned_scale_of_normal_is_found():
    """With a constant decoder x ~ N(b, σ²) alone, so σ is the standard deviation of the data."""
    x = 2.5 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    data = Splits(Split(x), Split(x), Split(x), constraints.real)
    dims = data.dims(1)
    vae = VAE(
        StandardNormal(dims), DiagonalNormal(dims, partial(MLP, hidden=[])), Normal(dims, Constant, learn_scale=True)
    )
    for _ in fit(vae, data, epochs=20, batch_size=200, optimizer=partial(Adam, lr=0.02)):
        pass
    assert vae.likelihood.log_scale.exp().item() == pytest.approx(x.std().item(), rel=0.02)


class Constant(Network):
    """A decoder that ignores t."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape)
        self.bias = torch.nn.Parameter(torch.zeros(out_shape))

    def forward(self, inputs):
        return self.bias.expand(*inputs.shape[:-1], *self.out_shape)


def test_tally_is_on_the_meta_device_too():
    oracle = LinearGaussian.random()
    vae = oracle.vae.to("meta")
    with library_path():
        estimate = ELBO().estimate(vae.model, vae.guide, torch.empty(4, 5, device="meta", dtype=torch.float64))
    tally = Totals(names_of(estimate), ELBO())
    tally.add(sums(estimate))
    assert tally.count == 4


class Turned(Network):
    """A linear map by `torch.einsum`, whose gradient is a transposed matrix in memory."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape)
        self.weight = torch.nn.Parameter(torch.randn(1, out_shape[0], in_shape[0]))

    def forward(self, inputs):
        return torch.einsum("dij,...dj->...di", self.weight, inputs.unsqueeze(-2)).squeeze(-2)


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.01), partial(Adam, lr=0.01)])
def test_gradients_are_followed_whatever_their_order_in_memory(optimizer):
    """PyTorch's fused optimizers, the default here, read a transposed gradient as if it were not; the others do not."""
    probe = Turned((4,), (4,))
    (gradient,) = torch.autograd.grad(probe(torch.randn(3, 4)).square().sum(), [probe.weight])
    assert gradient.stride() != probe.weight.stride()
    x, ends = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), []
    for options in ({}, {"foreach": True}):
        with seeded(torch.device("cpu"), "weights"):
            dims = Dims(2, (x.shape[1],))
            vae = VAE(StandardNormal(dims), DiagonalNormal(dims, Turned), Normal(dims, Turned))
        data = Splits(Split(x[:20]), Split(x[20:30]), Split(x[30:]), constraints.real)
        list(fit(vae, data, epochs=2, batch_size=10, optimizer=partial(optimizer, **options)))
        ends.append(weights(vae))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
