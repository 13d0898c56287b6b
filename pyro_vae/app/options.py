"""The command line of a function: its arguments become options, its docstring their help.

An argument that is a `ModelSpec`, a `TrainingPlan` or a `Setting` stands for all fields of that class, as options without a
prefix: ``--prior``, ``--epochs``. They are described once, where the class is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from pyro_vae.app.console import fail, pick_device
from pyro_vae.app.guard import NotAllowedError, guarded
from pyro_vae.app.setting import Setting
from pyro_vae.construction import make
from pyro_vae.data import Splits
from pyro_vae.description import describe, path_of
from pyro_vae.files import read_yaml
from pyro_vae.likelihoods import default_likelihood
from pyro_vae.models import ModelSpec
from pyro_vae.training import TrainingPlan
from pyro_vae.trust import Trust, here

SPECIFICATIONS = (ModelSpec, TrainingPlan, Setting)
"""Classes whose fields are options."""
FILLED_IN = frozenset({"splits", "config"})
"""Arguments of commands that are no options: the data that were loaded, and the resolved options as YAML."""


class Parser(ArgumentParser):
    """The arguments of a function as options, with errors for people.

    What a class is not told keeps that class's own default: ``--optimizer Adadelta`` has Adadelta's learning rate.
    (jsonargparse alone would hand the options of the default class on to the one in its place, where their names agree.)
    """

    slots: ClassVar[dict[str, Any]] = {}
    """The class that each option takes, for what an error suggests."""
    called: ClassVar[str] = ""
    """How the command is called; the parsers inside, of classes, do not know it."""

    @classmethod
    def of(cls, function: Callable[..., None], left_out: Set[str], prog: str) -> Parser:
        """The parser of a function's arguments.

        Args:
            function: what is called with the options.
            left_out: fields of its specifications that are no options of it.
            prog: how the command is called, for messages.
        """
        cls.called = prog
        parser = cls(prog=prog, print_config=None)
        parser.add_argument("--config", action="config", help="A YAML file of options; those after it overrule it.")
        parser.add_argument("--print_config", action="store_true", help="Print all options as such a file and exit.")
        specifications = _specifications(function)
        for kind in specifications.values():
            parser.add_class_arguments(
                kind, None, skip=set(left_out & _names(kind)), instantiate=False, fail_untyped=False
            )
        parser.add_function_arguments(function, skip={*specifications, *FILLED_IN}, fail_untyped=False)
        return parser

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong in a line or two and ends with status 2."""
        del ex
        unknown = re.search(r'Parser key "([\w.]+)":\s+Expected a dot import path string: (\S+)', message)
        if unknown:
            key, name = unknown.groups()
            message = f"--{key} {name}: there is no class of that name"
            if known := _known(self.slots.get(key)):
                message += f". Known: {', '.join(known)}"
            message += f". A class of your own: --{key} my_file.{name}, from the folder of my_file.py"
        elif "Dict must include a class_path" in message and (key := re.search(r'Parser key "([\w.]+)"', message)):
            message = f"--{key[1]} has no class of its own yet that could take options: name one with --{key[1]} CLASS"
            if known := _known(self.slots.get(key[1])):
                message += f" (known: {', '.join(known)})"
        no_list = r"Expected a <class '(?:list|collections.abc.Sequence)'>.\s+Got value: (\S+)"
        message = re.sub(no_list, r"expected a list, such as '[\1]'", message)
        message = re.sub(r'Parser key "([\w.]+)"', lambda key: self._named(key[1]), message)
        message = re.sub(r"\s*\n\s*", " ", message).strip()
        fail(f"{message}\nFor all options: {self.called} --help", status=2)

    def _named(self, key: str) -> str:
        """An option as it is given; the parsers inside, of classes, name theirs without what stands before."""
        return f"--{key}" if key.partition(".")[0] in self.slots else f"option {key!r} of a class"


class Options:
    """The options of a command as they were given and resolved.

    Args:
        function: the command.
        arguments: the words of the command line.
        left_out: fields of its specifications that are no options of it.
        prog: how the command is called, for messages; by default the name of this program.
    """

    def __init__(
        self,
        function: Callable[..., None],
        arguments: list[str],
        left_out: Set[str] = frozenset(),
        prog: str | None = None,
    ) -> None:
        self.trust = here()
        if (folder := str(self.trust.folder)) not in sys.path:
            sys.path.insert(0, folder)  # classes from files in the current folder are in reach
        self.arguments = arguments
        self.owners: list[Callable[..., Any]] = [function, *_specifications(function).values()]
        self.function = function
        Parser.slots = {name: hint for owner in self.owners for name, hint in get_type_hints(owner).items()}
        self.parser = Parser.of(function, left_out, prog or program())
        _check_files(arguments)
        with self._guarded():
            print_config = self._read(left_out)
        if print_config:
            print(self.as_yaml(), end="")
            sys.exit(0)

    def _read(self, left_out: Set[str]) -> bool:
        """Resolves the options; returns whether they are to be printed."""
        defaults = {
            name: parameter.default
            for owner in self.owners
            for name, parameter in signature(owner).parameters.items()
            if name not in left_out and _is_made_by_a_class(parameter.default)
        }
        self.parser.set_defaults({name: {"class_path": path_of(_class_of(value))} for name, value in defaults.items()})
        given = self.parser.parse_args(self.arguments, defaults=False).as_dict()
        given.pop("config", None)
        print_config = bool(given.pop("print_config", False))
        for name, value in defaults.items():
            kind, described = _class_of(value), describe(value)
            default: dict[str, Any] = described if isinstance(described, dict) else {"class_path": path_of(kind)}
            chosen = given.setdefault(name, default)
            if self.trust.find(chosen["class_path"]) is kind:
                # The default class keeps the other options of its default.
                chosen["init_args"] = {**default.get("init_args", {}), **chosen.get("init_args", {})}
        try:
            for owner in self.owners:
                _complete(owner, given, self.trust)
            self.values = self.parser.parse_object(given)
        except ArgumentError as error:
            self.parser.error(str(error))
        del self.values["config"], self.values["print_config"]
        return print_config

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Inside, nothing is imported but what may be named. Something else ends the program and is told."""
        try:
            with guarded(self.trust):
                yield
        except NotAllowedError as error:
            fail(f"{_place(error.path, self.arguments)}{error}", status=2)

    def as_yaml(self) -> str:
        """All options as a file that ``--config`` takes back."""
        return self.parser.dump(self.values, skip_unset=False)

    def made(self) -> dict[str, Any]:
        """The arguments of the function, with the classes made.

        Raises:
            ValueError: one does not fit its place.
        """
        described = yaml.safe_load(self.as_yaml())
        made = {}
        for owner in self.owners:
            hints = get_type_hints(owner)
            for name, parameter in signature(owner).parameters.items():
                if name in described:
                    made[name] = make(described[name], hints[name], name, self.trust, parameter.default)
        for name, kind in _specifications(self.function).items():
            made[name] = kind(**{field: made.pop(field) for field in _names(kind) & made.keys()})
        return made

    def with_data(self) -> tuple[dict[str, Any], Splits]:
        """The function's arguments, and its data, loaded. Without a choice the likelihood is the one that fits the data."""
        if "device" in self.values:
            pick_device(self.values["device"])  # before data are read
        described = yaml.safe_load(self.as_yaml())["data"]
        splits: Splits = make(described, Parser.slots["data"], "data", self.trust).load()
        slot = "likelihoods" if "likelihoods" in self.values else "likelihood"
        if self.values[slot] is None:
            fitting, reason = default_likelihood(splits.support, splits.train.x, splits.standardize)
            chosen: Any = fitting if isinstance(fitting, partial) else partial(fitting)
            print(f"Likelihood: {chosen.func.__name__}, since {reason}. Another: --{slot} CLASS")
            described = {"class_path": path_of(chosen.func), "init_args": chosen.keywords}
            likelihood = {slot: described if slot == "likelihood" else [described]}
            with self._guarded():
                self.values = self.parser.parse_object(likelihood, namespace=self.values)
            del self.values["config"], self.values["print_config"]
        return self.made(), splits


def _check_files(arguments: Sequence[str]) -> None:
    """Ends the program where a configuration is no text, or is too large, or names another one."""
    for option, value in _options(arguments):
        if option == "--config" and Path(value).is_file():
            try:
                tree = read_yaml(Path(value))
            except ValueError as error:
                if isinstance(error.__cause__, yaml.YAMLError):
                    continue  # the parser tells it
                fail(f"config: {error}", status=2)
            if isinstance(tree, dict) and (inner := tree.keys() & {"config", "print_config"}):
                fail(f"config: {value}: {inner.pop()} is an option of the command line, and of no file", status=2)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The values among the words of a command line, each with its option."""
    option = ""
    for word in arguments:
        value = word
        if word.startswith("--"):
            option, _, value = word.partition("=")
        yield option, value


def _place(path: str, arguments: Sequence[str]) -> str:
    """The options, or the places in a configuration, that name this import path, for a message."""
    for option, value in _options(arguments):
        if option == "--config" and Path(value).is_file():
            if where := _search(path, read_yaml(Path(value))):
                return f"{value}: {where.lstrip('.')}: "
        elif path in value:
            return f"{option}: "
    return ""


def _search(path: str, tree: Any, where: str = "") -> str:
    """The place of a text in plain data, as an option is written; the empty text, if it is not there."""
    if isinstance(tree, Mapping):
        inner = (
            (where if key in ("class_path", "init_args") else f"{where}.{key}", each) for key, each in tree.items()
        )
    elif isinstance(tree, list):
        inner = ((f"{where}[{number}]", each) for number, each in enumerate(tree))
    else:
        return where if tree == path else ""
    return next((found for place, each in inner if (found := _search(path, each, place))), "")


def program() -> str:
    """How this program was called, for messages."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return "python -m pyro_vae"
    return f"python {sys.argv[0]}" if name.endswith(".py") else name


def _class_of(value: Any) -> type[Any]:
    return value if isinstance(value, type) else type(value)


def _is_made_by_a_class(default: Any) -> bool:
    """Whether a default is a class, or an object that a class makes from options, and no plain value."""
    return _class_of(default).__module__ not in ("builtins", "inspect") and not is_dataclass(default)


def _specifications(function: Callable[..., Any]) -> dict[str, type[Any]]:
    return {name: hint for name, hint in get_type_hints(function).items() if hint in SPECIFICATIONS}


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


def _complete(owner: Callable[..., Any], given: dict[str, Any], trust: Trust) -> dict[str, Any]:
    """Fills in the options that each given class was not told, each class by itself, the inner ones first."""
    names: set[Any] = set(signature(owner).parameters)
    for name, value in given.items():
        classes = [each for each in _listed(value) if isinstance(each, dict) and "class_path" in each]
        if classes and name in names:
            for each in classes:
                each["init_args"] = _complete(trust.find(each["class_path"]), each.get("init_args", {}), trust)
            alone = ArgumentParser(exit_on_error=False)
            add = alone.add_class_arguments if isinstance(owner, type) else alone.add_function_arguments
            add(owner, skip=names - {name}, fail_untyped=False)
            alone.set_defaults({name: None})
            given[name] = alone.parse_object({name: value}).as_dict()[name]
    return given


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _known(slot: Any) -> list[str]:
    """Names of the libraries' classes that fill a slot, given its type: a class, or a callable that returns one, or None."""

    def ours(kind: Any) -> bool:
        return isinstance(kind, type) and kind.__module__.split(".")[0] in ("pyro_vae", "torch")

    inner = [slot, *get_args(slot)]
    inner += [deeper for kind in inner for deeper in get_args(kind)]
    bases = [kind for kind in inner if ours(kind)]
    names: set[str] = set()
    while bases:
        below = bases.pop().__subclasses__()
        names |= {child.__name__ for child in below if ours(child) and not child.__name__.startswith("_")}
        bases += below
    return sorted(names)


def choose(
    commands: Mapping[str, Callable[..., Any]], arguments: list[str], what: str, prog: str
) -> tuple[str, list[str]]:
    """The command that the first word names, and the other words. Help, or a wrong word, ends the program with their list.

    Args:
        commands: what can be chosen, each with its docstring.
        arguments: the words.
        what: what the commands are called.
        prog: how this program is called, for messages.
    """
    name = arguments[0] if arguments else "nothing"
    listed = "\n".join(f"  {each:<20}{doc.splitlines()[0]}" for each, f in commands.items() if (doc := f.__doc__))
    if name in ("-h", "--help"):
        print(f"usage: {prog} {what.upper()} [options]\n\n{what}s:\n{listed}\n\nEach has its own --help.")
        sys.exit(0)
    if name not in commands:
        fail(f"expected one of the {what}s {', '.join(commands)} as the first word, got {name}\n{listed}", status=2)
    return name, arguments[1:]
