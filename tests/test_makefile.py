"""``make PYTHON=...`` with a Python that does not start or is too old says so in a line, before an environment is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
STARTED = {
    "shim": ("#!/bin/sh\necho 'pyenv: version 3.99 is not there' >&2\necho more >&2\nexit 127\n", "3.99 is not there"),
    "old": ("#!/bin/sh\necho 3.8\n", "needs Python 3.11 or newer, and './old' is 3.8"),
    "two": ("#!/bin/sh\necho 2.7\n", "needs Python 3.11 or newer, and './two' is 2.7"),
    "ten": ("#!/bin/sh\necho 3.10\n", "needs Python 3.11 or newer, and './ten' is 3.10"),
    "other": ("#!/bin/sh\necho hello\n", "'./other' is no Python that starts here (hello)"),
}  # fmt: skip


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    # The tests may be run by make themselves, which tells another make inside that it is one.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("name", [*STARTED, "nothing", "folder"])
@pytest.mark.parametrize("made", [False, True])
def test_a_python_that_cannot_be_used(name, made, tmp_path):
    script, message = STARTED.get(name, ("", f"'./{name}' is no Python that starts here"))
    (tmp_path / "folder").mkdir()
    if script:
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    if made:
        (tmp_path / ".venv").mkdir()
    process = make(tmp_path, "train", f"PYTHON=./{name}")
    line, *rest = (process.stdout + process.stderr).strip().splitlines()
    assert process.returncode == 2
    assert line.startswith("error: ")
    assert message in line
    assert len(rest) == 1  # make's own
    assert (tmp_path / ".venv").exists() == made


def test_a_python_that_can_be_used(tmp_path):
    assert make(tmp_path, "python", f"PYTHON={sys.executable}").returncode == 0
