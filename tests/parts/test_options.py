"""Every numeric option of every class, found by its annotation, refuses what is no number of its kind and names itself."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from helpers import BITS, DIMS, ESTIMATORS, GUIDES, LIKELIHOODS, NETWORKS, OPTIONS, PRIORS

from pyro_vae import TrainingPlan, fit
from pyro_vae.construction import options
from pyro_vae.data import Split, make_splits
from pyro_vae.description import path_of
from pyro_vae.estimators import Objective
from pyro_vae.models.specification import assemble
from pyro_vae.trust import Trust

SPLITS = make_splits(Split(BITS.repeat(2, 1, 1, 1)), valid=5, test=5)
NO_NUMBERS = {
    "int": [None, "x", True, 0.5, float("nan"), 10**30],
    "float": [None, "x", True, float("nan"), float("inf"), 1e300],
}
SLOTS = {"prior": PRIORS, "guide": GUIDES, "likelihood": LIKELIHOODS, "network": NETWORKS}
ONE_BY_ONE = ("transforms", "steps", "blocks")
"""What a program runs through one by one, and what therefore has a largest number."""
FILLED_IN = {"dims", "in_shape", "out_shape"}


def numeric(cls: type) -> dict[str, tuple[str, bool]]:
    """The numeric options of a class: int or float, and whether it is a list."""
    found = {}
    hints = get_type_hints(cls if hasattr(cls, "__dataclass_fields__") else cls.__init__)
    for name in inspect.signature(cls).parameters:
        hint = hints.get(name)
        inner = getattr(hint, "__args__", ())
        if hint in (int, float):
            found[name] = hint.__name__, False
        elif inner and inner[0] in (int, float) and name not in FILLED_IN:
            found[name] = inner[0].__name__, type(None) not in inner
    return found


CASES = [
    (slot, cls, name, *kind)
    for slot, classes in SLOTS.items()
    for cls in classes
    for name, kind in numeric(cls).items()
]


def described(slot: str, cls: type, name: str, value: object) -> dict[str, object]:
    """The slots of a model, of which one has this option."""
    own = {
        key: small for key, small in OPTIONS.items() if key in inspect.signature(cls).parameters and key != "network"
    }
    one = {"class_path": path_of(cls), "init_args": own | {name: value}}
    if slot == "network":
        slot, one = "guide", {"class_path": "DiagonalNormal", "init_args": {"network": one}}
    return {"prior": "StandardNormal", "guide": "DiagonalNormal", "likelihood": "Bernoulli", slot: one}


@pytest.mark.parametrize(
    ("slot", "cls", "name", "kind", "listed"), CASES, ids=lambda each: getattr(each, "__name__", str(each))
)
def test_what_is_no_number_is_refused_by_name(slot, cls, name, kind, listed):
    for value in NO_NUMBERS[kind]:
        given = [value] if listed else value
        if value is None and type(None) in getattr(get_type_hints(cls.__init__)[name], "__args__", ()):
            continue
        with pytest.raises(ValueError, match=rf"\b{name}\b.*: expected|{name}: expected"):
            assemble(DIMS, **options(assemble, described(slot, cls, name, given), 1, "", Trust()))


@pytest.mark.parametrize(
    ("slot", "cls", "name", "kind", "listed", "value"),
    [(*case, value) for case in CASES for value in ((-1, 0, 2000) if case[2] in ONE_BY_ONE else (-1, 0))],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_numbers_out_of_range_are_refused_by_name_or_train(slot, cls, name, kind, listed, value):
    """Before training: either a step can be taken, or a line names the option."""
    told = ""
    try:
        model = assemble(
            DIMS, **options(assemble, described(slot, cls, name, [value] if listed else value), 1, "", Trust())
        )
        training = fit(model, SPLITS, epochs=1, batch_size=30)
    except ValueError as error:
        told = str(error)
    if told:
        assert name in told.split(": expected")[0] or "support" in told, told
        assert "\n" not in told
        return
    assert value != 2000 or cls.__name__ == "Sylvester"
    assert torch.tensor(next(training).train.bound).isfinite()


@pytest.mark.parametrize("cls", [TrainingPlan, Objective, *ESTIMATORS], ids=lambda cls: cls.__name__)
def test_numbers_of_plans_objectives_and_estimators(cls):
    """Without the type checker of the tests, which would answer first."""
    program = f"""
import json, sys
from {cls.__module__} import {cls.__name__}
found = []
for name, value in json.loads(sys.argv[1]):
    try:
        {cls.__name__}(**{{name: value}})
        found.append([name, value, "taken"])
    except ValueError as error:
        if name not in str(error):
            found.append([name, value, str(error)])
print(json.dumps(found))
"""
    given = [
        (name, [value] if listed else value)
        for name, (kind, listed) in numeric(cls).items()
        for value in [*NO_NUMBERS[kind], -1]
        if not (value is None and name in ("lr_phi", "clip_norm", "control", "patience"))
        and not (value == -1 and name in ("seed", "alpha", "lr_phi", "batch_size", "beta_1"))
    ]
    if not given:
        pytest.skip("no numbers")
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", program, json.dumps(given)],
        capture_output=True, text=True, cwd=root, env={"PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-1000:]
    assert json.loads(process.stdout) == []
