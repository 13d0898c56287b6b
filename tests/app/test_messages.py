"""What commands say at the end, in between, and of a wrong word."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_vae.app import commands, train
from pyro_vae.app.slots import Slot, slot_of
from pyro_vae.evaluate import Terms
from pyro_vae.training import Epoch
from pyro_vae.training.optimizers import OptimizerFactory

WRONG = {
    "train --prior my_prior.Foo": "there is no module my_prior in the folder you stand in",
    "train --prior my_part.Foo": "did you mean my_parts?",
    "train --metrics [TestBound": "--metrics: expected a list, such as '[TestBound]', got [TestBound",
    "train --data Arrays --data.path .": ". is a folder, and no file: name a file in it",
    "train --data Arrays --data.path counts.npy --likelihood Bernoulli --batch_size 9": "--data.binarize on the command line",
    "compare-estimators gradients --draws 30 --data Arrays --data.path none.npy": "error: draws: expected a multiple of 20",
    "compare-estimators training --seeds [1,1] --data Arrays --data.path none.npy": "seeds: expected different numbers",
    "compare-parts --K 0 --data Arrays --data.path none.npy": "K: expected different numbers of at least 1",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_command(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("counts.npy", np.random.default_rng(0).integers(0, 9, (50, 3)))
    (tmp_path / "my_parts.py").write_text("")
    with pytest.raises(SystemExit):
        commands.main(words.split())
    err = " ".join(capsys.readouterr().err.split())
    assert WRONG[words] in err
    assert "a file may name" not in err


def test_the_version(capsys):
    commands.main(["--version"])
    assert capsys.readouterr().out == "pyro_vae 0.1.0\n"


def test_optimizers_that_training_refuses_are_not_named():
    slot = slot_of(OptimizerFactory)
    assert isinstance(slot, Slot)
    assert "Adam" in slot.known()
    assert "LBFGS" not in slot.known()


def test_an_epoch_of_huge_numbers_is_a_line():
    huge = Terms(-1.2345e20, -1.2345e20, 3.0)
    record = Epoch(1, huge, huge, 1e10, 1.0)
    assert train.line(record, 5).split() == ["1/5", "-1.23e+20", "-1.23e+20", "-1.23e+20", "3.00", "1.0"]


def test_the_last_line_names_pictures_where_there_are_some(script, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    data = ["--data", "Arrays", "--data.path", "x.npy", "--batch_size", "8", "--epochs", "1", "--metrics", "[]"]
    _, out, _ = script("train", *data, "--figures", "[]", "--out", "a")
    assert "Run folder: a   (configuration, metrics, weights)" in out
    _, out, _ = script("train", *data, "--figures", "[LearningCurves]", "--out", "b")
    assert "Run folder: b   (configuration, metrics, weights, b/figures/*.png)" in out


def test_cells_of_training_have_their_errors(script, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    options = ["--data", "Arrays", "--data.path", "x.npy", "--batch_size", "8", "--epochs", "1", "--seeds", "[0, 1]"]
    code, out, _ = script("compare_estimators", "training", *options, "--estimators", "[ELBO]", "--test_particles", "3")
    assert code == 0
    cell = next(line for line in out.splitlines() if line.startswith("ELBO, K = 5, seed 0: log p(x) = "))
    assert " ± " in cell
    assert "for other seeds and other data at once ± " in " ".join(out.split())
