"""What can be watched of a training beside its bound. It moves nothing: the weights are the same with and without it.

================== =================================================================================================
rates              the learning rate of each group of the optimizer, w and phi, at the beginning of the epoch
gradient_norm      the norm of the gradient by w and by φ, before it is clipped: means over the steps that move them
steps_per_second   the steps of the epoch over their wall time, without the validation
kl_per_dimension   E_q [log q(t_j|x) - log p(t_j)] on validation data, for each dimension of each latent, in nats
================== =================================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from pyro_vae.data import Columns
from pyro_vae.evaluate.bound import Sums
from pyro_vae.evaluate.latent_use import kl_over
from pyro_vae.kinds import meant, shown
from pyro_vae.training.alike import check_alike

if TYPE_CHECKING:
    from pyro_vae.training.loop import Training

Watch = Literal["rates", "gradient_norm", "steps_per_second", "kl_per_dimension"]
"""What can be watched, by name."""
_MOVED = {"both": ("w", "phi"), "E": ("phi",), "M": ("w",)}
"""Which side moves in each phase; those of "both" are in the order of `Sums.norms`."""

logger = logging.getLogger("pyro_vae")


def check_watch(names: Sequence[str]) -> None:
    """Checks the names of what is to be watched.

    Raises:
        ValueError: there is nothing of that name; the message has the one that may be meant.
    """
    for name in names:
        if name not in get_args(Watch):
            raise ValueError(f"watch: {shown(name)} cannot be watched{meant(str(name), get_args(Watch))}")


def check_kl(training: Training, latents: Sequence[str]) -> None:
    """Says before training of which latents there is no KL of each dimension, if that is watched."""
    if "kl_per_dimension" not in training.watch:
        return
    found = _kl(training, training.valid.first(1))
    if left_out := [name for name in latents if name not in found]:
        logger.warning(
            "kl_per_dimension has nothing for %s: the guide or the prior is not independent over its dimensions there, so that "
            "no dimension has a KL of its own",
            ", ".join(map(repr, left_out)),
        )


class Watched:
    """What is watched in one epoch.

    Args:
        training: the training, at the beginning of the epoch.
        state: what was seen of the epoch before a checkpoint within it, where training goes on from one.
    """

    def __init__(self, training: Training, state: Mapping[str, Any] | None = None) -> None:
        self.training = training
        groups = enumerate(training.optimizer.param_groups)
        self._rates = {str(group.get("name", number)): float(group["lr"]) for number, group in groups}
        self._norms: Tensor | None = None
        self._counts = {"w": 0, "phi": 0}
        if state:
            self._rates, self._norms, self._counts = state["rates"], state["norms"], dict(state["counts"])

    def step(self, found: Sums, phase: str) -> None:
        """Is told what a step gave. It does not wait for the device."""
        if found.norms is None:
            return
        self._norms = found.norms.clone() if self._norms is None else self._norms.to(found.norms) + found.norms
        for side in _MOVED[phase]:
            self._counts[side] += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint within the epoch keeps."""
        return {"rates": self._rates, "norms": self._norms, "counts": self._counts}

    def values(self, seconds: float) -> dict[str, Any]:
        """Returns what was asked for, as plain data.

        Args:
            seconds: how long the steps of the epoch took.
        """
        training = self.training
        made = {
            "rates": lambda: self._rates,
            "gradient_norm": self._means,
            "steps_per_second": lambda: training.steps / max(seconds, 1e-9),
            "kl_per_dimension": lambda: {name: kl.tolist() for name, kl in _kl(training, training.valid).items()},
        }
        return {name: make() for name, make in made.items() if name in training.watch}

    def _means(self) -> dict[str, float]:
        sums = [0.0, 0.0] if self._norms is None else self._norms.tolist()
        used = {"w": self.training.phases["M"], "phi": self.training.phases["E"]}
        return {
            side: total / self._counts[side]
            for side, total in zip(_MOVED["both"], sums, strict=True)
            if used[side] and self._counts[side]
        }


def check_watched(training: Training, state: Any) -> None:
    """Checks the kinds of what was seen of an epoch before a checkpoint.

    Raises:
        TypeError: something is of another kind; the message names it.
    """
    own = Watched(training).state()
    check_alike(state, {name: value for name, value in own.items() if name != "norms"}, "watched")
    if (norms := state["norms"]) is not None:
        check_alike(norms, torch.empty(2, dtype=getattr(norms, "dtype", None), device="meta"), "watched.norms")


def _kl(training: Training, columns: Columns) -> dict[str, Tensor]:
    """The KL of each dimension over data, with the same random numbers at each epoch."""
    estimator, plan = training.estimator, training.plan
    draws, nesting = estimator.drawn, estimator.max_plate_nesting
    return kl_over(training.programs, columns, draws, plan.seed, plan.batch_size, nesting)
