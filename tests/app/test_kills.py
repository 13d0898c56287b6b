"""Commands that are killed, at random moments and file events, go on and end as if nobody had disturbed them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("command", "kills"), [("train", 24), ("compare-parts", 8), ("compare-estimators", 8)])
def test_killed_runs_go_on_and_end_as_undisturbed_ones(command, kills, tmp_path):
    program = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "kills.py"), command, str(kills)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout)
    assert not found["faults"], "\n".join(found["faults"])
    assert found["counts"]["killed"] >= kills
    assert found["counts"]["the same"] > kills / 4
