"""Commands on a handful of data: they work, or say in a line what is needed before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest

SMALL = ["--epochs", "1", "--test_particles", "3", "--latent", "2", "--guide.network.hidden", "[4]"]


@pytest.fixture
def six(tmp_path):
    """Six data: four for training, one for validation, one for the test."""
    np.save(tmp_path / "six.npy", np.random.default_rng(0).normal(size=(6, 3)))
    return ["--data", "Arrays", "--data.path", "six.npy", "--data.valid", "1", "--data.test", "1", "--batch_size", "4"]


@pytest.mark.parametrize("prior", ["ExemplarPrior", "VampPrior", "MixtureOfNormals"])
def test_training_on_six_data(script, six, prior, tmp_path):
    code, out, err = script("train", *SMALL, *six, "--prior", prior, "--out", "run")
    assert (code, err) == (0, "")
    assert not any(f"Left out: {what}" in out for what in ("metric", "figure"))
    assert "nan" not in out
    assert "(no ±: a single value)" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["log_px"]["standard_error"] is None


def test_four_trainings_on_six_data(script, six):
    code, _, err = script("autoencoder_vs_vae", *SMALL, *six, "--out", "cases")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("compare_parts", [], "need at least 2 test data for their errors, and there are 1"),
        ("compare_estimators", ["training"], "need at least 2 test data for their errors, and there are 1"),
        ("train", ["--prior", "ExemplarPrior", "--prior.exemplars", "5"], "exemplars: expected at most the 4 training data"),
        ("train", ["--prior", "VampPrior", "--prior.init", "data"], "components: expected at most the 4 training data, got"),
        ("autoencoder_vs_vae", ["--guide", "InverseAutoregressive"], "no closed-form KL is known"),
        ("train", ["--guide", "InverseAutoregressive", "--objective.noise", "false", "--objective.beta", "0"],
         "t is the mean of q, which has no closed form at site 't' of InverseAutoregressive"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_before_training(script, six, name, options, message, tmp_path):
    small = SMALL[:-2] if name == "compare_parts" else SMALL
    code, _, err = script(name, *options, *small, *six)
    assert code == 1
    assert message in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


def test_a_batch_larger_than_the_data(script, six):
    code, _, err = script("train", *SMALL, *six[:-2])
    assert code == 1
    assert "batch_size: expected between 1 and the 4 training data, got 50: give a smaller one" in err
