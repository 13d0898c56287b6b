"""The folder of a comparison: names, tables that fit, and cells that are right or not used."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.cells import cell_len
from rich.console import Console

from pyro_vae.app.comparisons.cell import new_run
from pyro_vae.app.comparisons.folder import ComparisonFolder
from pyro_vae.app.comparisons.grid import Cell, Comparison, Machines
from pyro_vae.app.comparisons.names import essential, file_name, label, labels
from pyro_vae.app.comparisons.order import Order
from pyro_vae.app.comparisons.run import compare
from pyro_vae.app.table import Blocks
from pyro_vae.description import describe
from pyro_vae.estimators import IWAE
from pyro_vae.figures.layout import in_lines
from pyro_vae.guides import DiagonalNormal
from pyro_vae.networks import MLP
from pyro_vae.priors import Laplace
from pyro_vae.scopes import NotEnoughMemoryError

MLP_PATH, GUIDE = "pyro_vae.networks.MLP", "pyro_vae.guides.DiagonalNormal"


def described(path, **options):
    return {"class_path": path, "init_args": options}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (describe(Laplace), "Laplace"),
        (describe(DiagonalNormal), "DiagonalNormal"),
        (described(GUIDE, network=describe(MLP)), "DiagonalNormal"),
        (described(GUIDE, network=MLP_PATH), "DiagonalNormal"),
        (described(GUIDE, network=described("pyro_vae.networks.dense.MLP")), "DiagonalNormal"),
        (
            described(GUIDE, network=described(MLP_PATH, activation="torch.nn.modules.activation.Tanh")),
            "DiagonalNormal",
        ),
        (
            described(GUIDE, network=described(MLP_PATH, hidden=[8, 4], activation="torch.nn.ReLU")),
            "DiagonalNormal(network=MLP(hidden=[8, 4], activation=ReLU))",
        ),
        (described(GUIDE, network=described(MLP_PATH, init=None)), "DiagonalNormal(network=MLP(init=None))"),
        (described(GUIDE, network="pyro_vae.networks.GatedMLP"), "DiagonalNormal(network=GatedMLP)"),
        (describe(IWAE), "IWAE"),
        (described("pyro_vae.estimators.Renyi", alpha=0.25), "Renyi(alpha=0.25)"),
        (described("pyro_vae.estimators.Stock", elbo="pyro.infer.RenyiELBO"), "Stock(elbo=RenyiELBO)"),
    ],
)
def test_a_name_says_what_is_not_the_default(given, name):
    assert label(given) == name


OWN = """
from pyro_vae import Prior


class Mine(Prior):
    def __init__(self, dims, scale: float = 1.0, names: list[str] = ["a"], **more):
        super().__init__(dims)

    def forward(self):
        raise NotImplementedError


class Narrow(Mine):
    def __init__(self, dims, **more):
        super().__init__(dims, **more)
"""


def test_names_of_classes_of_ones_own(tmp_path, monkeypatch):
    """Options that are handed on to a base class have its defaults, and open-ended ones are shown."""
    (tmp_path / "own_names.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert label(described("own_names.Mine", scale=1.0, names=["a"])) == "own_names.Mine"
    assert label(described("own_names.Narrow", scale=1.0, names=["b", "c"])) == "own_names.Narrow(names=[b, c])"
    more = {"class_path": "own_names.Mine", "init_args": {}, "dict_kwargs": {"power": 3}}
    assert label(more) == "own_names.Mine(power=3)"


def test_names_are_different_or_refused():
    same = [described(GUIDE), described(GUIDE, network=describe(MLP))]
    with pytest.raises(ValueError, match="guides: DiagonalNormal stands there twice"):
        labels(same, "guides")
    numbers = [described("pyro_vae.estimators.Renyi", alpha=alpha) for alpha in (0.1, 0.1 + 1e-12, 0.3, 1e-7)]
    assert len(set(labels(numbers, "estimators"))) == 4
    assert essential(numbers[0]) != essential(numbers[1])


def test_names_of_files_are_safe_short_and_different():
    keys = [
        ("IWAE", "K5", "seed0"),
        ("MLP(hidden=[8, 4])", "seed0"),
        ("MLP(hidden=[84])", "seed0"),
        ("a/b",),
        ("a_b",),
        ("a:b",),
        ("..",),
        ("x" * 119 + "a", "seed0"),
        ("x" * 119 + "b", "seed0"),
        ("Größe",),
        ("Grösse",),
        ("a\nb",),
        ("a b",),
        ("a b", "x" * 200),
        ("x" * 500,),
    ]
    names = [file_name(*key) for key in keys]
    assert len({name.lower() for name in names}) == len(keys)
    assert names[:2] == ["IWAE-K5-seed0", "MLP(hidden=(8,4))-seed0"]
    assert all(name.endswith("-seed0") for key, name in zip(keys, names, strict=True) if key[-1] == "seed0")
    for name in names:
        assert re.fullmatch(r"[\w.,=()+-]+", name, re.ASCII)
        assert len(name.encode()) <= 120
        assert name not in (".", "..")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize(
    "name", ["short", "A(network=MLP(hidden=[8, 4], activation=ReLU)), B(components=500)", "x" * 90]
)
def test_tables_fit_and_lose_nothing(width, name):
    columns = ["estimator", "K", "log p(x)", "to the first", "paired over data", "parameters", "seconds"]
    rows = [[name, "5", "-171.26 ± 9.93", "+12.00 ± 13.00", "+12.00 ± 3.00", "84,595 + 86,544", "0.123"]] * 2
    console = Console(width=width, markup=False, highlight=False, record=True)
    with console.capture() as captured:
        console.print(Blocks("A title that is longer than forty columns are wide", columns, rows, keys=2))
    out = captured.get()
    assert max(cell_len(line) for line in out.splitlines()) <= width
    for text in (*columns, *rows[0][1:]):
        assert text in out
    assert "…" not in out
    for piece in re.findall(r"[A-Za-z]{2,16}", name):
        assert piece in out


def test_lines_of_a_name_hold_all_of_it():
    name = "DiagonalNormal(network=GatedMLP(hidden=[30, 20])), " + "x" * 50
    for width in (1, 7, 24, 200):
        lines = in_lines(name, width).split("\n")
        assert max(map(len, lines)) <= width
        assert "".join(lines).replace(" ", "") == name.replace(" ", "")
    assert in_lines(name, 27).split("\n")[:2] == ["DiagonalNormal(network=", "GatedMLP(hidden=[30, 20])),"]


CONFIG = yaml.safe_dump({"epochs": 3, "seeds": [0], "out": None, "device": "cpu"})


def made(tmp_path: Path, config: str = CONFIG, **given) -> ComparisonFolder:
    return ComparisonFolder(tmp_path / "grid", "parts", config, {"seeds"}, given)


@pytest.fixture
def finished(tmp_path):
    """A comparison of two cells, each with a run folder."""
    folder = made(tmp_path)
    for name in ("one", "other"):
        run = new_run(folder.run_folder(name), yaml.safe_dump({"prior": "x", "guide": "y", "likelihood": "z"}))
        run.result({"log_px": 1.25})
        (run.folder / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(200))
        folder.put({"log_px": [1.5, -2.25, float("-inf")], "seconds": 0.5}, name, of={"name": name})
    return tmp_path


def test_a_cell_comes_back_as_it_was(finished):
    cell = made(finished).get("one", of={"name": "one"})
    assert (cell["log_px"], cell["seconds"]) == ([1.5, -2.25, pytest.approx(float("nan"), nan_ok=True)], 0.5)
    assert made(finished).get("third", of={}) is None


def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "grid"
    return [
        folder / "cells" / "one.json",
        *(each for each in sorted((folder / "runs" / "one").rglob("*")) if each.is_file()),
    ]


def mended(finished: Path, capsys, told: str) -> None:
    """A cell that is damaged is named and moved away, with its run and as it is; the other one is kept."""
    folder = made(finished)
    out = " ".join(capsys.readouterr().out.split())
    assert told in out
    assert f"This cell was moved to {finished / 'grid' / 'older'}" in out
    assert folder.get("one", of={"name": "one"}) is None
    assert folder.get("other", of={"name": "other"})["seconds"] == 0.5
    assert not folder.run_folder("one").exists()


def test_a_flipped_bit_or_a_cut_anywhere_in_a_cell_is_found(finished, capsys):
    """The cell is computed anew, and the message names the file; nothing of it is lost."""
    generator = torch.Generator().manual_seed(0)
    grid, kept = finished / "grid", finished / "kept"
    shutil.copytree(grid, kept)
    assert len(files(finished)) == 5
    for number, file in enumerate(files(finished)):
        good = file.read_bytes()
        bits = torch.randint(8 * len(good), (40,), generator=generator).tolist()
        damaged = [bytearray(good) for _ in bits]
        for bad, bit in zip(damaged, bits, strict=True):
            bad[bit // 8] ^= 1 << bit % 8
        for bad in (*damaged, good[:-1], good[: len(good) // 2], b"", good + b" ", b"[" * 100_000, b"null"):
            file.write_bytes(bad)
            mended(finished, capsys, str(file))
            (moved,) = (grid / "older").glob("*.json")
            place = moved if number == 0 else moved.with_suffix("") / file.relative_to(grid / "runs" / "one")
            assert place.read_bytes() == bytes(bad)
            shutil.rmtree(grid)
            shutil.copytree(kept, grid)
        file.unlink()
        if file.parent.name != "cells":
            mended(finished, capsys, f"{file}: this file of a finished cell is missing")
            shutil.rmtree(grid)
            shutil.copytree(kept, grid)
        file.write_bytes(good)
    (grid / "cells" / "one.json").unlink()
    assert made(finished).get("one", of={"name": "one"}) is None
    assert made(finished).get("other", of={"name": "other"})["seconds"] == 0.5


def test_an_edited_number_is_found(finished, capsys):
    file = finished / "grid" / "cells" / "one.json"
    cell = json.loads(file.read_text())
    for number, edited in enumerate(
        (cell | {"seconds": 0.25}, {name: each for name, each in cell.items() if name != "sha256"})
    ):
        file.write_text(json.dumps(edited))
        mended(finished, capsys, "one.json: damaged")
        assert len(list((finished / "grid" / "older").glob("*.json"))) == number + 1


def test_two_cells_that_are_damaged_in_the_same_way_are_both_kept(finished, capsys):
    for _ in range(3):
        run = finished / "grid" / "runs" / "one"
        run.mkdir(exist_ok=True)
        (run / "weights").write_text("mine")
        (finished / "grid" / "cells" / "one.json").write_text("{")
        mended(finished, capsys, "one.json: damaged")
    assert len(list((finished / "grid" / "older").glob("*/weights"))) == 3


@pytest.mark.parametrize("bad", ["", "null", "[1", "&a [*a]", "\xff", "x: " + "[" * 5000, None])
def test_a_damaged_list_of_options_costs_no_cell(finished, bad, capsys):
    """Cells say what they are of: those of the same options are kept, and a comparison of others is refused as ever."""
    kept = finished / "grid" / "config.yaml"

    def damage():
        kept.unlink()
        if bad is not None:
            kept.write_bytes(bad.encode("latin-1"))

    damage()
    with pytest.raises(ValueError, match=r"holds a comparison with other options or data \(.*config\.yaml"):
        made(finished, CONFIG.replace("epochs: 3", "epochs: 4"))
    assert made(finished).get("one", of={"name": "one"})["seconds"] == 0.5
    assert "config.yaml" in capsys.readouterr().out
    assert yaml.safe_load(kept.read_text()) == yaml.safe_load(CONFIG)


def test_what_a_cut_at_the_very_beginning_leaves_is_no_other_folder(tmp_path):
    grid = tmp_path / "grid"
    for cut in ([], ["cells"], ["cells", "figures"], ["cells", "figures", ".config.yaml.unfinished"]):
        shutil.rmtree(grid, ignore_errors=True)
        grid.mkdir()
        for name in cut:
            (grid / name).touch() if name.startswith(".") else (grid / name).mkdir()
        made(tmp_path).put({"seconds": 1.0}, "one")
        assert made(tmp_path).get("one")["seconds"] == 1.0
    shutil.rmtree(grid)
    for foreign in (grid / "cells" / "mine.tif", grid / "mine" / "x"):
        foreign.parent.mkdir(parents=True)
        foreign.touch()
        with pytest.raises(ValueError, match="exists and holds no comparison"):
            made(tmp_path)
        shutil.rmtree(grid)
    grid.touch()
    with pytest.raises(ValueError, match="grid is a file; choose another folder"):
        made(tmp_path)
    with pytest.raises(OSError, match=r"out: .*/grid/inside cannot be made \(Not a directory\)"):
        ComparisonFolder(grid / "inside", "parts", CONFIG, set())


WHY = {
    "the bound became NaN": ArithmeticError("the bound became NaN"),
    "expected K of at least 2": ValueError("expected K of at least 2\nTrace"),
    "out of memory": MemoryError(),
    "out of memory: lower K": NotEnoughMemoryError("out of memory: lower K"),
    "LinAlgError: singular": torch.linalg.LinAlgError("singular"),
}


@pytest.mark.parametrize("reason", WHY)
def test_a_cell_that_cannot_be_computed_is_kept_with_its_reason(finished, reason, capsys):
    calls = []

    def compute():
        calls.append(1)
        raise WHY[reason]

    def other():
        raise AssertionError("computed again")

    cells = [
        Cell(("third", "seed0"), "third, seed 0", {"name": "third"}, 1.0, lambda *_: compute(), lambda cell: ""),
        Cell(("one",), "one", {"name": "one"}, 1.0, lambda *_: other(), lambda cell: ""),
    ]
    found = []

    def report(folder, numbers):
        found.append(numbers)
        folder.table("parts", "Title", ["cell"], [{"cell": "one"}])

    order = Order(lambda: None, (), frozenset(), None, None)
    for _ in range(2):
        compare(Comparison("parts", finished / "grid", Machines(), cells, {"seeds"}, {}, report), CONFIG, order)
        assert [*found[-1]] == [("one",)]
        assert found[-1]["one",]["seconds"] == 0.5
        assert f"Left out: third, seed 0: {reason}" in " ".join(capsys.readouterr().out.split())
        assert (finished / "grid" / "left_out.csv").read_text() == f'"third, seed 0",{reason}\n'
        assert f"Left out: third, seed 0: {reason}" in (finished / "grid" / "parts.md").read_text()
    assert len(calls) == 1
    (finished / "grid" / "cells" / "third-seed0.json").unlink()  # what the message says
    cells[0] = replace(cells[0], compute=lambda *_: {"seconds": 2.0})
    compare(Comparison("parts", finished / "grid", Machines(), cells, {"seeds"}, {}, report), CONFIG, order)
    assert found[-1]["third", "seed0"]["seconds"] == 2.0


def test_a_device_that_is_of_no_more_use_ends_the_comparison(finished):
    def compute(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    cell = Cell(("third",), "third", {}, 1.0, compute, lambda cell: "")
    with pytest.raises(RuntimeError, match="device-side"):
        compare(
            Comparison("parts", finished / "grid", Machines(), [cell], {"seeds"}, {}, lambda *_: None),
            CONFIG,
            Order(lambda: None, (), frozenset(), None, None),
        )
    assert made(finished).get("third", of={}) is None


@pytest.mark.parametrize("change", ["class", "data", "version"])
def test_a_cell_of_something_else_is_never_taken(finished, change):
    """It is computed anew, and what was there is kept in a folder of its own."""
    file = finished / "grid" / "cells" / "one.json"
    if change == "version":
        file.write_text(json.dumps({"log_px": [9.0], "seconds": 1.0}))  # as earlier versions wrote it
    folder = made(finished, **({"data": "another"} if change == "data" else {}))
    assert folder.get("one", of={"name": "two" if change == "class" else "one"}) is None
    assert folder.moved == ["one"]
    assert not file.exists()
    assert not folder.run_folder("one").exists()
    older = sorted(each.suffix for each in (finished / "grid" / "older").iterdir())
    assert older == ["", ".json"]
    folder.put({"seconds": 2.0}, "one", of={"name": "one"})
    assert folder.get("one", of={"name": "one"})["seconds"] == 2.0
    assert (folder.get("other", of={"name": "other"}) is None) == (change == "data")


def test_a_changed_data_file_makes_other_cells(script, tmp_path):
    options = ["gradients", "--data", "Arrays", "--data.path", "x.npz", "--data.valid", "20", "--data.test", "20"]
    options += [
        "--draws",
        "20",
        "--particles",
        "[2]",
        "--estimators",
        "[IWAE]",
        "--guide.network.hidden",
        "[4]",
        "--out",
        "g",
    ]
    ms = []
    for seed in (0, 0, 1):
        np.savez(tmp_path / "x.npz", x=np.random.default_rng(seed).normal(size=(100, 3)))
        code, out, err = script("compare_estimators", *options)
        assert (code, err) == (0, "")
        ms.append(json.loads((tmp_path / "g" / "cells" / "IWAE-K2.json").read_text())["w"])
    assert ms[0] == ms[1] != ms[2]
    assert "Computed anew: IWAE-K2" in out
    assert len(list((tmp_path / "g" / "older").iterdir())) == 1
