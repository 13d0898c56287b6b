"""Everything public, called with arguments of wrong kinds, works or names the argument."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    program = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "wrong_kinds.py")]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    folder = tmp_path_factory.mktemp("kinds")
    process = subprocess.run(program, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def test_every_wrong_kind_works_or_names_the_argument(report):
    assert report["counts"]["told"] > 1000
    assert not report["found"], "\n".join(report["found"])
