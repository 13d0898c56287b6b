"""Gives the commands what people mistype and what disks damage, and looks for what no person should see.

Run as a program in an empty folder: ``python fuzz.py 10000 0`` makes ten thousand inputs with the seed 0. Input 7 of a seed is
always the same: ``python fuzz.py 1 0 7`` makes it alone. The commands run in forked children, so that nothing is imported anew.
It prints as JSON how many inputs of each kind ended with which status, and the faults: tracebacks, warnings of Python, a status
that means nothing, errors that do not say that they are errors, and commands that do not end.
"""

from __future__ import annotations

import gc
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from kills import child as killed_child
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from pyro_vae.app import commands  # noqa: F401  (imported once, before any child is made)
from pyro_vae.app.start import run as run_program
from pyro_vae.files import digest, tensor_digest

ASKED, LIMIT = 4.0, 60.0
"""After how many seconds a command is asked to end, as a long training may go on, and after how many it must have ended."""
UNREADABLE = (ValueError, TypeError, AttributeError, yaml.YAMLError, struct.error, SafetensorError)
"""What is raised where a file that was damaged before is damaged once more."""
STATUSES = {0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM}
WARNED = re.compile(r"\b\w*Warning: |^\[W\d+ ", re.MULTILINE)
MODULES = "modules.txt"
"""What a first command imported, which is then imported here, so that the next need not."""
MEMORY = 4 * 2**30
"""How much memory in bytes a command may take beside what is imported."""

SHORT = ["--epochs", "1", "--compile", "off", "--latent", "2", "--batch_size", "10"]
NETWORKS = ["--guide.network.hidden", "[4]", "--likelihood", "Normal", "--likelihood.network.hidden", "[4]"]
JUDGED = ["--test_particles", "5", "--test_images", "10"]
GRID = "[{class_path: DiagonalNormal, init_args: {network: {class_path: MLP, init_args: {hidden: [4]}}}}]"
LIKELIHOOD = "[{class_path: Normal, init_args: {network: {class_path: MLP, init_args: {hidden: [4]}}}}]"
PARTS = ["--priors", "[StandardNormal, Laplace]", "--guides", GRID, "--likelihoods", LIKELIHOOD, "--seeds", "[0]"]
METRICS = ["--metrics", "[TestBound, LogLikelihood]"]
GRADIENTS = ["--estimators", "[ELBO, IWAE]", "--particles", "[1, 2]", "--draws", "4", "--reference", "10"]
"""What follows the name of a command, so that it takes little time."""

EXTRA = """
--prior StandardNormal | --prior MixtureOfNormals --prior.components 3 | --prior VampPrior --prior.components 2
--prior SplineFlow | --prior.df 5 | --guide FullRankNormal | --guide LowRankNormal --guide.rank 1 | --guide PerDatum
--guide MixtureOfNormals | --guide SemiAmortized --guide.guide FullRankNormal | --guide.network GatedMLP
--guide.network Convolutional | --likelihood Bernoulli | --likelihood Normal --likelihood.learn_scale pixel
--likelihood Categorical | --model TwoLayer --model.top 2 | --model Ladder | --model Conditional | --estimator IWAE
--estimator IWAE --estimator.K 2 | --estimator Renyi --estimator.alpha 0.5 | --estimator Stock | --objective.beta 4
--objective.warm_up 2 | --objective {beta: 4} | --optimizer SGD --optimizer.lr 1e-3 | --optimizer LBFGS
--optimizer Adam --optimizer.betas [0.9,0.99] | --lr_phi 0.01 | --schedule StepLR --schedule.step_size 1
--schedule OneCycleLR --schedule.max_lr 0.1 | --schedule_by step | --clip_norm 1 | --precision bf16 | --seed 3
--patience 1 | --keep best | --keep average --average ema | --average tail | --callbacks [] | --trackers [TensorBoard]
--watch [rates,gradient_norm] | --checkpoint_every epoch | --checkpoint_every 2_steps | --resume true | --device cpu
--device cuda | --device meta | --figures [Samples] | --figures [] | --metrics [TestBound] | --metrics [AIS]
--data.binarize fixed | --data.valid 5 | --data.test 0.2 | --data.standardize false | --data.channels last
--data.kind image | --data.labels species | --data.columns [0,1] | --data.leave_out [a] | --data.missing ["-"]
--data.in_memory false | --data.header true | --data.separator ; | --data Digits | --data MNIST | --data Dataset
--data.of torchvision.datasets.SVHN | --e_steps 1 --m_steps 1 | --jobs 1 | --K 2 | --seeds [0] | --run run
--fit_from 1 | --batch 4 | --same_mean [IWAE] | --shown 3 | --executor ray | --config x.npy | --config run/config.yaml
--print_config | --help | --version | -h | --prior.help VampPrior | --guide.help | --data.help Arrays | --optimizer.help Adam
"""
OPTIONS = [each.replace("2_steps", "2 steps") for each in re.split(r"\s*[|\n]\s*", EXTRA.strip())]
HOSTILE = """-1 0 1 nan inf -inf 1e400 1e-400 99999999999999999999 1.5 0x10 1_000 [] {} { } [[[ ]] [0] [-1] [nan] [null] [[1]]
null true off ~ ☃ ../.. . / /dev/null /dev/full folder x.npy run run/config.yaml nothing.csv -- - --- = =1 : a:b {a:_a,a:_b}
[a,_b] &a *a &a_[*a] !!python/object:os.system !!float_x ? @ ` % %s \\ \\n ' " \x1b[31m \x01\x02\x7f \u202e é\u0301 NaN None
2**31 1;2 os.system subprocess.Popen torch.nn.Linear pyro_vae.priors.Nothing pyro_vae.VAE pyro_vae.priors.StandardNormal
nothing.Nothing Adam StandardNormal DiagonalNormal Normal Bernoulli ELBO MLP TestBound Samples ..a a..b .a a. __import__
{class_path:_MLP} {class_path:_1} {class_path:_Normal,init_args:_3} {init_args:_{}} [{class_path:_Normal}] [Normal,Normal]
[1,2,3,4,5,6,7,8,9,10] 2020-01-01 12:30:45 lambda:0 0.5_epochs 1e9_minutes"""
VALUES = [
    "",
    " ",
    "\t",
    "\n",
    os.fsdecode(b"\xff\xfe\x80"),
    "x" * 5000,
    "[" * 300,
    "9" * 400,
    "a." * 200 + "b",
    "{a: " * 100,
]
VALUES += [each if each.startswith("__") else each.replace("_", " ") for each in HOSTILE.split()]
NODES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**70,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "☃",
    "x" * 3000,
    [],
    {},
    [[]],
    [None],
]
NODES += [
    {"": 1},
    {"class_path": "os.system"},
    {"class_path": 3},
    {"class_path": "MLP", "init_args": []},
    ["a", 1],
    "nan",
]
NODES += ["torch.float32", "pyro_vae.priors.VampPrior", "../..", 0.5, [1, 2], {1: 2}, "2020-01-01"]
"""What stands in a file where something else should."""
KINDS = {"words": 45, "config": 25, "folder": 15, "checkpoint": 8, "cells": 7}
"""The kinds of input, each a method of `Made`, and how often each comes."""
SEAL = "sha256"
"""Under which name a file holds the digest of all else in it."""


def base(rng: random.Random, table: str, runs: str = "run") -> list[str]:
    """A command that takes little time."""
    data = ["--data", "Arrays", "--data.path", table]
    trained = [*data, *SHORT, *JUDGED]
    gradients = ["compare-estimators", "gradients"]
    training = ["compare-estimators", "training", *trained, *NETWORKS, "--estimators", "[ELBO]", "--particles", "[1]"]
    return rng.choice(
        [
            ["train", *trained, *NETWORKS, "--figures", "[]", "--out", "out"],
            ["train", *trained, *NETWORKS, "--figures", "[]", "--out", "out"],
            ["evaluate", runs, *METRICS, *JUDGED],
            ["report", runs, *METRICS, *JUDGED],
            ["compare-parts", *trained, *PARTS, "--out", "out"],
            [*gradients, *data, "--latent", "2", *NETWORKS, *GRADIENTS, "--batch", "4", "--out", "out"],
            [*gradients, "--run", runs, *GRADIENTS, "--batch", "4", "--out", "out"],
            [*training, "--seeds", "[0]", "--out", "out"],
            ["autoencoder", *trained, *NETWORKS, "--out", "out"],
        ]
    )


def misspelled(rng: random.Random, word: str) -> str:
    """A word with a letter lost, doubled, swapped or replaced."""
    i = rng.randrange(len(word)) if word else 0
    letter = rng.choice("aZ0_-.=[]{}:,'\" é")
    return rng.choice(
        [word[:i] + word[i + 1 :], word[: i + 1] + word[i:], word[:i] + letter + word[i + 1 :], word[::-1]]
    )


def mutated_words(rng: random.Random, words: list[str]) -> list[str]:
    """A command line with one to four mistakes."""
    words = list(words)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        i = rng.randrange(len(words)) if words else 0
        how = rng.randrange(9)
        if how <= 1 or not words:  # something is added
            words[len(words) if rng.random() < 0.7 else i : i] = rng.choice(OPTIONS).split(" ")
        elif how == 2:
            del words[i]
        elif how == 3:
            words.insert(i, words[i])
        elif how == 4:
            j = rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
        elif how == 5:
            words[i] = misspelled(rng, words[i])
        elif how == 6:
            words.insert(i, rng.choice(VALUES))
        else:  # a value, mostly, is replaced
            plain = [k for k, word in enumerate(words) if k and not word.startswith("--")] or [i]
            at = rng.choice(plain)
            words[at] = rng.choice(VALUES)
            if rng.random() < 0.1:
                words[at - 1 : at + 1] = [f"{words[at - 1]}={words[at]}"]
    return words


def mutated_tree(rng: random.Random, tree: Any) -> Any:
    """Plain data in which one node is of another kind, is lost, or has another name."""
    places: list[tuple[Any, Any]] = []
    walked: set[int] = set()  # a node may hold itself since a change before

    def walk(node: Any) -> None:
        walked.add(id(node))
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list) and id(node[key]) not in walked:
                walk(node[key])

    if isinstance(tree, dict | list):
        walk(tree)
    if not places or rng.random() < 0.03:
        return rng.choice(NODES)
    node, key = rng.choice(places)
    how = rng.random()
    if how < 0.6:
        node[key] = rng.choice(NODES)
    elif how < 0.75:
        node[key] = rng.choice([other[name] for other, name in places])  # which may hold this node
    elif how < 0.85:
        del node[key]
    elif isinstance(node, dict):
        node[misspelled(rng, str(key)) if rng.random() < 0.7 else rng.choice([3, None, True, "", "☃"])] = node.pop(key)
    return tree


def mutated_bytes(rng: random.Random, old: bytes) -> bytes:
    """What a disk or an editor does to a file."""
    i, how = rng.randrange(len(old) + 1), rng.randrange(8)
    if how == 0:
        return old[:i]
    if how == 1:
        new = bytearray(old)
        for _ in range(rng.choice((1, 1, 3, 30)) if new else 0):
            new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
        return bytes(new)
    if how == 2:
        return old[:i] + rng.randbytes(rng.choice((1, 4, 100))) + old[i:]
    if how == 3:
        return rng.choice((b"", b"\x00" * len(old), b"\xef\xbb\xbf" + old, old * 2, old.replace(b"\n", b"\r\n"), b"\n"))
    lines = old.splitlines(keepends=True) or [b""]
    k, text = rng.randrange(len(lines)), rng.choice(VALUES).encode(errors="surrogateescape")
    if how == 4:
        lines[k : k + 1] = rng.choice(([], [lines[k]] * 2, [b"\t" + lines[k]], [b"  " + lines[k]], [lines[k].lstrip()]))
        return b"".join(lines)
    tokens = re.split(rb"([\s:,\[\]{}\"]+)", lines[k])
    tokens[rng.randrange(len(tokens))] = text
    lines[k] = b"".join(tokens)
    if how == 7:
        lines[rng.randrange(len(lines))] = rng.choice(
            (b"a: &a\n", b"b: *a\n", b"<<: *a\n", b"x: &x [*x, *x]\n", b"--- \n")
        )
    return b"".join(lines)


def mutated_header(rng: random.Random, old: bytes) -> bytes:
    """A file of tensors whose header says something else than was written, or lies about its length."""
    length = struct.unpack("<Q", old[:8])[0]
    header = json.loads(old[8 : 8 + length])
    if rng.random() < 0.2:
        return struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**40, 2**64 - 1))) + old[8:]
    about = header.get("__metadata__", {})
    packed = [key for key, value in about.items() if value[:1] in "[{"]
    if packed and rng.random() < 0.6:
        key = rng.choice(packed)
        kept = mutated_tree(rng, json.loads(about[key]))
        if isinstance(kept, dict) and rng.random() < 0.7:  # as if this had been written
            kept.pop(SEAL, None)
            kept[SEAL] = tensor_digest(kept, load_tensors(old))
        about[key] = json.dumps(kept)
    else:
        header = mutated_tree(rng, header)
    new = json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + old[8 + length :]


def damage(rng: random.Random, folder: Path) -> str:
    """Damages one file of a folder; returns what it did."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".png"))
    if not files:
        return "nothing is left"
    path = rng.choice(files)
    old, how = path.read_bytes(), rng.random()
    name = path.relative_to(folder).as_posix()
    if how < 0.1:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir() if rng.random() < 0.6 else path.symlink_to(
                rng.choice(("nowhere", path.name, "/dev/null", ".."))
            )
        return f"{name} was removed or replaced"
    if how < 0.2:
        path.write_bytes(rng.choice(files).read_bytes())
        return f"{name} is another file"
    with suppress(*UNREADABLE):
        if how < 0.65 and path.suffix == ".json":
            tree = mutated_tree(rng, json.loads(old))
            if isinstance(tree, dict) and tree.pop(SEAL, None):  # as if this had been written
                tree[SEAL] = digest(tree)
            path.write_text(json.dumps(tree, default=str))
            return f"{name} has another node"
        if how < 0.65 and path.suffix == ".jsonl":
            lines = old.decode().splitlines()
            k = rng.randrange(len(lines))
            lines[k] = json.dumps(mutated_tree(rng, json.loads(lines[k])), default=str)
            path.write_text("\n".join(lines) + rng.choice(("", "\n")))
            return f"{name} has another node"
        if how < 0.65 and path.suffix == ".yaml":
            path.write_text(yaml.safe_dump(mutated_tree(rng, yaml.safe_load(old)), allow_unicode=True, sort_keys=False))
            return f"{name} has another node"
        if how < 0.65 and path.suffix == ".safetensors":
            path.write_bytes(mutated_header(rng, old))
            return f"{name} has another header"
    path.write_bytes(mutated_bytes(rng, old))
    return f"{name} has other bytes"


class Made:
    """What inputs are made of, each made once: a table, a run, one that was cut, a comparison, configurations.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.table = root, str(root / "x.npy")
        np.save(self.table, np.random.default_rng(0).normal(size=(60, 3)))
        data = ["--data", "Arrays", "--data.path", self.table, *SHORT, *JUDGED]
        self.train = ["train", *data, *NETWORKS, "--figures", "[]", "--checkpoint_every", "2 steps"]
        self.compare = ["compare-parts", *data, *PARTS]
        self._run([*self.train, "--out", "run"])
        self._run([*self.compare, "--out", "comparison"])
        for event in count(10, 2):  # the later it is killed, the more is there
            if killed_child(self.train, "cut", event=event) == 0:
                raise ValueError("the run was over before it could be cut")
            if Path("cut/checkpoint.safetensors").is_file():
                break
            shutil.rmtree("cut", ignore_errors=True)
        self.configs = {}
        for words in (self.train, ["evaluate", "run", *METRICS, *JUDGED], self.compare, ["report", "run", *JUDGED]):
            self.configs[words[0]] = self._run([*words, "--print_config"]).encode()

    def _run(self, words: list[str]) -> str:
        status, told = run_child(words, self.root, LIMIT)
        if status != 0:
            raise ValueError(f"{words}: status {status}: {told}")
        for name in (self.root / MODULES).read_text().split():
            with suppress(Exception):
                import_module(name)
        gc.freeze()
        return told

    def words(self, rng: random.Random) -> tuple[list[str], str]:
        """A command line with mistakes."""
        for name in ("run", "folder"):
            (Path(name).mkdir() if name == "folder" else shutil.copytree(self.root / "run", name))
        return mutated_words(rng, base(rng, self.table)), ""

    def config(self, rng: random.Random) -> tuple[list[str], str]:
        """A configuration file that somebody edited."""
        shutil.copytree(self.root / "run", "run")
        name = rng.choice(list(self.configs))
        new, how = self.configs[name], "other bytes"
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.5:
                with suppress(*UNREADABLE):
                    tree = mutated_tree(rng, yaml.safe_load(new))
                    new, how = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode(), "another node"
            else:
                new = mutated_bytes(rng, new)
        Path("c.yaml").write_bytes(new)
        out = ["--out", "out"] if rng.random() < 0.8 else []
        return [name, "--config", "c.yaml", *out], how

    def folder(self, rng: random.Random) -> tuple[list[str], str]:
        """The folder of a finished run with damage."""
        shutil.copytree(self.root / "run", "run")
        how = [damage(rng, Path("run")) for _ in range(rng.choice((1, 1, 2)))]
        gradients = ["compare-estimators", "gradients", "--run", "run", *GRADIENTS, "--batch", "4", "--out", "out"]
        small = [*METRICS, *JUDGED]
        resumed = [*self.train, "--out", "run", "--resume", "true"]
        config = ["train", "--config", "run/config.yaml", "--out", "out"]
        return rng.choice((["evaluate", "run", *small], ["report", "run", *small], gradients, resumed, config)), str(
            how
        )

    def checkpoint(self, rng: random.Random) -> tuple[list[str], str]:
        """A run that was cut, whose checkpoint is damaged."""
        shutil.copytree(self.root / "cut", "cut")
        path, how = Path("cut/checkpoint.safetensors"), "cut"
        with suppress(*UNREADABLE):
            new = (mutated_header if rng.random() < 0.6 else mutated_bytes)(rng, path.read_bytes())
            path.write_bytes(new)
        if rng.random() < 0.3:
            how = damage(rng, Path("cut"))
        return [*self.train, "--out", "cut", "--resume", "true"], how

    def cells(self, rng: random.Random) -> tuple[list[str], str]:
        """A finished comparison with damaged cells."""
        shutil.copytree(self.root / "comparison", "comparison")
        how = [damage(rng, Path("comparison")) for _ in range(rng.choice((1, 1, 2)))]
        return [*self.compare, "--out", "comparison"], str(how)


def run_child(words: list[str], folder: Path, asked: float = ASKED) -> tuple[int, str]:
    """Runs a command in a child; returns its exit status, of a hang minus that of SIGKILL, and what it printed."""
    told, told_errors = folder / "told.txt", folder / "told_errors.txt"
    pid = os.fork()
    if not pid:
        _be_the_program(words, folder, asked == LIMIT)
    with suppress(OSError):
        os.setpgid(pid, pid)
    began = time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        passed = time.monotonic() - began
        if passed > asked:
            os.kill(pid, signal.SIGTERM)
            asked = LIMIT
        if passed > LIMIT:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    with suppress(OSError):  # its workers, should some be left
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), "".join(path.read_text(errors="replace") for path in (told, told_errors))


def _be_the_program(words: list[str], folder: Path, made: bool) -> None:
    """Turns this process into ``pyro-vae`` with these words."""
    status = 70
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "told.txt"), (2, "told_errors.txt")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(
            os.fdopen(2, "wb"), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        os.chdir(folder)
        sys.argv = ["pyro-vae", *words]
        try:
            run_program("pyro_vae.app.commands")
        finally:
            if made:
                (folder / MODULES).write_text("\n".join(sys.modules))
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def fault(status: int, told: str) -> str | None:
    """What is wrong with an end, in words that are the same for the same cause."""
    if "Traceback" in told:
        lines = told[told.rindex("Traceback") :].splitlines()
        places = [line.strip() for line in lines if line.lstrip().startswith('File "') and "pyro_vae/" in line]
        errors = [line for line in lines[1:] if line and not line[0].isspace()]
        where = re.sub(r".*(pyro_vae/\S+)", r"\1", places[-1]) if places else ""
        return f"traceback: {errors[-1][:100] if errors else ''} at {where}"
    if status == -signal.SIGKILL:
        return "hang"
    if status not in STATUSES:
        return f"status {status}"
    if warned := WARNED.search(told):
        return f"warning: {told[warned.start() :].splitlines()[0][:100]}"
    if status in (1, 2) and not re.search("^(error|usage):", told, re.MULTILINE):
        return f"status {status} without an error"
    return None


def run(inputs: int, seed: int = 0, first: int = 0) -> dict[str, object]:
    """Makes inputs and runs them.

    Args:
        inputs: how many.
        seed: of all random choices.
        first: the number of the first.
    """
    made = Made(Path.cwd())
    counts: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    faults: dict[str, dict[str, object]] = {}
    slow: list[tuple[float, int]] = []
    began = time.monotonic()
    for number in range(first, first + inputs):
        rng = random.Random(f"{seed} {number}")
        name = rng.choices(list(KINDS), list(KINDS.values()))[0]
        folder = made.root / "inputs" / str(number)
        folder.mkdir(parents=True)
        os.chdir(folder)
        words, how = getattr(made, name)(rng)
        words = [word.replace("\0", "") for word in words]
        start = time.monotonic()
        status, told = run_child(words, folder)
        slow.append((round(time.monotonic() - start, 1), number))
        os.chdir(made.root)
        counts[name][str(status)] += 1
        wrong = fault(status, told)
        if wrong:
            one = {"times": 0, "input": number, "kind": name, "words": words, "how": how, "told": told[-2500:]}
            faults.setdefault(wrong, one)["times"] += 1  # type: ignore[operator]
        if wrong is None or faults[wrong]["input"] != number:
            shutil.rmtree(folder)
    seconds = time.monotonic() - began
    return {
        "counts": {name: dict(sorted(each.items())) for name, each in counts.items()},
        "seconds": round(seconds, 1),
        "slowest, and its number": sorted(slow)[-8:],
        "faults": faults,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # nothing is downloaded
    json.dump(run(*map(int, sys.argv[1:])), sys.stdout, indent=1)
