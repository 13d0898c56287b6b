"""Compilation of a function of tensors that runs Pyro programs into one graph.

The programs and Pyro's handlers are traced once into a graph of tensor operations, which Inductor compiles
(`torch.fx.experimental.proxy_tensor.make_fx`). Everything that may change between two calls is an input of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path

aten = torch.ops.aten

Compile = Literal["auto", "on", "off"]
"""The choice of what is compiled: all that can be ("on"), nothing ("off"), or only what saves time overall ("auto")."""


class NotCompiledError(Exception):
    """Raised if a function cannot be compiled; the message says why."""


def compiled(
    programs: Any,
    function: Callable[..., list[Tensor]],
    leaves: Sequence[Tensor],
    inputs: Sequence[Tensor],
    rules: dict[Any, Callable[..., Any]],
    *watched: Any,
) -> Callable[..., list[Tensor]]:
    """Compiles ``function(swapped, held, *inputs)``, in which the programs use the tensors ``swapped`` as parameters.

    The tensors ``swapped`` require a gradient. The tensors ``held`` are plain tensors with the same values. If the
    function writes into ``held`` or into its inputs, the compiled function does the same.

    Args:
        programs: a module that holds the Pyro programs.
        function: a function that maps tensors to tensors and runs the programs.
        leaves: the parameters of the module that ``swapped`` and ``held`` stand for.
        inputs: example inputs, of the shapes of all later calls.
        rules: for each operation, a function that composes it from other operations.
        watched: objects that tracing must not change.

    Returns:
        The compiled function of the inputs. It reads the current values of the leaves at each call.

    Raises:
        NotCompiledError: the function cannot be traced or compiled.
    """
    if not isinstance(programs, nn.Module):
        raise NotCompiledError("the programs are no torch.nn.Module, whose parameters could be made inputs of a graph")
    state = {**dict(programs.named_parameters()), **dict(programs.named_buffers())}
    known = {id(tensor): name for name, tensor in state.items()}
    if not all(id(leaf) in known for leaf in leaves):
        raise NotCompiledError("a parameter lives in Pyro's store and not in the module")
    names = [known[id(leaf)] for leaf in leaves]
    others = [name for name in state if name not in names]  # inputs too, since a tensor in the graph is a constant
    before = [dict(vars(each)) for each in watched]

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
        tensors = zip((*names, *others), (*swapped, *kept), strict=True)
        named = {f"programs.{name}": tensor for name, tensor in tensors}
        result: list[Tensor] = torch.func.functional_call(module, named, (swapped, held, *given))
        return result

    held = [state[name].detach() for name in (*names, *others)]  # they share memory, so an optimizer's update is seen
    try:
        with seeded(inputs[0].device, "trace"), library_path():
            graph = make_fx(pure, decomposition_table={**_decompositions(), **rules})(*inputs, *held)
    except Exception as error:
        raise NotCompiledError(f"tracing failed: {_first_line(error)}") from error
    for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # Inductor chooses the strides of a result
    for each, kept in zip(watched, before, strict=True):
        if any(value is not kept.get(name) for name, value in vars(each).items()):
            vars(each).update(kept)
            raise NotCompiledError(f"{type(each).__name__} keeps a state from step to step")
    options: dict[str, Any] = {"fallback_random": True}
    if inputs[0].is_cuda:
        options["triton.cudagraphs"] = True
    try:
        with torch.no_grad(), seeded(inputs[0].device, "compile"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # caused by Inductor itself
            run = torch._inductor.compile(graph, [*inputs, *held], options=options)
            run(*inputs, *held)  # it runs now, so that a missing compiler is found here
    except Exception as error:
        raise NotCompiledError(f"compiling failed: {_first_line(error)}") from error

    def call(*arguments: Tensor) -> list[Tensor]:
        with torch.no_grad():
            result: list[Tensor] = run(*arguments, *held)
            return result

    return call


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


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"
