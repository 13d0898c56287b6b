"""The training step as one compiled graph.

The programs are traced once, handlers, estimator, derivatives, optimizer and sums together, into one graph of tensor
operations, which Inductor compiles. What changes from step to step is a tensor input: parameters, buffers, the optimizer's and
the estimator's state, the batch's indices, the weight of the KL, the learning rates, and the other numbers of the optimizer that
a schedule moves. What the graph holds as a constant is watched, and a change makes a new graph. Random numbers are drawn by the
same generator in the same order as on the eager path, so that both agree within rounding; that is checked on one batch before
the graph is used.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from inspect import unwrap
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_vae.compilation import Compile, NotCompiledError, compiled
from pyro_vae.evaluate.bound import Sums
from pyro_vae.scopes import seeded
from pyro_vae.snapshot import Snapshot
from pyro_vae.traces import library_path
from pyro_vae.training.settings import Name, Setting, composing, is_number, powers, settings_of, sign, with_settings
from pyro_vae.training.step import Step, Update

AUTO_STEPS = 5_000
"""Compiling takes 5 to 30 s on two cores and saves 2 to 5 ms a step."""
MOST_GRAPHS = 5
"""How many graphs a phase may have in one run, each for other constants, before steps run eagerly."""

logger = logging.getLogger("pyro_vae")


def make_step(update: Update, compile: Compile, steps: int, batch_size: int) -> Step:
    """The compiled step where that is wanted and can be, else the eager one; ``steps`` is how many lie ahead."""
    wanted = compile == "on" or (compile == "auto" and steps >= AUTO_STEPS)
    return CompiledStep(update, batch_size) if wanted else update


class CompiledStep:
    """The same steps as compiled graphs, one for each phase.

    The first step of a phase runs eagerly: it makes the optimizer's state. The second one makes the graph. So it is again when
    something changes that the graph holds as a constant: a number of the optimizer becomes an input of a new graph, and for
    anything else (the mode of a submodule, an attribute, which parameters require a gradient) the new graph has other constants.
    Any batch of another size runs eagerly, and so does everything from there on if a graph cannot be made or would have to be
    made anew again and again, for which the logger "pyro_vae" gives the reason once.

    Args:
        update: the step.
        batch_size: the number of data in a batch that is compiled; others run eagerly.
    """

    def __init__(self, update: Update, batch_size: int) -> None:
        self.update, self.batch_size = update, batch_size
        self._graphs: dict[Hashable, Graph | Literal["next", "never"]] = {}
        self._settings: dict[Name, Any] = {}
        self._moving: frozenset[Name] = frozenset()
        self._made: Counter[str] = Counter()
        self._told = False

    def __call__(self, index: Tensor, kl_weight: float, phase: str) -> Sums:
        """One step."""
        if len(index) != self.batch_size:
            return self.update(index, kl_weight, phase)
        key = self._key(phase)
        graph = self._graphs.get(key)
        if isinstance(graph, Graph) and (where := graph.stale()):
            graph = None
            if self._made[phase] >= MOST_GRAPHS:
                graph = self._never(
                    key, f"{where} changes again and again, and a graph holds it as a constant: keep it in a buffer of the module"
                )
        if graph is None:
            self._graphs[key] = "next"
            return self.update(index, kl_weight, phase)
        if graph == "next":
            try:
                if self._made[phase] >= MOST_GRAPHS:
                    raise NotCompiledError("the optimizer's settings change again and again, and a graph holds them as constants")
                self._made[phase] += 1
                graph = Graph(self.update, index, phase, self._moving)
                self._graphs[key] = graph
            except NotCompiledError as reason:
                graph = self._never(key, str(reason))
        return graph(index, kl_weight) if isinstance(graph, Graph) else self.update(index, kl_weight, phase)

    def _key(self, phase: str) -> Hashable:
        """What a graph holds as constants of the optimizer. A number that changed since the last step is none any more."""
        now = settings_of(self.update.optimizer)
        if now != self._settings:
            if now.keys() == self._settings.keys():
                changed = {name for name, value in now.items() if value != self._settings[name]}
                self._moving |= {name for name in changed if is_number(now[name]) and is_number(self._settings[name])}
            self._settings = now
        constants = tuple((name, sign(value) if name in self._moving else value) for name, value in now.items())
        return phase, constants, tuple(leaf.requires_grad for leaf in self.update.phases[phase])

    def _never(self, key: Hashable, reason: str) -> Literal["never"]:
        if not self._told:
            logger.warning("Steps run eagerly: %s", reason)
        self._told = True
        self._graphs[key] = "never"
        return "never"


class Graph:
    """The compiled step of one phase, checked against the eager one.

    Args:
        update: the step; its optimizer has a state.
        index: the indices of a batch.
        phase: the phase.
        moving: the settings of the optimizer that are inputs of the graph.

    Raises:
        NotCompiledError: it cannot be traced or compiled, or its results differ.
    """

    def __init__(self, update: Update, index: Tensor, phase: str, moving: frozenset[Name] = frozenset()) -> None:
        self.update, self.phase, self.leaves = update, phase, update.leaves(phase)
        _refuse_hooks(update.optimizer, self.leaves)
        self._moving = [name for name in settings_of(update.optimizer) if name in moving]
        self._states = [
            (leaf, name)
            for leaf in self.leaves
            for name, value in update.optimizer.state[leaf].items()
            if isinstance(value, Tensor)
        ]
        self._layouts = [_layout(value) for value in self._state()]
        self._numbers: list[float] = []
        self._scalars: list[Tensor] = []
        counts = {float(value) for (_, name), value in zip(self._states, self._state(), strict=True) if name == "step"}
        self._shared = len(counts) == 1
        rules = {torch.ops.aten._foreach_pow.ScalarAndTensor: partial(powers, shared=self._shared)}
        inputs = self._inputs(index, 1.0)
        with self._put_back():  # tracing runs what it traces
            self._run = compiled(update.programs, self._whole, self.leaves, inputs, rules, estimator=update.estimator)
        self._check(index)

    def __call__(self, index: Tensor, kl_weight: float) -> Sums:
        """One step. `stale` is to be asked first."""
        row, bound = self._run(*self._inputs(index, kl_weight))
        return Sums(row, bound)

    def stale(self) -> str | None:
        """Returns the name of what the graph holds as a constant and is another now, or None."""
        try:
            if any(_layout(value) != layout for value, layout in zip(self._state(), self._layouts, strict=True)):
                return "the optimizer's state"
            _refuse_hooks(self.update.optimizer, self.leaves)
        except KeyError:
            return "the optimizer's state"
        except NotCompiledError as reason:
            return str(reason)
        return self._run.stale()

    def _state(self) -> list[Tensor]:
        """The tensors of the optimizer's state."""
        state = self.update.optimizer.state
        return [state[leaf][name] for leaf, name in self._states]

    def _inputs(self, index: Tensor, kl_weight: float) -> list[Tensor]:
        groups = self.update.optimizer.param_groups
        settings = settings_of(self.update.optimizer) if self._moving else {}
        numbers = [kl_weight, *(float(group["lr"]) for group in groups), *(settings[name] for name in self._moving)]
        if not self._scalars:
            like, rest = self.leaves[0].dtype, [torch.float64] * len(self._moving)  # 1 - β₂ needs more digits than float32 has
            dtypes = [like] * (1 + len(groups)) + rest
            self._scalars = [
                torch.tensor(number, dtype=dtype, device=index.device)
                for number, dtype in zip(numbers, dtypes, strict=True)
            ]
        for scalar, number, before in zip(self._scalars, numbers, self._numbers, strict=False):
            if number != before:
                scalar.fill_(number)
        self._numbers = numbers
        state = self.update.estimator.state.values()
        return [*self.update.columns.tensors, index, *self._scalars, *self._state(), *state]

    def _whole(self, swapped: Sequence[Tensor], held: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
        n, estimator = len(self.update.columns.tensors), self.update.estimator
        groups = self.update.optimizer.param_groups
        index, kl_weight, *rest = inputs[n:]
        own, at = estimator.state, len(groups)
        rates, rest = rest[:at], rest[at:]
        numbers, rest = rest[: len(self._moving)], rest[len(self._moving) :]
        states, rest = rest[: len(self._states)], rest[len(self._states) :]
        try:
            estimator.state = dict(zip(own, rest, strict=True))  # what moves is the graph's input
            found, gradients = self.update.gradients(inputs[:n], index, kl_weight, swapped)
        finally:
            estimator.state = own
        self._move(held, gradients, rates, numbers, states)
        return list(found)

    def _move(
        self,
        held: Sequence[Tensor],
        gradients: Sequence[Tensor],
        rates: Sequence[Tensor],
        numbers: Sequence[Tensor],
        states: Sequence[Tensor],
    ) -> None:
        """The optimizer's own step, on other tensors in place of its parameters, state and numbers, in a form to be traced."""
        twin = copy(self.update.optimizer)
        twin.state = defaultdict(dict)
        place = {id(leaf): i for i, leaf in enumerate(self.leaves)}
        now = settings_of(twin)
        values = {name: Setting(now[name], number) for name, number in zip(self._moving, numbers, strict=True)}
        twin.param_groups = with_settings(twin.param_groups, values, rates)
        for group in twin.param_groups:
            traceable = {"foreach": True, "capturable": True, "fused": False}
            group |= {name: value for name, value in traceable.items() if name in group}
            group["params"] = [held[place[id(leaf)]] for leaf in group["params"] if id(leaf) in place]
        for one, leaf, gradient in zip(held, self.leaves, gradients, strict=True):
            one.grad = gradient
            kept = self.update.optimizer.state[leaf].items()
            twin.state[one] = {name: value for name, value in kept if not isinstance(value, Tensor)}
        for (leaf, name), value in zip(self._states, states, strict=True):
            twin.state[held[place[id(leaf)]]][name] = value
        before = [dict(group) for group in twin.param_groups], {one: dict(twin.state[one]) for one in held}
        attributes = Snapshot({"": twin}, without=frozenset({"state", "param_groups"}))
        with torch.no_grad(), _keeping_to_tensors(), composing(self._shared):
            unwrap(type(twin).step)(twin)  # without its wrapper, which profiles
        for one in held:
            one.grad = None
        _keep_state(twin, *before)
        for written in attributes.put_back():
            raise _keeps(twin, written.where)

    def _check(self, index: Tensor) -> None:
        """Raises NotCompiledError if this step and the eager one differ on one batch with the same random numbers.

        They are compared twice, the second time at other values of whatever is an input: one that the graph holds as a constant
        would not be seen at the values that it was traced with.
        """
        weight = self.update.objective.weight(1)
        for factor in (1.0, 0.8):
            found = []
            for step in (self, partial(self.update, phase=self.phase)):
                with seeded(index.device, "check"), library_path(), self._put_back() as moved, self._scaled(factor):
                    row = step(index, factor * weight).row
                    found.append([row, *moved()])
            # A step of Adam is nearly the sign of the gradient: where that is near zero, rounding shows.
            first, others = (1e-4, 0.02) if self.update.precision == "fp32" else (0.02, 0.5)
            for i, (one, other) in enumerate(zip(*found, strict=True)):
                gap, size = (one - other).norm().item(), other.norm().item()
                if not gap <= (others if i else first) * size + 1e-6:
                    raise NotCompiledError(f"its result is {gap / size:.1g} of its size away from the eager path's")

    @contextmanager
    def _scaled(self, factor: float) -> Iterator[None]:
        """Multiplies the learning rates and the settings that are inputs."""
        groups = self.update.optimizer.param_groups
        now, before = settings_of(self.update.optimizer), [dict(group) for group in groups]
        scaled = {name: factor * now[name] for name in self._moving}
        try:
            if factor != 1:
                rates = [factor * float(group["lr"]) for group in groups]
                for group, new in zip(groups, with_settings(groups, scaled, rates), strict=True):
                    group.update(new)
            yield
        finally:
            for group, kept in zip(groups, before, strict=True):
                group.update(kept)

    @contextmanager
    def _put_back(self) -> Iterator[Callable[[], list[Tensor]]]:
        """Parameters, buffers and states are at the end as they were; gives what tells how far each kind of them moved."""
        programs = self.update.programs
        buffers = list(programs.buffers()) if isinstance(programs, nn.Module) else []
        kinds: dict[str, list[Tensor]] = {"parameters": list(self.leaves), "buffers": buffers}
        for (_, name), value in zip(self._states, self._state(), strict=True):
            kinds.setdefault(f"state {name}", []).append(value)
        kinds["estimator"] = list(self.update.estimator.state.values())
        state = [tensor for kind in kinds.values() for tensor in kind]
        before = [tensor.detach().clone() for tensor in state]

        def moved() -> list[Tensor]:
            moves = iter(zip(state, before, strict=True))
            found = []
            for kind in kinds.values():
                gaps = [torch.zeros(1, dtype=before[0].dtype, device=before[0].device)]
                for now, was in islice(moves, len(kind)):
                    gap = now.detach() - was if now.is_floating_point() else now != was
                    gaps.append(gap.flatten().to(before[0].dtype))
                found.append(torch.cat(gaps))
            return found

        try:
            yield moved
        finally:
            with torch.no_grad():
                for tensor, was in zip(state, before, strict=True):
                    tensor.copy_(was)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _refuse_hooks(optimizer: Optimizer, leaves: Sequence[Tensor]) -> None:
    """Raises NotCompiledError if functions are called at each step that a graph would not call."""
    hooks = [
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
        *_global_optimizer_pre_hooks.values(),
        *_global_optimizer_post_hooks.values(),
    ]
    if hooks or any(leaf._backward_hooks for leaf in leaves):
        raise NotCompiledError("a hook of a parameter or of the optimizer is called at each step, which a graph does not do")
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        raise NotCompiledError("the optimizer's step is replaced by another function, which a graph does not call")


def _keep_state(twin: Optimizer, groups: list[dict[str, Any]], state: dict[Tensor, dict[str, Any]]) -> None:
    """Writes what an optimizer put in the place of a tensor of its state into that tensor.

    Raises:
        NotCompiledError: the optimizer's step changed anything but tensors, which a graph does not do.
    """
    for group, before in zip(twin.param_groups, groups, strict=True):
        for name in group.keys() | before.keys():
            if group.get(name) is not before.get(name):
                raise _keeps(twin, f"the setting {name!r}")
    for one, before in state.items():
        for name in twin.state[one].keys() | before.keys():
            now, was = twin.state[one].get(name), before.get(name)
            if now is was:
                continue
            if not (isinstance(now, Tensor) and isinstance(was, Tensor)):
                raise _keeps(twin, f"{name!r} of its state")
            was.copy_(now)


def _keeps(optimizer: Optimizer, what: str) -> NotCompiledError:
    return NotCompiledError(f"the step of {type(optimizer).__name__} changes {what}, which is no tensor that a graph could change")


@contextmanager
def _keeping_to_tensors() -> Iterator[None]:
    """PyTorch's optimizers read no number out of a tensor here, as they do not under ``torch.compile``."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
