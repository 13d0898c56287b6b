"""A snapshot sees every change of what it follows, names its place, and can put it back."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae.snapshot import Snapshot


class Own:
    """An object of a user, which refers to itself."""

    shared = 1

    def __init__(self):
        self.number, self.me = 1, self

    def method(self):
        return FACTOR * self.number


FACTOR = 2.0


def module():
    made = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    made.tensor, made.array, made.own = torch.ones(1), np.ones(2), Own()
    made.list, made.empty, made.set, made.pair = [1, {"a": [2]}], [], {1}, (1, [2], torch.ones(2))
    return made


CHANGES = {
    "1.p": lambda m: setattr(m[1], "p", 0.2),
    "0.training": lambda m: m[0].eval(),
    "tensor": lambda m: setattr(m, "tensor", torch.ones(1)),
    "array": lambda m: m.array.fill(2),
    "own.number": lambda m: setattr(m.own, "number", 2),
    "Own.shared": lambda m: setattr(Own, "shared", 2),
    "list.1.a": lambda m: m.list[1]["a"].append(3),
    "empty": lambda m: m.empty.append(1),
    "set": lambda m: m.set.add(2),
    "pair": lambda m: setattr(m, "pair", (1, m.pair[1], torch.ones(2))),
    "pair.1": lambda m: m.pair[1].append(3),
    "new": lambda m: setattr(m, "new", 1),
    "own": lambda m: delattr(m, "own"),
    "1": lambda m: setattr(m, "1", nn.Identity()),
    "1._forward_hooks": lambda m: m[1].register_forward_hook(print),
    "the number of parameters and buffers": lambda m: m[0].register_buffer("more", None),
    "FACTOR": lambda _: globals().update(FACTOR=3.0),
}


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    Own.shared = 1
    globals()["FACTOR"] = 2.0


@pytest.mark.parametrize("where", CHANGES)
def test_every_change_is_seen_and_named(where):
    made = module()
    snapshot = Snapshot({"": made})
    assert snapshot.changed() is None
    CHANGES[where](made)
    assert where in snapshot.changed()


@pytest.mark.parametrize("where", ["1.p", "own.number", "empty", "set", "new", "own", "tensor", "pair.1"])
def test_what_changed_is_put_back(where):
    made = module()
    snapshot, before = Snapshot({"": made}), dict(vars(made))
    CHANGES[where](made)
    assert [written.where for written in snapshot.put_back()] == [where]
    assert snapshot.changed() is None
    assert vars(made).keys() == before.keys()


def test_values_of_parameters_and_free_names_may_change():
    made = module()
    snapshot = Snapshot({"made": made}, free={"tensor"})
    with torch.no_grad():
        made[0].weight.zero_()
    made[0].bias = nn.Parameter(torch.ones(2))
    made.tensor = None
    assert snapshot.changed() is None
    made.array = np.zeros(2)
    assert snapshot.changed() == "made.array"
    snapshot.leave_free("made.array")
    assert snapshot.changed() is None


def test_comparisons_that_fail_are_changes():
    class Rude:
        def __eq__(self, other):
            raise RuntimeError("no")

        __hash__ = None

    made = nn.Module()
    made.one, made.table = Rude(), OrderedDict(a=np.ones(2))
    snapshot = Snapshot({"": made})
    assert snapshot.changed() is None
    made.one = Rude()
    assert snapshot.changed() == "one"
