"""The options that the words of a command line and the files of options give: places in a tree, with values and lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pyro_vae.files import read_text

Place = tuple[str, ...]
"""Where an option stands in the tree: ``("guide", "network", "hidden")``. Elements of lists are ``"[0]"``, ``"[1]"``, ..."""
_FLAGS = frozenset({"print_config", "help"})
_CLASS, _OPTIONS, _MORE = "class_path", "init_args", "dict_kwargs"


class WrongOptionError(ValueError):
    """An option, or a class that is named for one, does not exist; the message says what was meant."""


NOTHING = object()
"""Stands for the value of an option that is given by its own options alone."""


class Given(NamedTuple):
    """An option that a word or a file gives.

    Attributes:
        place: where it stands in the tree.
        value: its value, plain data; `NOTHING` where only what stands below it is given.
        text: the value as it was written, where that was a word or a scalar.
        file: the file and the line that it stands in; the empty text on a command line.
    """

    place: Place
    value: Any = NOTHING
    text: str | None = None
    file: str = ""

    @property
    def name(self) -> str | None:
        """The name of the class that the value may be."""
        return self.value if isinstance(self.value, str) and self.value else None


def from_words(words: Sequence[str]) -> list[Given]:
    """The options that the words of a command line give.

    Of an option that stands there twice the last counts, and a line says so.

    Raises:
        WrongOptionError: a word is no option, or an option has no value.
    """
    given: list[Given] = []
    seen: dict[str, str] = {}
    number = 0
    while number < len(words):
        word = words[number]
        number += 1
        if word == "-h":
            continue
        if not word.startswith("--"):
            raise WrongOptionError(_stray(word))
        option, equals, value = word[2:].partition("=")
        option = option.removesuffix("+")
        flag = option in _FLAGS
        if not equals and not flag and number < len(words) and not words[number].startswith("--"):
            value, number = words[number], number + 1
        elif not equals and not flag and not option.endswith(".help"):
            raise WrongOptionError(f"--{option}: expected a value behind it" + _behind(words[number:]))
        repeated = option in seen and not flag and option != "config" and not word.partition("=")[0].endswith("+")
        if repeated and seen[option] != value and "--print_config" not in words:
            print(f"--{option} stands there twice, with {seen[option]} and with {value}: the last counts")
        seen[option] = value
        if option == "config":
            given += from_file(Path(value))
        elif not flag:
            given += _of_value(tuple(option.split(".")), value)
    return given


def without_nulls(words: Sequence[str]) -> tuple[list[str], list[Place]]:
    """The words without options of classes whose value is null, and the places of these.

    jsonargparse hands the null of such an option on as the text "None".
    """
    kept: list[str] = []
    places: list[Place] = []
    number = 0
    while number < len(words):
        option, equals, value = words[number].partition("=")
        width = 1 if equals else 2
        value = value if equals else words[number + 1] if number + 1 < len(words) else ""
        if option.startswith("--") and "." in option and value in ("null", "Null", "NULL", "~"):
            places.append(tuple(option[2:].split(".")))
        else:
            width = 1
            kept.append(words[number])
        number += width
    return kept, places


def from_file(path: Path) -> list[Given]:
    """The options that a configuration gives.

    Raises:
        WrongOptionError: it gives one twice in one place.
    """
    try:
        root = yaml.compose(read_text(path), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, OSError, ValueError):
        return []  # told where files are checked
    return list(_of_node((), root, str(path))) if root else []


def _of_value(place: Place, word: str) -> list[Given]:
    """The options in a word of a command line, which may be a list or a mapping."""
    try:
        node = yaml.compose(word, Loader=yaml.SafeLoader)
        value = yaml.safe_load(word)
    except (yaml.YAMLError, ValueError, RecursionError):
        return [Given(place, word, word)]
    inner = list(_of_node(place, node, "")) if isinstance(node, yaml.CollectionNode) else []
    return [
        Given(place, NOTHING if isinstance(value, dict) else value, word),
        *(each for each in inner if each.place != place),
    ]


def _of_node(place: Place, node: yaml.Node, file: str) -> Iterator[Given]:
    """What stands below a node. Files were checked before for being of bounded size."""
    at = f"{file}, line {node.start_mark.line + 1}" if file else ""
    if isinstance(node, yaml.MappingNode):
        yield from _of_mapping(place, node, file)
        return
    if place:
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        yield Given(place, yaml.SafeLoader("").construct_object(node, deep=True), text, at)
    if isinstance(node, yaml.SequenceNode):
        for number, each in enumerate(node.value):
            yield from _of_node((*place, f"[{number}]"), each, file)


def _of_mapping(place: Place, node: yaml.MappingNode, file: str) -> Iterator[Given]:
    """What the keys of a mapping give: a class and its options, or options by name."""
    seen: set[str] = set()
    for key, value in node.value:
        line = f"{file}, line {key.start_mark.line + 1}" if file else ""
        name = str(key.value)
        if name in seen:
            raise WrongOptionError(f"{line}: {name} stands there twice: leave one out".removeprefix(": "))
        seen.add(name)
        if key.tag.endswith(":merge") or (name in (_OPTIONS, _MORE) and place):
            if isinstance(value, yaml.MappingNode):
                yield from _of_mapping(place, value, file)
        elif name == _CLASS and place:
            yield Given(place, str(value.value), str(value.value), line)
        else:
            inner = (*place, *name.split("."))
            yield Given(inner, file=line)
            yield from _of_node(inner, value, file)


def _stray(word: str) -> str:
    """What to say of a word that is no option."""
    if word.startswith("-"):
        return f"{word}: options begin with two dashes: -{word}"
    if word.isidentifier() or "=" in word:
        return f"{word}: expected an option, such as --{word.partition('=')[0]}; each is followed by one value"
    return f"{word}: expected an option, and each is followed by one value; quote one with blanks: --option '[1, 2]'"


def _behind(rest: Sequence[str]) -> str:
    return f", got {rest[0]}" if rest else ""
