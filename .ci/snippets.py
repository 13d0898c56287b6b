"""Runs every Python example of a Markdown file, each in a process of its own, in the current folder."""

import re
import subprocess
import sys
from pathlib import Path

examples = re.findall(r"```python\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL)
for number, example in enumerate(examples, start=1):
    print(f"example {number} of {len(examples)}")
    subprocess.run([sys.executable, "-c", example], check=True, stdout=subprocess.DEVNULL)
