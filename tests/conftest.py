"""What every test shares: shape annotations are checked, and nothing may leak out of a test."""

from __future__ import annotations

import importlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import typechecker

typechecker.install()

import numpy as np  # noqa: E402
import pyro  # noqa: E402
import torch  # noqa: E402
from torch.distributions import Distribution  # noqa: E402

from pyro_vae.app.start import SIGNALS  # noqa: E402
from pyro_vae.data import Digits, Splits  # noqa: E402
from pyro_vae.trust import Trust  # noqa: E402

Trust.of(
    Trust()
)  # beartype finds what a class names itself at the first call, and until then hasattr takes it for anything
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(autouse=True)
def nothing_leaks():
    """Default dtype, validation flags, thread count and Pyro's settings are as they were; the parameter store starts empty.

    A command puts the folder that its user stands in on the module path: it is taken from there after the test.
    """
    pyro.clear_param_store()
    torch.manual_seed(0)

    def state():
        return (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            Distribution._validate_args,
            pyro.settings.get(),
        )

    before, path = state(), [*sys.path]
    yield
    sys.path[:] = path
    assert state() == before
    pyro.clear_param_store()


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def digits() -> Splits:
    return Digits().load()


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory) -> Path:
    """A small data set in MNIST's own file format, under both names: random gray images, labels 0..9."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        for part, size in (("train", 300), ("t10k", 100)):
            images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
            labels = rng.integers(0, 10, size, dtype=np.uint8)
            header = struct.pack(">IIII", 0x803, size, 28, 28)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, size) + labels.tobytes())
    return root


@pytest.fixture
def traced(monkeypatch):
    """The graph as it was traced, without Inductor, which takes half a minute for some: test_steps.py has graphs in full."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_, **__: graph)


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs a script of experiments/ in this process and in a folder of its own: exit code, output, errors."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(name: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        code = 0
        try:
            importlib.import_module(name).main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)  # a script takes them for good
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]  # another test has a file of that name too


@pytest.fixture
def start_script(tmp_path):
    """Starts a script of experiments/ in a process and a folder of its own."""

    def start(name: str, *options: str) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(EXPERIMENTS.parent),
            "COLUMNS": "100",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(EXPERIMENTS / f"{name}.py"), *options]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start
