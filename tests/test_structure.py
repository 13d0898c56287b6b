"""The rooms: none imports one below it, and importing the package loads nothing that only the application needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_vae"
DESIGN = (ROOT / "docs" / "design.md").read_text()


def rooms() -> list[str]:
    """The rooms in the order of the design page."""
    table = DESIGN.split("## Rooms")[1].split("## Decisions")[0]
    named = [
        re.findall(r"`([\w.]+?)(?:\.py|/)`", line.split("|")[1])
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    return [room for line in named for room in line]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_on_the_design_page():
    found = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__", "_version"}
    assert found == set(rooms())


def test_nothing_imports_downward():
    order = rooms()
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if (room := room_of(path)) not in order:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_vae"):
                names = [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
                wrong += [
                    f"{path.name}: {name}" for name in names if name in order and order.index(name) > order.index(room)
                ]
    assert not wrong


def test_the_folders_of_tests_are_named_after_rooms():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {*rooms(), "parts", "traces", "runs"}


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not re.search(r"^(from|import) test_", path.read_text(), re.MULTILINE), path


def test_importing_the_package_loads_nothing_of_the_application():
    heavy = ["matplotlib", "sklearn", "rich", "torchvision", "jsonargparse", "scipy.stats", "pandas", "pyarrow"]
    program = f"import sys, pyro_vae; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_only_the_application_parses_options():
    for path in PACKAGE.rglob("*.py"):
        if room_of(path) not in ("app", "runs"):
            assert not re.search(r"^\s*(from|import) (jsonargparse|rich)\b", path.read_text(), re.MULTILINE), path
