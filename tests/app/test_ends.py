"""Every way in which a command can end: stopped at any moment, with a full disk, or with nobody who reads what it prints."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import TABLE

import pyro_vae
from pyro_vae import VAE, load
from pyro_vae.app.start import said
from pyro_vae.files import NotWrittenError, append_line, write_figure, write_table, write_whole
from pyro_vae.trust import Trust

ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "pyro_vae"]
SMALL = [*TABLE, "--guide.network.hidden", "[4]"]
SMALL += ["--likelihood", "Normal", "--test_particles", "5", "--figures", "[]", "--out", "run"]


@pytest.fixture
def start(tmp_path):
    """Starts a command in a process and a folder of its own."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""

    def start(*words: str, **options) -> subprocess.Popen:
        pipe = subprocess.PIPE
        given = {"stdout": pipe, "stderr": pipe, "text": True, "cwd": tmp_path, "env": environment}
        return subprocess.Popen([*words], **(given | options))

    return start


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = (each or "" for each in process.communicate())
    for sign in ("Traceback", "Exception ignored"):
        assert sign not in out + err
    return process.returncode, out, err


def until(process: subprocess.Popen, happened) -> None:
    while process.poll() is None and not happened():
        time.sleep(0.02)


def has_loaded(process: subprocess.Popen, library: str) -> bool:
    """Whether a process has this library of C++ in its memory, so that its imports have come so far."""
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what a process has loaded")
@pytest.mark.parametrize(
    ("library", "number"),
    [
        ("_multiarray_umath", signal.SIGINT),
        ("libtorch_cpu", signal.SIGINT),
        ("ft2font", signal.SIGINT),
        ("libtorch_cpu", signal.SIGTERM),
        ("libtorch_cpu", signal.SIGHUP),
    ],
)
def test_a_signal_while_modules_are_imported(start, library, number):
    process = start(*MODULE, "train", *SMALL)
    until(process, lambda: has_loaded(process, library))
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, len((out + err).splitlines())) == (128 + number, 1)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "experiments").glob("*.py")))
def test_no_script_imports_before_it_listens(script):
    """All that takes time is imported by `run`."""
    program = (
        f"import sys, runpy; runpy.run_path({str(ROOT / 'experiments' / script)!r}); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "False\n"


def test_the_package_is_imported_when_it_is_used():
    for name in pyro_vae.__all__:
        assert getattr(pyro_vae, name) is not None
    assert Trust().find("pyro_vae.VAE") is VAE
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = pyro_vae.Nothing
    program = "import sys, pyro_vae; assert 'torch' not in sys.modules; assert pyro_vae.estimators.IWAE(3).K == 3"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_trains_keeps_what_was_trained(start, tmp_path, number):
    process = start(*MODULE, "train", *SMALL, "--epochs", "100000", "--compile", "off")
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(process, lambda: metrics.is_file() and metrics.read_text().count("\n") > 1)
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, err) == (128 + number, "")
    assert "--out run --resume true" in out
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    assert load(tmp_path / "run").dims.latent == 2


def test_nobody_reads_what_is_printed(start, tmp_path):
    """As in ``pyro-vae train | head -3``; the run goes on from where it ended."""
    read, write = os.pipe()
    process = start(*MODULE, "train", *SMALL, "--epochs", "100000", "--compile", "off", stdout=write)
    os.close(write)
    with os.fdopen(read) as head:
        assert any("1/100000" in line for line in head)  # an epoch was told
    code, _, err = ended(process)
    assert (code, err) == (1, "error: " + said(BrokenPipeError()) + "\n")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert load(tmp_path / "run").dims.latent == 2
    process = start(*MODULE, "train", *SMALL, "--epochs", "100000", "--compile", "off", "--resume", "true")
    until(process, lambda: (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > len(records) + 1)
    process.send_signal(signal.SIGINT)
    _, out, _ = ended(process)
    assert f"Going on after epoch {len(records)}" in out


@pytest.mark.parametrize("words", [["--help"], ["train", "--print_config"]], ids=str)
def test_nobody_reads_a_short_answer(start, words):
    read, write = os.pipe()
    os.close(read)
    process = start(*MODULE, *words, stdout=write)
    os.close(write)
    assert ended(process)[0] in (0, 1)


@pytest.fixture
def filling(monkeypatch):
    """Has the disk be full when a file is written whole for the n-th time; None for a disk with room."""
    fsync, written = os.fsync, [0, None]

    def counting(number):
        if not stat.S_ISREG(os.fstat(number).st_mode):
            return fsync(number)  # of a folder
        written[0] += 1
        if written[0] == written[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(number)

    def fill(n):
        written[:] = [0, n]

    monkeypatch.setattr(os, "fsync", counting)
    return fill


PARTS = ["--priors", "[StandardNormal, Laplace]", "--guides", "[DiagonalNormal]", "--likelihoods", "[Normal]"]
JOBS = {
    "train": [*SMALL, "--checkpoint_every", "2 steps", "--figures", "[Samples]", "--resume", "true"],
    "compare_parts": [*SMALL[:8], *PARTS, "--test_particles", "5", "--out", "run"],
}


FULL = [*(("train", n) for n in (1, 3, 8, 14)), *(("compare_parts", n) for n in (1, 4, 9, 13))]


@pytest.mark.parametrize(("job", "n"), FULL)
def test_a_disk_that_becomes_full_costs_nothing_that_was_saved(script, tmp_path, filling, job, n):
    """The file is named, and the same command goes on from there where there is room again."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    words = [*JOBS[job], "--epochs", "3", "--compile", "off"]
    filling(n)
    code, _, err = script(job, *words)
    assert code == 1
    assert re.fullmatch(
        r"error: run/\S+ cannot be written: No space left on device; what stood there before is kept\n", err
    )
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [path for path in kept if path.name.endswith(".unfinished")]
    filling(None)
    code, _, err = script(job, *words)
    assert (code, err) == (0, "")
    cells = {path: content for path, content in kept.items() if path.parent.name == "cells"}
    assert {path: path.read_bytes() for path in cells} == cells


def test_out_that_is_a_file(script, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    (tmp_path / "run").write_text("mine")
    data = ["--data", "Arrays", "--data.path", "x.npy"]
    train = ("train", *data, "--batch_size", "10", "--out")
    job = ("compare_estimators", "gradients", *data, "--draws", "20", "--estimators", "[IWAE]", "--out")
    for words, told in {
        (*train, "run"): "error: out: run exists and is left as it is; choose another folder",
        (*train, "run/inside"): "error: out: run/inside cannot be made (Not a directory)",
        (*job, "run"): "error: out: run is a file; choose another folder",
        (*job, "run/inside"): "error: out: run/inside cannot be made (Not a directory)",
    }.items():
        code, _, err = script(*words)
        assert code == 1
        assert err.startswith(told)
    assert (tmp_path / "run").read_text() == "mine"


class Picture:
    """Stands for a figure, of which nothing is known but how it is saved."""

    def savefig(self, file, format):
        file.write(b"0123456789")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, b"0123456789"),
        lambda path: write_table(path, [["0123", "456789"]]),
        lambda path: write_figure(path, Picture()),
        lambda path: append_line(path, "0123456789"),
    ],
)
def test_a_file_is_written_whole_or_stays(write, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        with pytest.raises(
            NotWrittenError, match=r"file cannot be written: File too large; what stood there before is kept"
        ):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_in_the_middle_of_a_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"after")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "before")]
