"""What an option that does not exist was meant to be: found before anything is loaded.

Options form a tree: those of a command, of the classes that fill its slots, of the classes in these. Each word of a command
line and each key of a configuration is looked up in it. One that is not there ends the program, with the nearest that are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from inspect import Parameter, isabstract
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, Union, get_args, get_origin

import torch

from pyro_vae.app.given import NOTHING, Given, Place, WrongOptionError
from pyro_vae.app.slots import Slot, options_of, slot_of
from pyro_vae.construction import make
from pyro_vae.description import called_by, path_of
from pyro_vae.trust import OWN, Trust, UntrustedError

_ALIKE = 0.6
"""How alike a name must be to be suggested (difflib's ratio)."""
_DEEPEST = 4
"""The number of levels that are searched. A class may have itself in a slot."""


class Tree:
    """The options of a command, with the classes that were chosen.

    Args:
        options: the options of the command itself, each with its type and its default.
        elsewhere: names of options of other commands, for what an error says.
        trust: the modules that may be named.
    """

    def __init__(
        self, options: Mapping[str, tuple[Any, Any]], elsewhere: Collection[str] = (), trust: Trust = Trust()
    ) -> None:
        self.options, self.elsewhere, self.trust = dict(options), frozenset(elsewhere), trust
        self.chosen: dict[Place, str] = {}
        self.not_used: dict[Place, Given] = {}
        """Options of a file that belong to a class in whose place a later word or file names another."""

    def check(self, given: Sequence[Given]) -> None:
        """Looks up everything that was given.

        Raises:
            WrongOptionError: something does not exist.
        """
        self.chosen = {each.place: each.name for each in given if each.name}
        self.not_used = {each.place: each for number, each in enumerate(given) if self._is_left(each, given[number:])}
        for each in given:
            if each.place not in self.not_used:
                self._check(each)
        self._check_needed({each.place: each for each in given})

    def _is_left(self, given: Given, later: Sequence[Given]) -> bool:
        """Whether an option is of a class that gave its place to another, named later elsewhere, which has no such option."""
        for other in later:
            if other.name and given.is_below(other.place) and other.source != given.source:
                own = self.of(other.place)
                if own is not None and given.place[len(other.place)] not in own:
                    return True
        return False

    def _check_needed(self, given: Mapping[Place, Given]) -> None:
        """Checks that each chosen class was told what it cannot do without."""
        for place, name in self.chosen.items():
            if not self._slot(place):
                continue
            for option, (_, default) in (self.of(place) or {}).items():
                if default is Parameter.empty and (*place, option) not in given:
                    needed = _Written(bool(given[place].file)).option((*place, option))
                    raise WrongOptionError(f"{given[place].at}{needed}: {name.rpartition('.')[2]} needs this option")

    def _check(self, given: Given) -> None:
        place = given.place[:-1] if given.place[-1] == "help" else given.place
        for length in range(len(place)):
            own, name = self.of(place[:length]), place[length]
            if own is None:
                return
            if name not in own:
                raise WrongOptionError(self._unknown(place[: length + 1], own, given))
        if given.place != place or given.value is NOTHING:
            return
        if slot := self._slot(place):
            self._check_class(given, slot)
        elif here := self._here(place):
            self._check_value(given, *here)

    def _check_class(self, given: Given, slot: Slot) -> None:
        """Checks what fills a slot: a class that is known, or a list of classes; the import paths of others are found later."""
        option = _Written(bool(given.file)).option(given.place)
        if given.value is None:
            here = self._here(given.place)
            if here is None or NoneType not in get_args(here[0]):
                what = "a list of classes" if slot.listed else "the name of a class"
                known = f" ({', '.join(slot.known())})" if slot.known() else ""
                raise WrongOptionError(f"{given.at}{option}: expected {what}{known}, got null")
        elif slot.listed and not isinstance(given.value, list):
            inside = (given.text or "").strip("[] ")
            raise WrongOptionError(f"{given.at}{option}: expected a list, such as '[{inside}]', got {given.text}")
        elif not slot.listed and given.name and "." not in given.name and given.name not in slot.known(refused=True):
            raise WrongOptionError(self._no_class(given, given.place, slot))
        elif not slot.listed and given.name and "." in given.name:
            try:
                self.trust.find(given.name)
            except UntrustedError:
                return  # told by the guard
            except ValueError as error:
                near = [path_of(slot.known()[each]) for each in _alike(given.name.rpartition(".")[2], slot.known())]
                meant = f"; did you mean {' or '.join(near)}?" if near and given.name.startswith(OWN) else ""
                raise WrongOptionError(f"{given.at}{option}: {error}{meant}") from None

    def _check_value(self, given: Given, hint: Any, default: Any) -> None:
        """Checks a plain value by its type."""
        if hint is None:
            return
        option = _Written(bool(given.file)).option(given.place)
        if get_origin(hint) is type and given.name and "." not in given.name:
            known = Slot(get_args(hint)[0]).known()
            near = [
                path_of(known[each]) for each in ([given.name] if given.name in known else _alike(given.name, known))
            ]
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise WrongOptionError(f"{given.at}{option}: expected the import path of a class, got {given.name}{meant}")
        if torch.Tensor in get_args(hint):  # of PyTorch's optimizers; no tensor can be written down
            hint = Union[tuple(each for each in get_args(hint) if each is not torch.Tensor)]  # noqa: UP007
        values = [given.value]
        if given.text is not None and not given.file:
            values.append(given.text)  # a word such as on, which YAML takes for true
        for value in values:
            try:
                make(value, hint, option, self.trust, default)
            except UntrustedError:
                return  # told by the guard, which knows the place
            except ValueError as error:
                told = str(error).replace(", which is nothing", "")
                if value is given.value or isinstance(given.value, bool):
                    message = told
            else:
                return
        raise WrongOptionError(f"{given.at}{message}")

    def put_null(self, given: dict[str, Any], place: Place) -> None:
        """Gives the option of a class, whose places were checked, the value null.

        Args:
            given: the options of the command, as plain data.
            place: where the option stands.
        """
        for length in range(1, len(place)):
            name, called = place[length - 1], self.called(place[:length])
            if called is not None:
                given = given.setdefault(name, {"class_path": path_of(called)})  # type: ignore[arg-type]
                given = given.setdefault("init_args", {})
        given[place[-1]] = None

    def of(self, place: Place) -> dict[str, tuple[Any, Any]] | None:
        """The options that stand right below a place; None where any may."""
        if not place:
            return self.options
        slot = self._slot(place)
        if slot is None:
            hint = self._here(place)
            plain = isinstance(hint[0], type) and issubclass(hint[0], int | float | str | Path) if hint else False
            return {} if plain else None
        if slot.listed:
            return {f"[{i}]": (None, None) for i in range(1000)}
        if called := self.called(place):
            return options_of(called, slot.filled_in)
        return None if self.chosen.get(place) else {}

    def called(self, place: Place) -> Callable[..., Any] | None:
        """The class that fills the slot at a place: the chosen one, or the default."""
        slot = self._slot(place)
        if slot is None:
            return None
        if name := self.chosen.get(place):
            if "." not in name:
                return slot.known().get(name)
            with suppress(ValueError):
                return self.trust.find(name)
            return None
        here = self._here(place)
        default = here[1] if here else None
        if default in (None, Parameter.empty):
            return slot.base if not slot.known() and not isabstract(slot.base) else None
        return called_by(default) or type(default)

    def _here(self, place: Place) -> tuple[Any, Any] | None:
        """The type and the default of the option at a place."""
        own = self.of(place[:-1])
        return None if own is None else own.get(place[-1])

    def _slot(self, place: Place) -> Slot | None:
        if place[-1].startswith("["):
            slot = self._slot(place[:-1])
            return slot and slot._replace(listed=False)
        here = self._here(place)
        return slot_of(here[0]) if here else None

    def _all(self, place: Place = ()) -> Iterator[Place]:
        """All options below a place, those nearby first."""
        level = [place]
        for _ in range(_DEEPEST):
            below = [(*each, name) for each in level for name in self.of(each) or () if not name.startswith("[")]
            yield from below
            level = [each for each in below if self._slot(each)]

    def _unknown(self, place: Place, own: Mapping[str, Any], given: Given) -> str:
        """What to say of an option that does not exist."""
        *before, name = place
        prefix = tuple(before)
        written = _Written(bool(given.file))
        slot = self._slot(prefix) if prefix else None
        called = self.called(prefix) if prefix else None
        if slot and called:
            told = f"{called.__name__} has no option {name}"
        elif slot:
            told = f"{written.option(prefix)} has no class of its own yet that could take options"
        else:
            told = f"{written.option(prefix)} takes a value and has no options" if prefix else "there is no such option"
        if not prefix and name in self.elsewhere:
            told = "this is an option of train, and not of this command"
        if slot and not called:
            fitting = _having(slot, name) or slot.known()
            meant = f": name one with {written.option(prefix)} CLASS (known: {', '.join(fitting)})"
        else:
            meant = self._meant(prefix, name, own, slot, written)
        if not meant and prefix and called:
            meant = f". It has {', '.join(own) or 'no options'}"
        return f"{given.at}{written.option(place)}: {told}{meant}"

    def _meant(self, prefix: Place, name: str, own: Mapping[str, Any], slot: Slot | None, written: _Written) -> str:  # noqa: PLR0911  (the likeliest first)
        """The options that may be meant by a name, the likeliest first, as the end of a message."""
        everything = list(self._all())
        below = [each for each in everything if each[: len(prefix)] == prefix and len(each) > len(prefix) + 1]
        same = [each for each in own if _bare(each) == _bare(name)]
        exact = [each for each in everything if each[-1] == name]
        alike = _alike(name, own)
        for found in (
            [(*prefix, each) for each in same],
            [each for each in below if each[-1] == name],
        ):
            if found:
                return written.did_you_mean(found)
        if slot and (classes := _having(slot, name)):
            return written.of_classes(prefix, name, classes)
        if exact:
            return written.did_you_mean(exact)
        if alike:
            return written.did_you_mean([(*prefix, each) for each in alike])
        initials = "".join(each[:1] for each in name.split("_"))
        if short := [each for each in everything if each[-1] == initials]:
            return written.did_you_mean(short)  # learning_rate: lr
        others = [prefix] if prefix else [(each,) for each in self.options]
        slots = {other: at for other in others if (at := self._slot(other))}
        near = [(other, each) for other, at in slots.items() for each in _close(name, at)]
        for other, each in [
            *((other, name) for other in slots),
            *near,
        ]:  # options of classes not chosen, the same name first
            if classes := _having(slots[other], each):
                return written.of_classes(other, each, classes)
        nearby = [each for each in everything if each[:1] == prefix[:1]]  # a word below a slot means nothing elsewhere
        near_names = _alike(name, {each[-1] for each in nearby})
        near_places = [each for each in nearby if each[-1] in near_names[:1]]
        return written.did_you_mean(near_places) if near_places else ""

    def _no_class(self, given: Given, place: Place, slot: Slot) -> str:
        """What to say of a class that does not exist."""
        name, written = str(given.name), _Written(bool(given.file))
        shown = tuple(each for each in place if not each.startswith("["))
        told = f"{written.option(shown)} {name}" if not given.file else f"{given.file}: {written.option(shown)}: {name}"
        known = slot.known()
        others = [
            each for each in self._all() if each[:1] != place[:1] and (at := self._slot(each)) and name in at.known()
        ]
        if others:
            meant = f" for it: {name} goes with {written.option(others[0])}. Known here: {', '.join(known)}"
        elif near := _alike(name, known):
            meant = f". Did you mean {' or '.join(near)}? Known: {', '.join(known)}"
        else:
            meant = f". Known: {', '.join(known)}" if known else ""
        own = written.option(shown) + ("" if given.file else " ") + (": " if given.file else "")
        return (
            f"{told}: there is no class of that name{meant}. A class of your own: {own}my_file.{name}, from the folder of "
            f"my_file.py"
        )


class _Written(NamedTuple):
    """How options are written: with dashes on a command line, without in a file."""

    in_file: bool

    def option(self, place: Place) -> str:
        """The option at a place."""
        return ("" if self.in_file else "--") + ".".join(place).replace(".[", "[")

    def did_you_mean(self, places: Sequence[Place]) -> str:
        """A question, at the end of a message."""
        return f"; did you mean {' or '.join(self.option(each) for each in places[:3])}?"

    def of_classes(self, place: Place, name: str, classes: Sequence[str]) -> str:
        """What an option of other classes needs."""
        option = self.option(place)
        has = "has it" if len(classes) == 1 else "have it"
        if self.in_file:
            return f"; {_and(classes)} {has}: give {option} that class_path, and {name} in its init_args"
        one = "" if any(each.startswith("[") for each in place) else f": {option} {classes[0]} {option}.{name} ..."
        named = f" ({option}.{name})" if not one else ""
        return f"; {_and(classes)} {has}{named}{one}"


def _bare(name: str) -> str:
    """A name without what is easily mixed up: case, dashes and underscores."""
    return name.replace("-", "").replace("_", "").lower()


def _close(name: str, slot: Slot) -> list[str]:
    """Options of the classes that fill a slot whose names resemble a name."""
    return get_close_matches(name, _names(slot), n=2, cutoff=_ALIKE)


def _alike(name: str, names: Collection[str]) -> list[str]:
    """The names that are much like one, the likeliest first; one that begins as it does is."""
    known = {_bare(each): each for each in names}
    bare = _bare(name)
    begin = [
        each for each in known if len(min(each, bare, key=len)) > 2 and (each.startswith(bare) or bare.startswith(each))
    ]
    near = begin or get_close_matches(bare, known, n=2, cutoff=_ALIKE)
    return [known[each] for each in near[:2]]


def _names(slot: Slot) -> set[str]:
    """The names of all options of all classes that fill a slot."""
    return {name for each in slot.known().values() for name in options_of(each, slot.filled_in) or ()}


def _having(slot: Slot, name: str) -> list[str]:
    """The classes that fill a slot and have an option of this name."""
    return [key for key, each in slot.known().items() if name in (options_of(each, slot.filled_in) or ())]


def _and(names: Sequence[str]) -> str:
    if len(names) > 6:
        names = [*names[:5], f"{len(names) - 5} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
