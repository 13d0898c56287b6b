"""Which modules a file may name, and how the class or the function behind an import path is found.

Naming a class in a file makes this program import a module and call what is in it. Both run code. So a file names only what
is defined in this project, in the modules of PyTorch and Pyro that have something for a slot, and in modules of your own that
you say are trusted. Nothing else is imported, whatever the file says. What is found must also fit the place where it is named,
which `pyro_vae.construction` checks before anything is called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

Named = type | FunctionType
"""What an import path may stand for."""
OWN = "pyro_vae"
LIBRARIES = {
    "torch.nn": "torch.nn.modules",
    "torch.nn.init": "torch.nn.init",
    "torch.optim": "torch.optim",
    "pyro.infer": "pyro.infer",
    "torchvision.datasets": "torchvision.datasets",
    "torchvision.transforms": "torchvision.transforms",
}
"""The modules of libraries that have something for a slot, as they are named, and where their own classes are defined."""
UNPICKLING = "torchvision.datasets.lsun"
"""A module that unpickles files whose content it does not know. That of CIFAR unpickles only files of digests that it knows."""


class UntrustedError(ValueError):
    """A file names what it must not name. Nothing was imported."""


@dataclass(frozen=True)
class Trust:
    """The modules of your own that a file may name, beside those that every file may name.

    Attributes:
        modules: their names; with a package, all modules in it.
        folder: every module that is a file or a package in this folder is trusted too. The command line trusts the folder that
            its user stands in. A folder without ``__init__.py`` is no package here, though Python would import from it.
        opened: files and folders that may come from anybody, such as the configuration that is read. A package that holds one
            of them is not trusted: it may have come with it.
    """

    modules: tuple[str, ...] = ()
    folder: Path | None = None
    opened: tuple[Path, ...] = ()

    @classmethod
    def of(cls, trust: str | Sequence[str] | Trust) -> Trust:
        """The trust that a caller gives by the name of a module, or by several."""
        if isinstance(trust, Trust):
            return trust
        return cls((trust,) if isinstance(trust, str) else tuple(trust))

    def find(self, path: str) -> Named:
        """The class or function of an import path, found without importing any module that is not trusted.

        Raises:
            UntrustedError: it is not in a trusted module, or it is defined in another one.
            ValueError: a module that is trusted is missing or cannot be imported, or there is no such name in it.
        """
        names = path.split(".")
        if len(names) < 2 or not all(name.isidentifier() for name in names):
            raise UntrustedError(f"{path!r} is no import path of a class or a function, such as my_parts.Mine")
        if names[-1] in ("yaml", "yml", "json"):
            raise UntrustedError(
                f"{path} is not allowed here: expected a class, not a file; --config alone reads a file"
            )
        if not self._is_named(path):
            if missing := self._is_nowhere(names[0]):
                raise UntrustedError(f"{path}: {missing}")
            raise UntrustedError(f"{path} is not allowed here: {self._allowed(path)}")
        found: Any = self._imported(path, names[0])
        for name in names[1:]:
            found = self._inside(path, found, name) if isinstance(found, ModuleType | type) else None
        if not isinstance(found, Named):
            module, _, name = path.rpartition(".")
            raise ValueError(f"{path}: there is no class or function {name} in {module}{_file_of(module)}")
        if not self._is_defined(found.__module__):
            raise UntrustedError(
                f"{path} is not allowed here: it is defined in {found.__module__}, which is not trusted. {self._allowed(path)}"
            )
        return found

    def owns(self, module: str) -> bool:
        """Whether this is a trusted module of the caller's own.

        This project is none, also where one stands in its own folder: much of it is no part, and writes files.
        """
        root = module.partition(".")[0]
        if root == OWN:
            return False
        return any(_is_inside(module, each) for each in self.modules) or (
            self.folder is not None and self._is_here(root)
        )

    def defines(self, kind: type) -> bool:
        """Whether a class is defined in a module that a file may name."""
        return self._is_defined(kind.__module__)

    def _is_named(self, path: str) -> bool:
        return any(_is_inside(path, each) for each in (OWN, *LIBRARIES)) or self.owns(path)

    def _is_defined(self, module: str) -> bool:
        library = any(_is_inside(module, each) for each in (OWN, *LIBRARIES.values()))
        return (library and module != UNPICKLING) or self.owns(module)

    def _is_here(self, root: str) -> bool:
        """Whether a module of this name would be, or was, imported from the trusted folder. Nothing is imported."""
        try:
            spec = find_spec(root)
        except (ValueError, ImportError):  # a module that was made by hand, such as __main__
            return False
        if spec is None or self.folder is None or not spec.has_location or not spec.origin:
            return False
        place = Path(spec.origin).parent.resolve()
        if not spec.submodule_search_locations:
            return place == self.folder.resolve()
        return place.parent == self.folder.resolve() and not any(
            each.resolve().is_relative_to(place) for each in self.opened
        )

    def _inside(self, path: str, owner: ModuleType | type, name: str) -> Any:
        """What a module or a class has under a name: a class, a function, or a module of that package.

        A module that a module merely imports, as ``os`` often is, is none of these. Attributes that are made when they are
        asked for are not looked at, since making them may import anything.
        """
        inner = vars(owner).get(name)
        if inner is None and owner.__name__ == OWN and name in getattr(owner, "__all__", ()):
            inner = getattr(owner, name)  # this package imports its own names when they are asked for
        if isinstance(owner, type) or isinstance(inner, Named):
            return inner
        full = f"{owner.__name__}.{name}"
        inner = inner if isinstance(inner, ModuleType) else sys.modules.get(full)
        if inner is not None:
            return inner if inner.__name__ == full else None
        if not (_is_inside(full, OWN) or self.owns(full)) or not hasattr(owner, "__path__"):
            return None
        spec = find_spec(full)
        # In a trusted folder a package is what has an __init__.py, at every level.
        return self._imported(path, full) if spec and (self.folder is None or spec.origin) else None

    def _imported(self, path: str, module: str) -> ModuleType:
        """Imports a trusted module, or a package that leads to one."""
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name == module:
                raise ValueError(f"{path} is in the module {module}, and {_missing(module)}") from error
            raise ValueError(f"{path}: the module {module} cannot be imported ({error})") from error
        except Exception as error:  # a user's file raises anything
            raise ValueError(
                f"{path}: the module {module} cannot be imported ({type(error).__name__}: {error})"
            ) from error

    def _allowed(self, path: str) -> str:
        """What may be named instead, and how a module of one's own is trusted."""
        root = path.partition(".")[0]
        libraries = ", ".join(LIBRARIES)
        allowed = f"a file may name what fits from {OWN}, {libraries}, and from modules of your own"
        if self.folder is not None:
            return f"{allowed} in the folder you stand in ({self.folder}); {self._why_not(root)}"
        own = root.isidentifier() and root not in (*sys.stdlib_module_names, "torch", "pyro", "torchvision", "numpy")
        told = f'{allowed} that you trust by name: load(folder, trust="{root if own else "my_parts"}")'
        if own and root not in sys.modules and find_spec(root) is None:
            told += f", once it can be imported; now {_missing(root)}"
        return told

    def _is_nowhere(self, root: str) -> str:
        """What to say where there is no module of this name at all, as if it is misspelled; the empty text otherwise."""
        if self.folder is None or (self.folder / root).exists() or root in sys.modules or find_spec(root) is not None:
            return ""
        near = get_close_matches(root, [each.stem for each in self.folder.glob("*.py")], n=2)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"there is no module {root} in the folder you stand in ({self.folder}){meant}"

    def _why_not(self, root: str) -> str:
        """Why a module of this name is not taken from the trusted folder."""
        assert self.folder is not None
        if (self.folder / root / "__init__.py").is_file():
            return f"the package {root} in it holds the file that names it, and may have come with it"
        if (self.folder / root).is_dir():
            return f"{root} in it is a folder without __init__.py, and no package"
        if (self.folder / f"{root}.py").is_file():
            return f"{root}.py in it has the name of an installed module: give it another name"
        return f"there is no module {root} in it"


def here(*opened: Path) -> Trust:
    """The trust of a command line: the modules in the folder that its user stands in.

    Args:
        opened: the files and folders that are read, which may come from anybody.
    """
    return Trust(folder=Path.cwd(), opened=opened)


def _is_inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _file_of(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    return f" ({file})" if file else ""


def _missing(module: str) -> str:
    looked = ", ".join(str(Path(each).absolute()) for each in sys.path if not each.endswith(".zip"))
    return (
        f"there is no such module in any of: {looked}. Start Python in the folder of {module}.py, or add that folder to "
        f"sys.path or PYTHONPATH"
    )
