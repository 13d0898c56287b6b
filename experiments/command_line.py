"""What the experiments share on the screen: options from a function's signature, errors in one line, progress."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType
from typing import Any, ClassVar, NoReturn, get_args, get_type_hints

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from pyro_vae.data import Splits
from pyro_vae.likelihoods import default_likelihood


class Parser(ArgumentParser):
    """The arguments of a function as options, with errors for people.

    What a class is not told keeps that class's own default: ``--optimizer Adadelta`` has Adadelta's learning rate.
    (jsonargparse alone would hand the options of the default class on to the one in its place, where their names agree.)
    """

    slots: ClassVar[dict[str, Any]] = {}  # the class that each option takes, for what an error suggests

    @classmethod
    def of(cls, function: Callable[..., None], skip: set[str]) -> Parser:
        """The parser of a function's arguments, explained by its docstring, but for those in ``skip``."""
        parser = cls(prog=f"python {sys.argv[0]}", print_config=None)
        parser.add_argument("--config", action="config", help="A YAML file of options; those after it overrule it.")
        parser.add_argument("--print_config", action="store_true", help="Print all options as such a file and exit.")
        parser.add_function_arguments(function, skip=skip, fail_untyped=False)
        return parser

    def arguments(self, options: Namespace) -> dict[str, Any]:
        """The function's arguments for parsed options, with the classes made."""
        made = self.instantiate(options)
        return {name: value for name, value in vars(made).items() if name not in ("config", "print_config")}

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
        message = re.sub(r"\s*\n\s*", " ", message).strip()
        fail(f"{message}\nFor all options: python {sys.argv[0]} --help", status=2)


def parse(function: Callable[..., None], skip: set[str]) -> tuple[Parser, Namespace]:
    """The parser of an experiment and the options of this process, with classes from files in the current folder in reach."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    Parser.slots = get_type_hints(function)
    parser = Parser.of(function, skip)
    given = parser.parse_args(defaults=False).as_dict()
    given.pop("config", None)
    print_config = given.pop("print_config", False)
    for name, parameter in signature(function).parameters.items():
        default = parameter.default
        kind = default if isinstance(default, type) else type(default)
        if name not in skip and kind.__module__ != "builtins" and not is_dataclass(kind):
            given.setdefault(name, {"class_path": f"{kind.__module__}.{kind.__qualname__}"})
    try:
        options = parser.parse_object(_completed(function, given))
    except ArgumentError as error:
        parser.error(str(error))
    del options["config"], options["print_config"]
    if print_config:
        print(parser.dump(options, skip_unset=False), end="")
        sys.exit(0)
    return parser, options


def with_data(parser: Parser, options: Namespace) -> tuple[dict[str, Any], Splits, Namespace]:
    """The function's arguments, its data, loaded, and the options with a likelihood that fits the data if none was chosen."""
    arguments = parser.arguments(options)
    splits = arguments["data"].load()
    slot = "likelihoods" if "likelihoods" in options else "likelihood"
    if options[slot] is None:
        fitting = default_likelihood(splits.support)
        chosen = fitting if isinstance(fitting, partial) else partial(fitting)
        path = f"{chosen.func.__module__}.{chosen.func.__qualname__}"
        described = {"class_path": path, "init_args": chosen.keywords}
        options = parser.parse_object({slot: described if slot == "likelihood" else [described]}, namespace=options)
        arguments = parser.arguments(options)
    return arguments, splits, options


def parse_one_of(functions: Mapping[str, Callable[..., None]], skip: set[str]) -> tuple[str, Parser, Namespace]:
    """Like `parse`, for a script of several jobs: the first word of the command line names the one that is meant."""
    job = sys.argv[1] if len(sys.argv) > 1 else "nothing"
    if job not in functions:
        jobs = "\n".join(f"  {name:<12}{doc.splitlines()[0]}" for name, f in functions.items() if (doc := f.__doc__))
        if job in ("-h", "--help"):
            print(f"usage: python {sys.argv[0]} JOB [options]\n\njobs:\n{jobs}\n\nEach has its own --help.")
            sys.exit(0)
        fail(f"expected one of the jobs {', '.join(functions)} as the first word, got {job}\n{jobs}", status=2)
    sys.argv[:2] = [f"{sys.argv[0]} {job}"]
    return job, *parse(functions[job], skip)


def _completed(owner: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Fills in the options that each given class was not told, each class by itself, the inner ones first."""
    names = set(signature(owner).parameters)
    for name, value in given.items():
        classes = [each for each in _listed(value) if isinstance(each, dict) and "class_path" in each]
        if classes and name in names:
            for each in classes:
                each["init_args"] = _completed(resolve_name(each["class_path"]), each.get("init_args", {}))
            alone = ArgumentParser(exit_on_error=False)
            add = alone.add_class_arguments if isinstance(owner, type) else alone.add_function_arguments
            add(owner, skip=names - {name}, fail_untyped=False)
            alone.set_defaults({name: None})
            given[name] = alone.parse_object({name: value}).as_dict()[name]
    return given


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def fail(message: str, status: int = 1) -> NoReturn:
    """Prints an error for a person and ends."""
    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(status)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turns the errors that the library raises for wrong input into one message without a traceback."""
    try:
        yield
    except (ValueError, OSError, ArithmeticError) as error:
        fail(re.split(r"\n\s*Trace Shapes:", str(error))[0])  # Pyro appends its trace to what a part raises


class StopRequest:
    """The first Ctrl-C only asks to stop, so that nothing is cut in the middle of a write; the second one interrupts.

    Use it as a context, and call `check` where stopping is safe.
    """

    def __init__(self) -> None:
        self.made = False

    def __enter__(self) -> StopRequest:
        """Takes Ctrl-C over."""
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives Ctrl-C back."""
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            signal.default_int_handler(number, frame)
        self.made = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
        if self.made:
            raise KeyboardInterrupt


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:<number>, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {name} was asked for, and PyTorch sees {torch.cuda.device_count()} CUDA devices here"
        )
    return device


class _TimeLeft(ProgressColumn):
    """Time left at the mean pace so far."""

    def render(self, task: Task) -> Text:
        """Draws it."""
        if not task.completed or task.elapsed is None or task.total is None:
            return Text("")
        left = round(task.elapsed * (task.total - task.completed) / task.completed)
        return Text(f"{left // 60}:{left % 60:02d} left", style="cyan")


class _Bound(ProgressColumn):
    """The bound so far, in the field ``live``."""

    def render(self, task: Task) -> Text:
        """Draws it."""
        live = task.fields.get("live")
        return Text("" if live is None else f"bound {live:.2f} nats")


def progress_bar(console: Console) -> Progress:
    """A bar with a description, its live text and the time left. Off a terminal it draws nothing."""
    columns = [TextColumn("{task.description}"), BarColumn(), _Bound(), TimeElapsedColumn(), _TimeLeft()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _known(slot: Any) -> list[str]:
    """Names of the libraries' classes that fill a slot, given its type: a class, or a callable that returns one, or None."""

    def ours(part: Any) -> bool:
        return isinstance(part, type) and part.__module__.split(".")[0] in ("pyro_vae", "torch")

    inner = [slot, *get_args(slot)]
    inner += [deeper for part in inner for deeper in get_args(part)]
    bases = [part for part in inner if ours(part)]
    names: set[str] = set()
    while bases:
        below = bases.pop().__subclasses__()
        names |= {child.__name__ for child in below if ours(child) and not child.__name__.startswith("_")}
        bases += below
    return sorted(names)
