"""What the words of a command line and the files that they name say, before any parser reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from pyro_vae.app.console import fail
from pyro_vae.app.given import said
from pyro_vae.files import read_yaml
from pyro_vae.trust import Trust


def run_of(arguments: Sequence[str]) -> str | None:
    """The run that the words of a command line, or a configuration that they name, give; the last one counts."""
    found = None
    for _, option, value in said(arguments):
        if option == "--run":
            found = None if value == "null" else value
        elif option == "--config" and value and Path(value).is_file():
            try:
                tree = read_yaml(Path(value))
            except ValueError:
                continue  # the parser tells it
            found = tree.get("run") or found if isinstance(tree, dict) else found
    return str(found) if found else None


def data_of_run(folder: Path, trust: Trust) -> dict[str, Any]:
    """The description of the data that a run was trained on, from its folder.

    Raises:
        ValueError: the folder has none, or names a class that is not trusted.
    """
    path = folder / "config.yaml"
    config = read_yaml(path)
    data = config.get("data") if isinstance(config, dict) else None
    if isinstance(data, str):
        data = {"class_path": data}
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        raise ValueError(f"{path} does not say which data the model was trained on: name them with --data CLASS")
    try:
        trust.find(data["class_path"])
    except ValueError as error:
        raise ValueError(f"{path}: data: {error}") from error
    return {"class_path": data["class_path"], "init_args": dict(data.get("init_args") or {})}


def told_data(data: Mapping[str, Any], whose: str) -> str:
    """A line that says which data are taken."""
    options = ", ".join(f"{name}={value}" for name, value in data.get("init_args", {}).items())
    return f"Data: {data['class_path'].rpartition('.')[2]}({options}), {whose}. Others: --data CLASS"


def words_for(option: str, described: Mapping[str, Any], trust: Trust) -> list[str]:
    """The words that name a class, with the options that it cannot do without."""
    parameters = signature(trust.find(described["class_path"])).parameters
    given = described.get("init_args", {})
    required = [name for name, each in parameters.items() if name in given and each.default is each.empty]
    return [f"--{option}={described['class_path']}", *(f"--{option}.{name}={given[name]}" for name in required)]


def check_files(arguments: Sequence[str]) -> None:
    """Ends the program where a configuration is no text, or is too large, or names another one."""
    for _, option, value in said(arguments):
        if option == "--config" and value:
            file = Path(value)
            if file.is_dir():
                inside = f": name the file in it, {file / 'config.yaml'}" if (file / "config.yaml").is_file() else ""
                fail(f"config: {value} is a folder, and no file{inside}", status=2)
            try:
                tree = read_yaml(file)
            except FileNotFoundError:
                fail(f"config: {value}: there is no such file", status=2)
            except OSError as error:
                fail(f"config: {value} cannot be read ({error.strerror})", status=2)
            except ValueError as error:
                fail(f"config: {_problem(file, error)}", status=2)
            if not isinstance(tree, dict):
                what = "nothing" if tree is None else "a list" if isinstance(tree, list) else repr(tree)[:60]
                fail(f"config: {value}: expected options by name, such as latent: 8, got {what}", status=2)
            if inner := tree.keys() & {"config", "print_config"}:
                fail(f"config: {value}: {inner.pop()} is an option of the command line, and of no file", status=2)


def _problem(file: Path, error: ValueError) -> str:
    """What is wrong with a file of YAML, in a line, with the place where it is known."""
    mark = getattr(error.__cause__, "problem_mark", None)
    if mark is None:
        return str(error)
    problem = getattr(error.__cause__, "problem", None) or "no YAML"
    return f"{file}, line {mark.line + 1}, column {mark.column + 1}: Problems parsing config: {problem}"


def place_of(path: str, arguments: Sequence[str]) -> str:
    """The options, or the places in a configuration, that name this import path, for a message."""
    for _, option, value in said(arguments):
        if option == "--config" and value and Path(value).is_file():
            if where := _search(path, read_yaml(Path(value))):
                return f"{value}: {where.lstrip('.')}: "
        elif value and path in value:
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
