"""Compilation of a function of tensors that runs Pyro programs into one graph.

The programs and Pyro's handlers are traced once into a graph of tensor operations, which Inductor compiles
(`torch.fx.experimental.proxy_tensor.make_fx`). Everything that may change between two calls is an input of the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Set
from itertools import chain
from operator import attrgetter, is_
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.inductor import NotCompiledError, by_inductor, first_line
from pyro_vae.scopes import seeded
from pyro_vae.snapshot import Snapshot
from pyro_vae.traces import library_path

aten = torch.ops.aten
logger = logging.getLogger("pyro_vae")

Compile = Literal["auto", "on", "off"]
"""The choice of what is compiled: all that can be ("on"), nothing ("off"), or only what saves time overall ("auto")."""

FREE = frozenset({"state", "param_groups", "_opt_called"})
"""Attributes of estimators and optimizers that are inputs of a graph, or that a graph does not depend on."""


_version = attrgetter("_version")  # how often a tensor was written in place


class Compiled:
    """A compiled function of the inputs. It reads the current values of all parameters and buffers at each call.

    Args:
        run: the compiled graph.
        module: the module whose parameters and buffers are inputs of the graph.
        names: their names, in the order of the inputs.
        trained: how many of them, the first ones, are trained.
        snapshot: what else the graph was traced with.
        constants: tensors that the graph holds.
    """

    def __init__(
        self,
        run: Callable[..., list[Tensor]],
        module: nn.Module,
        names: Sequence[str],
        trained: int,
        snapshot: Snapshot,
        constants: Sequence[Tensor],
    ) -> None:
        self._run, self._snapshot, self._names, self._trained = run, snapshot, names, trained
        self._places = [_place(module, name) for name in names]
        self._constants, self._versions = constants, list(map(_version, constants))
        self._spaces = list({id(space): space for space, _ in self._places}.values())
        self._bind([space[name] for space, name in self._places])

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Runs the graph. `stale` is to be asked first."""
        with torch.no_grad():
            return self._run(*inputs, *self._held)

    def stale(self) -> str | None:
        """Returns the name of what the graph holds as a constant and is another now, or None.

        A tensor of the module that moved to other memory is no reason, and neither is a new tensor in the place of one that is
        not trained: the graph reads it from now on.
        """
        if where := self._snapshot.changed():
            return where
        if self._versions != list(map(_version, self._constants)):
            return "a tensor that is no parameter, buffer or input"
        if all(map(is_, chain.from_iterable(map(dict.values, self._spaces)), self._values)) and self._memory == list(
            map(Tensor.data_ptr, self._current)
        ):
            return None
        now: list[Any] = [space.get(name) for space, name in self._places]
        for i, (tensor, before) in enumerate(zip(now, self._current, strict=True)):
            replaced = tensor is not before and i < self._trained
            if replaced or tensor is None or _layout(tensor) != _layout(self._held[i]):
                return self._names[i]
        self._bind(now)
        return None

    def _bind(self, tensors: Sequence[Tensor]) -> None:
        # They share memory, so that an optimizer's update is seen in the module.
        self._current, self._held = tensors, [tensor.detach() for tensor in tensors]
        self._memory = list(map(Tensor.data_ptr, tensors))
        self._values = list(chain.from_iterable(map(dict.values, self._spaces)))


def compiled(
    programs: Any,
    function: Callable[..., list[Tensor]],
    leaves: Sequence[Tensor],
    inputs: Sequence[Tensor],
    rules: dict[Any, Callable[..., Any]],
    **watched: Any,
) -> Compiled:
    """Compiles ``function(swapped, held, *inputs)``, in which the programs use the tensors ``swapped`` as parameters.

    The tensors ``swapped`` require a gradient. The tensors ``held`` are plain tensors with the same values. If the
    function writes into ``held`` or into its inputs, the compiled function does the same.

    Args:
        programs: a module that holds the Pyro programs.
        function: a function that maps tensors to tensors and runs the programs.
        leaves: the parameters of the module that ``swapped`` and ``held`` stand for.
        inputs: example inputs, of the shapes of all later calls.
        rules: for each operation, a function that composes it from other operations.
        **watched: other objects that the function reads, by name. What is called `FREE` in them may change.

    Raises:
        NotCompiledError: the function cannot be traced or compiled.
    """
    if not isinstance(programs, nn.Module):
        raise NotCompiledError("the programs are no torch.nn.Module, whose parameters could be made inputs of a graph")
    state = {**dict(programs.named_parameters()), **dict(programs.named_buffers())}
    known = {id(tensor): name for name, tensor in state.items()}
    if not all(id(leaf) in known for leaf in leaves):
        raise NotCompiledError("a parameter lives in Pyro's store, or is not in the module any more")
    names = [known[id(leaf)] for leaf in leaves]
    names += [name for name in state if name not in names]  # inputs too, since a tensor in the graph is a constant
    snapshot = Snapshot({"": programs, **watched}, free=FREE)

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.programs = programs

        def forward(self, *arguments: Any) -> list[Tensor]:
            return function(*arguments)

    module = Called()

    def pure(*arguments: Tensor) -> list[Tensor]:
        given, rest = arguments[: len(inputs)], arguments[len(inputs) :]
        held, kept = rest[: len(leaves)], rest[len(leaves) :]
        swapped = [tensor.detach().requires_grad_() for tensor in held]
        named = {f"programs.{name}": tensor for name, tensor in zip(names, (*swapped, *kept), strict=True)}
        result: list[Tensor] = torch.func.functional_call(module, named, (swapped, held, *given))
        return result

    held = [state[name].detach() for name in names]
    try:
        with seeded(inputs[0].device, "trace"), library_path():
            graph = make_fx(pure, decomposition_table={**_decompositions(), **rules})(*inputs, *held)
    except NotCompiledError:
        snapshot.put_back()
        raise
    except Exception as error:
        snapshot.put_back()
        raise NotCompiledError(f"tracing failed: {first_line(error)}") from error
    for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # Inductor chooses the strides of a result
    constants = [*graph.buffers(), *graph.parameters()]
    constants += [value for value in vars(graph).values() if isinstance(value, Tensor)]
    _refuse_states(snapshot, {value.untyped_storage().data_ptr() for value in constants})
    return Compiled(by_inductor(graph, [*inputs, *held]), programs, names, len(leaves), snapshot, constants)


_graphs: WeakKeyDictionary[nn.Module, dict[Any, Compiled]] = WeakKeyDictionary()


def kept(
    programs: Any, function: Callable[..., list[Tensor]], inputs: tuple[Tensor, ...], key: Any, what: str
) -> Callable[..., list[Tensor]]:
    """Returns a function that trains nothing, for inputs of these shapes, as one compiled graph.

    The graphs of a module are kept from call to call, as long as what they hold as constants stays the same. If the function
    cannot be compiled, it is returned itself, and the reason is logged.

    Args:
        programs: a module that holds the Pyro programs.
        function: a function that maps tensors to tensors and runs the programs.
        inputs: example inputs, of the shapes of all later calls.
        key: what distinguishes the function from others of these programs.
        what: what is computed, for the log.
    """
    key = (what, key, *map(_layout, inputs))

    def whole(_swapped: Sequence[Tensor], _held: Sequence[Tensor], *given: Tensor) -> list[Tensor]:
        return function(*given)

    graphs = _graphs.get(programs, {}) if isinstance(programs, nn.Module) else {}
    if key not in graphs or graphs[key].stale():
        try:
            graphs[key] = compiled(programs, whole, [], inputs, {})
        except NotCompiledError as reason:
            logger.warning("%s is computed eagerly: %s", what, reason)
            return function
        _graphs[programs] = graphs
    return graphs[key]


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary of a submodule that holds a tensor, and its name there."""
    owner, _, last = name.rpartition(".")
    submodule = module.get_submodule(owner)
    return (submodule._parameters if last in submodule._parameters else submodule._buffers), last


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _refuse_states(snapshot: Snapshot, read: Set[int]) -> None:
    """Raises NotCompiledError if the programs wrote what a later run of them would read, which a graph does not do.

    A tensor that is kept for a user to look at is none: the graph does not read the one that was there before.

    Args:
        snapshot: what objects held before tracing.
        read: the memory of the tensors that the graph reads as constants.
    """
    for where, before, now in snapshot.put_back():
        kept = (
            isinstance(before, Tensor) and isinstance(now, Tensor) and before.untyped_storage().data_ptr() not in read
        )
        if not kept:
            raise NotCompiledError(
                f"{where} changes while the programs run, and a graph would not change it: keep what moves from step to step "
                f"in a buffer of the module, or in the estimator's state"
            )
        snapshot.leave_free(where)


def _decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Returns rules that replace softplus and Bernoulli's log-probability by log1p, and log1p by a faster form.

    This form, log(1+u) · u / ((1+u) - 1), is five times as fast. It is accurate to the last bits for every u > -1,
    since the rounding of 1 + u cancels (Goldberg 1991, theorem 4). The vector library's own log1p takes longer than the
    matrix product of a layer.
    """

    def log1p(u: Tensor) -> Tensor:
        v = 1 + u
        correction = torch.where(v - 1 == u, 1.0, u / (v - 1))  # it is 1 where u is infinite too
        return torch.where(v == 1, u, v.log() * correction)

    composed = [aten.softplus, aten.softplus_backward, aten.binary_cross_entropy_with_logits]
    composed += [aten.log_sigmoid_forward, aten.log_sigmoid_backward]
    return {**get_decompositions(composed), aten.log1p.default: log1p}
