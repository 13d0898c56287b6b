"""Whatever changes between two steps: a compiled run goes on as the eager one does, and is compiled."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CPU
from oracles import LinearGaussian
from torch import nn
from torch.distributions import constraints
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR

from pyro_vae import fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, Objective
from pyro_vae.scopes import mode, seeded
from pyro_vae.traces import library_path, parameters
from pyro_vae.training.compiled_step import CompiledStep, Graph, Settings
from pyro_vae.training.optimizers import make_optimizer
from pyro_vae.training.step import Update

OPTIMIZERS = {
    "Adam": partial(Adam, lr=0.01),
    "AdamW": partial(AdamW, lr=0.01, weight_decay=0.1),
    "AMSGrad": partial(Adam, lr=0.01, amsgrad=True),
    "SGD": partial(SGD, lr=0.01),
    "momentum": partial(SGD, lr=0.01, momentum=0.9, nesterov=True),
    "RMSprop": partial(RMSprop, lr=0.01, momentum=0.5),
    "NAdam": partial(NAdam, lr=0.01),
    "RAdam": partial(RAdam, lr=0.01),
    "Adamax": partial(Adamax, lr=0.01),
    "Adagrad": partial(Adagrad, lr=0.01),
    "Adadelta": partial(Adadelta, lr=0.1),
    "ASGD": partial(ASGD, lr=0.01),
}
STEPS, CHANGED = 9, 4
pytestmark = pytest.mark.filterwarnings("ignore:.*was not registered in the param store")  # Pyro's word on frozen ones
SHARPNESS = 1.0


class Config:
    """An object of a user."""

    gain = 1.0

    def __init__(self):
        self.shrink = 1.0


class Mine(nn.Module):
    """A linear Gaussian model whose guide reads numbers from all kinds of places."""

    def __init__(self):
        super().__init__()
        self.vae = LinearGaussian.random().vae
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("shift", torch.zeros(5, dtype=torch.float64))
        self.temperature, self.config, self.options = (
            1.0,
            Config(),
            {"scales": [1.0, 2.0], "space": SimpleNamespace(a=1.0)},
        )
        self.table, self.array = torch.ones(5, dtype=torch.float64), np.ones(5)
        self.seen = None
        self.added = nn.Parameter(torch.ones(5, dtype=torch.float64), requires_grad=False)

    def model(self, x):
        return self.vae.model(x)

    def guide(self, x):
        x = self.dropout(x) * self.temperature * self.config.shrink * self.config.gain * self.options["scales"][0]
        x = x * self.options["space"].a * self.table * torch.as_tensor(self.array) * SHARPNESS * self.added + self.shift
        self.seen = x  # to look at
        return self.vae.guide(x)


def in_group(**settings):
    def change(update):
        for name, value in settings.items():
            for group in update.optimizer.param_groups:
                assert name in group
                group[name] = value

    return change


def by_name(function):
    return lambda update: function(update.programs)


def freeze(mine):
    mine.vae.posterior.network.layers[0].weight.requires_grad_(False)


def replace_buffer(mine):
    mine.shift = torch.full((5,), 0.3, dtype=torch.float64)


def replace_parameter(mine):
    layer = mine.vae.likelihood.network.layers[0]
    layer.bias.data = torch.linspace(0, 1, 5, dtype=torch.float64)


def load(mine):
    state = {name: value * 0.9 for name, value in mine.state_dict().items()}
    mine.load_state_dict(state)


def sharpen(_):
    globals()["SHARPNESS"] = 0.5


def reload_optimizer(update):
    update.optimizer.load_state_dict(update.optimizer.state_dict())


def forget_optimizer(update):
    update.optimizer.state.clear()


def add_group(update):
    update.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "name": "more"})


def hook_optimizer(update):
    update.optimizer.register_step_post_hook(
        lambda optimizer, *_: optimizer.param_groups[0]["params"][0].data.mul_(0.99)
    )


def unfreeze(update):
    weight = update.programs.added
    weight.requires_grad_(True)
    update.optimizer.add_param_group({"params": [weight]})


CHANGES = {
    "learning rate": in_group(lr=0.002),
    "dropout": by_name(lambda mine: setattr(mine.dropout, "p", 0.9)),
    "mode": by_name(lambda mine: mine.dropout.eval()),
    "attribute": by_name(lambda mine: setattr(mine, "temperature", 0.5)),
    "own object": by_name(lambda mine: setattr(mine.config, "shrink", 0.5)),
    "class attribute": by_name(lambda mine: setattr(Config, "gain", 0.5)),
    "list": by_name(lambda mine: mine.options["scales"].__setitem__(0, 0.5)),
    "namespace": by_name(lambda mine: setattr(mine.options["space"], "a", 0.5)),
    "tensor": by_name(lambda mine: setattr(mine, "table", torch.full((5,), 0.5, dtype=torch.float64))),
    "tensor in place": by_name(lambda mine: mine.table.fill_(0.5)),
    "array in place": by_name(lambda mine: mine.array.fill(0.5)),
    "global variable": by_name(sharpen),
    "buffer": by_name(replace_buffer),
    "buffer in place": by_name(lambda mine: mine.shift.fill_(0.3)),
    "submodule": by_name(lambda mine: setattr(mine, "dropout", nn.Identity())),
    "parameter": by_name(replace_parameter),
    "state_dict": by_name(load),
    "forward hook": by_name(lambda mine: mine.dropout.register_forward_hook(lambda *_: _[-1] * 0.5)),
    "frozen": by_name(freeze),
    "group": add_group,
    "unfrozen": unfreeze,
    "optimizer's state_dict": reload_optimizer,
    "optimizer's state": forget_optimizer,
    "optimizer's hook": hook_optimizer,
}
SETTINGS = {
    "Adam": [{"betas": (0.5, 0.9)}, {"weight_decay": 0.5}, {"eps": 0.1}, {"betas": (0.0, 0.9)}],
    "AdamW": [{"weight_decay": 0.5}, {"betas": (torch.tensor(0.5), torch.tensor(0.9))}],
    "SGD": [{"momentum": 0.5}, {"weight_decay": 0.5}, {"maximize": True}],
    "momentum": [{"momentum": 0.5}, {"nesterov": False}, {"dampening": 0.3, "nesterov": False}],
    "RMSprop": [{"alpha": 0.5}, {"momentum": 0.9}],
    "Adadelta": [{"rho": 0.5}],
    "NAdam": [{"momentum_decay": 0.1}],
}


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    globals()["SHARPNESS"], Config.gain = 1.0, 1.0


def run(optimizer, change, compiled, changed=(CHANGED,), objective=None, steps=STEPS):
    """The weights after some steps, with a change before one of them."""
    globals()["SHARPNESS"], Config.gain = 1.0, 1.0
    mine, x = Mine(), LinearGaussian.random().data(10)
    columns = Split(x).columns()
    with library_path():
        w, phi = (list(side.values()) for side in parameters(mine.model, mine.guide, x))
    objective = objective or Objective()
    update = Update(mine, ELBO(), objective, columns, make_optimizer(optimizer, w, phi), {"both": [*w, *phi]})
    step = CompiledStep(update, 10) if compiled else update
    with library_path(), mode(mine, training=True):
        for number in range(steps):
            if number in changed:
                change(update)
            with seeded(CPU, number):
                step(torch.arange(10), 1.0, "both")
    assert torch.is_tensor(mine.seen)
    return torch.cat([tensor.detach().flatten() for tensor in (*mine.parameters(), *mine.buffers())])


@pytest.fixture
def graphs(monkeypatch, traced):
    """Counts the steps that graphs take."""
    taken = []
    step = Graph.__call__

    def counted(self, *arguments):
        taken.append(self.whole)
        return step(self, *arguments)

    monkeypatch.setattr(Graph, "__call__", counted)
    return taken


def both(optimizer, change, caplog, **options):
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        ends = [run(optimizer, change, compiled, **options) for compiled in (True, False)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)
    return [record.getMessage() for record in caplog.records if record.name == "pyro_vae"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_followed(change, graphs, caplog):
    said = both(OPTIMIZERS["Adam"], CHANGES[change], caplog)
    assert len(graphs) >= STEPS - 3  # the first step of each graph is eager
    assert all("hook of the optimizer" in message for message in said)


def test_every_change_changes_the_end():
    """The tests above see each of them."""
    plain = run(OPTIMIZERS["Adam"], lambda update: None, False)
    for name, change in CHANGES.items():
        same = torch.equal(run(OPTIMIZERS["Adam"], change, False), plain)
        assert same == (name in ("group", "optimizer's state_dict")), name


@pytest.mark.parametrize(("optimizer", "settings"), [(name, each) for name, all in SETTINGS.items() for each in all])
def test_a_setting_that_moves_is_followed(optimizer, settings, graphs, caplog):
    assert not both(OPTIMIZERS[optimizer], in_group(**settings), caplog)
    assert graphs == [True] * (CHANGED - 1) + [False] * (STEPS - CHANGED)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("change", ["learning rate", "frozen", "mode"])
def test_a_change_is_followed_by_every_optimizer(optimizer, change, graphs, caplog):
    both(OPTIMIZERS[optimizer], CHANGES[change], caplog)
    assert len(graphs) >= STEPS - 3


def test_what_changes_again_and_again_runs_eagerly_and_says_so(graphs, caplog):
    def change(update):
        update.programs.temperature *= 0.9

    (message,) = both(OPTIMIZERS["SGD"], change, caplog, changed=range(1, 15), steps=15)
    assert message == "Steps run eagerly: temperature changes again and again, and a graph holds it as a constant"


def test_a_wrong_watch_would_be_seen(graphs, caplog, monkeypatch):
    """What the tests above compare with: without the watch, compiled steps go on with the old setting."""
    monkeypatch.setattr(Settings, "changed", lambda self: False)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        both(OPTIMIZERS["Adam"], in_group(betas=(0.5, 0.9)), caplog)


@pytest.mark.parametrize("frozen", ["rates", "kl_weight"])
def test_a_frozen_number_is_found_by_the_check(frozen, graphs, caplog, monkeypatch):
    """The graph is not used, if it holds an input as a constant."""
    if frozen == "rates":
        move = Graph._move

        def with_constants(self, held, gradients, rates, states):
            move(self, held, gradients, [torch.tensor(0.01, dtype=torch.float64) for _ in rates], states)

        monkeypatch.setattr(Graph, "_move", with_constants)
    else:
        gradients = Update.gradients
        monkeypatch.setattr(
            Update,
            "gradients",
            lambda self, tensors, index, weight, *leaves: gradients(
                self, tensors, index, weight if isinstance(weight, float) else 1.0, *leaves
            ),
        )
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        run(OPTIMIZERS["SGD"], lambda update: None, True, objective=Objective(beta=0.5))
    (message,) = [record.getMessage() for record in caplog.records if record.name == "pyro_vae"]
    assert "away from the eager path's" in message
    assert not any(graphs)  # a graph of the gradient alone has no rates


class Counting(nn.Module):
    """Keeps how often it ran in an attribute."""

    def __init__(self, vae):
        super().__init__()
        self.vae, self.runs, self.norms = vae, 0, []

    def model(self, x):
        return self.vae.model(x)

    def guide(self, x):
        self.runs += 1
        self.norms.append(x.norm())
        return self.vae.guide(x)


def test_what_programs_count_is_counted_and_is_left_as_it_was(traced, caplog):
    counts = []
    for compile in ("on", "off"):
        programs = Counting(LinearGaussian.random().vae)
        with caplog.at_level(logging.WARNING, "pyro_vae"):
            list(fit(programs, splits(), epochs=1, batch_size=10, compile=compile))
        counts.append((programs.runs, len(programs.norms)))
    assert counts[0] == counts[1]
    (message,) = [record.getMessage() for record in caplog.records if record.name == "pyro_vae"]
    assert message.startswith("Steps run eagerly: ")
    assert "changes while the programs run" in message


def splits(size=40):
    oracle = LinearGaussian.random()
    return Splits(*(Split(oracle.data(size, seed)) for seed in (1, 2, 3)), constraints.real)


def moving(optimizer):
    """A user's own schedule, of an option of his own and of β₁."""

    class Moving(LambdaLR):
        moves_by = "step"

        def step(self, epoch=None):
            super().step(epoch)
            for group in self.optimizer.param_groups:
                group["sharpness"] = 1 / (1 + self.last_epoch)
                if self.last_epoch > 5:
                    group["betas"] = (0.9 - 0.02 * self.last_epoch, 0.999)

    return Moving(optimizer, lambda step: 0.95**step)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        ("Adam", partial(OneCycleLR, max_lr=0.05)),
        ("momentum", partial(OneCycleLR, max_lr=0.05)),
        ("Adam", partial(CyclicLR, base_lr=0.001, max_lr=0.05, step_size_up=3)),
        ("RMSprop", partial(CyclicLR, base_lr=0.001, max_lr=0.05, step_size_up=3)),
        ("Adam", moving),
    ],
)
def test_a_schedule_that_moves_more_than_the_rate_is_compiled(optimizer, schedule, graphs, caplog):
    ends = []
    for compile in ("on", "off"):
        mine = Mine()
        with caplog.at_level(logging.WARNING, "pyro_vae"):
            list(
                fit(
                    mine,
                    splits(),
                    epochs=4,
                    batch_size=10,
                    optimizer=OPTIMIZERS[optimizer],
                    schedule=schedule,
                    compile=compile,
                )
            )
        ends.append(torch.cat([p.detach().flatten() for p in mine.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)
    assert len(graphs) == 15
    assert not [record for record in caplog.records if record.name == "pyro_vae"]


def test_settings_are_compared_by_value_and_parameters_by_identity():
    one = nn.Parameter(torch.zeros(1))
    optimizer = Adam(
        [one], lr=torch.tensor(0.1), betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False, capturable=True
    )
    settings, group = Settings(optimizer), optimizer.param_groups[0]
    assert not settings.changed()
    group["lr"] = 0.3
    assert not settings.changed()
    group["betas"][0].fill_(0.5)
    assert settings.changed()
    group["betas"][0].fill_(0.9)
    group["params"] = [nn.Parameter(torch.zeros(1))]
    assert settings.changed()


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")), reason="no compiler"
)
def test_changes_are_followed_by_inductor_too(caplog):
    """Three graphs: at first, of another constant, and of the gradient alone."""
    changes = iter(["tensor in place", "group"] * 2)  # for the compiled steps, and for the eager ones

    def change(update):
        CHANGES[next(changes)](update)

    assert not both(OPTIMIZERS["SGD"], change, caplog, changed=(CHANGED, CHANGED + 3))
