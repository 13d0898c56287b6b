"""The README's Python examples run as they stand, and what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pyro_vae import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number):
    exec(compile(EXAMPLES[number], f"README example {number + 1}", "exec"), {"__name__": "example"})


FILES = {
    "Prior": "my_priors",
    "Guide": "my_parts",
    "Likelihood": "my_parts",
    "Network": "my_parts",
    "Estimator": "my_estimators",
}


def test_parts_of_ones_own_train_from_a_file_of_ones_own(script, tmp_path):
    """Each under 20 lines, saved as the README says and named on the command line, in a folder outside the package."""
    own = {}
    for example in EXAMPLES:
        if found := re.search(rf"^class (\w+)\(({'|'.join(FILES)})\)", example, re.MULTILINE):
            name, base = found.groups()
            own[base] = f"{FILES[base]}.{name}"
            assert base == "Estimator" or len(example.strip().split("\n")) < 20, name
            with (tmp_path / f"{FILES[base]}.py").open("a") as file:
                file.write(example)
    assert own.keys() == FILES.keys()
    options = [f"--{base.lower()}={path}" for base, path in own.items() if base != "Network"]
    network = own["Network"]
    options += [
        "--prior.df=5",
        f"--guide.network={network}",
        f"--likelihood.network={network}",
        "--guide.network.width=30",
    ]
    small = ["--epochs", "1", "--test_images", "10", "--test_particles", "5", "--out", "run"]
    code, out, err = script("train", *options, *small)
    assert (code, err) == (0, ""), err
    assert "VAE: StudentT, LogisticGuide, Geometric" in out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["prior"]["init_args"] == {"df": 5}
    assert type(load(tmp_path / "run", trust=list(FILES.values())).posterior.network).__name__ == "Wide"


def test_places_exist():
    for names, file in re.findall(r"\[((?:`[\w.]+`(?:, )?)+)\]\(([\w./]+)\)", README):
        path = ROOT / file
        text = "".join(each.read_text() for each in ([path] if path.is_file() else path.glob("*.py")))
        for name in re.findall(r"`([\w./]+)`", names):
            last = name.split("/")[-1].split(".")[-1] if not name.endswith(".py") else ""
            assert re.search(rf"(class|def) {last}\b", text) or not last, f"{name} in {file}"


def commands() -> list[list[str]]:
    """Every command of the README for `pyro-vae`, ``make train`` included, as its words."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line)
            if words[:2] == ["make", "train"]:
                options = shlex.split(words[2].removeprefix("ARGS=")) if len(words) > 2 else []
                found.append(["train", *options])
            elif words[:1] == [".venv/bin/pyro-vae"]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_options_of_every_command_exist(words, script, tmp_path):
    for example in EXAMPLES:
        if found := re.search(rf"^class (\w+)\(({'|'.join(FILES)})\)", example, re.MULTILINE):
            with (tmp_path / f"{FILES[found[2]]}.py").open("a") as file:
                file.write(example)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    script_of = {
        "train": "train",
        "evaluate": "evaluate",
        "report": "report",
        "compare-estimators": "compare_estimators",
        "compare-parts": "compare_parts",
    }
    name = script_of.get(words[0], "autoencoder_vs_vae")
    code, _, err = script(name, *words[1:], *([] if "--help" in words else ["--print_config"]))
    assert (code, err) == (0, "")
