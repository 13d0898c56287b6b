"""Whatever a user may add is one class in a file of their own, named on the command line, and nothing elsewhere is edited."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from app_additions import ADDITIONS

from pyro_vae import load

SMALL = ["--epochs", "2", "--test_images", "20", "--test_particles", "5", "--latent", "3", "--out", "run"]
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"


def lines_of(text: str) -> int:
    return len(text.strip().splitlines())


@pytest.mark.parametrize("kind", ADDITIONS)
def test_it_trains_from_a_file_of_ones_own(kind, script, tmp_path):
    file, text, options = ADDITIONS[kind]
    (tmp_path / f"{file}.py").write_text(text)
    code, out, err = script("train", *options, *SMALL)
    assert (code, err) == (0, ""), err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    if kind not in ("metric", "callback", "tracker"):
        assert load(tmp_path / "run", trust=file).dims.latent == 3
    if kind == "metric":
        assert "length of t" in out
        assert json.loads((tmp_path / "run" / "result.json").read_text()).keys() >= {"test", "test_bound", "norm"}
    if kind == "figure":
        assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == {"learning_curves", "nine"}
    if kind == "callback":
        assert re.fullmatch(r"1 -\d+\.\d VAE\n2 -\d+\.\d VAE\n", (tmp_path / "log.txt").read_text())
    if kind == "tracker":
        first, second = map(json.loads, (tmp_path / "sheet.txt").read_text().splitlines())
        assert (first["epoch"], second["epoch"], first["rates/w"]) == (1, 2, 1e-3)
        assert {"valid/bound", "train/kl", "gradient_norm/phi"} <= second.keys()
    if kind == "schedule":
        rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert rates == [1e-3, 0.5e-3]  # 26 steps an epoch: halved once before the second begins
    if kind == "data set":
        assert "TwoMoons: 200 train, 50 validation, 50 test, each 2" in out
        code, _, err = script("train", *options, *SMALL, "--data.binarize", "dynamic", "--out", "binary")
        assert (code, err) == (0, "")
        config = yaml.safe_load((tmp_path / "binary" / "config.yaml").read_text())
        assert config["likelihood"]["class_path"] == "pyro_vae.likelihoods.Bernoulli"
    if kind.startswith("model"):
        assert {"latents", "traversals", "samples"} <= {path.stem for path in (tmp_path / "run" / "figures").iterdir()}


@pytest.mark.parametrize("kind", ADDITIONS)
def test_the_design_page_tells_its_lines(kind):
    assert f"| {kind} |" in DESIGN.read_text()
    assert re.search(rf"\| {re.escape(kind)} \|[^\n]*\| {lines_of(ADDITIONS[kind][1])} \|", DESIGN.read_text()), (
        lines_of(ADDITIONS[kind][1])
    )
