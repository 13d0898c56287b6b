"""The command that evaluates trained models: every metric, several runs, and what is wrong with one of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers import rows as rows_of

from pyro_vae.reports import AIS, Bracket, Calibration, Gaps, LogLikelihood, Surgery, TestBound
from pyro_vae.runs import load

TINY = ["--epochs", "1", "--test_particles", "5", "--test_images", "5", "--latent", "2", "--figures", "[]"]
TINY += ["--guide.network.hidden", "[4]"]
FEW = {
    AIS: "{class_path: AIS, init_args: {images: 4, chains: 2, temperatures: 5}}",
    Bracket: "{class_path: Bracket, init_args: {images: 4, chains: 2, temperatures: 5}}",
    Gaps: "{class_path: Gaps, init_args: {images: 4, steps: 3, rounds: 2, copies: 4}}",
    Surgery: "{class_path: Surgery, init_args: {images: 20, draws: 3}}",
    Calibration: "{class_path: Calibration, init_args: {images: 30, draws: 9}}",
    TestBound: "TestBound",
    LogLikelihood: "LogLikelihood",
}
ALL = f"[{', '.join(FEW.values())}]"
QUICK = ["--test_particles", "40", "--test_images", "20"]


@pytest.fixture
def runs(script, tmp_path):
    """Two runs on one table of 60 rows."""
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(60, 3)))
    data = [
        "--data",
        "Arrays",
        "--data.path",
        "table.npy",
        "--data.valid",
        "20",
        "--data.test",
        "20",
        "--batch_size",
        "10",
    ]
    for seed in (0, 1):
        code, _, err = script("train", *TINY, *data, "--seed", str(seed), "--out", f"run{seed}")
        assert (code, err) == (0, "")
    return ["run0", "run1"]


def test_every_metric_of_two_runs_and_their_comparison(script, runs, tmp_path):
    code, out, err = script("evaluate", *runs, *QUICK, "--metrics", ALL, "--out", "ev")
    assert (code, err) == (0, "")
    assert "Left out: run" not in out
    assert "Annealing finds" in out
    assert "Test log p(x), nats per datum, ± 95 % over the 20 test data" in out
    values = json.loads((tmp_path / "ev" / "run0.json").read_text(), parse_constant=pytest.fail)
    assert values.keys() >= {"test_bound", "log_px", "ais", "bracket", "gaps", "surgery", "calibration"}
    rows = rows_of(tmp_path / "ev" / "run1.csv")
    assert len(rows) == 20
    assert float(rows[0]["log_px"]) < 0
    assert rows[10]["ais"] == ""
    assert (tmp_path / "ev" / "figures" / "run0-calibration.png").is_file()
    table = rows_of(tmp_path / "ev" / "runs.csv")
    assert [row["run"] for row in table] == runs
    mean = np.mean([float(row["log_px"]) for row in rows])
    assert float(table[1]["log p(x) (number)"]) == pytest.approx(mean)


def test_finished_metrics_are_kept_and_others_join(script, runs, tmp_path, monkeypatch):
    metrics = ["--metrics", "[LogLikelihood]", "--out", "ev"]
    assert script("evaluate", runs[0], *QUICK, *metrics)[0] == 0
    cells = {each.name: each.read_bytes() for each in (tmp_path / "ev" / "cells").iterdir()}
    monkeypatch.setattr(LogLikelihood, "measure", lambda *_: pytest.fail("computed again"))
    code, out, _ = script("evaluate", runs[0], *QUICK, "--metrics", "[LogLikelihood, TestBound]", "--out", "ev")
    assert code == 0
    assert "ELBO bound" in out
    assert all((tmp_path / "ev" / "cells" / name).read_bytes() == held for name, held in cells.items())


def test_a_trained_run_of_other_weights_is_not_taken_for_this_one(script, runs, tmp_path):
    options = [*QUICK, "--metrics", "[LogLikelihood]", "--out", "ev"]
    assert script("evaluate", runs[0], *options)[0] == 0
    first = (tmp_path / "ev" / "run0.json").read_text()
    shutil.rmtree(tmp_path / "run0")
    shutil.copytree(tmp_path / "run1", tmp_path / "run0")
    code, out, _ = script("evaluate", runs[0], *options)
    assert code == 0
    assert "Computed anew" in out
    assert (tmp_path / "ev" / "run0.json").read_text() != first


def test_a_damaged_run_costs_no_other_one(script, runs, tmp_path):
    weights = bytearray((tmp_path / "run0" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "run0" / "model.safetensors").write_bytes(weights)
    code, out, err = script("evaluate", "nowhere", *runs, *QUICK, "--metrics", "[LogLikelihood]", "--out", "ev")
    assert (code, err) == (0, "")
    assert "Left out: nowhere: nowhere: there is no such run folder" in out
    assert "Left out: run0: run0/model.safetensors: damaged" in out
    assert "run1: test set" in out


def test_a_metric_that_cannot_be_measured_costs_no_other_one(script, runs):
    metrics = "[{class_path: Gaps, init_args: {copies: 1}}, LogLikelihood]"
    code, out, err = script("evaluate", runs[0], *QUICK, "--metrics", metrics, "--out", "ev")
    assert (code, err) == (0, "")
    assert "Left out: run0: Gaps(copies=1): ValueError: copies: expected at least 2, got 1" in out
    assert "importance sampling" in out


def test_runs_on_different_data_are_not_compared(script, runs, tmp_path):
    np.save(tmp_path / "table.npy", np.random.default_rng(1).normal(size=(60, 3)))
    config = (tmp_path / "run1" / "config.yaml").read_text()
    np.save(tmp_path / "other.npy", np.random.default_rng(2).normal(size=(60, 3)))
    (tmp_path / "run1" / "config.yaml").write_text(config.replace("table.npy", "other.npy"))
    code, out, _ = script("evaluate", *runs, *QUICK, "--metrics", "[LogLikelihood]", "--out", "ev")
    assert code == 0
    assert "The runs are not compared: they were evaluated on different data" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "runs"),
        (["run0", "--test_particles", "0"], "test_particles: expected at least 1, got 0"),
        (["run0", "--test_images", "0"], "test_images: expected at least 1, got 0"),
        (["run0", "--metrics", "[Nothing]"], "Nothing"),
        (["run0", "--data", "Digits"], "data: the model of run0 takes data of 3 numbers each, and these are 1×8×8"),
        (["run0", "--device", "tpu"], "device: expected auto"),
        (["nowhere"], "nowhere: there is no such run folder"),
    ],
)
def test_wrong_command_lines_are_told_in_a_line(script, runs, options, message):
    code, out, err = script("evaluate", *options)
    assert code != 0
    assert message in " ".join((out + err).split())
    assert "Traceback" not in err


def test_a_model_that_was_saved_without_its_data_asks_for_them(script, runs, tmp_path):
    from pyro_vae import save

    save(load(tmp_path / "run0"), tmp_path / "saved")
    code, _, err = script("evaluate", "saved", *QUICK, "--metrics", "[LogLikelihood]", "--out", "ev")
    assert code == 1
    assert "does not say which data the model was trained on: name them with --data CLASS" in " ".join(err.split())
    data = ["--data", "Arrays", "--data.path", "table.npy", "--data.valid", "20", "--data.test", "20"]
    code, _, err = script("evaluate", "saved", *QUICK, *data, "--metrics", "[LogLikelihood]", "--out", "ev2")
    assert (code, err) == (0, "")


def test_a_strangers_run_names_what_is_not_trusted(script, runs, tmp_path):
    config = (tmp_path / "run0" / "config.yaml").read_text()
    (tmp_path / "run0" / "config.yaml").write_text(config.replace("pyro_vae.data.Arrays", "os.system"))
    code, out, err = script("evaluate", "run0", *QUICK, "--metrics", "[LogLikelihood]", "--out", "ev")
    assert code == 1
    assert "os.system" in out + err
