"""An option that is given its own default changes no other one: in every command, at every depth, in words and in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from pyro_vae.app.autoencoder import autoencoder
from pyro_vae.app.comparisons.estimators import JOBS
from pyro_vae.app.comparisons.parts import compare_parts
from pyro_vae.app.options import Options
from pyro_vae.app.train import train
from pyro_vae.data import MNIST, Data, Digits


def like_the_benchmark(
    data: Data = MNIST(binarize="fixed"),  # noqa: B008
    other: Data = Digits(valid=7, binarize="fixed"),  # noqa: B008
    rounds: int = 11,
) -> None:
    """Defaults that are objects with options of their own.

    Args:
        data: Data.
        other: Other data.
        rounds: A number.
    """


FUNCTIONS: dict[str, Callable[..., None]] = {
    "train": train,
    "parts": compare_parts,
    "autoencoder": autoencoder,
    "like_the_benchmark": like_the_benchmark,
    **{name: job for name, (job, *_) in JOBS.items()},
}


def _resolved(function: Callable[..., None], *words: str) -> dict[str, Any]:
    resolved: dict[str, Any] = yaml.safe_load(Options(function, list(words), prog="test").as_yaml())
    return resolved


def _leaves(tree: Any, option: str = "") -> Iterator[tuple[str, Any]]:
    """Each option with its value; that of a class as ``slot.option``."""
    for name, value in tree.items():
        if name == "class_path":
            continue
        place = option if name == "init_args" else f"{option}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _leaves(value, place)
        elif value is not None:
            yield place, value


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_option_that_is_given_its_default_changes_no_other(name, tmp_path):
    function, file = FUNCTIONS[name], tmp_path / "some.yaml"
    before = _resolved(function)
    told = {option: value for option, value in _leaves(before) if "." in option or isinstance(value, list)}
    slots: dict[str, list[str]] = {option.split(".")[0]: [] for option in told}
    for option in told:
        slots[option.split(".")[0]].append(option)
    assert slots
    for option in {each for options in slots.values() for each in (options[0], options[-1])}:
        value = told[option]
        words = [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
        assert _resolved(function, *words) == before, option
    for slot in slots:
        file.write_text(yaml.safe_dump({slot: _without_classes(before[slot])}))
        assert _resolved(function, "--config", str(file)) == before, slot


def _without_classes(tree: Any) -> Any:
    """The options of a class alone, as a user writes them who keeps the default class."""
    if not isinstance(tree, dict):
        return tree
    return {name: _without_classes(value) for name, value in tree.get("init_args", tree).items()}


def test_an_option_may_stand_before_the_file_that_names_its_class(tmp_path):
    """In any order of the two; what the file gives itself counts, as it is the last."""
    (tmp_path / "m.yaml").write_text("data:\n  class_path: MNIST\n  init_args:\n    valid: 33\nlatent: 3\n")
    file = ["--config", str(tmp_path / "m.yaml")]
    for words in ([*file, "--data.root", "x"], ["--data.root", "x", *file], ["--data.root=x", "--data.valid=7", *file]):
        data = yaml.safe_load(Options(train, words).as_yaml())["data"]
        assert data["class_path"].endswith("MNIST")
        assert (str(data["init_args"]["root"]), data["init_args"]["valid"]) == ("x", 33)
