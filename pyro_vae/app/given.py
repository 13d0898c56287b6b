"""The options that the words of a command line and the files of options give: places in a tree, with values and lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pyro_vae.files import LARGEST, bounded, read_text
from pyro_vae.kinds import shortened

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
    def at(self) -> str:
        """The place of an error in it, as a message begins; the empty text on a command line."""
        return f"{self.file}: " if self.file else ""

    @property
    def source(self) -> str:
        """The file that it stands in; the empty text for a command line."""
        return self.file.rpartition(", line")[0]

    @property
    def name(self) -> str | None:
        """The name of the class that the value may be."""
        return self.value if isinstance(self.value, str) and self.value else None

    def is_below(self, place: Place) -> bool:
        """Whether it stands below a place of the tree."""
        return len(self.place) > len(place) and self.place[: len(place)] == place


class Said(NamedTuple):
    """An option as it stands on a command line.

    Attributes:
        words: the words that it is made of.
        option: its name with the dashes before it; the empty text for a word that is no option.
        value: its value, or the word that is no option; None where there is none.
    """

    words: list[str]
    option: str
    value: str | None


def said(words: Sequence[str]) -> Iterator[Said]:
    """The options among the words of a command line, in their order: ``--option=value``, ``--option value`` and flags."""
    number = 0
    while number < len(words):
        word = words[number]
        option, equals, value = word.partition("=")
        follows = words[number + 1 : number + 2]
        if not word.startswith("--"):
            found = Said([word], "", word)
        elif equals:
            found = Said([word], option, value)
        elif _bare(option) in _FLAGS or not follows or follows[0].startswith("--"):
            found = Said([word], option, None)
        else:
            found = Said([word, *follows], option, follows[0])
        yield found
        number += len(found.words)


def from_words(words: Sequence[str]) -> list[Given]:
    """The options that the words of a command line give.

    Of an option that stands there twice the last counts, and a line says so.

    Raises:
        WrongOptionError: a word is no option, or an option has no value.
    """
    given: list[Given] = []
    seen: dict[str, str] = {}
    every = list(said(words))
    for number, each in enumerate(every):
        if each.words == ["-h"]:
            continue
        if not each.option:
            raise WrongOptionError(_stray(each.words[0]))
        option = _bare(each.option)
        if option in _FLAGS:
            continue
        if each.value is None and not option.endswith(".help"):
            got = f", got {every[number + 1].words[0]}" if number + 1 < len(every) else ""
            raise WrongOptionError(f"--{option}: expected a value behind it{got}")
        value = each.value or ""
        repeated = option in seen and option != "config" and not each.option.endswith("+")
        if repeated and seen[option] != value and "--print_config" not in words:
            print(f"--{option} stands there twice, with {seen[option]} and with {value}: the last counts")
        seen[option] = value
        later = from_file(Path(value)) if option == "config" else _of_value(tuple(option.split(".")), value)
        lists = [found.place for found in later if isinstance(found.value, list)]
        given = [kept for kept in given if not any(kept.is_below(place) for place in lists)]  # the last list counts
        given += later
    return given


def without_nulls(words: Sequence[str]) -> tuple[list[str], list[Place]]:
    """The words without options of classes whose value is null, and the places of these.

    jsonargparse hands the null of such an option on as the text "None".
    """
    kept: list[str] = []
    places: list[Place] = []
    for each in said(words):
        if "." in each.option and each.value in ("null", "Null", "NULL", "~"):
            places.append(tuple(_bare(each.option).split(".")))
        else:
            kept += each.words
    return kept, places


def behind_classes(words: Sequence[str]) -> list[str]:
    """The words, where an option of a class stands behind the file that names the class.

    So ``--data.root x --config m.yaml`` and ``--config m.yaml --data.root x`` are the same where the file says ``data: MNIST``.

    What the file gives itself counts, as the last of two equal options does.
    """
    every, kept = list(said(words)), [[*each.words] for each in said(words)]
    for number, each in enumerate(every):
        place = tuple(_bare(each.option).split("."))
        above = [place[:length] for length in range(1, len(place))]
        if any(tuple(_bare(other.option).split(".")) in above for other in every[:number]):
            continue  # it belongs to a class that the words name
        for later in range(number + 1, len(every)):
            if _bare(every[later].option) == "config" and every[later].value:
                given = from_file(Path(every[later].value or ""))
                if any(found.name and found.place in above for found in given):
                    moved, kept[number] = kept[number], []
                    kept[later] += [] if any(found.place == place for found in given) else moved
                    break
    return [word for part in kept for word in part]


def _bare(option: str) -> str:
    """The name of an option, without its dashes, and without the plus sign that adds to a list."""
    return option.removeprefix("--").removesuffix("+")


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
    """The options in a word of a command line, which may be a list or a mapping.

    Raises:
        WrongOptionError: it stands for more values than can be read.
    """
    try:
        node = yaml.compose(word, Loader=yaml.SafeLoader)
        few = bounded(node)
        value = yaml.safe_load(word) if few else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return [Given(place, word, word)]
    if not few:
        told = f"--{'.'.join(place)}: the aliases (&, *) in {shortened(word)} stand for more than {LARGEST} values"
        raise WrongOptionError(f"{told}: write the values themselves")
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
