"""Mistyped words, edited configurations and damaged folders end in an error for people, or in what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_mistakes_and_damage_end_in_errors_for_people(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "150", "0"]
    process = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout)
    assert not found["faults"], json.dumps(found["faults"], indent=1)
    assert sum(sum(each.values()) for each in found["counts"].values()) == 150
    assert all(found["counts"].values()), "a kind of input is missing"
