"""Run folders: what is written comes back, nothing is overwritten, and a bad folder says what is bad."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from pyro_vae import Dims, ModelSpec, load
from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.data import Digits
from pyro_vae.evaluate import Terms
from pyro_vae.runs import Run, build
from pyro_vae.training import Epoch

PARTS = {
    "prior": {"class_path": "pyro_vae.priors.StandardNormal"},
    "guide": {"class_path": "pyro_vae.guides.DiagonalNormal", "init_args": {"network": {
        "class_path": "pyro_vae.networks.MLP", "init_args": {"hidden": [5], "activation": "torch.nn.Softplus"}}}},
    "likelihood": {"class_path": "pyro_vae.likelihoods.Binomial", "init_args": {"total_count": 16}},
}  # fmt: skip
EPOCH = Epoch(1, Terms(-3.0, -2.0, 1.0), Terms(-4.0, -2.0, 2.0), 1e-3, 0.1)


@pytest.fixture
def run(tmp_path):
    """A whole run folder and the VAE that it holds."""
    torch.manual_seed(1)
    vae = build(Dims(3, (1, 4, 4), torch.full((1, 4, 4), 5.0), classes=10, x_scale=16.0), PARTS)
    folder = Run(tmp_path / "run", yaml.safe_dump(PARTS | {"epochs": 1}))
    folder.record(EPOCH, vae)
    return folder.folder, vae


def test_load_gives_the_vae_back(run):
    folder, vae = run
    again = load(folder)
    assert not again.training
    assert again.dims.x_shape == (1, 4, 4)
    assert (again.dims.classes, again.dims.x_scale) == (10, 16.0)
    assert again.posterior.network.layers[0].out_features == 5
    assert isinstance(again.posterior.network.layers[1], torch.nn.Softplus)
    for name, value in vae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    t = torch.randn(2, 3)
    torch.testing.assert_close(again.likelihood(t).mean, vae.likelihood(t).mean, rtol=0, atol=0)


def test_metrics_and_versions(run):
    folder, _ = run
    (row,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert row["epoch"] == 1
    assert row["valid"] == {"bound": -4.0, "reconstruction": -2.0, "kl": 2.0}
    assert {"pyro_vae", "torch", "pyro-ppl", "python"} <= json.loads((folder / "versions.json").read_text()).keys()


def test_nothing_is_overwritten(run):
    folder, _ = run
    before = (folder / "config.yaml").read_text()
    with pytest.raises(FileExistsError, match="exists and is left as it is; choose another folder"):
        Run(folder, "other")
    assert (folder / "config.yaml").read_text() == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be made|exists"):
        Run(tmp_path / "file" / "run", "")


def break_weights(folder):
    (folder / "model.safetensors").write_bytes(b"junk")


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickle_weights(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))


def foreign_weights(folder):
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")


def other_model(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["guide"]["init_args"]["network"]["init_args"]["hidden"] = [6]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def unknown_class(folder):
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("pyro_vae.priors.StandardNormal", "my_file.MyPrior"))


def no_slot(folder):
    (folder / "config.yaml").write_text("epochs: 3\n")


def broken_yaml(folder):
    (folder / "config.yaml").write_text("a: [1, 2\nb: {")


def binary_config(folder):
    (folder / "config.yaml").write_bytes(bytes(range(256)))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, "model.safetensors: damaged"),
        (cut_weights, "model.safetensors: damaged"),
        (pickle_weights, "model.safetensors: damaged"),
        (foreign_weights, "weights, but not of a run of pyro_vae"),
        (other_model, "config.yaml: .*was changed or damaged since"),
        (unknown_class, "config.yaml: .*my_file.MyPrior"),
        (no_slot, "config.yaml: no configuration of a run"),
        (broken_yaml, "config.yaml: damaged"),
        (binary_config, "config.yaml: damaged"),
        (no_weights, "it has no model.safetensors"),
    ],
)
def test_a_bad_folder_says_what_is_bad(run, damage, message):
    folder, _ = run
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such run folder"):
        load(tmp_path / "nothing")


NOT_NUMBERS = {
    "nan": float("nan"),
    "high": float("inf"),
    "list": [1.0, float("-inf")],
    "deep": {"array": np.array([np.nan, 2.0]), "one": np.float32("nan"), "tensor": torch.tensor([float("nan"), 1.0])},
    "told": float("nan"),
    "told_missing": "no data",
}


def test_json_files_are_json(tmp_path):
    """NaN and infinities become null with a reason, which every reader takes; plain Python would write what is no JSON."""

    def refuse(name):
        raise AssertionError(name)

    run = Run(tmp_path / "run", "prior: 1\n")
    run.result(NOT_NUMBERS)
    terms = Terms(float("nan"), float("-inf"), 1.0)
    run.record(Epoch(1, terms, terms, 1e-3, 0.1), ModelSpec(latent=2).build(Digits().load(), 0))
    cells = ComparisonFolder(tmp_path / "cells", "parts", "a: 1\n", set())
    cells.put({"log_px": [float("nan"), 1.0], "ms": float("inf")}, "one")
    files = [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.jsonl")]
    assert len(files) == 4
    for file in files:
        for line in [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    assert kept == {
        "nan": None, "nan_missing": "it is NaN", "high": None, "high_missing": "it is Infinity", "list": [1.0, None],
        "deep": {"array": [None, 2.0], "one": None, "one_missing": "it is NaN", "tensor": [None, 1.0]},
        "told": None, "told_missing": "no data",
    }  # fmt: skip
    assert str(cells.get("one")["log_px"]) == "[nan, 1.0]"
