"""Several processes compute a comparison: the same table, no cell twice, and none lost where one of them dies."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import FIFTY, TABLE, small_vae, state_of
from safetensors.torch import load_file

from pyro_vae import fit
from pyro_vae.app import server
from pyro_vae.app.comparisons.cell import trained
from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.app.console import StopRequest
from pyro_vae.files import NotWrittenError
from pyro_vae.runs import Run
from pyro_vae.training.checkpoint import Every

NETWORKS = ["--guide.network.hidden", "[4]", "--likelihood", "Normal", "--likelihood.network.hidden", "[4]"]
GRID = "[{class_path: DiagonalNormal, init_args: {network: {class_path: MLP, init_args: {hidden: [4]}}}}]"
JUDGED = ["--epochs", "2", "--compile", "off", "--test_particles", "5", "--test_images", "10"]
COMMANDS = {
    "compare_parts": [*TABLE, *JUDGED, "--priors", "[StandardNormal, Laplace]", "--guides", GRID, "--seeds", "[0,1]"],
    "training": [*TABLE, *NETWORKS, *JUDGED, "--estimators", "[ELBO, IWAE]", "--particles", "[2]", "--seeds", "[0]"],
    "gradients": [
        *TABLE[:-2],
        *NETWORKS,
        "--estimators",
        "[IWAE, DReG, STL]",
        "--particles",
        "[1, 2]",
        "--draws",
        "20",
    ],
    "autoencoder_vs_vae": [*TABLE, *NETWORKS, *JUDGED],
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", "PYTHONPATH": str(Path(__file__).parents[2])}
TIMES = ("ms", "s", "seconds", "var·ms", "ms per step")
MINE = """
import os, signal, time
from glob import glob
from pyro_vae.estimators import ELBO

class Deadly(ELBO):
    def estimate(self, *args, **options):
        if not os.path.exists("alive"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().estimate(*args, **options)

class Cut(ELBO):
    def estimate(self, *args, **options):
        if not os.path.exists("alive") and sum(map(len, map(lines, glob("*/runs/mine.Cut*/metrics.jsonl")))) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().estimate(*args, **options)

def lines(path):
    with open(path) as file:
        return file.readlines()

class Slow(ELBO):
    def estimate(self, *args, **options):
        time.sleep(0.2)
        return super().estimate(*args, **options)
"""


@pytest.fixture
def compare(script, tmp_path):
    """Runs a comparison of a small table, in a folder of this name. The bits depend on the number of threads: one for all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    (tmp_path / "mine.py").write_text(MINE)

    def run(name: str, out: str, *options: str) -> tuple[int, str, str]:
        job = [name] if name in ("training", "gradients") else []
        return script("compare_estimators" if job else name, *job, *merged(name, options), "--out", out)

    yield run
    torch.set_num_threads(threads)


def merged(name: str, options: tuple[str, ...]) -> list[str]:
    """The words of a command, with these options in place of its own."""
    words = [*COMMANDS[name], *options]
    return [word for pair in dict(zip(words[::2], words[1::2], strict=True)).items() for word in pair]


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open() as file:
            found[path.name] = [
                {name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)
            ]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_table(compare, name, tmp_path):
    """And the cells that one process computed are finished for the others, whatever their number."""
    assert compare(name, "one")[0] == 0
    code, out, err = compare(name, "two", "--jobs", "2")
    assert (code, err) == (0, ""), err
    assert "computed at once with others" in out
    assert tables(tmp_path / "two") == tables(tmp_path / "one")
    assert not list((tmp_path / "two").rglob("checkpoint*"))
    code, out, _ = compare(name, "one", "--jobs", "2")
    assert code == 0
    assert "computed at once with others" not in out


def test_a_process_that_dies_costs_its_cell_alone(compare, tmp_path):
    options = ("--estimators", "[ELBO, mine.Deadly, IWAE]", "--jobs", "2")
    code, out, err = compare("training", "grid", *options)
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    assert (
        "Left out: mine.Deadly at K = 2, seed 0: the process that computed it was ended by SIGKILL, as where memory"
        in told
    )
    assert "What was left out is not tried again" not in told
    rows = tables(tmp_path / "grid")["training.csv"]
    assert [row["estimator"] for row in rows if row["log p(x)"]] == ["ELBO", "IWAE"]
    (tmp_path / "alive").touch()
    code, out, _ = compare("training", "grid", *options)
    assert code == 0
    assert "Left out: mine" not in out
    assert all(row["log p(x)"] for row in tables(tmp_path / "grid")["training.csv"])


def test_data_that_change_meanwhile_are_told(compare, tmp_path, monkeypatch):
    """What a process reads again must be what the comparison was begun with."""
    from pyro_vae.app.comparisons import run

    made = run.made_from
    monkeypatch.setattr(run, "made_from", lambda *given: made(*given) + "before")
    code, _, err = compare("gradients", "grid", "--jobs", "2")
    assert code == 1
    assert "the data, or a file of options, changed since the comparison began" in " ".join(err.split())


@pytest.mark.parametrize("more", [[], ["--patience", "2", "--keep", "best", "--optimizer.lr", "0.1"]], ids=str)
def test_a_cell_of_an_estimator_goes_on_where_it_was_cut(compare, more, tmp_path):
    """Its curve too, of which nothing is computed again. A checkpoint with a curve of something else is not gone on from."""
    options = ["--estimators", "[mine.Cut]", "--epochs", "8", "--evaluate_every", "2", *more]
    cell, run = (Path(name, "mine.Cut-K2-seed0") for name in ("cells", "runs"))

    def numbers(out: str) -> dict[str, object]:
        found = json.loads((tmp_path / out / f"{cell}.json").read_text())
        assert len(found["seconds"]) == len(found["steps"])
        assert found["seconds"] == sorted(found["seconds"])
        state = load_file(tmp_path / out / run / "model.safetensors")
        return {name: found[name] for name in ("steps", "log_px", "final", "evidence")} | {
            "weights": b"".join(value.numpy().tobytes() for _, value in sorted(state.items()))
        }

    assert compare("training", "cut", *options)[0] == 143
    before = (tmp_path / "cut" / run / "metrics.jsonl").read_text()
    assert (tmp_path / "cut" / run / "checkpoint.safetensors").is_file()
    shutil.copytree(tmp_path / "cut", tmp_path / "other")
    (tmp_path / "alive").touch()
    assert compare("training", "whole", *options)[0] == 0
    assert compare("training", "cut", *options)[0] == 0
    assert numbers("cut") == numbers("whole")
    assert (tmp_path / "cut" / run / "metrics.jsonl").read_text().startswith(before)
    options += ["--evaluate_every", "3"]
    kept = tmp_path / "other" / "config.yaml"
    kept.write_text(kept.read_text().replace("evaluate_every: 2", "evaluate_every: 3"))
    assert [compare("training", out, *options)[0] for out in ("rare", "other")] == [0, 0]
    assert numbers("other") == numbers("rare") != numbers("whole")


def start(tmp_path: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pyro_vae", "compare-estimators", "training", *merged("training", options)]
    return subprocess.Popen(
        [*command, "--out", "grid"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_commands_in_one_folder_share_the_cells_out(compare, tmp_path):
    """Whatever machines they are on. Each waits for the cells of the other, and both print the same table."""
    options = ["--estimators", "[mine.Slow, ELBO, IWAE]", "--seeds", "[0,1]"]
    both = [start(tmp_path, *options) for _ in range(2)]
    told = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], told
    computed = [re.findall(r"^[\w.]+, K = 2, seed \d: log p", out, re.MULTILINE) for out, _ in told]
    assert len({*computed[0], *computed[1]}) == len(computed[0]) + len(computed[1]) == 6
    assert told[0][0].split("Test log p(x)")[1] == told[1][0].split("Test log p(x)")[1]


def children(pid: int) -> list[int]:
    """The processes below a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*")
    found = [int(each) for task in tasks for each in (task / "children").read_text().split()]
    return found + [below for each in found for below in children(each)]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_is_that_of_all_processes(number, compare, tmp_path):
    """The claims of those that are killed are free, and a cell that was cut goes on or begins anew."""
    options = ["--estimators", "[ELBO, mine.Slow]", "--seeds", "[0,1,2]", "--jobs", "2"]
    process = start(tmp_path, *options)
    while not list((tmp_path / "grid" / "runs").glob("mine.Slow*/config.yaml")):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert out.rstrip().endswith("Stopped. Finished cells are kept: the same command goes on from them.")
    while any(Path(f"/proc/{each}").exists() for each in workers):
        time.sleep(0.05)
    config = (tmp_path / "grid" / "config.yaml").read_text()
    folder = ComparisonFolder(tmp_path / "grid", "training", config, {"estimators", "seeds"}, {})
    claims = [folder.claim("mine.Slow", "K2", f"seed{seed}") for seed in range(3)]
    assert None not in claims
    for claim in claims:
        claim.release()


def test_ray(compare, tmp_path):
    """On a local Ray, whose processes do not see the folder of the comparison."""
    pytest.importorskip("ray", reason="Ray is not installed")
    assert compare("compare_parts", "one")[0] == 0
    words = ["compare-parts", *COMMANDS["compare_parts"], "--out", "ray", "--executor", "ray", "--jobs", "2"]
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pyro_vae", *words],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert tables(tmp_path / "ray") == tables(tmp_path / "one")
    one, ray = (tmp_path / name / "runs" for name in ("one", "ray"))
    assert {each.relative_to(one) for each in one.rglob("*.*")} == {each.relative_to(ray) for each in ray.rglob("*.*")}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["compare-parts"], False),
        (["compare-parts", "--jobs", "1"], False),
        (["compare-parts", "--jobs", "2"], True),
        (["compare-parts", "--jobs=4", "--out", "x"], True),
        (["compare-parts", "--jobs", "16", "--executor", "ray"], False),
        (["compare-parts", "--jobs"], False),
    ],
)
def test_processes_begin_with_the_program_where_its_words_ask_for_them(words, wanted):
    assert server.are_wanted(words) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked here")
def test_no_file_of_the_folder_is_imported_in_place_of_a_module(start_script, tmp_path):
    """Neither by the program nor by the process that the others are forked from."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    for name in ("torch", "rich", "random", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("open('was_here', 'w').close()")
    process = start_script("compare_estimators", "gradients", *COMMANDS["gradients"], "--out", "g", "--jobs", "2")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "computed at once with others" in " ".join(out.split())
    assert not (tmp_path / "was_here").exists()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
@pytest.mark.parametrize("when", ["while modules are imported", "while cells are computed"])
def test_ctrl_c_in_a_terminal_reaches_all_processes(when, compare, tmp_path):
    """And only this one tells it."""
    words = ["compare-estimators", "training", *merged("training", ("--estimators", "[mine.Slow]", "--jobs", "2"))]
    process = subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *words, "--seeds", "[0,1,2]", "--out", "grid"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    ready = {
        "while modules are imported": lambda: len(children(process.pid)) >= 2,
        "while cells are computed": lambda: len(list((tmp_path / "grid" / "runs").glob("*/config.yaml"))) == 2,
    }[when]
    while not ready():
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    begun = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    told = "Stopped." if when == "while modules are imported" else "Stopped. Finished cells are kept"
    assert (out + err).strip().splitlines()[-1].startswith(told)
    assert (out + err).count("Stopped") == 1
    assert "Traceback" not in out + err
    while any(Path(f"/proc/{each}").exists() for each in begun):
        time.sleep(0.05)


def test_a_wrong_number_of_jobs(compare):
    code, _, err = compare("gradients", "grid", "--jobs", "0")
    assert code == 1, err
    assert err == "error: jobs: expected at least 1, got 0\n"


def test_a_full_disk_costs_no_checkpoint_of_a_cell(tmp_path, monkeypatch):
    """What goes on from a checkpoint may fail before it begins, and the checkpoint stays for the next time."""
    config, folder = "epochs: 3\n", tmp_path / "run"

    def begin():
        return (vae := small_vae()), fit(vae, FIFTY, epochs=3, batch_size=12, compile="off")

    model, training = begin()
    run = Run(folder, config)
    training.keep(run.checkpoint, Every("epoch"))
    for _ in range(2):
        run.follow(next(training), model, training)
    training.save()
    with StopRequest() as stop, monkeypatch.context() as patch:
        patch.setattr(Run, "before", Mock(side_effect=NotWrittenError("metrics.jsonl cannot be written")))
        with pytest.raises(NotWrittenError):
            trained(begin, folder, config, stop)
    assert run.checkpoint.is_file()
    with StopRequest() as stop:
        again, _, seconds = trained(begin, folder, config, stop)
    whole, training = begin()
    list(training)
    assert torch.equal(state_of(again), state_of(whole))
    assert seconds > 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
