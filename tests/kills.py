"""Kills commands again and again, at random moments and at every kind of file event, and lets each go on to its end.

Run as a program in an empty folder: ``python kills.py train 1000``. The commands run in forked children, so that nothing is
imported anew. It prints as JSON how many were killed, and what was not as in a run that nobody disturbed.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from helpers import TABLE
from safetensors.torch import load_file

from pyro_vae.app.commands import main
from pyro_vae.training import checkpoint

checkpoint._UNITS["minute"] = 0.0  # cells of comparisons keep a checkpoint once a minute: here after each step
SMALL = [*TABLE, "--epochs", "3", "--compile", "off"]
NETWORKS = ["--guide.network.hidden", "[4]", "--likelihood", "Normal", "--likelihood.network.hidden", "[4]"]
JUDGED = ["--test_particles", "5", "--test_images", "10"]
GRID = "[{class_path: DiagonalNormal, init_args: {network: {class_path: MLP, init_args: {hidden: [4]}}}}]"
LIKELIHOOD = "[{class_path: Normal, init_args: {network: {class_path: MLP, init_args: {hidden: [4]}}}}]"
COMMANDS = {
    "train": [
        "train",
        *SMALL,
        *NETWORKS,
        *JUDGED,
        "--figures",
        "[Samples]",
        "--checkpoint_every",
        "3 steps",
        "--resume",
        "true",
    ],
    "compare-parts": ["compare-parts", *SMALL, *JUDGED, "--priors", "[StandardNormal, Laplace]", "--guides", GRID]
    + ["--likelihoods", LIKELIHOOD, "--seeds", "[0,1]"],
    "compare-estimators": ["compare-estimators", "training", *SMALL, *NETWORKS, *JUDGED, "--estimators", "[ELBO, IWAE]"]
    + ["--particles", "[2]", "--seeds", "[0,1]"],
}
EVENTS = ("fsync", "replace", "mkdir", "unlink", "rename", "rmdir")
UNTIMED = ("seconds", "s", "ms per step")
"""Columns of tables that are times."""


def child(
    words: list[str], folder: str, event: int | None = None, seconds: float | None = None, count: Path | None = None
) -> int:
    """Runs a command in a child that is killed before a file event, or after some time; returns its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 70
    try:
        told = os.open("told.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1), os.dup2(told, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(number, "wb"), write_through=True) for number in (1, 2))
        seen = [0]

        def counted(function):
            def counting(*args, **options):
                seen[0] += 1
                if seen[0] == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)

            return counting

        for name in EVENTS:
            setattr(os, name, counted(getattr(os, name)))
        io.open = counted(io.open)
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds)  # which ends the process, as nobody listens
        main([*words, "--out", folder])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    if count:
        count.write_text(str(seen[0]))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def outcome(folder: Path) -> dict[str, object]:
    """What must be the same: weights, records and numbers, but no times."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "model.safetensors":
            found[name] = b"".join(value.numpy().tobytes() for _, value in sorted(load_file(path).items()))
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        elif path.name == "result.json":
            found[name] = path.read_text()
        elif path.suffix == ".csv":
            lines = [line.split(",") for line in path.read_text().splitlines()]
            timed = [i for i, column in enumerate(lines[0]) if any(each in column for each in UNTIMED)] if lines else []
            found[name] = [[cell for i, cell in enumerate(line) if i not in timed] for line in lines]
        elif path.suffix == ".png":
            found[name] = "a picture"
        elif path.is_file() and ".unfinished" in path.name:
            found[name] = "left over"
    return found


def run(name: str, kills: int, seed: int) -> dict[str, object]:
    """Kills a command so often, each time until it ends, and compares."""
    words, rng, faults = COMMANDS[name], random.Random(seed), []
    count, counts = Path("count.txt"), Counter()
    if (status := child(words, "whole", count=count)) != 0:
        return {"faults": [f"undisturbed: status {status}: {Path('told.txt').read_text()[-1500:]}"], "counts": {}}
    events, exact = int(count.read_text()), outcome(Path("whole"))
    number = 0
    while counts["killed"] < kills:
        number += 1
        folder = Path(f"cut{number}")
        for _ in range(rng.choice((1, 1, 2, 4))):  # some are killed several times on their way
            how = {"event": rng.randint(1, events)} if rng.random() < 0.7 else {"seconds": rng.uniform(0.02, 1.5)}
            status = child(words, str(folder), **how)
            counts["killed"] += status < 0
            counts["ended before"] += status == 0
            if status > 0 or "Traceback" in Path("told.txt").read_text():
                faults.append(f"{folder} {how}: status {status}: {Path('told.txt').read_text()[-1500:]}")
                break
        status = child(words, str(folder))
        told = Path("told.txt").read_text()
        if status != 0:
            faults.append(f"{folder}: did not go on, status {status}: {told[-1500:]}")
        elif (found := outcome(folder)) != exact:
            where = [each for each in {**exact, **found} if exact.get(each) != found.get(each)]
            faults.append(f"{folder}: other than undisturbed: {where}")
        else:
            counts["the same"] += 1
        shutil.rmtree(folder)
        if len(faults) > 5:
            break
    return {"faults": faults, "counts": dict(counts), "events": events}


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    json.dump(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0), sys.stdout, indent=1)
