"""A training that was cut goes on from its checkpoint as if nothing had happened, bit for bit on a CPU."""

from __future__ import annotations

import itertools
import logging
from contextlib import contextmanager, suppress
from functools import partial
from math import prod

import pytest
import torch
from discrete import Discrete
from helpers import ESTIMATORS, FIFTY, OF_DISCRETE, OPTIMIZERS, small_vae, state_of, vae_of
from torch import nn

from pyro_vae import VAE, Network, fit
from pyro_vae.data import Split, make_splits
from pyro_vae.estimators import IWAE, Objective, ScoreFunction
from pyro_vae.guides import DiagonalNormal, PerDatum
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLP
from pyro_vae.priors import SplineFlow, StandardNormal, VampPrior
from pyro_vae.training import BurdaSchedule, Callback, TrainingPlan, loop
from pyro_vae.training.checkpoint import Every, read_checkpoint, write_checkpoint

CUT = 7
"""The step after which trainings are cut: within the second epoch."""


class CutError(Exception):
    pass


def cut_and_resumed(plan: TrainingPlan, path, make=small_vae, data=FIFTY, every="1 step", cut=CUT):
    """The weights and records of a training, and those of one that was cut after some steps and went on in new objects."""
    whole = make()
    records = list(fit(whole, data, plan))

    def stop(now):
        if now.step >= cut:
            raise CutError

    kept = []
    with at_each_step(), suppress(CutError):
        for record in fit(make(), data, plan, checkpoint=path, checkpoint_every=every, on_step=stop):
            kept.append(record)
    again = make()
    with torch.no_grad():
        for parameter in again.parameters():  # what it begins with does not matter
            parameter.add_(1.0)
    later = list(fit(again, data, plan, checkpoint=path, checkpoint_every=every))
    assert later, "nothing was left to train"
    assert [each.epoch for each in (*kept, *later)] == list(range(1, plan.epochs + 1))
    return (whole, records), (again, [*kept, *later])


@contextmanager
def at_each_step():
    """``on_step`` is told of every step, and not ten times a second."""
    with pytest.MonkeyPatch.context() as patch:
        clock = itertools.count()
        patch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
        yield


def same(plan: TrainingPlan, path, **options) -> None:
    (whole, records), (again, later) = cut_and_resumed(plan, path, **options)
    assert torch.equal(state_of(whole), state_of(again))
    for one, other in zip(records, later, strict=True):
        assert (one.epoch, one.train, one.valid, one.lr) == (other.epoch, other.train, other.valid, other.lr)


PLAN = TrainingPlan(epochs=3, batch_size=12, compile="off")  # 50 data: five steps an epoch, the last one of two data


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name, tmp_path):
    same(TrainingPlan(epochs=3, batch_size=12, compile="off", optimizer=OPTIMIZERS[name]), tmp_path / "c")


lr = torch.optim.lr_scheduler
SCHEDULES = {
    "StepLR": partial(lr.StepLR, step_size=1),
    "MultiStepLR": partial(lr.MultiStepLR, milestones=[1, 2]),
    "MultiplicativeLR": partial(lr.MultiplicativeLR, lr_lambda=lambda epoch: 0.9),
    "ConstantLR": lr.ConstantLR,
    "LinearLR": lr.LinearLR,
    "ExponentialLR": partial(lr.ExponentialLR, gamma=0.7),
    "PolynomialLR": partial(lr.PolynomialLR, total_iters=3),
    "CosineAnnealingLR": partial(lr.CosineAnnealingLR, T_max=3),
    "CosineAnnealingWarmRestarts": partial(lr.CosineAnnealingWarmRestarts, T_0=2),
    "CyclicLR": partial(lr.CyclicLR, base_lr=1e-3, max_lr=1e-2, step_size_up=4, cycle_momentum=False),
    "OneCycleLR": partial(lr.OneCycleLR, max_lr=1e-2),
    "ReduceLROnPlateau": partial(lr.ReduceLROnPlateau, patience=0),
    "LambdaLR": partial(lr.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)),
    "BurdaSchedule": BurdaSchedule,
    "SequentialLR": lambda optimizer: lr.SequentialLR(
        optimizer, [lr.ConstantLR(optimizer), lr.ExponentialLR(optimizer, 0.5)], milestones=[1]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("by", ["auto", "step"])
def test_every_schedule(name, by, tmp_path):
    if (name, by) == ("ReduceLROnPlateau", "step"):
        pytest.skip("refused")
    plan = TrainingPlan(epochs=3, batch_size=12, compile="off", schedule=SCHEDULES[name], schedule_by=by)
    same(plan, tmp_path / "c")


@pytest.mark.parametrize("cls", OF_DISCRETE)
def test_every_estimator_of_discrete_latents(cls, tmp_path):
    data = make_splits(Split(FIFTY.train.x.flatten(1)[:, :3]), valid=10, test=10)
    plan = TrainingPlan(epochs=3, batch_size=12, compile="off", estimator=cls())
    same(plan, tmp_path / "c", make=lambda: Discrete("binary").float(), data=data, cut=4)


@pytest.mark.parametrize("cls", [each for each in ESTIMATORS if each.__name__ != "Stock"])
def test_every_estimator(cls, tmp_path):
    same(TrainingPlan(epochs=3, batch_size=12, compile="off", estimator=cls()), tmp_path / "c")


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": ScoreFunction(control="running")},
        {"objective": Objective(warm_up=2, beta=2.0, free_nats=0.1)},
        {"e_steps": 2, "m_steps": 1},
        {"e_steps": 8, "m_steps": 1, "optimizer": OPTIMIZERS["SGD momentum"]},  # cut before w has moved
        {"clip_norm": 0.1, "lr_phi": 1e-4},
        {"seed": 3, "batch_size": 50},
    ],
    ids=",".join,
)
def test_every_way_to_train(options, tmp_path):
    plan = TrainingPlan(**{"epochs": 3, "batch_size": 12, "compile": "off"} | options)
    same(plan, tmp_path / "c", cut=7 if plan.batch_size == 12 else 2)


@pytest.mark.parametrize("cls", [VampPrior, PerDatum, SplineFlow], ids=lambda cls: cls.__name__)
def test_other_parts(cls, tmp_path):
    def make():
        torch.manual_seed(0)
        return vae_of(cls)

    same(PLAN, tmp_path / "c", make=make)


def test_buffers_and_pixels_that_are_drawn(tmp_path):
    """Batch normalization's running statistics, dropout, and dynamic binarization."""
    gray = torch.rand(70, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    data = make_splits(Split(gray), valid=10, test=10, binarize="dynamic")

    def make():
        torch.manual_seed(0)
        dims = data.dims(2)
        return VAE(StandardNormal(dims), DiagonalNormal(dims, Normalized), Bernoulli(dims, partial(MLP, hidden=[6])))

    same(PLAN, tmp_path / "c", make=make, data=data)


class Normalized(Network):
    """A network with batch normalization and dropout."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape)
        n, m = prod(in_shape), prod(out_shape)
        self.layers = nn.Sequential(nn.Linear(n, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, m))

    def forward(self, inputs):
        flat = inputs.flatten(-len(self.in_shape))
        return self.layers(flat.reshape(-1, flat.shape[-1])).reshape(*flat.shape[:-1], *self.out_shape)


@pytest.mark.parametrize("schedule", [None, "OneCycleLR"])
@pytest.mark.parametrize("cut", [1, 2, CUT])
def test_compiled(schedule, cut, tmp_path, traced):
    plan = TrainingPlan(epochs=3, batch_size=12, compile="on", schedule=SCHEDULES.get(schedule))
    same(plan, tmp_path / "c", cut=cut)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [None, "OneCycleLR"])
def test_compiled_in_full(schedule, tmp_path):
    plan = TrainingPlan(epochs=3, batch_size=12, compile="on", estimator=IWAE(K=3), schedule=SCHEDULES.get(schedule))
    same(plan, tmp_path / "c")


@pytest.mark.parametrize("cut", range(1, 15))
def test_cut_after_any_step(cut, tmp_path):
    """Also at the end of an epoch, where the record was given before the checkpoint."""
    same(PLAN, tmp_path / "c", cut=cut)


@pytest.mark.parametrize("every", ["epoch", "2 epochs", "3 steps", "1 hour", "0.001 seconds"])
def test_from_an_older_checkpoint_epochs_are_trained_again(every, tmp_path):
    whole, path = small_vae(), tmp_path / "c"
    records = list(fit(whole, FIFTY, PLAN))
    first = fit(small_vae(), FIFTY, PLAN, checkpoint=path, checkpoint_every=every)
    given = [next(first), next(first)]
    del first
    again = small_vae()
    later = list(fit(again, FIFTY, PLAN, checkpoint=path, checkpoint_every=every))
    assert torch.equal(state_of(whole), state_of(again))
    assert len(given) + len(later) >= len(records)
    assert [each.valid for each in later] == [each.valid for each in records[-len(later) :]]
    assert not list(fit(small_vae(), FIFTY, PLAN, checkpoint=path))  # finished: nothing is left
    last = small_vae()
    assert [each.epoch for each in fit(last, FIFTY, PLAN, epochs=5, checkpoint=path)] == [4, 5]  # or more of the same
    longer = small_vae()
    list(fit(longer, FIFTY, PLAN, epochs=5))
    assert torch.equal(state_of(last), state_of(longer))


def test_stopping_keeps_the_last_step(tmp_path):
    """A KeyboardInterrupt from ``on_step`` is a wish to stop."""

    def stop(now):
        if now.step == CUT:
            raise KeyboardInterrupt

    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt), at_each_step():
        list(fit(small_vae(), FIFTY, PLAN, checkpoint=path, checkpoint_every="1 hour", on_step=stop))
    state = read_checkpoint(path)
    assert (state["done"], state["within"]["steps"]) == (1, 2)
    whole, again = small_vae(), small_vae()
    list(fit(whole, FIFTY, PLAN))
    list(fit(again, FIFTY, PLAN, checkpoint=path))
    assert torch.equal(state_of(whole), state_of(again))


class Counting(Callback):
    def __init__(self):
        self.seen = []

    def on_epoch(self, record, programs):
        self.seen.append(record.epoch)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_callbacks_keep_their_state(tmp_path):
    first, again = Counting(), Counting()
    training = fit(small_vae(), FIFTY, PLAN, callbacks=[first], checkpoint=tmp_path / "c", checkpoint_every="epoch")
    next(training)
    next(training)  # now the checkpoint of the first epoch is written
    list(fit(small_vae(), FIFTY, PLAN, callbacks=[again], checkpoint=tmp_path / "c"))
    assert again.seen == [1, 2, 3]


DIFFERENT = {
    "batch_size": "another batch_size: there 12, here 10",
    "seed": "another seed: there 0, here 1",
    "estimator": "another estimator",
    "optimizer": "another optimizer: there Adam, here SGD",
    "schedule": "another schedule: there None, here ExponentialLR",
    "objective": "another objective",
    "precision": "another precision: there fp32, here bf16",
}
OTHER = {
    "batch_size": 10, "seed": 1, "estimator": IWAE(K=2), "optimizer": partial(torch.optim.SGD, lr=0.1),
    "schedule": SCHEDULES["ExponentialLR"], "objective": Objective(beta=2.0), "precision": "bf16",
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_training_is_refused(name, tmp_path):
    list(fit(small_vae(), FIFTY, PLAN, checkpoint=tmp_path / "c"))
    with pytest.raises(ValueError, match=DIFFERENT[name]):
        fit(small_vae(), FIFTY, PLAN, checkpoint=tmp_path / "c", **{name: OTHER[name]})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"done": "1"}, "done: expected a whole number, got '1'"),
        ({"within": 3}, "within: expected steps, seconds, lr, totals, watched, got 3"),
        ({"within": {"steps": "2"}}, "steps: expected a whole number, got '2'"),
        (
            {"within": {"steps": 2, "seconds": 0.1, "lr": 0.1, "totals": {"count": 3, "rows": "a"}}},
            "rows: expected a tensor",
        ),
    ],
)
def test_a_checkpoint_that_says_no_place_is_refused(changed, told, tmp_path):
    path = tmp_path / "c"
    list(fit(small_vae(), FIFTY, PLAN, checkpoint=path))
    write_checkpoint(path, read_checkpoint(path) | changed)
    with pytest.raises(ValueError, match="does not fit this training") as raised:
        fit(small_vae(), FIFTY, PLAN, checkpoint=path)
    assert told in str(raised.value)


def test_other_data_and_another_model_are_refused(tmp_path):
    list(fit(small_vae(), FIFTY, PLAN, checkpoint=tmp_path / "c"))
    other = make_splits(Split(1 - torch.cat([FIFTY.train.x, FIFTY.valid.x, FIFTY.test.x])), valid=10, test=10)
    with pytest.raises(ValueError, match="with other data"):
        fit(small_vae(), other, PLAN, checkpoint=tmp_path / "c")
    dims = FIFTY.dims(3)
    with pytest.raises(ValueError, match="another parameters"):
        fit(VAE(StandardNormal(dims), DiagonalNormal(dims), Bernoulli(dims)), FIFTY, PLAN, checkpoint=tmp_path / "c")


def test_a_damaged_checkpoint_is_told(tmp_path):
    path = tmp_path / "c"
    list(fit(small_vae(), FIFTY, PLAN, checkpoint=path))
    good = path.read_bytes()
    for at in (0, 9, 200, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 4
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="damaged, or no checkpoint"):
            fit(small_vae(), FIFTY, PLAN, checkpoint=path)
    for size in (0, 5, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match="damaged, or no checkpoint"):
            fit(small_vae(), FIFTY, PLAN, checkpoint=path)


@pytest.mark.parametrize("text", ["", "x", "0 steps", "1.5 steps", "-1 minute", "5", "nan minutes"])
def test_how_often_is_checked(text):
    with pytest.raises(ValueError, match="checkpoint_every: expected such as"):
        Every(text)


def test_everything_plain_comes_back(tmp_path):
    state = {
        "a": [1, 2.5, None, True, "text", float("inf"), -float("inf")], "b": (1, (2, [3])), 3: {"c": torch.arange(3)},
        "empty": {}, "bits": torch.tensor([True]), "half": torch.ones(2, dtype=torch.bfloat16), "none": torch.zeros(0),
    }  # fmt: skip
    write_checkpoint(tmp_path / "c", state)
    found = read_checkpoint(tmp_path / "c")
    assert str(found) == str(state)
    write_checkpoint(tmp_path / "c", {"nan": float("nan")})
    assert read_checkpoint(tmp_path / "c")["nan"] != read_checkpoint(tmp_path / "c")["nan"]


def test_what_cannot_be_kept_is_told_and_the_training_goes_on(tmp_path, caplog):
    class Odd(lr.ExponentialLR):
        def __init__(self, optimizer):
            super().__init__(optimizer, 0.5)
            self.odd = object()

    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert len(list(fit(small_vae(), FIFTY, PLAN, schedule=Odd, checkpoint=tmp_path / "c"))) == 3
    assert "cannot go on where it is cut: state.schedule.odd is a object, which cannot be written down" in caplog.text
    assert not (tmp_path / "c").exists()


def test_another_number_of_threads_goes_on_and_says_that_bits_may_differ(tmp_path, caplog):
    plan, threads = TrainingPlan(epochs=3, batch_size=12, compile="off"), torch.get_num_threads()
    whole = small_vae()
    list(fit(whole, FIFTY, plan))
    training = fit(small_vae(), FIFTY, plan, checkpoint=tmp_path / "c", checkpoint_every="epoch")
    next(training), next(training)
    again = small_vae()
    try:
        torch.set_num_threads(threads + 1)
        with caplog.at_level(logging.WARNING, "pyro_vae"):
            list(fit(again, FIFTY, plan, checkpoint=tmp_path / "c", checkpoint_every="epoch"))
    finally:
        torch.set_num_threads(threads)
    (told,) = [record.getMessage() for record in caplog.records if record.name == "pyro_vae"]
    assert told.endswith(f"its bits may differ: threads {threads} there, {threads + 1} here")
    torch.testing.assert_close(state_of(again), state_of(whole), rtol=0, atol=1e-5)
