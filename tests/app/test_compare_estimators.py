"""compare_estimators.py as a person uses it: both halves, a file of one's own, a cut, and what a wrong command says."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from helpers import rows
from scipy import stats

from pyro_vae import load
from pyro_vae.precision import has_products

PARTS = ["--guide.network.hidden", "[8]", "--latent", "2"]
GRADIENTS = [
    "gradients",
    *PARTS,
    "--draws",
    "20",
    "--batch",
    "3",
    "--particles",
    "[1,2,4]",
    "--fit_from",
    "1",
    "--out",
    "g",
]
TRAINING = [
    "training",
    *PARTS,
    "--epochs",
    "3",
    "--evaluate_every",
    "2",
    "--test_particles",
    "5",
    "--test_images",
    "20",
]
TRAINING += ["--out", "t", "--seeds", "[0,1]", "--particles", "[2]"]
MINE = """
    from hashlib import sha256

    import torch
    from pyro_vae import Estimator

    # The random numbers of the first step with the seed 1.
    BAD = int.from_bytes(sha256(repr((1, "epoch", 1, "step", 1)).encode()).digest()[:8], "big") >> 1

    class Halved(Estimator):
        \"\"\"The bound of the ELBO and half its gradient.

        Args:
            K: number of particles.
            share: what is left of the gradient.
        \"\"\"

        def __init__(self, K: int = 1, share: float = 0.5, max_plate_nesting: int = 1):
            super().__init__(K, max_plate_nesting)
            self.share = share
            self.climbs = 1

        def bound(self, draws):
            return draws.log_w.mean(0)

        def surrogate(self, draws):
            return self.share * self.bound(draws)

    class Unknown(Estimator):
        def bound(self, draws):
            return draws.log_w.mean(0)

    class Broken(Estimator):
        def bound(self, draws):
            return draws.log_w.mean(0) * float("nan")

    class Sometimes(Estimator):
        def bound(self, draws):
            return draws.log_w.mean(0) * (float("nan") if torch.initial_seed() == BAD else 1.0)

    class Large(Estimator):
        def bound(self, draws):
            raise MemoryError
"""


@pytest.fixture
def compare(script, tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))

    def run(*options):
        sys.modules.pop("mine", None)
        return script("compare_estimators", *options)

    return run


def test_gradients(compare, tmp_path):
    code, out, err = compare(*GRADIENTS, "--estimators", "[IWAE, DReG, VIMCO, mine.Halved]")
    assert (code, err) == (0, "")
    assert "Left out: VIMCO at K = 1: VIMCO: expected K of at least 2, got 1" in out
    table = rows(tmp_path / "g" / "gradients-phi.csv")
    assert [(row["estimator"], row["K"]) for row in table] == [
        *[("IWAE", k) for k in "124"],
        *[("DReG", k) for k in "124"],
        *[("VIMCO", k) for k in "24"],
        *[("mine.Halved", k) for k in "124"],
    ]
    halved = next(row for row in rows(tmp_path / "g" / "gradients-w.csv") if row["estimator"] == "mine.Halved")
    assert float(halved["bias low (number)"]) <= 0.5 <= float(halved["bias high (number)"])
    assert "95 % limits" in out
    for name in (
        "gradients-w.md",
        "gradients-phi.md",
        "slopes.md",
        "slopes.csv",
        "figures/snr.png",
        "figures/cost.png",
    ):
        assert (tmp_path / "g" / name).stat().st_size > 0


BITS = ["--prior", "Bernoulli", "--guide", "Bernoulli", "--guide.network.hidden", "[8]"]
LEAVE_ONE_OUT = "{class_path: ScoreFunction, init_args: {control: leave-one-out}}"


def of_bits(latent, *options):
    few = ["--draws", "20", "--batch", "3", "--latent", str(latent)]
    return ["gradients", *BITS, *few, "--particles", "[2]", "--out", "g", *options]


@pytest.mark.parametrize("reference", [[], ["--reference", "Exact"]])
def test_the_reference_of_discrete_latents_is_exact(compare, tmp_path, reference):
    """Each estimator is compared with the gradient of its own bound alone, and one of another objective with none."""
    pair = "{class_path: DisARM, init_args: {M: 3, bound: IWAE}}"
    estimators = f"[{LEAVE_ONE_OUT}, DisARM, VIMCO, {pair}, GumbelSoftmax, Exact, RWS]"
    code, out, err = compare(*of_bits(3, "--estimators", estimators), *reference)
    assert (code, err) == (0, "")
    out = " ".join(out.split())
    table = {row["estimator"]: row for row in rows(tmp_path / "g" / "gradients-phi.csv")}
    loo = "ScoreFunction(control=leave-one-out)"
    assert {name: (row["against"], row["evaluations"]) for name, row in table.items()} == {
        loo: ("exact ELBO", "2"),
        "DisARM": ("exact ELBO", "2"),
        "VIMCO": ("exact L_2", "2"),
        "DisARM(M=3, bound=IWAE)": ("exact L_3", "6"),
        "GumbelSoftmax": ("exact ELBO", "4"),
        "Exact": ("exact L_2", "8"),
        "RWS": ("another objective", "2"),
    }
    assert table["RWS"]["bias"] == "—"
    assert table["RWS"]["bias (number)"] == ""
    assert (table["Exact"]["SNR"], table["Exact"]["variance"]) == ("no noise", "0.0")
    assert float(table["Exact"]["bias high (number)"]) <= 1e-5
    assert table[loo]["ratio"] == "1"
    ratio = float(table["DisARM"]["variance (number)"]) / float(table[loo]["variance (number)"])
    assert float(table["DisARM"]["ratio (number)"]) == pytest.approx(ratio)  # both take two evaluations
    assert float(table["DisARM"]["ratio low (number)"]) < ratio < float(table["DisARM"]["ratio high (number)"])
    twice = 2 * float(table["GumbelSoftmax"]["variance (number)"]) / float(table[loo]["variance (number)"])
    assert float(table["GumbelSoftmax"]["ratio (number)"]) == pytest.approx(twice)
    assert f"ratio: of var·eval to that of {loo}" in out
    assert "exact ELBO, exact L_2, exact L_3: gradients as sums over all states" in out
    assert "another objective: the gradient is not meant to be that of the ELBO, or of IWAE's bound" in out


def test_where_there_are_too_many_states(compare, tmp_path):
    """A bound of several particles keeps the mean of draws, and so does the ELBO where Exact was not asked for."""
    estimators = ["--estimators", "[DisARM, {class_path: DisARM, init_args: {M: 6, bound: IWAE}}, VIMCO, mine.Halved]"]
    code, out, err = compare(*of_bits(5, *estimators, "--reference", "Exact"))
    assert (code, err) == (0, "")
    against = {row["estimator"]: row["against"] for row in rows(tmp_path / "g" / "gradients-w.csv")}
    assert against["DisARM"] == "exact ELBO"
    assert against["DisARM(M=6, bound=IWAE)"] == "VIMCO, K = 6"  # 2,324,784 sets of 6 of 32 states
    assert against["VIMCO"] == "exact L_2"
    many = of_bits(50, *estimators)
    code, _, err = compare(*many, "--reference", "Exact", "--out", "h")
    assert code == 1
    assert (
        "reference Exact: site 't' cannot be enumerated: 2^50 values of Bits are 10^15 states for each datum and "
        "particle, and 65,536 are the most: leave --reference out" in " ".join(err.split())
    )
    assert not (tmp_path / "h").exists()  # nothing was begun
    code, out, err = compare(*many, "--out", "i")
    assert (code, err) == (0, "")
    against = {row["estimator"]: row["against"] for row in rows(tmp_path / "i" / "gradients-w.csv")}
    loo = "ScoreFunction(control=leave-one-out), K = 2"
    assert against == {"DisARM": loo, "DisARM(M=6, bound=IWAE)": "VIMCO, K = 6", "VIMCO": "itself"}
    assert "Left out: mine.Halved at K = 2" in out  # it needs rsample


def test_a_reference_of_continuous_latents(compare, tmp_path):
    """By default the gradient of the same bound; one that is named is for those of its bound, and of an unknown one."""
    code, _, err = compare(*GRADIENTS, "--estimators", "[STL]", "--reference", "Exact")
    assert code == 1
    assert "reference Exact: site 't' cannot be enumerated: Normal is continuous" in " ".join(err.split())
    job = [*GRADIENTS, "--particles", "[1,2]", "--estimators", "[STL, IWAE, DReG, mine.Unknown]"]
    code, out, err = compare(*job)
    assert (code, err) == (0, "")
    table = {(row["estimator"], row["K"]): row for row in rows(tmp_path / "g" / "gradients-w.csv")}
    assert {key: row["against"] for key, row in table.items()} == {
        ("STL", "1"): "ELBO, K = 1",
        ("STL", "2"): "ELBO, K = 2",
        ("IWAE", "1"): "ELBO, K = 1",
        ("IWAE", "2"): "itself",
        ("DReG", "1"): "ELBO, K = 1",
        ("DReG", "2"): "IWAE, K = 2",
        ("mine.Unknown", "1"): "not told",
        ("mine.Unknown", "2"): "not told",
    }
    assert "not told: the estimator does not say (by climbs)" in " ".join(out.split())
    code, out, err = compare(*job, "--reference", "DReG", "--out", "h")
    assert (code, err) == (0, "")
    table = {(row["estimator"], row["K"]): row for row in rows(tmp_path / "h" / "gradients-w.csv")}
    assert table["STL", "1"]["against"] == "DReG, K = 1"
    assert table["STL", "2"]["against"] == "another objective"
    assert table["STL", "2"]["bias"] == "—"
    assert table["DReG", "2"]["against"] == "itself"
    assert table["mine.Unknown", "2"]["against"] == "DReG, K = 2"
    assert table["mine.Unknown", "2"]["bias"] != "—"
    assert "not meant to be that of the bound of DReG" in " ".join(out.split())


def test_finished_cells_are_kept_and_the_grid_may_grow(compare, tmp_path):
    assert compare(*GRADIENTS, "--estimators", "[IWAE]", "--particles", "[1,2]")[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "g" / "cells").iterdir()}
    (tmp_path / "g" / "cells" / "IWAE-K2.json").unlink()
    code, out, _ = compare(*GRADIENTS, "--estimators", "[IWAE, STL]", "--particles", "[1,2]")
    assert code == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "g" / "cells").iterdir()}
    assert sorted(after) == ["IWAE-K1.json", "IWAE-K2.json", "STL-K1.json", "STL-K2.json"]
    assert after["IWAE-K1.json"] == before["IWAE-K1.json"]
    assert "IWAE, K = 1" not in out.split("Gradient by")[0]
    code, _, err = compare(*GRADIENTS, "--estimators", "[IWAE]", "--draws", "40")
    assert code == 1
    assert "g holds a comparison with other options (draws: there 20, here 40)" in " ".join(err.split())


def test_a_cell_does_not_depend_on_the_others(compare, tmp_path):
    """What is continued is what would have been computed at once."""
    compare(*GRADIENTS, "--estimators", "[IWAE, STL]", "--particles", "[2]")
    first = json.loads((tmp_path / "g" / "cells" / "STL-K2.json").read_text())
    compare(*GRADIENTS, "--estimators", "[STL]", "--particles", "[1,2]", "--out", "again")
    second = json.loads((tmp_path / "again" / "cells" / "STL-K2.json").read_text())
    assert first["phi"] == second["phi"]


def test_a_training_that_diverges_is_left_out(compare, tmp_path):
    """The others are told, here of one seed: with intervals over data, which the cells' own numbers give by SciPy."""
    options = [*TRAINING, "--seeds", "[4]", "--epochs", "1", "--estimators", "[ELBO, mine.Broken, mine.Halved]"]
    code, out, err = compare(*options)
    assert (code, err) == (0, "")
    assert "Left out: mine.Broken at K = 2, seed 4: the bound became NaN" in out
    one, other = (
        np.array(json.loads((tmp_path / "t" / "cells" / f"{name}-K2-seed4.json").read_text())["final"])
        for name in ("ELBO", "mine.Halved")
    )
    low, high = stats.ttest_rel(other, one).confidence_interval(0.95)
    first, second, broken = rows(tmp_path / "t" / "training.csv")
    assert {name: value for name, value in broken.items() if value} == {
        "estimator": "mine.Broken",
        "K": "2",
        "left out": "seed 4",
    }
    assert second["to the first"] == f"{(other - one).mean():+.2f} ± {(high - low) / 2:.2f}"
    assert float(first["log p(x) (number)"]) == pytest.approx(one.mean())
    assert "one seed" in out
    assert "the spread over seeds, since there is one, 4" in " ".join(out.split())
    # The same command trains none of them again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "t" / "cells").iterdir()}
    assert len(before) == 3
    code, out, _ = compare(*options)
    assert code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "t" / "cells").iterdir()}
    assert "Left out: mine.Broken at K = 2, seed 4: the bound became NaN" in out
    assert "to try it, delete its file in t/cells" in " ".join(out.split())
    assert "mine.Broken at K = 2" in (tmp_path / "t" / "left_out.csv").read_text()
    assert "Left out: mine.Broken at K = 2, seed 4" in (tmp_path / "t" / "training.md").read_text()


def test_one_seed_that_diverges_is_told_beside_the_others(compare, tmp_path):
    """The numbers of the others stay, and it is said that they are of these alone; memory that is used up costs one cell."""
    options = [*TRAINING, "--seeds", "[0,1,2]", "--epochs", "1", "--estimators", "[ELBO, mine.Sometimes, mine.Large]"]
    code, out, err = compare(*options)
    assert (code, err) == (0, "")
    out = " ".join(out.split())
    assert "Left out: mine.Sometimes at K = 2, seed 1: the bound became NaN" in out
    assert "Left out: mine.Large at K = 2, seed 2: out of memory" in out
    assert "mine.Sometimes, K = 2: left out seed 1 (see above). Its numbers are of seeds 0, 2 alone" in out
    table = rows(tmp_path / "t" / "training.csv")
    assert [(row["estimator"], row["seeds"], row["left out"]) for row in table] == [
        ("ELBO", "3", ""),
        ("mine.Sometimes", "2", "seed 1"),
        ("mine.Large", "", "seeds 0, 1, 2"),
    ]
    assert len(list((tmp_path / "t" / "cells").iterdir())) == 9


@pytest.mark.slow
def test_training(compare, script, tmp_path):
    options = [*TRAINING, "--estimators", "[ELBO, {class_path: IWAE, init_args: {stl: true}}, mine.Halved]"]
    code, _, err = compare(*options)
    assert (code, err) == (0, "")
    table = rows(tmp_path / "t" / "training.csv")
    assert [row["estimator"] for row in table] == ["ELBO", "IWAE(stl=True)", "mine.Halved"]
    assert [row["seeds"] for row in table] == ["2", "2", "2"]
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "t" / "cells").iterdir()}
    assert len(cells) == 6
    one, other = cells["ELBO-K2-seed0"], cells["mine.Halved-K2-seed0"]
    assert one["steps"] == [0, 52, 78]  # 26 steps an epoch, evaluated before the first, after the second and the last
    assert one["log_px"][0] == other["log_px"][0]  # the same first weights and the same evaluation
    assert one["log_px"][-1] != other["log_px"][-1]
    assert one["log_px"][0] != cells["ELBO-K2-seed1"]["log_px"][0]
    assert (tmp_path / "t" / "figures" / "training.png").stat().st_size > 0

    run = tmp_path / "t" / "runs" / "IWAE(stl=True)-K2-seed1"
    assert load(run).dims.latent == 2
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["estimator"]["init_args"] == {"K": 2, "stl": True, "max_plate_nesting": 1}
    assert script("train", "--config", str(run / "config.yaml"), "--out", "alone", "--test_images", "20")[0] == 0
    alone, cell = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "alone", run))
    assert alone == cell

    (tmp_path / "t" / "cells" / "ELBO-K2-seed0.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "t" / "cells").iterdir()}
    assert compare(*options)[0] == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "t" / "cells").iterdir()}
    assert after.items() >= before.items()
    assert json.loads((tmp_path / "t" / "cells" / "ELBO-K2-seed0.json").read_text())["log_px"] == one["log_px"]


def test_gradients_of_a_run(compare, script, tmp_path):
    script("train", *PARTS, "--epochs", "1", "--test_particles", "2", "--out", "run")
    code, out, err = compare(
        "gradients", "--run", "run", "--draws", "20", "--particles", "[2]", "--estimators", "[DReG]"
    )
    assert (code, err) == (0, "")
    assert "DReG" in out
    assert "Likelihood:" not in out  # the run has its own
    code, _, err = compare("gradients", "--run", "run", "--latent", "4", "--prior", "VampPrior")
    assert code == 2
    assert "--latent, --prior: the model is that of --run run" in " ".join(err.split())
    (tmp_path / "job.yaml").write_text("run: run\nlatent: 4\ndraws: 20\nparticles: [2]\nestimators: [DReG]\n")
    code, out, _ = compare("gradients", "--config", "job.yaml")
    assert code == 0
    assert "Model: that of run. Not used: latent of job.yaml" in out


def test_gradients_of_a_run_are_taken_on_the_data_of_the_run(compare, script, tmp_path):
    """With the data set's own options, which the run's configuration has, unless --data is given."""
    x = np.random.default_rng(0).normal(size=(200, 2, 9)) * 100 + 7
    np.savez(tmp_path / "mine.npz", x=x, labels=np.arange(200) % 3)
    data = ["--data", "Arrays", "--data.path", "mine.npz", "--data.valid", "7", "--data.test", "11"]
    own = ["--data.split_seed", "3", "--data.standardize", "false", "--data.channels", "first"]
    assert script("train", *PARTS, *data, *own, "--epochs", "1", "--test_particles", "2", "--out", "run")[0] == 0
    job = ["gradients", "--run", "run", "--draws", "20", "--particles", "[2]", "--estimators", "[DReG]"]
    code, out, err = compare(*job, "--out", "g")
    assert (code, err) == (0, "")
    assert "Data: Arrays(path=mine.npz" in " ".join(out.split())
    assert "), those of run" in " ".join(out.split())
    there, here = (yaml.safe_load((tmp_path / name / "config.yaml").read_text())["data"] for name in ("run", "g"))
    assert there == here
    assert here["init_args"]["split_seed"] == 3
    # The same numbers as with all of it written out.
    assert compare(*job, *data, *own, "--out", "h")[0] == 0
    one, other = (json.loads((tmp_path / each / "cells" / "DReG-K2.json").read_text()) for each in "gh")
    assert (one["w"], one["phi"]) == (other["w"], other["phi"])
    # One option of the run's data, and other data.
    code, out, err = compare(*job, "--data.split_seed", "4", "--out", "i")
    assert (code, err) == (0, "")
    assert "split_seed=4" in out
    assert "), those given here and not those of run" in " ".join(out.split())
    kept = yaml.safe_load((tmp_path / "i" / "config.yaml").read_text())["data"]["init_args"]
    assert kept == {**here["init_args"], "split_seed": 4}
    code, _, err = compare(*job, "--data", "Digits")
    assert code == 1
    assert "holds a model of data of shape" in err
    # A configuration may name the run too.
    (tmp_path / "job.yaml").write_text("run: run\ndraws: 20\nparticles: [2]\nestimators: [DReG]\nout: j\n")
    code, out, _ = compare("gradients", "--config", "job.yaml")
    assert code == 0
    assert "Data: Arrays(path=mine.npz" in out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "does not say which data"),
        ("data: {class_path: os.system, init_args: {command: touch was_here}}", "not allowed"),
        ("data: [1, 2]", "does not say which data"),
        ("data: {class_path: 'a b'}", "no import path"),
        ("data: {class_path: torch.nn.Linear}", "data"),
        ("data: [", "damaged"),
    ],
)
def test_a_run_whose_configuration_has_no_data_says_so(compare, script, tmp_path, data, message):
    script("train", *PARTS, "--epochs", "1", "--test_particles", "2", "--out", "run")
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["data"]
    path.write_text(yaml.safe_dump(config) + data)
    code, out, err = compare("gradients", "--run", "run", "--draws", "20")
    assert code in (1, 2)
    assert message in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (tmp_path / "was_here").exists()


def test_a_cut_keeps_what_is_finished(start_script, tmp_path):
    process = start_script("compare_estimators", *GRADIENTS, "--draws", "2000", "--estimators", "[IWAE]")
    while process.poll() is None and not any((tmp_path / "g" / "cells").glob("*.json")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Finished cells are kept" in out
    assert "Traceback" not in out + err


WRONG = {
    "no job": ([], "expected one of the jobs gradients, training as the first word, got nothing"),
    "job": (["gradient"], "got gradient"),
    "draws": (["gradients", "--draws", "30"], "draws: expected a multiple of 20"),
    "particles": (["gradients", "--particles", "[0]"], "particles: expected different numbers of at least 1"),
    "twice": (["gradients", "--estimators", "[IWAE, IWAE]"], "estimators: IWAE stands there twice"),
    "none": (["gradients", "--estimators", "[]"], "estimators: expected at least one"),
    "no list": (["gradients", "--estimators", "IWAE"], "expected a list, such as '[IWAE]'"),
    "class": (
        ["gradients", "--estimators", "[Nothing]"],
        "there is no class of that name. Known: ARMS, AnalyticKL, CIWAE",
    ),
    "batch": (["gradients", "--batch", "0"], "batch: expected between 1 and the 1300 training data, got 0"),
    "reference": (["gradients", "--reference", "VIMCO"], "reference VIMCO at K = 1: VIMCO: expected K of at least 2"),
    "same mean": (["gradients", "--same_mean", "[STL, Mine]"], "same_mean: Mine is not among the estimators"),
    "alone": (
        ["gradients", "--estimators", "[VIMCO]", "--particles", "[1]", "--draws", "20"],
        "nothing can be compared here. VIMCO at K = 1",
    ),
    "run": (["gradients", "--run", "nothing"], "nothing: there is no such run folder"),
    "another shape": (
        ["gradients", "--run", "run", "--data", "MNIST", "--data.root", "data", "--data.valid", "9"],
        "holds a model of data of shape",
    ),
    "other data": (["gradients", "--run", "run", "--data.binarize", "none"], "run holds a model of other data"),
    "seeds": (["training", "--seeds", "[1,1]"], "seeds: expected different numbers of at least 0"),
    "epochs": (["training", "--epochs", "0"], "epochs: expected at least 1"),
    "every": (["training", "--evaluate_every", "0"], "evaluate_every: expected"),
    "folder": (["training", "--out", "full"], "full exists and holds no comparison"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_says_what_is_wrong(compare, script, name, tmp_path, mnist_root):
    options, message = WRONG[name]
    (tmp_path / "data").symlink_to(mnist_root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    if "run" in options:
        quick = ["--epochs", "1", "--test_particles", "2", "--out", "run", "--likelihood", "Bernoulli"]
        script("train", *PARTS, *quick, "--data.binarize", "fixed")
    code, out, err = compare(*options)
    assert code in (1, 2)
    assert "Traceback" not in out + err
    assert err.startswith("error: ")
    assert " ".join(message.split()) in " ".join(err.split())


@pytest.mark.slow
def test_autoencoder_vs_vae(script, tmp_path):
    options = [*PARTS, "--epochs", "1", "--test_particles", "5", "--test_images", "40", "--out", "c"]
    code, _, err = script("autoencoder_vs_vae", *options)
    assert (code, err) == (0, "")
    table = rows(tmp_path / "c" / "cases.csv")
    assert len(table) == 4
    vae, _, _, autoencoder = table
    assert vae["log p(x|t)"] == vae["with noise"]
    assert float(autoencoder["log p(x|t)"]) > float(autoencoder["with noise"])
    assert (tmp_path / "c" / "figures" / "cases.png").stat().st_size > 0
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.json"))
    assert script("autoencoder_vs_vae", *options)[0] == 0
    assert before == sorted(path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.json"))
    code, _, err = script("autoencoder_vs_vae", *options, "--out", "d", "--test_images", "0")
    assert code == 1
    assert "test_images: expected" in err


def test_autoencoder_vs_vae_refuses_before_the_first_training(script, tmp_path):
    """The third of four cases has no KL in closed form."""
    options = [*PARTS, "--guide", "InverseAutoregressive", "--epochs", "1", "--out", "e"]
    code, out, err = script("autoencoder_vs_vae", *options)
    assert code == 1
    assert "no closed-form KL is known" in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (tmp_path / "e").exists()


def test_benchmark(script, mnist_root, tmp_path, traced):
    data = ["--data.root", str(mnist_root), "--data.valid", "100"]
    options = ["--rounds", "3", "--seconds", "0.001", "--peers", "false", "--whole", "false", "--parts", "false"]
    options += ["--discrete", "false"]
    code, _, err = script("benchmark", *data, *options, "--out", "b")
    assert code == 0
    assert "error" not in err  # PyTorch may note that a CUDA toolkit has no device
    table = rows(tmp_path / "b" / "steps.csv")
    half = {"pyro_vae bf16"} if has_products("bf16", torch.device("cpu")) else set()
    assert {row["contender"] for row in table} == {"pyro_vae", "pyro_vae eager", *half}
    assert {float(row["pyro_vae / it"]) for row in table if row["contender"] == "pyro_vae"} == {1.0}
    assert (tmp_path / "b" / "figures" / "steps.png").stat().st_size > 0
    code, _, err = script("benchmark", *data, *options, "--data.binarize", "none", "--out", "c")
    assert code == 1
    assert "expected binary pixels" in err


def test_benchmark_of_discrete_latents(script, mnist_root, tmp_path, traced, monkeypatch):
    """Contenders of a small network have the same loss, Pyro's too; there is Enumerate where there are few states."""
    command, steps = (importlib.import_module(f"benchmarks.{name}") for name in ("command", "steps"))
    of_discrete = importlib.import_module("benchmarks.discrete")
    monkeypatch.setattr(command, "report_steps", lambda *_: None)
    bits = partial(steps.Case, hidden=8, prior="Bernoulli", guide="Bernoulli")
    monkeypatch.setattr(of_discrete, "cases", lambda x: [bits(x[:20], latent=3)])
    assert "Enumerate" not in of_discrete.contenders(bits(torch.zeros(1, 1, 2, 2), latent=50))
    few = {name: make for name, make in of_discrete.ESTIMATORS.items() if name in (of_discrete.BASE, "NVIL", "REBAR")}
    monkeypatch.setattr(of_discrete, "ESTIMATORS", few)
    data = ["--data.root", str(mnist_root), "--data.valid", "100"]
    code, out, err = script("benchmark", *data, "--rounds", "3", "--seconds", "0.001", "--whole", "false", "--out", "b")
    assert code == 0
    assert "error" not in err
    assert "other work" not in out
    table = {row["contender"]: row for row in rows(tmp_path / "b" / "discrete.csv")}
    ours = {f"{name}{eager}" for name in (*few, "Enumerate") for eager in ("", ", eager")}
    assert {*ours, "Pyro TraceGraph_ELBO"} <= table.keys() <= {*ours, "Pyro TraceGraph_ELBO", "NumPyro TraceGraph_ELBO"}
    assert float(table[of_discrete.BASE]["ScoreFunction / it"]) == 1
    assert (tmp_path / "b" / "figures" / "discrete.png").stat().st_size > 0


def test_help(compare):
    code, out, _ = compare("--help")
    assert code == 0
    assert "gradients" in out
    code, out, _ = compare("training", "--help")
    assert code == 0
    assert "--evaluate_every" in out


@pytest.mark.slow
def test_a_thousand_particles_fit_into_memory(tmp_path):
    """A gradient at K = 1,000 for a batch of 100 binary images of 784 pixels, 200-200 network: below 4 GB in all."""
    program = """
        import resource
        from functools import partial
        import torch
        from pyro_vae import VAE, Dims
        from pyro_vae.estimators import IWAE, DReG
        from pyro_vae.guides import DiagonalNormal
        from pyro_vae.likelihoods import Bernoulli
        from pyro_vae.networks import MLP
        from pyro_vae.priors import StandardNormal

        dims, network = Dims(50, (1, 28, 28)), partial(MLP, hidden=[200, 200])
        vae = VAE(StandardNormal(dims), DiagonalNormal(dims, network), Bernoulli(dims, network))
        x = torch.rand(100, 1, 28, 28).bernoulli()
        for estimator in (IWAE(1000), DReG(1000)):
            (-estimator.estimate(vae.model, vae.guide, x).surrogate.mean()).backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 4e6
