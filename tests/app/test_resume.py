"""A run that was cut goes on by its own command; a finished one is left alone; other options are refused."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from helpers import TABLE
from safetensors.torch import load_file

from pyro_vae import load
from pyro_vae.runs import read_records
from pyro_vae.training import Training

TINY = [*TABLE, "--test_particles", "5", "--guide.network.hidden", "[4]", "--figures", "[]"]
TINY += ["--likelihood", "Normal", "--likelihood.network.hidden", "[4]"]
RESUME = ["--out", "run", "--resume", "true"]


@pytest.fixture
def train(script, tmp_path):
    """Runs ``train`` on a small table: exit code, output, errors."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 3)))
    return lambda *words: script("train", *TINY, *words)


def cut_after(monkeypatch, epochs: int):
    """Has trainings stop, as Ctrl-C does, after so many epochs."""
    original = Training.__next__

    def step(self):
        if self.done >= epochs:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Training, "__next__", step)


def same(one, other) -> bool:
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_cut_run_goes_on_and_a_finished_one_is_left(train, tmp_path, monkeypatch):
    assert train("--epochs", "5", "--out", "whole")[0] == 0
    with pytest.MonkeyPatch.context() as patched:
        cut_after(patched, 2)
        code, out, _ = train("--epochs", "5", "--checkpoint_every", "epoch", *RESUME)
    assert code == 130
    assert "Stopped in epoch 3." in out
    assert "To go on from there: the same command with --out run --resume true" in " ".join(out.split())
    assert "finished" not in json.loads((tmp_path / "run" / "result.json").read_text())
    code, out, err = train("--epochs", "5", "--checkpoint_every", "7 steps", *RESUME)
    assert (code, err) == (0, "")
    assert "Going on after epoch " in out
    assert same(tmp_path / "whole" / "model.safetensors", tmp_path / "run" / "model.safetensors")
    numbers = [[(each.train, each.valid) for each in read_records(tmp_path / name)] for name in ("whole", "run")]
    assert numbers[0] == numbers[1]
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "run")]
    assert results[0] == results[1]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, out, _ = train("--epochs", "5", *RESUME)
    assert code == 0
    assert "run is finished: nothing is left to do." in out
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_run_cut_while_it_is_evaluated_is_evaluated_again(train, tmp_path):
    assert train("--epochs", "1", *RESUME)[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    code, out, _ = train("--epochs", "1", *RESUME)
    assert code == 0
    assert "log p(x)" in out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["finished"] is True


def test_its_own_configuration_goes_on_with_it(train, script, tmp_path):
    with pytest.MonkeyPatch.context() as patched:
        cut_after(patched, 1)
        assert train("--epochs", "3", *RESUME)[0] == 130
    code, _, err = script("train", "--config", "run/config.yaml", *RESUME)
    assert (code, err) == (0, "")
    assert len(read_records(tmp_path / "run")) == 3


WRONG = {
    "other options": (
        ["--latent", "3", *RESUME],
        "resume: run holds a run with other options (latent: there 2, here 3)",
    ),
    "no folder": (["--resume", "true"], "resume: name the folder of the run that goes on, with --out"),
    "not asked": (
        ["--out", "run"],
        "out: run exists and is left as it is; choose another folder, or go on with that run",
    ),
    "every": (["--checkpoint_every", "often", *RESUME], "checkpoint_every: expected such as '10 minutes'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_and_nothing_is_touched(name, train, tmp_path):
    words, told = WRONG[name]
    assert train("--epochs", "2", *RESUME)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = train("--epochs", "2", *words)
    assert code != 0
    assert told in " ".join(err.split())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_other_data_and_damage_are_told(train, tmp_path):
    with pytest.MonkeyPatch.context() as patched:
        cut_after(patched, 2)
        assert train("--epochs", "3", "--checkpoint_every", "epoch", *RESUME)[0] == 130
    good = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(good[:-1])
    assert "checkpoint.safetensors: damaged" in train("--epochs", "3", *RESUME)[2]
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(good)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "it has 0 epochs, and the checkpoint beside it 1" in " ".join(train("--epochs", "3", *RESUME)[2].split())
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(80, 3)))
    assert "this checkpoint is of a training with other data" in train("--epochs", "3", *RESUME)[2]


def test_a_folder_that_holds_something_else_is_left(train, tmp_path):
    (tmp_path / "run").mkdir()
    assert train("--epochs", "1", *RESUME)[0] == 0  # an empty one is none
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    code, _, err = train("--epochs", "1", "--out", "other", "--resume", "true")
    assert code == 1
    assert "holds no run (config.yaml is missing)" in err


def test_all_weights_are_kept_and_named(train, tmp_path):
    worse = ["--schedule", "ExponentialLR", "--schedule.gamma", "30", "--optimizer.lr", "1e-4"]
    code, out, err = train(
        "--epochs", "9", "--patience", "2", "--keep", "best", "--average", "ema", *worse, "--out", "run"
    )
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    records = read_records(tmp_path / "run")
    best = max(records, key=lambda each: each.valid.bound).epoch
    assert len(records) == best + 2
    assert f"Ended after epoch {len(records)}: no better validation bound for 2 epochs." in " ".join(out.split())
    assert result["weights"] == f"of the best epoch by validation, {best}"
    assert result["others"]["last"]["weights"] == f"of the last epoch, {len(records)}"
    assert result["others"]["average"]["weights"] == "averaged over steps (ema)"
    numbers = {result["log_px"]["mean"], *(each["log_px"]["mean"] for each in result["others"].values())}
    assert len(numbers) == 3
    states = [load(tmp_path / "run", weights=name).state_dict() for name in ("model", "last", "average")]
    assert len({float(sum(value.double().abs().sum() for value in state.values())) for state in states}) == 3
    with pytest.raises(FileNotFoundError, match=r"it has no best.safetensors"):
        load(tmp_path / "run", weights="best")
    with pytest.raises(ValueError, match="weights: expected the name of a file"):
        load(tmp_path / "run", weights="../run/model")


def test_an_average_is_named_only_where_training_came_to_its_end(train, tmp_path):
    """What is evaluated after Ctrl-C are the last weights, and says so: the average is made at the end."""
    for number, keep in enumerate(("average", "last")):
        words = ["--epochs", "4", "--average", "ema", "--keep", keep, "--out", f"run{number}", "--resume", "true"]
        with pytest.MonkeyPatch.context() as patched:
            cut_after(patched, 2)
            assert train(*words, "--checkpoint_every", "epoch")[0] == 130
        result = json.loads((tmp_path / f"run{number}" / "result.json").read_text())
        assert result["weights"] == "of the last epoch, 2"
        assert "others" not in result
        assert not (tmp_path / f"run{number}" / "average.safetensors").exists()
        code, _, err = train(*words)
        assert (code, err) == (0, "")
        result = json.loads((tmp_path / f"run{number}" / "result.json").read_text())
        assert "averaged over steps (ema)" in (result["weights"], result["others"].get("average", {}).get("weights"))


def test_sigterm_ends_with_a_checkpoint(tmp_path, start_script, script):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 3)))
    process = start_script("train", *TINY, "--epochs", "100000", *RESUME, "--checkpoint_every", "1 hour")
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert "Traceback" not in out + err
    assert "run holds a checkpoint" in " ".join(out.split())
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["epochs"] == 100000
    with pytest.MonkeyPatch.context() as patched:
        cut_after(patched, len(read_records(tmp_path / "run")) + 2)
        code, out, _ = script("train", *TINY, "--epochs", "100000", *RESUME)
    assert code == 130
    assert "Going on after epoch" in out


def test_two_runs_of_one_second_have_two_folders(train, tmp_path, monkeypatch):
    import pyro_vae.app.train as module

    class Clock(module.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 1)

    monkeypatch.setattr(module, "datetime", Clock)
    for _ in range(3):
        assert train("--epochs", "1")[0] == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["Arrays-20260101-000000", "Arrays-20260101-000000-2", "Arrays-20260101-000000-3"]
