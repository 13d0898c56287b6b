"""The compiled step is the eager step: for every estimator and part, with every option; what cannot be compiled says why."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete import Discrete, X
from helpers import (
    BITS,
    DIMS,
    DISCRETE,
    ESTIMATORS,
    LIKELIHOODS,
    OF_DISCRETE,
    PARTNERS,
    PRIORS,
    REAL_GUIDES,
    REAL_PRIORS,
    agree,
    build,
    update_of,
    vae_of,
)
from oracles import LinearGaussian
from torch import nn
from torch.optim import SGD, Adam, Adamax, AdamW

from pyro_vae import VAE, Estimator, fit
from pyro_vae.compilation import compiled
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import (
    ELBO,
    IWAE,
    NVIL,
    VIMCO,
    AnalyticKL,
    DisARM,
    DReG,
    GumbelSoftmax,
    Objective,
    ScoreFunction,
    Stock,
)
from pyro_vae.guides import InverseAutoregressive
from pyro_vae.likelihoods import Bernoulli, Beta, DiscretizedLogistic
from pyro_vae.networks import MLP
from pyro_vae.priors import MaskedAutoregressiveFlow
from pyro_vae.scopes import mode, seeded
from pyro_vae.traces import library_path
from pyro_vae.training.compiled_step import CompiledStep, Graph

CPU = torch.device("cpu")
compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")), reason="no C++ compiler"
)


@pytest.mark.parametrize("cls", [cls for cls in ESTIMATORS if cls is not Stock])
def test_every_estimator(cls, traced):
    oracle = LinearGaussian.random()
    agree(update_of(oracle.vae, oracle.data(6), cls(K=3)), tolerance=1e-6)


@pytest.mark.parametrize("cls", OF_DISCRETE)
@pytest.mark.parametrize("objective", [Objective(), Objective(beta=2.0)])
def test_every_estimator_of_discrete_latents(cls, objective, traced):
    agree(update_of(Discrete("binary"), X, cls(), objective=objective), tolerance=1e-6)


@pytest.mark.parametrize("estimator", [DisARM(M=3, bound="IWAE"), GumbelSoftmax(anneal=0.1), NVIL(2, normalize=True)])
def test_estimators_of_discrete_latents_with_options(estimator, traced):
    agree(update_of(Discrete("chain"), X, estimator), tolerance=1e-6)


def test_a_graph_holds_no_state_of_the_estimator(traced):
    """It is an input: a graph moves the tensors that the estimator has when a step is taken, not those it was traced with."""
    oracle = LinearGaussian.random()
    update = update_of(oracle.vae, oracle.data(6), ScoreFunction(2, control="running"))
    index = torch.arange(6)
    with library_path(), mode(update.programs, training=True):
        graph = Graph(update, index, "both")
        traced_with = update.estimator.state
        update.estimator.state = {name: value.clone() for name, value in traced_with.items()}
        graph(index, 1.0)
    assert (traced_with["steps"], update.estimator.state["steps"]) == (1, 2)


def test_a_step_with_a_state_is_compiled(traced):
    oracle = LinearGaussian.random()
    agree(update_of(oracle.vae, oracle.data(6), ScoreFunction(2, control="running")), tolerance=1e-6)


def test_the_state_of_an_estimator_is_an_input_of_the_graph(traced):
    """The average moves with each compiled step, and ends where the eager one does."""
    ends = []
    for compile in ("on", "off"):
        oracle = LinearGaussian.random()
        estimator = ScoreFunction(2, control="running")
        training = fit(oracle.vae, oracle_splits(oracle), epochs=2, batch_size=10, estimator=estimator, compile=compile)
        list(training)
        weights = torch.cat([p.detach().flatten() for p in oracle.vae.parameters()])
        ends.append((weights, *training.estimator.state.values()))
        assert training.estimator.state["steps"] == 10
        assert estimator.state["steps"] == 0
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@compiler
@pytest.mark.slow
def test_a_graph_in_full():
    """Of the one estimator with a state, which the graph writes into; `test_parts_in_full` has another estimator."""
    oracle = LinearGaussian.random()
    agree(update_of(oracle.vae, oracle.data(6), ScoreFunction(3, control="running")), tolerance=1e-6)


def legal(prior, guide) -> bool:
    try:
        VAE(build(prior), build(guide), build(Bernoulli))
    except ValueError:
        return False
    return True


def together() -> list[tuple[type, type, type]]:
    """Each part once or more, a prior with a guide that it takes: one graph tests three parts."""
    n = max(len(REAL_PRIORS), len(REAL_GUIDES), len(LIKELIHOODS))
    priors, likelihoods = ([parts[i % len(parts)] for i in range(n)] for parts in (REAL_PRIORS, LIKELIHOODS))
    others = [(prior, guide, LIKELIHOODS[0]) for prior, guide in PARTNERS.items() if prior in PRIORS]
    for turn in range(n):
        guides = [REAL_GUIDES[(i + turn) % len(REAL_GUIDES)] for i in range(n)]
        if all(map(legal, priors, guides)):
            return list(zip(priors, guides, likelihoods, strict=True)) + others
    raise AssertionError("no turn fits")


def check_parts(prior, guide, likelihood):
    vae = VAE(build(prior), build(guide), build(likelihood))
    x = BITS[:6] if likelihood is not Beta else 0.2 + 0.6 * BITS[:6]
    estimator = VIMCO(3) if guide in DISCRETE else IWAE(3)
    agree(update_of(vae, x, estimator, partial(SGD, lr=1e-3)), tolerance=1e-3)


@pytest.mark.parametrize(("prior", "guide", "likelihood"), together())
def test_every_part(prior, guide, likelihood, traced):
    check_parts(prior, guide, likelihood)


@compiler
@pytest.mark.slow
def test_parts_in_full():
    """Flows on both sides, of one transform each; test_missing.py has a mixture."""
    flow = {"transforms": 1, "hidden": [4]}
    parts = MaskedAutoregressiveFlow(DIMS, **flow), InverseAutoregressive(DIMS, partial(MLP, hidden=[4]), **flow)
    vae = VAE(*parts, DiscretizedLogistic(DIMS, partial(MLP, hidden=[4])))
    agree(update_of(vae, BITS[:6], DReG(3), partial(SGD, lr=1e-3)), tolerance=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(Adam, lr=0.01),
        partial(AdamW, lr=0.01, weight_decay=0.1),
        partial(Adam, lr=0.01, amsgrad=True),
        partial(Adamax, lr=0.01),
        partial(SGD, lr=0.01),
        partial(SGD, lr=0.01, momentum=0.9, nesterov=True),
    ],
)
def test_every_optimizer(optimizer, traced):
    oracle = LinearGaussian.random()
    agree(update_of(oracle.vae, oracle.data(6), optimizer=optimizer), steps=20, tolerance=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0.01},
        {"objective": Objective(beta=0.5)},
        {"objective": Objective(warm_up=10)},
        {"objective": Objective(free_nats=2.0)},
        {"objective": Objective(noise=False), "estimator": AnalyticKL(2)},
    ],
)
def test_every_option(options, traced):
    oracle = LinearGaussian.random()
    agree(update_of(oracle.vae, oracle.data(6), **options), tolerance=1e-6)


def test_dynamic_binarization_and_bf16(traced):
    vae, x = vae_of(Bernoulli), torch.rand(16, 1, 4, 4)
    agree(update_of(vae, x, DReG(2), dynamic=True), tolerance=1e-3)
    agree(update_of(vae, x, IWAE(2), dynamic=True, precision="bf16"), tolerance=0.1)


def test_bf16_keeps_sums_and_weights_in_float32():
    vae = vae_of(Bernoulli)
    x = torch.rand(16, 1, 4, 4).bernoulli()
    half, full = update_of(vae, x, precision="bf16"), update_of(vae, x)
    index, leaves = torch.arange(16), half.phases["both"]
    with library_path():
        found = []
        for update in (half, full):
            with seeded(CPU, 1):
                found.append(update.gradients((x,), index, 1.0, leaves))
    (low, low_gradients), (high, _) = found
    assert low.row.dtype == torch.float64
    assert low.bound.dtype == torch.float32
    assert {gradient.dtype for gradient in low_gradients} == {torch.float32}
    assert 0 < (low.bound - high.bound).abs().max() < 0.1


@pytest.mark.parametrize(("capability", "told"), [("AVX2", True), ("AVX512", False)])
def test_bf16_on_a_processor_without_it_is_told(monkeypatch, caplog, capability, told):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    oracle = LinearGaussian.random()
    fit(oracle.vae, oracle_splits(oracle), epochs=1, batch_size=10, precision="bf16")
    assert bool(said(caplog)) == told


class Counting(nn.Module):
    """A network with batch normalization: its buffers change with each step."""

    def __init__(self, vae):
        super().__init__()
        self.vae, self.norm = vae, nn.BatchNorm1d(5, dtype=torch.float64)

    def model(self, x):
        return self.vae.model(x)

    def guide(self, x):
        pyro.module("norm", self.norm)
        return self.vae.guide(self.norm(x))


def test_buffers_that_change(traced):
    oracle = LinearGaussian.random()
    update = update_of(Counting(oracle.vae), oracle.data(6))
    with library_path(), mode(update.programs, training=True):
        before = update.programs.norm.running_mean.clone()
        graph = Graph(update, torch.arange(6), "both")
        assert torch.equal(update.programs.norm.running_mean, before)
    agree(update, tolerance=1e-6)
    with library_path(), mode(update.programs, training=True):
        graph(torch.arange(6), 1.0)
    assert not torch.equal(update.programs.norm.running_mean, before)


def oracle_splits(oracle, size=50):
    return Splits(*(Split(oracle.data(size, seed)) for seed in (1, 2, 3)), torch.distributions.constraints.real)


@pytest.mark.parametrize(
    "options", [{}, {"e_steps": 3, "m_steps": 2}, {"clip_norm": 1.0, "objective": Objective(warm_up=3)}]
)
def test_a_compiled_training_ends_where_the_eager_one_does(options, traced):
    """Seven batches of 8, one of 2 that is not compiled, in four epochs."""
    ends = []
    for compile in ("on", "off"):
        oracle = LinearGaussian.random()
        vae = oracle.vae
        records = list(fit(vae, oracle_splits(oracle, 58), epochs=4, batch_size=8, compile=compile, seed=3, **options))
        ends.append((torch.cat([p.detach().flatten() for p in vae.parameters()]), records[-1].train.bound))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-6)
    assert ends[0][1] == pytest.approx(ends[1][1], abs=1e-5)


@pytest.mark.slow
def test_a_compiled_training_in_full_is_reproducible_and_ends_where_the_eager_one_does():
    ends, options = [], {"clip_norm": 1.0, "objective": Objective(warm_up=3)}
    for compile in ("on", "on", "off"):
        oracle = LinearGaussian.random()
        vae = oracle.vae
        list(fit(vae, oracle_splits(oracle), epochs=3, batch_size=10, compile=compile, seed=1, **options))
        ends.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    assert torch.equal(*ends[:2])
    torch.testing.assert_close(*ends[1:], rtol=0, atol=1e-6)


class WithStore(nn.Module):
    """A model whose parameter is a bare ``pyro.param``."""

    def model(self, x):
        a = pyro.param("a", torch.zeros(2))
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(t, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Normal(x, pyro.param("s", torch.ones(2))).to_event(1))


class Counted(Estimator):
    """An estimator that changes its own attributes as it runs, in place of its `state`."""

    calls = 0

    def bound(self, draws):
        self.calls += 1
        return draws.log_w.mean(0)


def reading(vae):
    class Reading(nn.Module):
        """A model that looks into a tensor as it runs."""

        def __init__(self):
            super().__init__()
            self.vae = vae

        def model(self, x):
            return self.vae.model(x if x.sum().item() > -1e9 else -x)

        def guide(self, x):
            return self.vae.guide(x)

    return Reading()


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "pyro_vae"]


@pytest.mark.parametrize(
    ("programs", "estimator", "reason"),
    [
        (WithStore(), ELBO(), "a parameter lives in Pyro's store"),
        (None, Counted(), "estimator.calls changes while the programs run"),
        (reading(LinearGaussian.random(d=2, n=2).vae), ELBO(), "tracing failed"),
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why_once(programs, estimator, reason, caplog):
    oracle = LinearGaussian.random(d=2, n=2)
    data = oracle_splits(oracle)
    programs = programs or oracle.vae
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        records = list(fit(programs, data, epochs=2, batch_size=10, estimator=estimator, compile="on"))
    assert len(records) == 2
    (message,) = said(caplog)
    assert message.startswith("Steps run eagerly: ")
    assert reason in message


def test_without_a_compiler_it_is_eager_with_one_line(monkeypatch, caplog):
    def missing(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand so on")

    monkeypatch.setattr(torch._inductor, "compile", missing)
    oracle = LinearGaussian.random()
    list(fit(oracle.vae, oracle_splits(oracle), epochs=1, batch_size=10, compile="on"))
    assert said(caplog) == ["Steps run eagerly: compiling failed: RuntimeError: No working C++ compiler found"]


def test_a_wrong_graph_is_not_used(monkeypatch, caplog, traced):
    """The check against the eager step: here the graph's update is taken twice."""
    whole = Graph._move

    def twice(self, *arguments):
        whole(self, *arguments)
        whole(self, *arguments)

    monkeypatch.setattr(Graph, "_move", twice)
    oracle = LinearGaussian.random()
    list(fit(oracle.vae, oracle_splits(oracle), epochs=1, batch_size=10, compile="on"))
    (message,) = said(caplog)
    assert "away from the eager path's" in message


def test_auto_compiles_where_it_pays(monkeypatch):
    made = []
    monkeypatch.setattr(CompiledStep, "__init__", lambda self, *arguments: made.append(arguments))
    monkeypatch.setattr(CompiledStep, "__call__", lambda self, *arguments: pytest.skip("made"))
    oracle = LinearGaussian.random()
    next(fit(oracle.vae, oracle_splits(oracle), epochs=999, batch_size=10))
    assert not made
    with pytest.raises(pytest.skip.Exception):
        next(fit(oracle.vae, oracle_splits(oracle), epochs=1000, batch_size=10))
    assert made


@compiler
@pytest.mark.slow
def test_log1p_is_accurate_in_the_graph():
    """Its rule against float64 over the whole range: a few units in the last place."""
    u = torch.cat([torch.logspace(-30, 30, 2000), -torch.logspace(-30, -0.01, 2000), torch.zeros(1)])
    run = compiled(nn.Module(), lambda *arguments: [torch.log1p(arguments[-1])], [], [u], {})
    (found,) = run(u)
    exact = torch.log1p(u.double())
    assert run(torch.full_like(u, torch.inf))[0].eq(torch.inf).all()
    assert ((found - exact).abs() <= 4e-7 * exact.abs()).all()
