"""What Pyro programs are here, and how this library runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import pyro
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

Program = Callable[..., Any]
"""A Pyro model or guide."""


Site = Mapping[str, Any]


@runtime_checkable
class Programs(Protocol):
    """A Pyro model and a Pyro guide that are trained and evaluated together, and called with the same data.

    A `VAE` is an example. An attribute ``inputs``, a tuple of names, declares the arguments of both programs in their
    order: ``("x",)`` for the data alone, or ``("x", "y")`` for the data and their labels. Programs without this
    attribute are called with x alone.
    """

    @property
    def model(self) -> Program:
        """The Pyro model p(t) p(x|t,w)."""

    @property
    def guide(self) -> Program:
        """The Pyro guide q(t|x,φ)."""


def inputs_of(programs: Any) -> tuple[str, ...]:
    """Returns the names of the programs' arguments: ``("x",)``, unless they declare others (see `Programs`)."""
    return tuple(getattr(programs, "inputs", ("x",)))


class _ModuleParams(Messenger):
    """Makes ``pyro.param`` return a module's own parameter, so that Pyro's global store is not used.

    ``pyro.module`` asks for each parameter under a name with a divider. The tensor that it passes is used unchanged,
    also where a compiled graph has replaced the parameter by another tensor.
    """

    def _pyro_param(self, msg: Any) -> None:
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(init, nn.Parameter) or _MODULE_NAMESPACE_DIVIDER in msg["name"]:
            msg["value"], msg["done"] = init, True


@contextmanager
def library_path() -> Iterator[None]:
    """Runs Pyro programs as this library does: parameters stay in their modules, and nothing is validated at each step.

    A bare ``pyro.param`` belongs to no module and still lives in Pyro's store. The validation flags of Pyro and of
    PyTorch and ``module_local_params`` are restored at the end.
    """
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False), _ModuleParams():
        yield


def parameters(
    model: Program, guide: Program, *args: Any, **kwargs: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the parameters that one run of each program uses, as unconstrained leaves by name.

    The parameters of the model (w) come first, then those of the guide (φ). A parameter that both use counts as the
    guide's.
    """
    with library_path():
        guide_trace = traced(guide, *args, **kwargs)
        model_trace = traced(poutine.replay(model, trace=guide_trace), *args, **kwargs)
    phi = _parameters(guide_trace)
    taken = {id(value) for value in phi.values()}
    return {name: value for name, value in _parameters(model_trace).items() if id(value) not in taken}, phi


@contextmanager
def parameters_used() -> Iterator[list[Tensor]]:
    """Gives a list that holds, at the end, the unconstrained leaf of each parameter that programs used meanwhile."""
    found: list[Tensor] = []
    with poutine.trace(param_only=True) as captured:
        yield found
    found += _parameters(captured.trace).values()


def layers(distribution: Any) -> list[Any]:
    """Returns a distribution and those inside it, under ``to_event`` and masks, the innermost last."""
    found = [distribution]
    while isinstance(found[-1], Independent | MaskedDistribution):
        found.append(found[-1].base_dist)
    return found


def _parameters(trace: poutine.Trace) -> dict[str, Tensor]:
    """Returns the unconstrained leaf of each parameter.

    Pyro's store makes it an attribute of the value. A module's own parameter is a leaf itself.
    """
    values: dict[str, Any] = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "param"}
    return {name: value.unconstrained() if hasattr(value, "unconstrained") else value for name, value in values.items()}


def traced(program: Program, *args: Any, **kwargs: Any) -> poutine.Trace:
    """Returns the trace of a run. Errors are those of the program, without the shapes of all sites that Pyro adds to them."""
    try:
        return poutine.trace(program).get_trace(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        own: BaseException = error
        while "Trace Shapes:" in str(own) and own.__cause__ is not None:
            own = own.__cause__
        raise own from own.__cause__
