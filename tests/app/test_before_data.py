"""What is told before data are read, and options of the likelihood that only the data choose."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

QUICK = ["--epochs", "1", "--metrics", "[]", "--figures", "[]", "--guide.network.hidden", "[4]", "--out", "run"]

RANGES = {
    "--latent 0": "latent: expected a size of at least 1, got 0",
    "--batch_size 0": "batch_size: expected at least 1, got 0",
    "--epochs 0": "epochs: expected at least 1, got 0",
    "--test_images 0": "test_images: expected at least 1, got 0",
    "--test_particles 0": "test_particles: expected at least 1, got 0",
    "--estimator.K 0": "K: expected at least 1 particle, got 0",
    "--objective.beta -1": "expected beta of at least 0, got -1",
    "--clip_norm 0": "clip_norm: expected a norm above 0, got 0",
    "--lr_phi -1": "lr_phi: expected a learning rate of at least 0, got -1",
    "--optimizer.lr -1": "optimizer: Invalid learning rate: -1",
    "--optimizer LBFGS": "optimizer: LBFGS evaluates the loss itself",
    "--schedule StepLR --schedule.step_size 0": "schedule: StepLR cannot move with its options",
    "--schedule ExponentialLR --schedule.gamma nan": "--schedule.gamma",
}


@pytest.mark.parametrize("options", RANGES)
def test_a_number_out_of_its_range_is_told_before_data_are_read(script, options):
    code, _, err = script("train", "--data", "Arrays", "--data.path", "none.npy", *options.split())
    assert code in (1, 2)
    assert RANGES[options] in " ".join(err.split())
    assert "none.npy" not in err


def test_schedules_in_range_are_not_refused(script, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    data = ["--data", "Arrays", "--data.path", "x.npy", "--batch_size", "8"]
    for schedule in (
        "OneCycleLR --schedule.max_lr 0.1",
        "ReduceLROnPlateau",
        "StepLR --schedule.step_size 1",
        "BurdaSchedule",
    ):
        code, _, err = script("train", *QUICK[:-1], schedule.split()[0], *data, "--schedule", *schedule.split())
        assert (code, err) == (0, "")


@pytest.mark.parametrize("options", ["--likelihood.network.hidden [7]", "--likelihood.network GatedMLP"])
def test_the_likelihood_that_the_data_choose_takes_its_network(script, options, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 5, (40, 3)))
    data = ["--data", "Arrays", "--data.path", "x.npy", "--batch_size", "8"]
    assert script("train", *QUICK, *data, *options.split())[::2] == (0, "")
    likelihood = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["likelihood"]
    network = likelihood["init_args"].pop("network")
    assert likelihood == {"class_path": "pyro_vae.likelihoods.Binomial", "init_args": {"total_count": 4}}
    if "hidden" in options:
        assert network["init_args"]["hidden"] == [7]
    assert network["class_path"].endswith(".MLP" if "hidden" in options else ".GatedMLP")


WRONG = {
    "--likelihood.total_count 3": "the likelihood that the data choose has no option total_count; Binomial has it",
    "--likelihood.network.blocks 2": "MLP has no option blocks; Convolutional has it: --likelihood.network Convolutional",
    "--likelihood.network.hidden [3] --print_config": "a file of options has it beside its class: name one by --likelihood",
}


@pytest.mark.parametrize("options", WRONG)
def test_what_that_likelihood_cannot_have_is_told(script, options):
    code, _, err = script("train", *options.split())
    assert code == 2
    assert WRONG[options] in " ".join(err.split())
