"""The grid of parts: each cell a run folder, continued where it was cut, illegal cells left out with their reason."""

from __future__ import annotations

import csv
import json
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from oracles import LinearGaussian
from scipy import stats

from pyro_vae import load
from pyro_vae.app.comparisons.errors import Over, compared
from pyro_vae.data import Split
from pyro_vae.evaluate import active_units, crossed, variance_of_means

MINE = """
import pyro.distributions as dist, torch
from pyro_vae import Prior

class Wide(Prior):
    def __init__(self, dims, scale: float = 2.0):
        super().__init__(dims)
        self.register_buffer("loc", torch.zeros(dims.latent))
        self.scale = scale

    def forward(self):
        return dist.Normal(self.loc, self.scale).to_event(1)
"""
NETWORK = "{class_path: MLP, init_args: {hidden: [8]}}"
VAMP = "{class_path: VampPrior, init_args: {components: 5}}"
GUIDE = f"{{class_path: DiagonalNormal, init_args: {{network: {NETWORK}}}}}"
REFINED = f"{{class_path: SemiAmortized, init_args: {{guide: {GUIDE}, steps: 1}}}}"
SMALL = ["--epochs", "1", "--test_images", "20", "--test_particles", "5", "--out", "grid"]


@pytest.fixture
def compare(script, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return lambda *options: script("compare_parts", *SMALL, *options)


def table(tmp_path):
    with (tmp_path / "grid" / "parts.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid(compare, script, tmp_path):
    options = ["--priors", f"[StandardNormal, {VAMP}, mine.Wide]", "--guides", f"[{GUIDE}, {REFINED}]"]
    code, out, err = compare(*options)
    assert (code, err) == (0, "")
    rows = table(tmp_path)
    left = rows.pop()  # the one below is no model
    assert len(rows) == 5
    assert (left["prior"], left["log p(x)"], left["left out"]) == ("VampPrior(components=5)", "", "seed 0")
    assert "Left out: VampPrior(components=5), SemiAmortized" in out
    assert "the prior is made of this guide" in out
    assert "the prior is made of this guide" in (tmp_path / "grid" / "left_out.csv").read_text()
    assert [row["prior"] for row in rows] == ["StandardNormal"] * 2 + ["VampPrior(components=5)"] + ["mine.Wide"] * 2
    for row in rows:
        log_px, elbo, gap = float(row["log p(x) (number)"]), float(row["ELBO"]), float(row["gap"])
        assert gap == pytest.approx(log_px - elbo, abs=0.02)
    assert {path.stem for path in (tmp_path / "grid" / "figures").iterdir()} == {"samples", "latents", "log_px"}

    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "grid" / "cells").iterdir()}
    vamp = next(name for name, cell in cells.items() if name.startswith("VampPrior") and "log_px" in cell)
    run = tmp_path / "grid" / "runs" / vamp
    assert type(load(run).prior).__name__ == "VampPrior"
    assert yaml.safe_load((run / "config.yaml").read_text())["prior"]["init_args"]["components"] == 5
    assert script("train", "--config", str(run / "config.yaml"), "--out", "alone")[0] == 0
    alone, cell = ((folder / "model.safetensors").read_bytes() for folder in (tmp_path / "alone", run))
    assert alone == cell

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "grid" / "cells").iterdir()}
    (tmp_path / "grid" / "cells" / f"{vamp}.json").unlink()
    assert compare(*options, "--seeds", "[0,1]")[0] == 0  # a cell anew, and more of them
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "grid" / "cells").iterdir()}
    assert len(after) == 12  # six cells, one of them left out, of two seeds
    assert {name: at for name, at in before.items() if name != f"{vamp}.json"}.items() <= after.items()
    again = json.loads((tmp_path / "grid" / "cells" / f"{vamp}.json").read_text())
    assert again["log_px"] == cells[vamp]["log_px"]
    assert [row["seeds"] for row in table(tmp_path)] == ["2"] * 5 + [""]


def log_px(tmp_path, *names):
    """log p(x) by seed, (S, N), of the cells whose names begin with each of these."""
    cells = tmp_path / "grid" / "cells"
    return [np.array([json.loads(path.read_text())["log_px"] for path in sorted(cells.glob(f"{n}*"))]) for n in names]


def text(values, sign=""):
    """Mean ± half the width of the 95 % interval, by SciPy."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():{sign}.2f} ± {(high - low) / 2:.2f}"


def test_with_one_seed_errors_are_over_data(compare, tmp_path):
    code, out, _ = compare("--priors", "[StandardNormal, mine.Wide]")
    assert code == 0
    ((one,), (other,)) = log_px(tmp_path, "StandardNormal", "mine.Wide")
    assert [row["log p(x)"] for row in table(tmp_path)] == [text(one), text(other)]
    assert table(tmp_path)[1]["to the first"] == text(other - one, "+")
    assert "± 95 % over images, one seed" in " ".join(out.split())
    assert "Left out: the spread over seeds, since there is one, 0" in " ".join(out.split())
    assert "paired over data" not in out.split("±:")[0]


def test_with_several_seeds_errors_are_over_seeds_and_the_paired_ones_stand_beside(compare, tmp_path):
    """The differences are taken seed by seed, and by datum in the mean over seeds."""
    code, out, _ = compare("--priors", "[StandardNormal, mine.Wide]", "--seeds", "[3,1,2]")
    assert code == 0
    one, other = log_px(tmp_path, "StandardNormal", "mine.Wide")
    first, second = table(tmp_path)
    assert [first["log p(x)"], second["log p(x)"]] == [text(one.mean(1)), text(other.mean(1))]
    gap = other - one
    reach = crossed(gap).over_both
    assert second["to the first"] == f"{gap.mean():+.2f} ± {reach:.2f}"
    assert (float(second["to the first low"]), float(second["to the first high"])) == pytest.approx(
        (gap.mean() - reach, gap.mean() + reach)
    )
    assert second["paired over data"] == text(gap.mean(0), "+")
    low, high = stats.ttest_rel(other.mean(1), one.mean(1)).confidence_interval(0.95)
    assert float(second["to the first over seeds low"]) == pytest.approx(low)
    assert float(second["to the first over seeds high"]) == pytest.approx(high)
    assert sum(float(row["first"].removesuffix(" %")) for row in (first, second)) == pytest.approx(100, abs=1)
    told = " ".join(out.split())
    assert "± 95 % over 3 seeds" in told
    assert "95 % intervals over the seeds 3, 1, 2 (Student's t)" in told
    assert "with an interval for other seeds and other images (two-way analysis of variance)" in told
    assert "Left out of the ± of log p(x): the spread over images" in told


def test_a_seed_that_is_left_out_of_one_row_is_left_out_of_its_difference():
    rng = np.random.default_rng(0)
    first, second, third = (rng.normal(size=(2, 30)) for _ in range(3))
    found = {
        "a": {0: first[0], 1: first[1]},
        "b": {1: second[1]},
        "c": {2: third[0]},
    }
    rows = compared(found, Over([0, 1, 2], 30, "data"))
    assert rows[0]["to the first"] == "first"
    assert (
        rows[1]["to the first"] == f"{(second[1] - first[1]).mean():+.2f} (no ±: a single value)"
    )  # one seed: no spread over seeds
    assert rows[1]["paired over data"] == text(second[1] - first[1], "+")
    assert rows[2]["to the first"] == "no seed in common"
    assert [row["seeds"] for row in rows] == [2, 1, 1]


def test_a_cut_keeps_what_is_finished(start_script, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    options = ["--priors", "[StandardNormal, mine.Wide]", "--epochs", "20", "--test_particles", "5", "--out", "grid"]
    process = start_script("compare_parts", *options)
    cells = tmp_path / "grid" / "cells"
    while process.poll() is None and not (cells.is_dir() and list(cells.glob("*.json"))):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "the same command goes on from them" in out
    assert len(list(cells.glob("*.json"))) == 1


WRONG = {
    "no prior": (["--priors", "[]"], "priors: expected at least one"),
    "twice": (["--priors", "[StandardNormal, StandardNormal]"], "priors: StandardNormal stands there twice"),
    "unknown": (["--priors", "[Nothing]"], "Nothing"),
    "option": (["--priors", "[{class_path: VampPrior, init_args: {parts: 5}}]"], "parts"),
    "K": (["--K", "0"], "K: expected different numbers of at least 1"),
    "seeds": (["--seeds", "[]"], "seeds: expected different numbers"),
    "images": (["--test_images", "1"], "test_images: expected at least 2, got 1"),
    "data": (["--likelihoods", "[Bernoulli]"], "nothing can be compared here"),
    "components": (
        ["--priors", "[{class_path: VampPrior, init_args: {components: 0}}]"],
        "components: expected at least 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_says_what_is_wrong(compare, name):
    options, message = WRONG[name]
    code, _, err = compare(*options)
    assert code in (1, 2)
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_active_units_on_an_exact_model():
    """Var_x of the posterior mean is that of A x: by 4,000 data, within 5 standard errors; a latent that is not used has 0."""
    oracle = LinearGaussian.random()
    x = oracle.data(4000)
    layer = oracle.vae.posterior.network.layers[0]
    with torch.no_grad():
        layer.weight[1] = 0
        exact = layer.weight[:2] @ torch.cov(x.T) @ layer.weight[:2].T
    found = variance_of_means(oracle.vae, Split(x), draws=5)
    noise = (2 * layer.bias[2:4]).exp().max().item()
    assert ((found - exact.diagonal()).abs() < 5 * (noise + exact.max()) / 4000**0.5).all()
    assert active_units(oracle.vae, Split(x)).tolist() == [True, False]


def test_classes_in_lists_have_defaults_of_their_own(script):
    """GatedMLP's widths, not those of the MLP in whose place it stands."""
    code, out, _ = script(
        "compare_parts", "--guides", "[{class_path: DiagonalNormal, init_args: {network: GatedMLP}}]", "--print_config"
    )
    assert code == 0
    network = yaml.safe_load(out)["guides"][0]["init_args"]["network"]
    assert network == {"class_path": "pyro_vae.networks.GatedMLP", "init_args": {"hidden": [300, 300]}}
