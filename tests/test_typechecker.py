"""The import hook of the tests: what a module of the package says of its arguments and results is checked when it is called."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_loader

import pytest
import torch
from typechecker import Loader

SOURCE = '''
"""A module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from nowhere import Figure

Pair = Float[Tensor, "a b"]

def same(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return one + other

def doubled(one: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return torch.cat([one, one])

def turned(one: Pair) -> Pair:
    return one.T

def half(x: float) -> str:
    return x / 2 if x else "0"

def drawn(x: int) -> Figure:
    return x

def outer(x):
    def inner(y: Float[Tensor, "1"]) -> int:
        return y
    return inner(x)

class Mine:
    @classmethod
    def made(cls, x: int) -> Mine:
        return cls() if x else x

    @property
    def name(self) -> str:
        return 3

@dataclass(frozen=True)
class Data:
    x: Float[Tensor, " n"]
    y: int = 0

@dataclass
class Plain:
    y: int = 0
'''


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "checked_source.py"
    path.write_text(SOURCE)
    loader = Loader(path.stem, str(path))
    made = sys.modules[path.stem] = module_from_spec(spec_from_loader(path.stem, loader))
    loader.exec_module(made)
    yield made
    del sys.modules[path.stem]


def test_what_is_right_is_taken(module):
    x = torch.ones(3)
    assert module.same(x, x).sum() == 6
    assert module.turned(torch.ones(2, 2)).shape == (2, 2)
    assert module.half(0) == "0"  # an int is a float
    assert module.drawn(3) == 3  # nothing is known of what is not there
    assert type(module.Mine.made(1)) is module.Mine
    assert module.Data(x).y == module.Plain().y == 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda module: module.same(torch.ones(3), torch.ones(2)),
        lambda module: module.same(torch.ones(3), torch.ones(3).long()),
        lambda module: module.doubled(torch.ones(3)),
        lambda module: module.turned(torch.ones(2, 3)),
        lambda module: module.half("1"),
        lambda module: module.half(1.0),
        lambda module: module.drawn("3"),
        lambda module: module.outer(torch.ones(2)),
        lambda module: module.outer(torch.ones(1)),
        lambda module: module.Mine.made("1"),
        lambda module: module.Mine.made(0),
        lambda module: module.Mine().name,
        lambda module: module.Data(torch.ones(3, 3)),
        lambda module: module.Plain("y"),
    ],
)
def test_what_is_wrong_is_refused(module, wrong):
    with pytest.raises(TypeError):
        wrong(module)
