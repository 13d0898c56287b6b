"""Several processes that share every batch out: what one process trains, by construction."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from discrete import Discrete
from helpers import (
    BITS,
    CPU,
    DIMS,
    ESTIMATORS,
    GUIDES,
    KINDS_OF_MODEL,
    LIKELIHOODS,
    OF_DISCRETE,
    PRIORS,
    TABLE,
    data_for,
    elbo_of,
    refusing_unknown_kl,
    update_of,
    vae_of,
    with_gaps,
)
from safetensors.torch import load_file
from torch import nn

from pyro_vae import VAE, Network
from pyro_vae.app.ranks import check_device
from pyro_vae.estimators import ELBO, IWAE, NVIL, Objective, ScoreFunction
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal
from pyro_vae.scopes import seeded
from pyro_vae.together import Together
from pyro_vae.traces import library_path
from pyro_vae.training import TrainingPlan
from pyro_vae.training.checks import check_can_share
from pyro_vae.training.compiled_step import Graph

ROOT = Path(__file__).parents[2]


class Dropped(Network):
    """Masks of a batch, and of a batch and its particles as one dimension."""

    def __init__(self, in_shape, out_shape):
        super().__init__(in_shape, out_shape)
        self.first, self.out_shape = nn.Linear(torch.Size(in_shape).numel(), 9), out_shape
        self.last = nn.Linear(9, torch.Size(out_shape).numel())

    def forward(self, inputs):
        lead = inputs.shape[: inputs.dim() - len(self.in_shape)]
        found = nn.functional.dropout(self.first(inputs.reshape(-1, self.first.in_features)), 0.4, self.training)
        return self.last(nn.functional.dropout(found.reshape(*lead, 9), 0.3)).reshape(*lead, *self.out_shape)


def gradients_of(update, size: int | None) -> list[torch.Tensor]:
    """The sums and the gradient of one step, of one process or as the sum of what so many add."""
    index, found = torch.arange(len(update.columns)).flip(0), []
    for rank in range(size or 1):
        one = update if size is None else replaced(update, rank, size)
        before = {name: value.clone() for name, value in update.estimator.state.items()}
        with library_path(), seeded(CPU, "step"):
            sums, gradients = one.gradients(update.columns.tensors, index, 0.7, one.leaves("both"))
        if size is None:  # of several, each adds its part of the gradient by what is learned
            learned = {name: before[f"{name}: mean"] for name in update.estimator.learns}
            gradients = [*gradients, *slopes(update.estimator, learned)]
        state = [value.clone() for value in update.estimator.averaged]
        update.estimator.state = before
        found.append([sums.row, sums.bound, *gradients, *state])
    return [sum(parts) for parts in zip(*found, strict=True)]


def slopes(estimator, before: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The gradient by what an estimator learned in one step, from what Adam keeps: mean = 0.9 · mean + 0.1 · gradient."""
    return [(estimator.state[f"{name}: mean"] - 0.9 * kept_mean) / 0.1 for name, kept_mean in before.items()]


def replaced(update, rank: int, size: int):
    return replace(update, together=Together(rank, size))


def agree(update, sizes=(2, 3, 8), per_datum=True) -> None:
    """Of seven data: shares that differ by one, one of which may be empty."""
    update.programs.train()
    exact = gradients_of(update, None)
    for size in sizes:
        for i, (one, other) in enumerate(zip(gradients_of(update, size), exact, strict=True)):
            pair = (one, other) if per_datum or i != 1 else (one.sum(), other.sum())
            torch.testing.assert_close(*pair, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_parts(cls):
    """Two particles, and shares of two data: no shape alone tells which is which."""
    vae = vae_of(cls)
    agree(update_of(vae, data_for(cls, vae, 7), elbo_of(vae, 2)))


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_estimators(cls):
    """All data of a batch have the mean of the batch as their bound, where an estimator has none for each."""
    with refusing_unknown_kl(cls):
        agree(update_of(vae_of(DiagonalNormal), BITS[:7], cls(K=4)), per_datum=cls.per_datum)


@pytest.mark.parametrize("cls", [*OF_DISCRETE, NVIL])
def test_estimators_of_discrete_latents(cls):
    agree(update_of(Discrete("binary"), BITS[:7].flatten(1)[:, :3].double(), cls()))


@pytest.mark.parametrize("kind", KINDS_OF_MODEL)
def test_models(kind):
    x = with_gaps(BITS[:7]) if kind == "missing" else BITS[:7]
    y = torch.arange(7) % 3 if kind == "labels" else None
    agree(update_of(KINDS_OF_MODEL[kind](), x, IWAE(3), y=y))


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("dynamic", [False, True])
def test_dropout_and_pixels_that_are_drawn_anew(K, dynamic):
    torch.manual_seed(0)
    vae = VAE(StandardNormal(DIMS), DiagonalNormal(DIMS, Dropped), Bernoulli(DIMS, Dropped))
    agree(update_of(vae, 0.3 + 0.4 * BITS[:7], IWAE(K), dynamic=dynamic))


def test_random_numbers_of_no_datum_are_those_of_one_process():
    """Also where a dimension of theirs is as large as the whole batch."""
    index, together = torch.arange(10), Together(1, 2)
    with seeded(CPU, "noise"):
        exact = torch.randn(10), torch.rand(3, 10, 4), torch.randn(10, 6), torch.randperm(5)
    with seeded(CPU, "noise"), together.share(index, K=3) as (own, place, share):
        found = torch.randn(7 + 3), torch.rand(3, 5, 4), torch.randn(5, 6), torch.randperm(5)
    assert (own.tolist(), place, share) == ([5, 6, 7, 8, 9], slice(5, 10), 0.5)
    assert torch.equal(found[0], exact[0])
    assert torch.equal(found[1], exact[1][:, 5:])
    assert torch.equal(found[2], exact[2][5:])
    assert torch.equal(found[3], exact[3])


@pytest.mark.parametrize("control", ["none", "running"])
def test_the_state_of_an_estimator_is_that_of_the_whole_batch(control):
    agree(update_of(vae_of(DiagonalNormal), BITS[:7], ScoreFunction(1, control=control)))


def test_noise_of_its_own_would_be_seen(monkeypatch):
    monkeypatch.setattr("pyro_vae.together._SharedDraws._place", lambda *_: None)
    with pytest.raises(AssertionError, match="not close"):
        agree(update_of(vae_of(DiagonalNormal), BITS[:7], ELBO(2)))


def test_the_graph_of_a_share(traced):
    """Traced, it draws the random numbers of the whole batch, as the eager step does."""
    update = update_of(vae_of(DiagonalNormal), BITS[:7], IWAE(2), dynamic=True)
    index, ends = torch.arange(7).flip(0), []
    for rank in range(2):
        share = replaced(update, rank, 2)
        with library_path():
            graph = Graph(share, index, "both", whole=False)
            for step in (graph._outcome, graph._eager_outcome):
                with seeded(CPU, "step"):
                    sums, gradients = step(index, 0.7)
                ends.append([sums.row, sums.bound, *gradients])
        for one, other in zip(*ends[-2:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_needs_the_whole_batch_is_refused():
    vae = vae_of(DiagonalNormal)
    for plan, told in (
        (TrainingPlan(objective=Objective(free_nats=1.0)), "free_nats compares the mean KL of a whole batch"),
        (TrainingPlan(batch_size=3), "batch_size: expected at least one datum for each of the 4 processes, got 3"),
    ):
        with pytest.raises(ValueError, match=told):
            check_can_share(vae, plan, 4)
    vae.add_module("normalized", nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="batch normalization needs the whole batch"):
        check_can_share(vae, TrainingPlan(), 2)
    vae.normalized.eval()  # frozen, it needs nothing of the batch
    check_can_share(vae, TrainingPlan(), 2)


NETWORKS = ["--guide.network.hidden", "[4]", "--likelihood", "Normal", "--likelihood.network.hidden", "[4]"]
SMALL = [*TABLE[:-1], "7", *NETWORKS, "--epochs", "3", "--figures", "[]", "--test_particles", "5"]


def run(tmp_path: Path, processes: int, out: str, *options: str, program: str | None = None) -> subprocess.Popen:
    """Starts a training, by ``torchrun`` if there are to be several processes."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    (tmp_path / "mine.py").write_text(MINE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "pyro_vae", "train", *SMALL, *options, "--out", out],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


MINE = """
import os, signal, time
from pyro_vae.estimators import ELBO

class Deadly(ELBO):
    calls = 0

    def estimate(self, *args, **options):
        self.calls += 1
        if self.calls == 12 and os.environ.get("RANK") == "1" and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return super().estimate(*args, **options)
"""


def gap(tmp_path: Path, one: str, other: str) -> float:
    """The largest difference between the weights of two runs."""
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in (one, other))
    return max((first[name] - second[name]).abs().max().item() for name in first)


def bounds(tmp_path: Path, name: str) -> list[float]:
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[of]["bound"] for line in lines for of in ("train", "valid")]


@pytest.mark.parametrize("options", [[], ["--estimator", "IWAE", "--estimator.K", "3", "--clip_norm", "0.5"]])
def test_processes_end_in_the_weights_of_one(tmp_path, options):
    """With a last batch that is smaller than the others. The first process alone prints and writes."""
    for processes in (1, 2, 4):
        told, err = (process := run(tmp_path, processes, f"of {processes}", *options)).communicate()
        assert process.returncode == 0, err
        assert told.count("Run folder") == 1
        assert ("in 2 processes" in told) == (processes == 2)
    for processes in (2, 4):
        assert gap(tmp_path, "of 1", f"of {processes}") < 2e-5
        assert bounds(tmp_path, f"of {processes}") == pytest.approx(bounds(tmp_path, "of 1"), abs=1e-4)


def test_one_that_dies_ends_all_and_a_restart_goes_on(tmp_path):
    """The message comes once, and torchrun's own restart ends in the weights of a training that nobody disturbed."""
    options = ["--estimator", "mine.Deadly", "--checkpoint_every", "2 steps", "--resume", "true"]
    process = run(tmp_path, 2, "cut", *options)
    _, err = process.communicate()
    assert process.returncode != 0
    assert err.count("error: another process of this training is gone") <= 1
    assert "LostError" not in err
    assert (tmp_path / "cut" / "checkpoint.safetensors").is_file()
    told, err = (process := run(tmp_path, 2, "cut", *options)).communicate()
    assert process.returncode == 0, err
    assert "Going on after epoch" in told
    told, err = (process := run(tmp_path, 2, "whole", *options)).communicate()
    assert process.returncode == 0, err
    assert gap(tmp_path, "cut", "whole") == 0
    told, err = (process := run(tmp_path, 2, "cut", *options)).communicate()
    assert process.returncode == 0, err
    assert "is finished: nothing is left to do" in told


def test_wrong_words_are_told_once(tmp_path):
    """By the first process. All end with status 2."""
    process = run(tmp_path, 2, "none", "--bad", "1")
    _, err = process.communicate()
    assert process.returncode == 1  # of torchrun, which tells those of its processes
    assert err.count("error: ") == err.count("error: --bad: there is no such option") == 1
    assert re.findall(r"exitcode  : (\d+)", err) == ["2", "2"]
    assert not (tmp_path / "none").exists()


def test_what_the_first_process_does_not_tell_another_one_tells(tmp_path, monkeypatch):
    """As where a file is missing on its machine alone."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    for name, value in (("RANK", 1), ("WORLD_SIZE", 2), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    process = run(tmp_path, 1, "none", "--bad", "1")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "error: --bad: there is no such option" in err


def test_one_card_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setattr(Together, "now", staticmethod(lambda: Together(0, 2)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for device in ("cpu", "cuda"):
        check_device(torch.device(device))
    with pytest.raises(
        ValueError, match=r"cuda:0 would put the 2 processes .* on one card: give --device cuda, and each"
    ):
        check_device(torch.device("cuda:0"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # of several machines
    check_device(torch.device("cuda:0"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="torchrun started 3 processes here, and PyTorch sees 2 CUDA devices"):
        check_device(torch.device("cuda"))


def test_a_scheduler_ends_all_with_a_checkpoint(tmp_path):
    process = run(tmp_path, 2, "cut", "--estimator", "mine.Deadly", "--epochs", "100000")
    (tmp_path / "died").touch()
    while not (tmp_path / "cut" / "metrics.jsonl").is_file():
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    told, err = process.communicate()
    assert (tmp_path / "cut" / "checkpoint.safetensors").is_file()
    assert "epochs were finished" in told
    assert "pyro_vae" not in "".join(line for line in err.splitlines() if line.startswith("  File"))
