"""Which weights a training ends with: the last, the best, an average; and when it ends before its time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import FIFTY, small_vae
from torch import nn

from pyro_vae import Network, fit
from pyro_vae.training import TrainingPlan

WORSE = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0 if epoch < 3 else 3000.0)
"""Steps that are far too long from the fourth epoch on: the best epoch is one of the first three."""
PLAN = TrainingPlan(epochs=9, batch_size=12, compile="off", schedule=WORSE)


def flat(vae) -> torch.Tensor:
    return torch.cat([each.detach().flatten().clone() for each in vae.parameters()])


def test_the_best_weights_are_put_back_at_the_end():
    vae, seen = small_vae(), {}
    for record in (training := fit(vae, FIFTY, PLAN, keep="best")):
        seen[record.epoch] = record.valid.bound, flat(vae)
    best = max(seen, key=lambda epoch: seen[epoch][0])
    assert best < 9
    assert (training.ends_with, training.kept.epoch, training.kept.bound) == ("best", best, seen[best][0])
    assert torch.equal(flat(vae), seen[best][1])
    last = small_vae()
    list(fit(last, FIFTY, PLAN))
    assert torch.equal(flat(last), seen[9][1])


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_a_training(patience):
    records = list(training := fit(small_vae(), FIFTY, PLAN, patience=patience))
    bounds = [record.valid.bound for record in records]
    assert len(records) < 9
    assert training.is_over
    best = max(range(len(bounds)), key=bounds.__getitem__)
    assert len(records) == best + 1 + patience
    assert max(bounds[-patience:]) <= max(bounds[:-patience])
    assert len(list(fit(small_vae(), FIFTY, PLAN, patience=9))) == 9


@pytest.mark.parametrize("compile", ["off", "on"])
def test_averages_are_those_of_the_weights_of_each_step(compile, traced):
    """The exponential one is a ← ρ a + (1 − ρ) θ from the first step on; the tail is the mean over the last ones."""
    plan = TrainingPlan(epochs=3, batch_size=10, compile=compile, average_decay=0.7, average_tail=0.5)  # 15 steps
    found = {}
    for average in ("ema", "tail"):
        vae, steps = small_vae(), []
        training = fit(vae, FIFTY, plan, average=average, keep="average")
        inner = training.kept.after_step

        def spy(done, vae=vae, steps=steps, inner=inner):
            steps.append(flat(vae))
            inner(done)

        training.kept.after_step = spy
        list(training)
        assert training.ends_with == "average"
        found[average] = flat(vae), steps
    ema, steps = found["ema"]
    expected = steps[0]
    for each in steps[1:]:
        expected = 0.7 * expected + 0.3 * each
    torch.testing.assert_close(ema, expected)
    tail, steps = found["tail"]
    assert len(steps) == 15
    torch.testing.assert_close(tail, torch.stack(steps[7:]).mean(0))


@pytest.mark.parametrize(
    "options", [{}, {"patience": 2, "keep": "best"}, {"average": "ema"}, {"average": "tail"}], ids=str
)
def test_they_are_kept_in_checkpoints(options, tmp_path):
    """Cut after each epoch and gone on with, all weights are those of a training that was not."""
    plan = TrainingPlan(**{"epochs": 6, "batch_size": 12, "compile": "off", "schedule": WORSE} | options)
    plan = TrainingPlan(**{**vars(plan), "keep": "average"}) if plan.average else plan
    whole = small_vae()
    list(first := fit(whole, FIFTY, plan))
    vae = small_vae()
    for _ in range(6):
        vae = small_vae()
        training = fit(vae, FIFTY, plan, checkpoint=tmp_path / "c", checkpoint_every="1 step")
        if next(training, None) is None:
            break
    list(training)
    vae = small_vae()
    list(again := fit(vae, FIFTY, plan, checkpoint=tmp_path / "c"))
    assert torch.equal(flat(vae), flat(whole))
    assert (again.kept.epoch, again.kept.bound, again.kept.averaged) == (
        first.kept.epoch,
        first.kept.bound,
        first.kept.averaged,
    )


class Normalized(Network):
    """A network with batch normalization."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape)
        self.layers = nn.Sequential(nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, out_shape[0]))

    def forward(self, inputs):
        return self.layers(inputs.flatten(-3))


def test_buffers_belong_to_the_best_weights_and_have_no_average():
    vae, buffers = small_vae(Normalized), {}
    for record in (training := fit(vae, FIFTY, PLAN, keep="best")):
        buffers[record.epoch] = vae.posterior.network.layers[1].running_mean.clone()
    assert training.kept.epoch < 9
    assert torch.equal(vae.posterior.network.layers[1].running_mean, buffers[training.kept.epoch])
    with pytest.raises(ValueError, match="average: the running statistics of batch normalization"):
        fit(small_vae(Normalized), FIFTY, PLAN, average="ema")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"patience": 0}, "patience: expected at least 1 epoch, got 0"),
        ({"keep": "average"}, "keep: average weights are kept where there are some"),
        ({"keep": "first"}, "keep: expected last, best or average, got 'first'"),
        ({"average": "ema", "average_decay": 1.0}, "average_decay: expected a number between 0 and 1, got 1.0"),
        ({"average": "tail", "average_tail": 0.0}, "average_tail: expected a share above 0 and up to 1, got 0.0"),
        ({"average": "mean"}, "average: expected"),
    ],
)
def test_wrong_options(options, told):
    with pytest.raises(ValueError, match=told):
        TrainingPlan(**options)
