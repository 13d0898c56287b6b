"""The README's Python examples run as they stand, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number):
    exec(compile(EXAMPLES[number], f"README example {number + 1}", "exec"), {"__name__": "example"})


def test_places_exist():
    for names, file in re.findall(r"\[((?:`[\w.]+`(?:, )?)+)\]\(([\w./]+)\)", README):
        path = ROOT / file
        text = "".join(each.read_text() for each in ([path] if path.is_file() else path.glob("*.py")))
        for name in re.findall(r"`([\w./]+)`", names):
            last = name.split("/")[-1].split(".")[-1] if not name.endswith(".py") else ""
            assert re.search(rf"(class|def) {last}\b", text) or not last, f"{name} in {file}"
