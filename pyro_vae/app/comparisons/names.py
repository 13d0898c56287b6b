"""The names of what is compared: a class with those of its options that are not its defaults, ``IWAE(stl=True)``.

The same names stand in tables, above pictures, and in the names of files and folders.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from pyro_vae.description import describe, path_of
from pyro_vae.files import digest
from pyro_vae.trust import LIBRARIES, OWN, Named, here

_LONGEST = 120
"""The longest name of a file, without its suffix: file systems take 255 bytes."""


def labels(described: Sequence[str | Mapping[str, Any]], option: str) -> list[str]:
    """The names of several described classes, all different.

    Where two classes of the same name and with the same options differ in their module alone, a number stands behind each.

    Raises:
        ValueError: none, or one twice.
    """
    forms, names = [essential(each) for each in described], [label(each) for each in described]
    if not names:
        raise ValueError(f"{option}: expected at least one")
    if twice := {name for name, form in zip(names, forms, strict=True) if forms.count(form) > 1}:
        raise ValueError(f"{option}: {', '.join(sorted(twice))} stands there twice")
    return [
        f"{name}-{digest(form)[:6]}" if names.count(name) > 1 else name for name, form in zip(names, forms, strict=True)
    ]


def label(described: str | Mapping[str, Any]) -> str:
    """The name of a described class, with the options that are not the class's own."""
    return _shown(essential(described))


def class_and_options(described: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The import path of a described class, and its options."""
    if isinstance(described, str):
        return described, {}
    return described["class_path"], {**(described.get("init_args") or {}), **(described.get("dict_kwargs") or {})}


def file_name(*key: object) -> str:
    """A name for a cell's file or folder, which no other key has.

    Lists are in round brackets. Where a character cannot stand in the name of a file, or the name would be too long, a
    number for the whole key stands in it, before the last part, which is the seed or K.
    """
    whole = "-".join(str(each) for each in key)
    plain = whole.replace("[", "(").replace("]", ")").replace(" ", "")
    name = re.sub(r"[^\w.,=()+-]|^\W", "_", plain, flags=re.ASCII)
    if name == plain and len(name) <= _LONGEST:
        return name
    last = file_name(key[-1]) if len(key) > 1 else ""
    end = f"-{hashlib.sha256(whole.encode()).hexdigest()[:8]}" + (f"-{last}" if 0 < len(last) <= _LONGEST // 4 else "")
    return name.removesuffix(f"-{last}")[: _LONGEST - len(end)] + end


def essential(value: Any) -> Any:
    """A description without what is the default of its class, and with the shortest import paths.

    Two descriptions of the same class with the same options are equal in this form, however they were written.
    """
    if isinstance(value, Mapping) and "class_path" in value:
        path, options = class_and_options(value)
        found = _find(path)
        own = {name: essential(each) for name, each in options.items() if not _is_default(found, name, each)}
        path = path_of(found) if found else path
        return {"class_path": path, "init_args": own} if own else path
    if isinstance(value, Mapping):
        return {name: essential(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [essential(each) for each in value]
    if isinstance(value, str) and "." in value and (found := _find(value)):
        return path_of(found)
    return value


def _is_default(found: Named | None, name: str, value: Any) -> bool:
    """Whether an option of a class has the default that the class gives it."""
    default = _default(found, name) if found else Parameter.empty
    if default is Parameter.empty:
        return False
    own, given = essential(describe(default)), essential(value)
    return bool(own == given) and isinstance(own, bool) == isinstance(given, bool)


def _default(found: Named, name: str) -> Any:
    """The default of an option. A class may hand options on to the classes that it is derived from."""
    for each in found.__mro__ if isinstance(found, type) else (found,):
        made = vars(each).get("__init__") if isinstance(each, type) else each
        if made is not None and name in (parameters := signature(made).parameters):
            return parameters[name].default
    return Parameter.empty


def _find(path: str) -> Named | None:
    try:
        return here().find(path)
    except ValueError:  # text with a dot in it, such as the name of a file
        return None


def _shown(form: Any) -> str:
    """An essential description as a person would write it."""
    if isinstance(form, dict) and "class_path" in form:
        own = ", ".join(f"{name}={_shown(each)}" for name, each in form["init_args"].items())
        return f"{_shown(form['class_path'])}({own})"
    if isinstance(form, dict):
        return "{" + ", ".join(f"{name}={_shown(each)}" for name, each in form.items()) + "}"
    if isinstance(form, list):
        return f"[{', '.join(map(_shown, form))}]"
    if isinstance(form, str) and any(form.startswith(f"{module}.") for module in (OWN, *LIBRARIES)):
        return form.rpartition(".")[2]
    return str(form)
