"""What is watched of a training is right, and the training is the same bit for bit as without it."""

from __future__ import annotations

import itertools
import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import FIFTY, KINDS_OF_MODEL, SEVENTY, small_vae, state_of
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from pyro_vae import VAE, fit
from pyro_vae.data import Split, make_splits
from pyro_vae.estimators import ELBO, IWAE, AnalyticKL, DReG, ScoreFunction, Stock
from pyro_vae.evaluate import elbo_surgery, kl_per_dimension
from pyro_vae.guides import FullRankNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal
from pyro_vae.traces import parameters
from pyro_vae.training import TrainingPlan, loop

ALL = ["rates", "gradient_norm", "steps_per_second", "kl_per_dimension"]
PLAN = TrainingPlan(epochs=3, batch_size=12, compile="off")  # 50 data: five steps an epoch, the last one of two data


def sides(vae) -> list[torch.Tensor]:
    """The parameters w and φ, each as one vector."""
    found = parameters(vae.model, vae.guide, FIFTY.train.x[:2])
    return [torch.cat([each.detach().flatten() for each in side.values()]) for side in found]


def timeless(record):
    """A record without what depends on the clock."""
    watched = {name: value for name, value in record.watched.items() if name != "steps_per_second"}
    return replace(record, seconds=0.0, watched=watched)


OPTIONS = {
    "plain": {},
    "several particles": {"estimator": DReG(K=3)},
    "a state": {"estimator": ScoreFunction(control="running")},
    "Pyro's own": {"estimator": Stock(1)},
    "clipped": {"clip_norm": 0.1, "lr_phi": 1e-4},
    "in turns": {"e_steps": 2, "m_steps": 1},
    "a schedule": {"schedule": partial(OneCycleLR, max_lr=0.01)},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_and_records_are_the_same_bit_for_bit(name):
    ends = []
    for watch in ([], ALL):
        vae = small_vae()
        records = list(fit(vae, FIFTY, replace(PLAN, **OPTIONS[name]), watch=watch))
        ends.append((state_of(vae), [replace(each, seconds=0.0, watched={}) for each in records]))
        assert [list(each.watched) for each in records] == [watch] * 3
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("name", KINDS_OF_MODEL)
def test_every_kind_of_model(name):
    x = SEVENTY.clone()
    if name == "missing":
        x[::3, :, 0] = torch.nan
    data = make_splits(Split(x, torch.arange(70) % 3), valid=10, test=10)
    ends = []
    for watch in ([], ALL):
        torch.manual_seed(0)
        vae = KINDS_OF_MODEL[name]()
        records = list(fit(vae, data, PLAN, epochs=1, watch=watch))
        ends.append(state_of(vae))
    assert torch.equal(*ends)
    assert set(records[-1].watched["gradient_norm"]) <= {"w", "phi"}
    assert all(value > 0 for value in records[-1].watched["gradient_norm"].values())


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_the_norm_is_that_of_the_gradient_before_it_is_clipped(clip_norm):
    """A step of plain descent moves parameters by the rate times the gradient."""
    vae, rate = small_vae(), 0.1
    before = sides(vae)
    plan = replace(PLAN, epochs=1, batch_size=50, optimizer=partial(SGD, lr=rate), clip_norm=clip_norm)
    (record,) = fit(vae, FIFTY, plan, watch=["gradient_norm"])
    moved = torch.stack([(now - was).norm() / rate for now, was in zip(sides(vae), before, strict=True)])
    told = torch.tensor([record.watched["gradient_norm"][side] for side in ("w", "phi")])
    factor = 1.0 if clip_norm is None else clip_norm / told.norm()
    torch.testing.assert_close(moved, told * factor, rtol=1e-4, atol=0)
    assert told.norm() > 0.1


def test_each_side_has_the_mean_over_the_steps_that_move_it():
    vae, rate = small_vae(), 0.1
    plan = replace(PLAN, epochs=1, batch_size=25, optimizer=partial(SGD, lr=rate), e_steps=1, m_steps=1)
    before = sides(vae)
    (record,) = fit(vae, FIFTY, plan, watch=["gradient_norm"])
    for side, now, was in zip(("w", "phi"), sides(vae), before, strict=True):
        assert record.watched["gradient_norm"][side] == pytest.approx(((now - was).norm() / rate).item(), rel=1e-4)


def test_the_mean_over_an_epoch_is_that_of_its_steps():
    """With a rate of 0 the weights stay, and an epoch of one batch a step is the mean of its steps."""
    norms = []

    class Told(ELBO):
        def gradients(self, *args, **kwargs):
            estimate, found = super().gradients(*args, **kwargs)
            norms.append(torch.cat([each.flatten() for each in found]).norm().item())
            return estimate, found

    (record,) = fit(small_vae(), FIFTY, PLAN, epochs=1, estimator=Told(), optimizer=partial(SGD, lr=0.0), watch=ALL)
    told = record.watched["gradient_norm"]
    assert len(norms) == 5
    largest = sum(told.values())
    assert max(told.values()) - 1e-4 <= sum(norms) / 5 <= largest + 1e-4


def test_rates_are_those_at_the_beginning_of_the_epoch():
    plan = replace(PLAN, lr_phi=1e-4, schedule=partial(ExponentialLR, gamma=0.5))
    found = [each.watched["rates"] for each in fit(small_vae(), FIFTY, plan, watch=["rates"])]
    assert found == [{"w": 1e-3 * f, "phi": 1e-4 * f} for f in (1.0, 0.5, 0.25)]


def test_the_kl_of_each_dimension_adds_up_to_the_kl():
    vae = small_vae()
    *_, record = fit(vae, FIFTY, PLAN, estimator=AnalyticKL(), watch=["kl_per_dimension"])
    (found,) = record.watched["kl_per_dimension"].values()
    assert len(found) == 2
    other = elbo_surgery(vae, FIFTY.valid, draws=2).kl_per_dimension["t"]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), other, rtol=1e-5, atol=1e-7)
    by_hand = kl_per_dimension(vae, FIFTY.valid, draws=3, seed=5, batch_size=3)["t"]
    torch.testing.assert_close(by_hand, other, rtol=1e-5, atol=1e-7)


def test_speed_is_that_of_the_steps(monkeypatch):
    """Each question for the time is a second later: one at the beginning, and one after the steps."""
    clock = itertools.count(0, 0.01)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    (record,) = fit(small_vae(), FIFTY, PLAN, epochs=1, watch=["steps_per_second"])
    assert record.watched["steps_per_second"] == pytest.approx(5 / 0.01)


def test_latents_without_a_kl_of_each_dimension_are_told_once(caplog):
    dims, net = FIFTY.dims(2), partial(MLP, hidden=[6])
    vae = VAE(StandardNormal(dims), FullRankNormal(dims, net), Bernoulli(dims, net))
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        records = list(fit(vae, FIFTY, PLAN, watch=["kl_per_dimension"]))
    assert [each.watched for each in records] == [{"kl_per_dimension": {}}] * 3
    (message,) = [each.getMessage() for each in caplog.records]
    assert message.startswith("kl_per_dimension has nothing for 't': the guide or the prior is not independent")


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")  # Pyro warns of the side that a phase holds still
@pytest.mark.parametrize("name", ["plain", "clipped", "in turns", "a schedule", "a state"])
def test_compiled(name, traced, caplog):
    """The norms are an output of the graph; without its compiler the weights are the same bit for bit."""
    plan, found = replace(PLAN, **OPTIONS[name]), []
    for compile, watch in (("on", []), ("on", ALL), ("off", ALL)):
        vae = small_vae()
        with caplog.at_level(logging.WARNING, "pyro_vae"):
            records = list(fit(vae, FIFTY, plan, compile=compile, watch=watch))
        found.append((state_of(vae), [each.watched.get("gradient_norm") for each in records]))
    assert torch.equal(found[0][0], found[1][0])
    assert not [each for each in caplog.records if "eagerly" in each.getMessage()]
    for one, other in zip(found[1][1], found[2][1], strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
def test_compiled_in_full():
    found = []
    for compile in ("on", "off"):
        vae = small_vae()
        records = list(fit(vae, FIFTY, PLAN, compile=compile, estimator=IWAE(K=3), clip_norm=1.0, watch=ALL))
        found.append((state_of(vae), [each.watched["gradient_norm"] for each in records]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-3)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one == pytest.approx(other, rel=1e-2)


class CutError(Exception):
    pass


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("name", ["plain", "in turns"])
@pytest.mark.parametrize("cut", [1, 5, 7])
def test_a_training_that_was_cut_goes_on_with_what_it_had_seen(cut, name, compile, tmp_path, traced, monkeypatch):
    clock, plan = itertools.count(), replace(PLAN, compile=compile, **OPTIONS[name])
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))  # every step is told

    def stop(now):
        if now.step >= cut:
            raise CutError

    whole, again, kept = small_vae(), small_vae(), []
    records = list(fit(whole, FIFTY, plan, watch=ALL))
    with suppress(CutError):
        for record in fit(
            small_vae(), FIFTY, plan, checkpoint=tmp_path / "c", checkpoint_every="1 step", on_step=stop, watch=ALL
        ):
            kept.append(record)
    kept += fit(again, FIFTY, plan, checkpoint=tmp_path / "c", watch=ALL)
    assert torch.equal(state_of(whole), state_of(again))
    assert list(map(timeless, kept)) == list(map(timeless, records))


@pytest.mark.parametrize(("first", "then"), [([], ALL), (ALL, []), (["rates"], ["gradient_norm"])])
def test_a_training_goes_on_watched_otherwise(first, then, tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))

    def stop(now):
        if now.step >= 7:
            raise CutError

    whole, again = small_vae(), small_vae()
    list(fit(whole, FIFTY, PLAN))
    with suppress(CutError):
        list(
            fit(
                small_vae(),
                FIFTY,
                PLAN,
                checkpoint=tmp_path / "c",
                checkpoint_every="1 step",
                on_step=stop,
                watch=first,
            )
        )
    records = list(fit(again, FIFTY, PLAN, checkpoint=tmp_path / "c", watch=then))
    assert torch.equal(state_of(whole), state_of(again))
    assert [sorted(each.watched) for each in records] == [sorted(then)] * 2
    assert all(each.watched["gradient_norm"].keys() == {"w", "phi"} for each in records if "gradient_norm" in then)


class Fixed(nn.Module):
    """A model without parameters."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(16))

    def model(self, x):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(torch.zeros(16), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(t, 1.0).to_event(1), obs=x.flatten(1))

    def guide(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Normal(self.loc + 0 * x.flatten(1), 1.0).to_event(1))


def test_a_side_without_parameters_has_no_norm():
    (record,) = fit(Fixed(), FIFTY, PLAN, epochs=1, watch=ALL)
    assert record.watched["gradient_norm"].keys() == record.watched["rates"].keys() == {"phi"}
    assert len(record.watched["kl_per_dimension"]["t"]) == 16


WRONG = {
    "rate": "watch: 'rate' cannot be watched; did you mean 'rates'?",
    "norm": "watch: 'norm' cannot be watched; there are rates, gradient_norm, steps_per_second, kl_per_dimension",
    "KL_per_dimension": "did you mean 'kl_per_dimension'",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_is_told_at_once(name):
    with pytest.raises(ValueError, match="cannot be watched") as told:
        fit(small_vae(), FIFTY, PLAN, watch=["rates", name])
    assert WRONG[name] in str(told.value)


def test_a_name_in_place_of_a_list_is_told():
    with pytest.raises(ValueError, match="watch: expected a list of texts, got 'rates'"):
        fit(small_vae(), FIFTY, PLAN, watch="rates")
