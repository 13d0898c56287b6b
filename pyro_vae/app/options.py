"""The command line of a function: its arguments become options, its docstring their help.

An argument that is a `ModelSpec`, a `TrainingPlan`, a `Setting` or `Machines` stands for all fields of that class, as options
without a prefix: ``--prior``, ``--epochs``. They are described once, where the class is.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from pyro_vae.app.comparisons.grid import Machines
from pyro_vae.app.console import fail, pick_device
from pyro_vae.app.given import WrongOptionError, behind_classes, from_words, said, without_nulls
from pyro_vae.app.guard import NotAllowedError, guarded
from pyro_vae.app.hints import Tree
from pyro_vae.app.setting import Setting
from pyro_vae.app.slots import slot_of
from pyro_vae.app.words import check_files, data_of_run, place_of, run_of, told_data, words_for
from pyro_vae.construction import make
from pyro_vae.data import Data, Splits
from pyro_vae.description import describe, path_of
from pyro_vae.likelihoods import Bernoulli, default_likelihood
from pyro_vae.models import ModelSpec
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Likelihood
from pyro_vae.training import TrainingPlan
from pyro_vae.trust import Trust, here

SPECIFICATIONS = (ModelSpec, TrainingPlan, Setting, Machines)
"""Classes whose fields are options."""
FILLED_IN = frozenset({"splits", "config", "command"})
"""Arguments of commands that are no options: the data that were loaded, the resolved options as YAML, and the command line."""

_ABOUT = (
    "Options that take a class, such as --prior, are followed by its name; the class brings options of its own: "
    "--prior VampPrior --prior.components 100. The option --prior.help VampPrior explains them."
)


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
        parser = cls(prog=prog, print_config=None, allow_abbrev=False, description=_ABOUT)
        told = "A YAML file of options. What stands after it on the command line overrules it."
        parser.add_argument("--config", action="config", help=told)
        parser.add_argument("--print_config", action="store_true", help="Print all options as such a file and exit.")
        specifications = _specifications(function)
        for kind in specifications.values():
            parser.add_class_arguments(
                kind, None, skip=set(left_out & _names(kind)), instantiate=False, fail_untyped=False
            )
        parser.add_function_arguments(function, skip={*specifications, *FILLED_IN}, fail_untyped=False)
        for action in parser._actions:
            if action.dest == "objective":  # jsonargparse gives a group of options one of its own
                action.help = "All of these in one: a YAML file, or text such as '{beta: 4}'."
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
        message = re.sub(
            r"Type collections\.abc\.Callable\S* .*?expects a function or a callable class:\s+", "", message
        )
        message = re.sub(r"\.?\s+Got value: Namespace\(.*", "", message, flags=re.DOTALL)
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
        function: Callable[..., Any],
        arguments: list[str],
        left_out: Set[str] = frozenset(),
        prog: str | None = None,
    ) -> None:
        opened = (value for _, option, value in said(arguments) if option in ("--config", "--run") and value)
        self.trust = here(*map(Path, opened))
        # Classes from files in the current folder are in reach, behind all that is installed: no file there takes its place.
        folder = str(self.trust.folder)
        sys.path[:] = [each for each in sys.path if os.path.realpath(each) != os.path.realpath(folder)] + [folder]
        self.arguments = arguments
        self.owners: list[Callable[..., Any]] = [function, *_specifications(function).values()]
        self.function = function
        self.notes: list[str] = []
        Parser.slots = {name: hint for owner in self.owners for name, hint in get_type_hints(owner).items()}
        self.parser = Parser.of(function, left_out, prog or program())
        check_files(arguments)
        with self._guarded():
            self._check_names(left_out)
            print_config = self._read(left_out)
        if print_config:
            print(self.as_yaml(), end="")
            sys.exit(0)

    def _check_names(self, left_out: Set[str]) -> None:
        """Ends the program where an option or a class does not exist, with what may be meant."""
        hidden = {*left_out, *FILLED_IN, *_specifications(self.function)}
        own = {name: (Parser.slots[name], default) for name, default in self._defaults(hidden).items()}
        elsewhere = {name for kind in SPECIFICATIONS if kind is not Machines for name in _names(kind)} - own.keys()
        try:
            self.given = from_words(self.arguments)
            if "likelihood" in own and not any(each.place == ("likelihood",) and each.name for each in self.given):
                own["likelihood"] = (Parser.slots["likelihood"], _of_the_data)
            self.tree = Tree(own, elsewhere, self.trust)
            self.tree.check(self.given)
            left = [each for each in self.tree.not_used.values() if not any(map(each.is_below, self.tree.not_used))]
            if left:
                named = ", ".join(dict.fromkeys(".".join(each.place) for each in left))
                files = ", ".join(dict.fromkeys(each.source for each in left))
                self.notes.append(f"Not used: {named} of {files}: the class that was named later has no such option")
        except WrongOptionError as error:
            fail(f"{error}\nFor all options: {self.parser.prog} --help", status=2)

    def _defaults(self, left_out: Set[str]) -> dict[str, Any]:
        """The defaults of the arguments of the command and its specifications, by name."""
        return {
            name: parameter.default
            for owner in self.owners
            for name, parameter in signature(owner).parameters.items()
            if name not in left_out
        }

    def _read(self, left_out: Set[str]) -> bool:
        """Resolves the options; returns whether they are to be printed."""
        plain = self._defaults(left_out)
        defaults = {name: value for name, value in plain.items() if _is_made_by_a_class(value)}
        lists = {
            name: value
            for name, value in plain.items()
            if isinstance(value, list | tuple) and value and all(map(_is_made_by_a_class, value))
        }
        described = {name: _described(value) for name, value in defaults.items()}
        run = run_of(self.arguments) if "run" in signature(self.function).parameters else None
        if run and not (Path(run) / "config.yaml").is_file():
            run = None  # the command tells what is wrong with it
        if run:  # a run brings its data along: they are the default then
            try:
                described["data"] = data_of_run(Path(run), self.trust)
            except ValueError as error:
                fail(f"run: {error}", status=2)
        # The parser knows no defaults here, and a class whose options are given must have those that it cannot do without.
        words, nulls = without_nulls(behind_classes(self.arguments))
        words = [*(words_for("data", described["data"], self.trust) if run else []), *words]
        # Options of the likelihood that the data will choose are read as those of some likelihood, and kept until then.
        unknown = "likelihood" in plain and self.tree.called(("likelihood",)) is _of_the_data
        stand_in = {"likelihood": {"class_path": path_of(Bernoulli)}} if unknown else {}
        given = self._given(described | stand_in, words)
        self.parser.set_defaults(dict.fromkeys(stand_in))
        print_config = bool(given.pop("print_config", False))
        for name, values in lists.items():
            given.setdefault(name, [_described(value) for value in values])
        for name, default in described.items():
            chosen = given.setdefault(name, default)
            if self.trust.find(chosen["class_path"]) is self.trust.find(default["class_path"]):
                # The default class keeps the other options of its default.
                chosen["init_args"] = {**default.get("init_args", {}), **chosen.get("init_args", {})}
        self.run = run
        if run:
            self._check_no_model(run)
            others = any(each.place[0] == "data" for each in self.given) and given["data"] != described["data"]
            whose = f"those given here and not those of {run}" if others else f"those of {run}"
            self.notes.append(told_data(given["data"], whose))
        for place in nulls:
            self.tree.put_null(given, place)
        self.of_likelihood = given.pop("likelihood", None) or {} if unknown else {}
        if print_config and self.of_likelihood.get("init_args"):
            fail(
                "--likelihood.network: a file of options has it beside its class: name one by --likelihood CLASS",
                status=2,
            )
        try:
            for owner in self.owners:
                _complete(owner, given, self.trust)
            self.values = self.parser.parse_object(given)
        except ArgumentError as error:
            self.parser.error(str(error))
        del self.values["config"], self.values["print_config"]
        return print_config

    def _check_no_model(self, run: str) -> None:
        """Ends the program where the words of the command line choose a model, and a run brings its own.

        A file may have all options, as --print_config writes them. A note says then that those of a model are not used.
        """
        chosen = [each for each in self.given if each.place[0] in _names(ModelSpec)]
        if here := list(dict.fromkeys("--" + ".".join(each.place) for each in chosen if not each.file)):
            fail(
                f"{', '.join(here)}: the model is that of --run {run}, with parts and sizes of its own: leave out one or the "
                f"other",
                status=2,
            )
        if chosen:
            named = ", ".join(dict.fromkeys(each.place[0] for each in chosen))
            self.notes.append(f"Model: that of {run}. Not used: {named} of {chosen[0].source}")

    def _given(self, described: Mapping[str, dict[str, Any]], words: list[str]) -> dict[str, Any]:
        """Returns the options that are given. An option of a class that is not named is one of the default class."""
        self.parser.set_defaults({name: {"class_path": each["class_path"]} for name, each in described.items()})
        given = self.parser.parse_args(words, defaults=False).as_dict()
        given.pop("config", None)
        return given

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Inside, nothing is imported but what may be named. Something else ends the program and is told."""
        try:
            with guarded(self.trust):
                yield
        except NotAllowedError as error:
            fail(f"{place_of(error.path, self.arguments)}{error}", status=2)

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

    def with_data(self, check: Callable[[Mapping[str, Any]], None] | None = None) -> tuple[dict[str, Any], Splits]:
        """The function's arguments, and its data, loaded. Without a choice the likelihood is the one that fits the data.

        Args:
            check: a further check of the arguments, before data are read.
        """
        if "device" in self.values:
            pick_device(self.values["device"])  # before data are read
        for note in self.notes:
            print(note)
        made = self.made()  # a number out of its range is told before data are read
        for each in made.values():
            if isinstance(each, TrainingPlan):
                each.check()
        if check:
            check(made)
        splits = self._data(made).load()
        slot = "likelihoods" if "likelihoods" in self.values else "likelihood"
        if self.values[slot] is None and not self.run:
            fitting, reason = default_likelihood(splits.support, splits.train.x, splits.standardize, splits.view)
            chosen: Any = fitting if isinstance(fitting, partial) else partial(fitting)
            print(f"Likelihood: {chosen.func.__name__}, since {reason}. Another: --{slot} CLASS")
            options = {**chosen.keywords, **self.of_likelihood.get("init_args", {})}
            described = {"class_path": path_of(chosen.func), "init_args": options}
            likelihood = {slot: described if slot == "likelihood" else [described]}
            if slot == "likelihood":
                _complete(ModelSpec, likelihood, self.trust)
            with self._guarded():
                self.values = self.parser.parse_object(likelihood, namespace=self.values)
            del self.values["config"], self.values["print_config"]
            given = yaml.safe_load(self.as_yaml())[slot]
            likelihood = {slot: make(given, Parser.slots[slot], slot, self.trust)}
            spec = next(name for name, each in made.items() if isinstance(each, ModelSpec))
            made |= likelihood if slot in made else {spec: replace(made[spec], **likelihood)}
        return made, splits

    @staticmethod
    def _data(made: Mapping[str, Any]) -> Data:
        """The data set among the arguments that were made."""
        return next(each.data for each in made.values() if isinstance(each, Setting))


def _of_the_data(dims: Dims, network: NetworkFactory = MLP) -> Likelihood:
    """Stands for the likelihood that the data choose, with the option that each of these likelihoods has."""
    raise NotImplementedError(f"{dims}, {network}")


_of_the_data.__name__ = "the likelihood that the data choose"


def _described(default: Any) -> dict[str, Any]:
    """The class and the options of a default."""
    described = describe(default)
    return described if isinstance(described, dict) else {"class_path": path_of(_class_of(default))}


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


def _known(hint: Any) -> list[str]:
    """Names of the classes of this project and its libraries that fill a slot, given the type of the option."""
    slot = slot_of(hint)
    return list(slot.known()) if slot else []


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
        near = get_close_matches(name, commands, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        fail(
            f"expected one of the {what}s {', '.join(commands)} as the first word, got {name}{meant}\n{listed}",
            status=2,
        )
    return name, arguments[1:]
