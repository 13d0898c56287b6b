"""The annotations of the package are checked in tests: shapes by jaxtyping, all else by beartype, where an int is a float.

jaxtyping's own import hook wraps every function, which takes three quarters of the time of a training step. Here it wraps those
that name the shape of an array, and beartype alone the others. A function inside another is made anew whenever the other one
runs, and is only checked if it names a shape: what else it says is left to mypy.
"""

from __future__ import annotations

import ast
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

types = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))


def shapes(function):
    return jaxtyped(function, typechecker=types)


def fields(cls):
    """Checks what a dataclass is made with."""
    if "__init__" in vars(cls):
        cls.__init__ = types(cls.__init__)
    return cls


class Checked(ast.NodeTransformer):
    """Decorates functions and dataclasses, innermost and outermost: what other decorators make of them is not checked."""

    def __init__(self) -> None:
        self.arrays: set[str] = set()
        self.inside = False

    def visit_Module(self, node):
        first = [i for i, each in enumerate(node.body) if i == 0 or getattr(each, "module", "") == "__future__"]
        self.generic_visit(node)
        node.body.insert(len(first), ast.Import([ast.alias("typechecker")]))
        return node

    def visit_ImportFrom(self, node):
        if node.module == "jaxtyping":
            self.arrays.update(each.asname or each.name for each in node.names)
        return node

    def visit_If(self, node):
        if "TYPE_CHECKING" in self._names([node.test]):  # jaxtyping takes for anything what is not there when tests run
            self.arrays.update(name.asname or name.name for each in node.body for name in each.names)
        return node

    def visit_Assign(self, node):
        if self._names([node.value]) & self.arrays:  # a name for an array
            self.arrays.update(self._names(node.targets))
        return node

    def visit_ClassDef(self, node):
        self.generic_visit(node)
        if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            annotations = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
            self._decorate(node, annotations, "fields", first=True)
        return node

    def visit_FunctionDef(self, node):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        annotations = [each.annotation for each in every if each] + [node.returns]
        self._decorate(node, [each for each in annotations if each], "types", first=False)
        was, self.inside = self.inside, True
        self.generic_visit(node)
        self.inside = was
        return node

    def _decorate(self, node, annotations, plain, first):
        shaped = self._names(annotations) & self.arrays
        if shaped or (annotations and not self.inside):
            decorator = ast.parse(f"typechecker.{'shapes' if shaped else plain}", mode="eval").body
            node.decorator_list.insert(0 if first else len(node.decorator_list), decorator)
            for part in ast.walk(decorator):
                ast.copy_location(part, node)

    @staticmethod
    def _names(nodes):
        return {part.id for each in nodes for part in ast.walk(each) if isinstance(part, ast.Name)}


class Loader(SourceFileLoader):
    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = Checked().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "pyro_vae":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """Checks all modules of the package that are imported from now on."""
    sys.meta_path.insert(0, Finder())
