"""What a checkpoint of a training holds, and how a training goes on from one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vae.description import Described
from pyro_vae.files import tensor_digest
from pyro_vae.kinds import shown, words
from pyro_vae.training.alike import check_alike, restore_optimizer
from pyro_vae.training.checkpoint import ANEW, Every, NotKeptError, read_checkpoint, surroundings, write_checkpoint
from pyro_vae.training.compiled_step import CompiledStep
from pyro_vae.training.step import Step
from pyro_vae.training.watch import check_watched

if TYPE_CHECKING:
    from pyro_vae.training.loop import Training

logger = logging.getLogger("pyro_vae")
_WITHIN: dict[str, Any] = {
    "steps": int,
    "seconds": float,
    "lr": float,
    "totals": {"count": int, "rows": Tensor | None},
    "watched": dict | None,  # which older versions did not write
}
"""The kinds of what says where in an epoch a training stands."""
_STEP = {"begun": list, "never": list, "made": dict, "moved": bool}
"""The kinds of what a compiled step keeps."""


class _OtherTrainingError(ValueError):
    """Raised if a checkpoint is whole, and of another training."""


class Saving:
    """Writes and reads the checkpoints of a training.

    Args:
        file: the file.
        every: how often it is written.
        training: the training.
    """

    def __init__(self, file: Path, every: Every, training: Training) -> None:
        self.file, self.every, self.training = file, every, training
        self._step: CompiledStep | None = None
        self._restored: Mapping[str, Any] | None = None
        self._off = bool(training.together and training.together.rank)  # the first of several processes writes for all
        self.identity = identity_of(training)

    def begin(self, step: Step) -> None:
        """Is told the step, when the training begins or goes on."""
        self._step = step if isinstance(step, CompiledStep) else None
        if self._step and self._restored:
            self._step.restore(self._restored)

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is due after a step, of which so many were taken."""
        return not self._off and self.every.step(done)

    def after_epoch(self, epoch: int, last: bool) -> None:
        """Writes a checkpoint if one is due after this epoch, or if it was the last one."""
        if self.every.epoch(epoch) or last:
            self.write(epoch, None)

    def write(self, done: int, within: Mapping[str, Any] | None) -> None:
        """Writes a checkpoint.

        Args:
            done: the number of whole epochs that were trained.
            within: where the next epoch stands, unless it has not begun.

        Raises:
            OSError: the file cannot be written; the checkpoint before is left.
        """
        if self._off:
            return
        training = self.training
        state = {
            "training": self.identity,
            "surroundings": surroundings(training.device),
            "done": done,
            "within": within,
            **_tensors(training),
            "optimizer": training.optimizer.state_dict(),
            "schedule": training.schedule.state(),
            "kept": training.kept.state(),
            "step": self._step.state() if self._step else None,
            "callbacks": [each.state_dict() for each in training.plan.callbacks],
        }
        try:
            write_checkpoint(self.file, state)
        except NotKeptError as error:
            logger.warning("This training cannot be kept, and cannot go on where it is cut: %s", error)
            self._off = True
        self.every.wrote()

    def restore(self) -> tuple[int, dict[str, Any] | None]:
        """Puts a training where the checkpoint was written; returns the whole epochs, and where the next one stands.

        Raises:
            ValueError: the checkpoint is damaged, or that of another training.
        """
        state, training = read_checkpoint(self.file), self.training
        try:
            self._check(state)
            self._check_place(state)
            for name, tensors in _tensors(training).items():
                check_alike(state[name], tensors, name)
                _fill(tensors, state[name])
            restore_optimizer(training, state["optimizer"])
            training.schedule.restore(state["schedule"])
            training.kept.restore(state["kept"])
            for callback, kept in zip(training.plan.callbacks, state["callbacks"], strict=True):
                if kept is not None:
                    callback.load_state_dict(kept)
        except _OtherTrainingError:
            raise
        except (KeyError, TypeError, RuntimeError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{self.file}: it does not fit this training ({type(error).__name__}: {error}). {ANEW}"
            ) from error
        self._restored = state["step"]
        within = state["within"]
        if within and within["totals"]["rows"] is not None:
            within["totals"]["rows"] = within["totals"]["rows"].to(training.device)
        return state["done"], within

    def _check_place(self, state: Mapping[str, Any]) -> None:
        """Checks the kinds of what says where the training stands. All else is checked where it is put back.

        Raises:
            TypeError: something is missing, or is of another kind than what is written; the message names it.
            ValueError: the training cannot stand there.
        """
        training, within, step = self.training, state["within"], state["step"]
        _check_kinds(state, {"done": int} if within is None else {"done": int, "within": _WITHIN}, "state")
        if state["done"] < 0:
            raise ValueError(f"done: expected at least 0 epochs, got {state['done']}")
        if within is not None:
            if not 1 <= within["steps"] <= training.steps:
                raise ValueError(f"steps: expected 1 to {training.steps}, got {within['steps']}")
            rows = torch.empty(within["steps"], len(training.names), dtype=torch.float64, device="meta")
            check_alike(within["totals"], {"count": 1, "rows": rows}, "totals")
            if within.get("watched"):
                check_watched(training, within["watched"])
        if step is not None:
            _check_kinds(step, _STEP, "step")
            check_alike(step["made"], dict.fromkeys(step["made"], 0), "made")
            if not {*step["begun"], *step["never"], *step["made"]} <= training.phases.keys():
                raise ValueError("step: it has other phases")

    def _check(self, state: Mapping[str, Any]) -> None:
        """Checks that a checkpoint is of this training, and tells where its bits may differ.

        Raises:
            _OtherTrainingError: it is of another one; the message says in what they differ.
        """
        kept, own = state["training"], self.identity
        for name, value in own.items():
            if kept.get(name) == value or (name == "epochs" and own["schedule"] is None and value > state["done"]):
                continue
            if name == "data":
                raise _OtherTrainingError(f"{self.file}: this checkpoint is of a training with other data")
            raise _OtherTrainingError(
                f"{self.file}: this checkpoint is of a training with another {name}: there {kept.get(name)}, here {value}"
            )
        before, now = state["surroundings"], surroundings(self.training.device)
        moved = [
            f"{name} {before.get(name)} there, {value} here" for name, value in now.items() if value != before.get(name)
        ]
        if moved:
            logger.warning(
                "The training goes on with other rounding, so that its bits may differ: %s", "; ".join(moved)
            )


def identity_of(training: Training) -> dict[str, Any]:
    """What must be the same for a training to go on: as text and numbers."""
    plan, data = training.plan, dict[str, Tensor]()
    for name, columns in (("train", training.train), ("valid", training.valid)):
        data |= {f"{name}.{i}": tensor.detach().cpu() for i, tensor in enumerate(columns.tensors)}
    names = ("batch_size", "seed", "e_steps", "m_steps", "clip_norm", "precision", "lr_phi", "epochs")
    more = ("patience", "keep", "average", "average_decay", "average_tail")
    return {name: getattr(plan, name) for name in (*names, *more)} | {
        "estimator": _told(training.estimator),
        "objective": str(asdict(plan.objective)),
        "optimizer": type(training.optimizer).__name__,
        "schedule": type(training.schedule.scheduler).__name__ if training.schedule.scheduler else None,
        "parameters": [list(leaf.shape) for leaf in training.phases["both"]],
        "data": tensor_digest({"dynamic": training.train.dynamic}, data),
    }


def _told(part: Any) -> str:
    """An object by its class and what it was made with."""
    return str(part.described()) if isinstance(part, Described) else type(part).__name__


def _check_kinds(found: Any, kinds: Mapping[str, Any], name: str) -> None:
    """Checks the kinds of what says where a training stands. All else is checked where it is put back.

    Raises:
        TypeError: something is missing, or is of another kind than what is written; the message names it.
    """
    if not isinstance(found, dict):
        raise TypeError(f"{name}: expected {', '.join(kinds)}, got {shown(found)}")
    for each, kind in kinds.items():
        if isinstance(kind, dict):
            _check_kinds(found[each], kind, each)
        elif not isinstance(found.get(each) if each == "watched" else found[each], kind):
            raise TypeError(f"{each}: expected {words(kind)}, got {shown(found[each])}")


def _tensors(training: Training) -> dict[str, Any]:
    """The tensors of a training, which a checkpoint fills in their places."""
    programs = training.programs
    return {
        "leaves": list(training.phases["both"]),
        "buffers": dict(programs.named_buffers()) if isinstance(programs, nn.Module) else {},
        "estimator": dict(training.estimator.state),
    }


@torch.no_grad()
def _fill(own: Any, found: Any) -> None:
    """Writes values into tensors, in place."""
    for key, tensor in own.items() if isinstance(own, dict) else enumerate(own):
        tensor.copy_(found[key])
