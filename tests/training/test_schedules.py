"""Schedules move at the right moments, optimizers have named groups, and what cannot work is refused before training."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from oracles import LinearGaussian
from torch.distributions import constraints
from torch.optim import LBFGS, SGD, Adam, Optimizer, SparseAdam
from torch.optim.lr_scheduler import (
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from pyro_vae import TrainingPlan, fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, Objective, Stock
from pyro_vae.training import Callback


def oracle_and_splits(size: int = 40) -> tuple[LinearGaussian, Splits]:
    oracle = LinearGaussian.random()
    return oracle, Splits(*(Split(oracle.data(size, seed)) for seed in (1, 2, 3)), constraints.real)


class Watched(SGD):
    """Notes the rates of both groups, and the momentum, at each step."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)
        self.rates: list[tuple[float, ...]] = []

    def step(self, closure=None):
        self.rates.append(tuple(float(group["lr"]) for group in self.param_groups))
        return super().step(closure)


def rates_of(schedule, epochs: int = 3, **options) -> list[tuple[float, ...]]:
    """The learning rates of w and φ at each of four steps an epoch."""
    oracle, data = oracle_and_splits()
    made: list[Watched] = []

    def optimizer(groups):
        made.append(Watched(groups, lr=0.001))
        return made[-1]

    list(fit(oracle.vae, data, epochs=epochs, batch_size=10, optimizer=optimizer, schedule=schedule, **options))
    return made[-1].rates


def stepped(schedule, steps: int, after: list[int]) -> list[float]:
    """What PyTorch's own schedule gives if it is moved on after these steps."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    scheduler, rates = schedule(optimizer), []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step in after:
            scheduler.step()
    return rates


BY_EPOCH, BY_STEP = [3, 7, 11], list(range(12))


@pytest.mark.parametrize(
    ("schedule", "by", "after"),
    [
        (partial(StepLR, step_size=1), "auto", BY_EPOCH),
        (partial(ExponentialLR, gamma=0.9), "auto", BY_EPOCH),
        (partial(ExponentialLR, gamma=0.9), "step", BY_STEP),
        (partial(OneCycleLR, max_lr=0.01, total_steps=12), "auto", BY_STEP),
        (partial(OneCycleLR, max_lr=0.01, total_steps=4), "epoch", BY_EPOCH),
        (partial(OneCycleLR, max_lr=0.01), "auto", BY_STEP),
        (partial(OneCycleLR, max_lr=0.01), "epoch", BY_EPOCH),
        (partial(CyclicLR, base_lr=0.001, max_lr=0.01, step_size_up=3, cycle_momentum=False), "auto", BY_STEP),
    ],
)
def test_schedules_move_by_the_epoch_or_by_the_step(schedule, by, after):
    schedule = partial(schedule, cycle_momentum=False) if schedule.func is OneCycleLR else schedule
    told = {} if "total_steps" in schedule.keywords or schedule.func is not OneCycleLR else {"total_steps": len(after)}
    expected = stepped(partial(schedule, **told), 12, after[:-1])  # after its last step training is at its end
    assert [w for w, _ in rates_of(schedule, schedule_by=by)] == pytest.approx(expected)


def test_a_plateau_is_one_of_the_validation_bound():
    """Told minus the bound: a bound that never rises by the threshold cuts the rate after each epoch but the first."""
    told = []

    class Told(ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            told.append(metrics)
            super().step(metrics, epoch)

    schedule = partial(Told, factor=0.5, patience=0, threshold=1e6, threshold_mode="abs")
    rates = rates_of(schedule, epochs=4)
    assert [rates[4 * epoch][0] for epoch in range(4)] == [0.001, 0.001, 0.0005, 0.00025]
    oracle, data = oracle_and_splits()
    records = list(
        fit(oracle.vae, data, epochs=4, batch_size=10, optimizer=partial(Watched, lr=0.001), schedule=schedule)
    )
    assert told[4:] == [-record.valid.bound for record in records]


def test_groups_have_names_and_rates_of_their_own():
    seen: list[Optimizer] = []

    def schedule(optimizer):
        seen.append(optimizer)
        return LambdaLR(optimizer, lambda epoch: 0.5**epoch)

    rates = rates_of(schedule, epochs=2, lr_phi=0.01)
    assert rates[0] == pytest.approx((0.001, 0.01))
    assert rates[-1] == pytest.approx((0.0005, 0.005))
    assert [group["name"] for group in seen[0].param_groups] == ["w", "phi"]


@pytest.mark.parametrize("compile", ["on", "off"])
def test_a_rate_of_zero_keeps_one_side_still(compile, traced):
    oracle, data = oracle_and_splits()
    phi, w = ([p.detach().clone() for p in each.parameters()] for each in (oracle.vae.posterior, oracle.vae.likelihood))
    list(fit(oracle.vae, data, epochs=2, batch_size=10, lr_phi=0.0, compile=compile))
    assert all(torch.equal(p, was) for p, was in zip(oracle.vae.posterior.parameters(), phi, strict=True))
    assert not any(torch.equal(p, was) for p, was in zip(oracle.vae.likelihood.parameters(), w, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": OneCycleLR}, "schedule: .*max_lr"),
        ({"optimizer": LBFGS}, "optimizer: LBFGS evaluates the loss itself"),
        ({"optimizer": SparseAdam}, "optimizer: SparseAdam does not support dense gradients"),
        ({"lr_phi": 0.1, "schedule": partial(OneCycleLR, max_lr=0.1)}, "lr_phi: OneCycleLR sets rates of its own"),
        ({"estimator": Stock(), "objective": Objective(warm_up=2)}, "no weight of the KL"),
        ({"optimizer": partial(Adam, lr=-1.0)}, "Invalid learning rate"),
        ({"lr_phi": -1.0}, "lr_phi: expected a learning rate of at least 0, got -1"),
        (
            {"schedule": partial(OneCycleLR, max_lr=0.1, total_steps=5)},
            "ends after total_steps = 5, and it is moved 8 times",
        ),
        (
            {"schedule": ReduceLROnPlateau, "schedule_by": "step"},
            "schedule_by: ReduceLROnPlateau watches the validation loss",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(options, message):
    oracle, data = oracle_and_splits()
    with pytest.raises(ValueError, match=message):
        fit(oracle.vae, data, epochs=2, batch_size=10, **options)


def test_a_schedule_behind_a_lambda_moves_as_its_class_does():
    made = partial(OneCycleLR, max_lr=0.01, total_steps=12, cycle_momentum=False)
    assert rates_of(lambda optimizer: made(optimizer)) == rates_of(made)  # noqa: PLW0108


@pytest.mark.parametrize("estimator", [ELBO(), Stock()])
def test_a_phase_moves_one_side_alone(estimator):
    oracle, data = oracle_and_splits()
    before = [p.detach().clone() for p in oracle.vae.likelihood.parameters()]
    list(fit(oracle.vae, data, epochs=1, batch_size=10, e_steps=100, m_steps=1, estimator=estimator))
    assert all(torch.equal(p, was) for p, was in zip(oracle.vae.likelihood.parameters(), before, strict=True))


def test_an_unknown_option_names_those_that_there_are():
    oracle, data = oracle_and_splits()
    with pytest.raises(TypeError, match=r"fit: there is no argument 'epoch'; did you mean 'epochs'\?"):
        fit(oracle.vae, data, epoch=2)


def test_options_take_the_place_of_the_plans():
    oracle, data = oracle_and_splits()
    plan = TrainingPlan(epochs=3, batch_size=10)
    assert len(list(fit(oracle.vae, data, plan, epochs=1))) == 1
    assert plan.epochs == 3


def test_callbacks_are_told_of_each_epoch_with_its_weights():
    told = []

    class Mine(Callback):
        def on_epoch(self, record, programs):
            told.append((record, programs.likelihood.log_scale.item()))

    oracle, data = oracle_and_splits()
    seen = []
    for record in fit(oracle.vae, data, epochs=3, batch_size=10, callbacks=[Mine()]):
        seen.append((record, oracle.vae.likelihood.log_scale.item()))
    assert told == seen
