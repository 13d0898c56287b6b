"""A checkpoint whose digest is right and whose values are of other kinds is refused in a line, or does no harm."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from helpers import FIFTY, OPTIMIZERS, small_vae
from torch.optim import lr_scheduler as lr

from pyro_vae import fit
from pyro_vae.training import TrainingPlan
from pyro_vae.training.alike import check_alike, restore_optimizer
from pyro_vae.training.checkpoint import read_checkpoint, write_checkpoint

MISSING = object()
OTHERS = ["text", None, True, 3, [], (1.0,), {}, {"a": 1}, torch.ones(2, 2), torch.ones((), dtype=torch.int64), MISSING]
"""What is put in the place of a value."""
PLAN = TrainingPlan(epochs=3, batch_size=12, compile="off", keep="best", average="ema")


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a tree of dictionaries, lists and tuples."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def forged(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A tree with another value in one place."""
    if not path:
        return value
    key, *rest = path
    new = list(tree) if isinstance(tree, tuple) else tree.copy()
    if value is MISSING and not rest:
        del new[key]
    else:
        new[key] = forged(tree[key], tuple(rest), value)
    return tuple(new) if isinstance(tree, tuple) else new


def cut(path, **options) -> dict[str, Any]:
    """The checkpoint of a training that was cut in its second epoch."""

    def stop(now):
        if now.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(fit(small_vae(), FIFTY, PLAN, on_step=stop, checkpoint=path, watch=["gradient_norm"], **options))
    return read_checkpoint(path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name, tmp_path):
    """What is put back can take a step. Of the parameters the last one is looked at, and of the groups too."""
    optimizer = OPTIMIZERS[name]
    good = cut(tmp_path / "c", optimizer=optimizer)["optimizer"]
    training = fit(small_vae(), FIFTY, PLAN, optimizer=optimizer)
    last = max(good["state"], default=None)
    looked_at = [
        path for path in places(good) if path[:2] not in {("state", each) for each in good["state"] if each != last}
    ]
    refused = 0
    for number, path in enumerate(looked_at):
        for value in OTHERS[number % 5 :: 5]:
            try:
                restore_optimizer(training, deepcopy(forged(good, path, value)))
            except (TypeError, ValueError, AttributeError, KeyError):
                refused += 1
            for leaf in training.phases["both"]:
                leaf.grad = torch.zeros_like(leaf)
            training.optimizer.step()
            restore_optimizer(training, deepcopy(good))
    assert refused > len(looked_at)


SCHEDULES = {
    None: None,
    "StepLR": partial(lr.StepLR, step_size=1),
    "MultiStepLR": partial(lr.MultiStepLR, milestones=[1, 2]),
    "OneCycleLR": partial(lr.OneCycleLR, max_lr=1e-2),
    "ReduceLROnPlateau": partial(lr.ReduceLROnPlateau, patience=0),
    "SequentialLR": lambda optimizer: lr.SequentialLR(
        optimizer, [lr.ConstantLR(optimizer), lr.ExponentialLR(optimizer, 0.5)], milestones=[1]
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_place_of_a_checkpoint(schedule, tmp_path):
    """It is refused by its name, with what helps, or training goes on to its end."""
    path = tmp_path / "c"
    good = cut(path, schedule=SCHEDULES[schedule])
    places_of = [each for each in places(good) if each[0] not in ("optimizer", "leaves", "training", "surroundings")]
    if schedule is None:
        places_of += [
            ("optimizer",),
            ("leaves",),
            ("leaves", 0),
            ("training",),
            ("surroundings",),
            ("training", "seed"),
        ]
    else:
        places_of = [each for each in places_of if each[0] == "schedule"]
    for number, place in enumerate(places_of):
        for value in OTHERS[number % 5 :: 5]:
            write_checkpoint(path, forged(good, place, value))
            training = None
            try:
                training = fit(
                    small_vae(), FIFTY, PLAN, checkpoint=path, schedule=SCHEDULES[schedule], watch=["gradient_norm"]
                )
            except ValueError as error:
                told = str(error)
                assert told.startswith(f"{path}: ")
                assert "\n" not in told
                assert "Delete this file" in told or "another" in told or "epochs" in told
            if training:
                list(training)


@pytest.mark.parametrize("name", ["begun", "never", "made", "moved"])
def test_what_a_compiled_step_keeps(name, tmp_path, traced):
    path = tmp_path / "c"
    good = cut(path, compile="on")
    for value in ["text", 3, [1], ["other"], {"other": 1}, {"both": "x"}, MISSING]:
        write_checkpoint(path, forged(good, ("step", name), value))
        with pytest.raises(ValueError, match=r"does not fit this training .* Delete this file"):
            fit(small_vae(), FIFTY, PLAN, compile="on", checkpoint=path, watch=["gradient_norm"])


def test_one_in_place_of_another():
    for found, own in (
        (1, 2.5),
        ([1, "a"], [2.0, "a"]),
        ({"a": (True,), "b": 1}, {"a": (True,)}),
        (torch.ones(2), torch.zeros(2)),
    ):
        check_alike(found, own, "it")
    for found, own, told in (
        (True, 1, "it: expected a number, got True"),
        (1, True, "it: expected True, got 1"),
        ("b", "a", "it: expected 'a', got 'b'"),
        ([1], (1,), "it: expected a tuple of 1, got a list"),
        ({"a": {"b": "c"}}, {"a": {"b": 1}}, "it.a.b: expected a number, got 'c'"),
        ({}, {"a": 1}, "it: a is missing"),
        (
            torch.ones(2),
            torch.ones(1),
            r"it: expected a tensor \(1,\) of torch.float32, got one \(2,\) of torch.float32",
        ),
        (torch.ones(1).half(), torch.ones(1), "got one .* of torch.float16"),
        (None, torch.ones(1), "of torch.float32, got None"),
    ):
        with pytest.raises(TypeError, match=told):
            check_alike(found, own, "it")
