"""The training step as a compiled graph.

The programs are traced once, handlers, estimator, derivatives, optimizer and sums together, into one graph of tensor
operations, which Inductor compiles. What changes from step to step is a tensor input: parameters, buffers, the optimizer's and
the estimator's state, the batch's indices, the weight of the KL, the learning rates. All else is a constant of the graph. It is
watched, and a change makes a new graph. Where a schedule or a user moves other settings of the optimizer than its learning
rates, and where several processes train together, the graph ends with the gradient, and the optimizer takes its own step.

Random numbers are drawn by the same generator in the same order as on the eager path, so that both agree within rounding; that
is checked on one batch before a graph is used.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from inspect import unwrap
from itertools import chain
from math import log
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_vae.compilation import Compile, Compiled, compiled
from pyro_vae.evaluate.bound import Sums
from pyro_vae.inductor import NotCompiledError
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path
from pyro_vae.training.step import Step, Update

AUTO_STEPS = 5_000
"""Compiling takes 5 to 30 s on two cores and saves 2 to 5 ms a step."""
MOST_GRAPHS = 5
"""How many graphs a phase may have in one run, each with other constants, before its steps run eagerly."""

logger = logging.getLogger("pyro_vae")


def make_step(update: Update, compile: Compile, steps: int, batch_size: int) -> Step:
    """The compiled step where that is wanted and can be, else the eager one; ``steps`` is how many lie ahead."""
    wanted = compile == "on" or (compile == "auto" and steps >= AUTO_STEPS)
    return CompiledStep(update, batch_size) if wanted else update


class CompiledStep:
    """The same steps as compiled graphs, one for each phase.

    The first step of a phase runs eagerly: it makes the optimizer's state. The second one makes the graph. So it is again when
    something changes that the graph holds as a constant. Any batch of another size runs eagerly, and so does everything from
    there on if a graph cannot be made or would have to be made anew again and again, for which the logger "pyro_vae" gives the
    reason once.

    Args:
        update: the step.
        batch_size: the number of data in a batch that is compiled; others run eagerly.
    """

    def __init__(self, update: Update, batch_size: int) -> None:
        self.update, self.batch_size = update, batch_size
        self._graphs: dict[str, Graph] = {}
        self._begun: set[str] = set()
        self._never: set[str] = set()
        self._made: Counter[str] = Counter()
        self._settings: Settings | None = None if update.together else Settings(update.optimizer)
        self._told = False

    def __call__(self, index: Tensor, kl_weight: float, phase: str, undisturbed: bool = False) -> Sums:
        """One step (see `Step`)."""
        if undisturbed and phase in self._graphs and len(index) == self.batch_size:
            return self._graphs[phase](index, kl_weight)
        if self._settings and self._settings.changed():
            self._settings = None
            self._graphs = {name: graph for name, graph in self._graphs.items() if not graph.whole}
        if len(index) != self.batch_size or phase in self._never:
            return self.update(index, kl_weight, phase)
        graph, where = self._graphs.get(phase), None
        if graph and (where := graph.stale()):
            del self._graphs[phase]
            self._begun.discard(phase)
            if self._made[phase] >= MOST_GRAPHS:
                self._run_eagerly(phase, f"{where} changes again and again, and a graph holds it as a constant")
            graph = None
        if phase not in self._begun:
            self._begun.add(phase)
            return self.update(index, kl_weight, phase)
        if graph is None and phase not in self._never:
            graph = self._make(index, phase)
        return graph(index, kl_weight) if graph else self.update(index, kl_weight, phase)

    def state(self) -> dict[str, Any]:
        """What decides whether the next steps run as a graph, and as which: a training that goes on must do the same."""
        return {
            "begun": sorted(self._begun),
            "never": sorted(self._never),
            "made": dict(self._made),
            "moved": self._settings is None or self._settings.changed(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self._begun, self._never, self._made = set(state["begun"]), set(state["never"]), Counter(state["made"])
        alone = not (state["moved"] or self.update.together)
        self._settings = Settings(self.update.optimizer) if alone else None

    def _make(self, index: Tensor, phase: str) -> Graph | None:
        """The graph of a phase: with the optimizer, if its settings stay as they are and it can be traced; or None."""
        reason = None
        for whole in (True, False) if self._settings else (False,):
            try:
                self._graphs[phase] = Graph(self.update, index, phase, whole)
            except NotCompiledError as error:
                reason = str(error)
                continue
            self._made[phase] += 1
            if reason:
                self._settings = None  # so it is in other phases
                self._tell(f"The gradient is compiled, and the optimizer takes its own steps: {reason}")
            return self._graphs[phase]
        self._run_eagerly(phase, str(reason))
        return None

    def _run_eagerly(self, phase: str, reason: str) -> None:
        self._never.add(phase)
        self._tell(f"Steps run eagerly: {reason}")

    def _tell(self, message: str) -> None:
        if not self._told:
            logger.warning(message)
        self._told = True


class Settings:
    """The settings of an optimizer's groups at one moment, but for the learning rates."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.kept = [
            {name: list(value) if name == "params" else _plain(value) for name, value in group.items()}
            for group in optimizer.param_groups
        ]

    def changed(self) -> bool:
        """Whether a setting is another one now, or there are other groups or other parameters in them."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.kept):
            return True
        for group, kept in zip(groups, self.kept, strict=True):
            kept["lr"] = group["lr"]
            if len(group["params"]) != len(kept["params"]) or not all(map(is_, group["params"], kept["params"])):
                return True
        try:
            return bool(groups != self.kept)
        except RuntimeError:  # a tensor of several numbers stands in the place of one
            return True


class Graph:
    """The compiled step of one phase, checked against the eager one.

    Args:
        update: the step; its optimizer has a state.
        index: the indices of a batch.
        phase: the phase.
        whole: whether the optimizer's step is part of the graph; else the optimizer takes its step after it.

    Raises:
        NotCompiledError: it cannot be traced or compiled, or its results differ.
    """

    def __init__(self, update: Update, index: Tensor, phase: str, whole: bool = True) -> None:
        self.update, self.phase, self.whole, self.leaves = update, phase, whole, update.leaves(phase)
        self._of_phi = None if update.together else update.of_phi(self.leaves)
        self._moved = list(map(_requires_grad, update.candidates(phase)))
        _refuse_hooks(update.optimizer if whole else None, self.leaves)
        self._bind()
        self._numbers: list[float] = []
        self._scalars: list[Tensor] = []
        rules = {torch.ops.aten._foreach_pow.ScalarAndTensor: _powers(self._shared)}
        watched = {"estimator": update.estimator} | ({"optimizer": update.optimizer} if whole else {})
        inputs = self._inputs(index, 1.0)
        with self._put_back():  # tracing runs what it traces
            self._run: Compiled = compiled(update.programs, self._traced, self.leaves, inputs, rules, **watched)
        self._check(index)

    def __call__(self, index: Tensor, kl_weight: float) -> Sums:
        """One step. `stale` is to be asked first."""
        found, gradients = self._outcome(index, kl_weight)
        if not self.whole:
            found = self.update.follow(self.leaves, found, gradients)
        return found

    def stale(self) -> str | None:
        """Returns the name of what the graph holds as a constant and is another now, or None."""
        if list(map(_requires_grad, self.update.candidates(self.phase))) != self._moved:
            return "which parameters require a gradient"
        if any(map(_hooks, self.leaves)):
            return "a hook of a parameter"
        if self.whole and not self._takes_state():
            return "the optimizer's state"
        return self._run.stale()

    def _takes_state(self) -> bool:
        """Whether the graph can work on the optimizer's state as it is now. It does so from now on."""
        state = self.update.optimizer.state
        same = len(state) == len(self._states) and all(map(is_, state.values(), self._states))
        if same and all(map(is_, _values(self._dicts), self._held)):
            return True
        before = self._form
        self._bind()
        return self._form == before

    def _bind(self) -> None:
        """Takes the optimizer's state as it is now."""
        state = self.update.optimizer.state
        self._dicts = [state[leaf] for leaf in self.leaves] if self.whole else []
        self._states, self._held = list(state.values()), list(_values(self._dicts))
        self._names = [
            (i, name) for i, each in enumerate(self._dicts) for name in each if isinstance(each[name], Tensor)
        ]
        self._state = [self._dicts[i][name] for i, name in self._names]
        counts = {float(value) for (_, name), value in zip(self._names, self._state, strict=True) if name == "step"}
        self._shared = len(counts) == 1
        # What the graph holds as constants: the layout of tensors, and all that is no tensor.
        self._form = self._shared, [_layout(value) if isinstance(value, Tensor) else value for value in self._held]

    def _inputs(self, index: Tensor, kl_weight: float) -> list[Tensor]:
        rates = [float(group["lr"]) for group in self.update.optimizer.param_groups] if self.whole else []
        numbers = [kl_weight, *rates]
        if not self._scalars:
            like = self.leaves[0]
            self._scalars = [torch.tensor(number, dtype=like.dtype, device=index.device) for number in numbers]
        for scalar, number, before in zip(self._scalars, numbers, self._numbers, strict=False):
            if number != before:
                scalar.fill_(number)
        self._numbers = numbers
        state = self.update.estimator.state.values()
        tensors, index = self.update.columns.for_graph(index)
        return [*tensors, index, *self._scalars, *self._state, *state]

    def _traced(self, swapped: Sequence[Tensor], held: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
        n, estimator = len(self.update.columns.tensors), self.update.estimator
        index, kl_weight, *rest = inputs[n:]
        own, at = estimator.state, len(rest) - len(estimator.state)
        rates, states = rest[: at - len(self._state)], rest[at - len(self._state) : at]
        try:
            estimator.state = dict(zip(own, rest[at:], strict=True))  # what moves is the graph's input
            found, gradients = self.update.gradients(inputs[:n], index, kl_weight, swapped, self._of_phi)
        finally:
            estimator.state = own
        told = [each for each in found if each is not None]
        if not self.whole:
            return [*told, *gradients]
        self._move(held, gradients, rates, states)
        return told

    def _move(
        self, held: Sequence[Tensor], gradients: Sequence[Tensor], rates: Sequence[Tensor], states: Sequence[Tensor]
    ) -> None:
        """The optimizer's own step, on other tensors in place of its parameters and state, in the form that can be traced."""
        twin = copy(self.update.optimizer)
        twin.state, twin.param_groups = defaultdict(dict), []
        place = {id(leaf): i for i, leaf in enumerate(self.leaves)}
        for group, rate in zip(self.update.optimizer.param_groups, rates, strict=True):
            traceable = {"lr": rate, "foreach": True, "capturable": True, "fused": False}
            moved = [held[place[id(leaf)]] for leaf in group["params"] if id(leaf) in place]
            twin.param_groups.append({**group, **{k: v for k, v in traceable.items() if k in group}, "params": moved})
        for one, gradient, kept in zip(held, gradients, self._dicts, strict=True):
            one.grad, twin.state[one] = gradient, dict(kept)
        for (i, name), value in zip(self._names, states, strict=True):
            twin.state[held[i]][name] = value
        before = [dict(each) for each in _numbers_of(twin)]
        with torch.no_grad(), _keeping_to_tensors():
            unwrap(type(twin).step)(twin)  # without its wrapper, which profiles
        for one in held:
            one.grad = None
        _keep_state(type(twin).__name__, before, _numbers_of(twin))

    def _check(self, index: Tensor) -> None:
        """Raises NotCompiledError if this step and the eager one differ on one batch with the same random numbers.

        They are compared twice, the second time at other values of the numbers that are inputs: one that the graph holds as a
        constant would not be seen at the values that it was traced with.
        """
        for factor in (1.0, 0.8):
            found = []
            for step in (self._outcome, self._eager_outcome):
                with seeded(index.device, "check"), library_path(), self._put_back() as moved, self._scaled(factor):
                    told, gradients = step(index, factor)
                    norms = [] if told.norms is None else [told.norms]
                    found.append([told.row, *norms, *gradients, *moved()])
            # A step of Adam is nearly the sign of the gradient: where that is near zero, rounding shows.
            first, others = (1e-4, 0.02) if self.update.precision == "fp32" else (0.02, 0.5)
            for i, (one, other) in enumerate(zip(*found, strict=True)):
                gap, size = (one - other).norm().item(), other.norm().item()
                if not gap <= (others if i else first) * size + 1e-6:
                    raise NotCompiledError(f"its result is {gap / size:.1g} of its size away from the eager path's")

    def _outcome(self, index: Tensor, kl_weight: float) -> tuple[Sums, list[Tensor]]:
        """What the graph gives: the sums of a step, and the gradients, unless the optimizer took them."""
        outputs = self._run(*self._inputs(index, kl_weight))
        told = 2 if self._of_phi is None else 3
        return Sums(*outputs[:told]), outputs[told:]

    def _eager_outcome(self, index: Tensor, kl_weight: float) -> tuple[Sums, list[Tensor]]:
        if self.whole:
            return self.update(index, kl_weight, self.phase), []
        return self.update.gradients(self.update.columns.tensors, index, kl_weight, self.leaves, self._of_phi)

    @contextmanager
    def _scaled(self, factor: float) -> Iterator[None]:
        """Multiplies the learning rates."""
        groups = self.update.optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            if factor != 1:
                for group in groups:
                    group["lr"] = factor * float(group["lr"])
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate

    @contextmanager
    def _put_back(self) -> Iterator[Callable[[], list[Tensor]]]:
        """Parameters, buffers and states are at the end as they were; gives what tells how far each kind of them moved."""
        programs = self.update.programs
        kinds: dict[str, list[Tensor]] = defaultdict(list)
        kinds["parameters"] += self.leaves
        kinds["buffers"] += programs.buffers() if isinstance(programs, nn.Module) else []
        kinds["estimator"] += self.update.estimator.state.values()
        for (_, name), value in zip(self._names, self._state, strict=True):
            kinds[f"state {name}"].append(value)
        before = {kind: [tensor.detach().clone() for tensor in tensors] for kind, tensors in kinds.items()}

        def moved() -> list[Tensor]:
            return [_gap(tensors, before[kind]) for kind, tensors in kinds.items() if tensors]

        try:
            yield moved
        finally:
            with torch.no_grad():
                for tensor, was in zip(chain(*kinds.values()), chain(*before.values()), strict=True):
                    tensor.copy_(was)


def _gap(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """How far tensors moved, as one vector; of what is no real number, whether it did."""
    moves = [
        (now.detach() - was if now.is_floating_point() else now != was).flatten()
        for now, was in zip(tensors, before, strict=True)
    ]
    return torch.cat([move.to(torch.float32 if move.dtype is torch.bool else move.dtype) for move in moves])


_requires_grad, _hooks = attrgetter("requires_grad"), attrgetter("_backward_hooks")


def _values(dicts: Sequence[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dicts))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _plain(value: Any) -> Any:
    """A setting in a form that stays as it is when the setting is written in place."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else copy(value)


def _refuse_hooks(optimizer: Optimizer | None, leaves: Sequence[Tensor]) -> None:
    """Raises NotCompiledError if functions are called at each step that a graph would not call."""
    if any(leaf._backward_hooks for leaf in leaves):
        raise NotCompiledError("a hook of a parameter is called at each step, which a graph does not do")
    if optimizer is None:
        return
    hooks = [
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
        *_global_optimizer_pre_hooks.values(),
        *_global_optimizer_post_hooks.values(),
    ]
    step = vars(optimizer).get("step")  # schedules put a function there that counts
    if hooks or (step is not None and not hasattr(step, "_wrapped_by_lr_sched")):
        raise NotCompiledError("a hook of the optimizer is called at each step, which a graph does not do")


def _numbers_of(optimizer: Optimizer) -> list[dict[Any, Any]]:
    """Where an optimizer can keep what it computes: its attributes, its groups, and the state of each parameter."""
    own = {name: value for name, value in vars(optimizer).items() if name not in ("state", "param_groups")}
    return [own, *optimizer.param_groups, *optimizer.state.values()]


def _keep_state(optimizer: str, before: list[dict[Any, Any]], now: list[dict[Any, Any]]) -> None:
    """Writes what an optimizer put in the place of a tensor into that tensor.

    Raises:
        NotCompiledError: the optimizer's step changed anything but tensors, which a graph does not do.
    """
    for held, had in zip(now, before, strict=True):
        for name in held.keys() | had.keys():
            new, old = held.get(name), had.get(name)
            if new is old:
                continue
            if not (isinstance(new, Tensor) and isinstance(old, Tensor)):
                raise NotCompiledError(f"{optimizer} moves its {name}, which is no tensor that a graph could move")
            old.copy_(new)


def _powers(shared: bool) -> Callable[[float, Sequence[Tensor]], list[Tensor]]:
    """How an optimizer's β^step is computed: as an exponential, and once where all parameters have taken as many steps.

    Inductor would compute the general power anew for every few elements of each parameter, which takes longer than the rest of
    the update; an exponential that several kernels use it computes once and keeps.
    """

    def powers(base: float, exponents: Sequence[Tensor]) -> list[Tensor]:
        if base == 0:
            return [torch.zeros_like(exponent) for exponent in exponents]
        if not shared:
            return [torch.exp(exponent * log(base)) for exponent in exponents]
        once = torch.exp(exponents[0] * log(base))
        return [once.clone() for _ in exponents]

    return powers


@contextmanager
def _keeping_to_tensors() -> Iterator[None]:
    """PyTorch's optimizers read no number out of a tensor here, as they do not under ``torch.compile``."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
