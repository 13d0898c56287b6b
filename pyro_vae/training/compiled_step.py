"""The training step as one compiled graph.

The programs are traced once, handlers, estimator, derivatives, optimizer and sums together, into one graph of tensor
operations, which Inductor compiles. What changes from step to step is a tensor input: parameters, the optimizer's and the
estimator's state, the batch's indices, the weight of the KL, the learning rates. Random numbers are drawn by the same generator
in the same order as on the eager path, so that both agree within rounding; that is checked on one batch before the graph is
used.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from inspect import unwrap
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.compilation import Compile, NotCompiledError, compiled
from pyro_vae.evaluate.bound import Sums
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path
from pyro_vae.training.step import Step, Update

AUTO_STEPS = 5_000
"""Compiling takes 5 to 30 s on two cores and saves 2 to 5 ms a step."""

logger = logging.getLogger("pyro_vae")


def make_step(update: Update, compile: Compile, steps: int, batch_size: int) -> Step:
    """The compiled step where that is wanted and can be, else the eager one; ``steps`` is how many lie ahead."""
    wanted = compile == "on" or (compile == "auto" and steps >= AUTO_STEPS)
    return CompiledStep(update, batch_size) if wanted else update


class CompiledStep:
    """The same steps as compiled graphs, one for each phase.

    The first step of a phase runs eagerly: it makes the optimizer's state. So does any batch of another size, and everything
    from there on if a graph cannot be made, for which the logger "pyro_vae" gives the reason once.

    Args:
        update: the step.
        batch_size: the number of data in a batch that is compiled; others run eagerly.
    """

    def __init__(self, update: Update, batch_size: int) -> None:
        self.update, self.batch_size = update, batch_size
        self._graphs: dict[str, Graph | None] = {}
        self._moved = False

    def __call__(self, index: Tensor, kl_weight: float, phase: str) -> Sums:
        """One step."""
        if len(index) != self.batch_size:
            return self.update(index, kl_weight, phase)
        if phase not in self._graphs:
            found = self.update(index, kl_weight, phase)
            try:
                self._graphs[phase] = Graph(self.update, index, phase)
            except NotCompiledError as reason:
                if None not in self._graphs.values():
                    logger.warning("Steps run eagerly: %s", reason)
                self._graphs[phase] = None
            return found
        graph = self._graphs[phase]
        if graph is None:
            return self.update(index, kl_weight, phase)
        if graph.settings != settings_of(self.update):
            if not self._moved:
                logger.warning(
                    "Steps run eagerly where the schedule moves another option of the optimizer than its learning rate"
                )
            self._moved = True
            return self.update(index, kl_weight, phase)
        return graph(index, kl_weight)


class Graph:
    """The compiled step of one phase, checked against the eager one.

    Args:
        update: the step; its optimizer has a state.
        index: the indices of a batch.
        phase: the phase.

    Raises:
        NotCompiledError: it cannot be traced or compiled, or its results differ.
    """

    def __init__(self, update: Update, index: Tensor, phase: str) -> None:
        self.update, self.phase, self.leaves = update, phase, update.phases[phase]
        self.settings = settings_of(update)
        self.state = [
            (i, name, value)
            for i, leaf in enumerate(self.leaves)
            for name, value in update.optimizer.state[leaf].items()
            if isinstance(value, Tensor)
        ]
        self._numbers: list[float] = []
        self._scalars: list[Tensor] = []
        counts = {float(value) for _, name, value in self.state if name == "step"}
        rules = {torch.ops.aten._foreach_pow.ScalarAndTensor: _powers(shared=len(counts) == 1)}
        inputs = self._inputs(index, 1.0)
        with self._put_back():  # tracing runs what it traces
            self._run = compiled(update.programs, self._whole, self.leaves, inputs, rules, update.estimator)
        self._check(index)

    def __call__(self, index: Tensor, kl_weight: float) -> Sums:
        """One step."""
        row, bound = self._run(*self._inputs(index, kl_weight))
        return Sums(row, bound)

    def _inputs(self, index: Tensor, kl_weight: float) -> list[Tensor]:
        numbers = [kl_weight, *(float(group["lr"]) for group in self.update.optimizer.param_groups)]
        if not self._scalars:
            like = self.leaves[0]
            self._scalars = [torch.tensor(number, dtype=like.dtype, device=index.device) for number in numbers]
        for scalar, number, before in zip(self._scalars, numbers, self._numbers, strict=False):
            if number != before:
                scalar.fill_(number)
        self._numbers = numbers
        states = [value for _, _, value in self.state]
        return [*self.update.columns.tensors, index, *self._scalars, *states, *self.update.estimator.state.values()]

    def _whole(self, swapped: Sequence[Tensor], held: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
        n, estimator = len(self.update.columns.tensors), self.update.estimator
        groups = self.update.optimizer.param_groups
        index, kl_weight, *rest = inputs[n:]
        own, end = estimator.state, len(groups) + len(self.state)
        try:
            estimator.state = dict(zip(own, rest[end:], strict=True))  # what moves is the graph's input
            found, gradients = self.update.gradients(inputs[:n], index, kl_weight, swapped)
        finally:
            estimator.state = own
        self._move(held, gradients, rest[: len(groups)], rest[len(groups) : end])
        return list(found)

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
        for one, leaf, gradient in zip(held, self.leaves, gradients, strict=True):
            one.grad = gradient
            kept = self.update.optimizer.state[leaf].items()
            twin.state[one] = {name: value for name, value in kept if not isinstance(value, Tensor)}
        for (i, name, _), value in zip(self.state, states, strict=True):
            twin.state[held[i]][name] = value
        with torch.no_grad(), _keeping_to_tensors():
            unwrap(type(twin).step)(twin)  # without its wrapper, which profiles
        for one in held:
            one.grad = None

    def _check(self, index: Tensor) -> None:
        """Raises NotCompiledError if this step and the eager one differ on one batch with the same random numbers."""
        found = []
        for step in (self, partial(self.update, phase=self.phase)):
            with seeded(index.device, "check"), library_path(), self._put_back() as moved:
                row = step(index, self.update.objective.weight(1)).row
                found.append((row, moved()))
        # A step of Adam is nearly the sign of the gradient: where that is near zero, rounding shows.
        tolerances = (1e-4, 0.02) if self.update.precision == "fp32" else (0.02, 0.5)
        for one, other, tolerance in zip(*found, tolerances, strict=True):
            gap, size = (one - other).norm().item(), other.norm().item()
            if not gap <= tolerance * size + 1e-6:
                raise NotCompiledError(f"its result is {gap / size:.1g} of its size away from the eager path's")

    @contextmanager
    def _put_back(self) -> Iterator[Callable[[], Tensor]]:
        """Parameters, buffers and the optimizer's state are at the end as they were; gives what tells how far they moved."""
        programs = self.update.programs
        buffers = list(programs.buffers()) if isinstance(programs, nn.Module) else []
        state = [*self.leaves, *(value for _, _, value in self.state), *buffers, *self.update.estimator.state.values()]
        before = [tensor.detach().clone() for tensor in state]
        try:
            yield lambda: torch.cat(
                [
                    (a.detach() - b).flatten() if a.is_floating_point() else (a != b).flatten().to(before[0].dtype)
                    for a, b in zip(state, before, strict=True)
                ]
            )
        finally:
            with torch.no_grad():
                for tensor, was in zip(state, before, strict=True):
                    tensor.copy_(was)


def settings_of(update: Update) -> list[dict[str, Any]]:
    """What the graph holds as constants: all options of the optimizer's groups but their learning rates."""
    free = {"params", "lr", "initial_lr"}
    return [
        {name: value for name, value in group.items() if name not in free} for group in update.optimizer.param_groups
    ]


def _powers(shared: bool) -> Callable[[float, Sequence[Tensor]], list[Tensor]]:
    """How an optimizer's β^step is computed: as an exponential, and once where all parameters have taken as many steps.

    Inductor would compute the general power anew for every few elements of each parameter, which takes longer than the rest of
    the update; an exponential that several kernels use it computes once and keeps.
    """

    def powers(base: float, exponents: Sequence[Tensor]) -> list[Tensor]:
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
