"""How a picture moves one latent, by what values the latent has: a real number, a bit, or a one-hot vector."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.discrete import BlockConstraint, Blocks

_SURE = 30.0
"""How much larger than the others the logarithm of the chosen class of a relaxed one-hot vector is: e^-30 is nothing."""


@dataclass(frozen=True)
class Moves:
    """The values that a part of a latent takes in turn, while the rest of the latent stays.

    Attributes:
        kind: the part: a number, a bit, or a block of one-hot classes.
        ticks: the values.
        size: how many numbers of the latent the part consists of.
        relaxed: whether a block holds logarithms.
    """

    kind: Literal["number", "bit", "block"]
    ticks: tuple[float, ...]
    size: int = 1
    relaxed: bool = False

    @property
    def title(self) -> str:
        """What a picture of these moves shows."""
        how = {
            "number": "one latent moves",
            "bit": "one latent is 0 and 1",
            "block": "one block has each of its classes",
        }
        return f"means of p(x|t): {how[self.kind]}, the others stay"

    def parts(self, t: Tensor) -> int:
        """Returns of how many such parts a latent ``(N, *event)`` consists."""
        return prod(t.shape[1:]) // self.size

    def spread(self, t: Tensor) -> Tensor:
        """Returns how much each part of latents ``(N, *event)`` varies over the data: its variance, summed over its numbers."""
        flat = t.reshape(len(t), -1)
        seen = flat.exp() if self.relaxed else flat.to(torch.get_default_dtype())
        return seen.var(0, correction=0).reshape(-1, self.size).sum(-1)

    def line(self, t: Tensor, part: int) -> Tensor:
        """Returns the latent ``(*event)`` with one part at each of the values, of shape ``(len(ticks), *event)``."""
        found = t.expand(len(self.ticks), *t.shape).clone()
        flat = found.view(len(self.ticks), -1)
        if self.kind == "block":
            values = torch.eye(self.size, dtype=t.dtype, device=t.device)
            values = (_SURE * values).log_softmax(-1) if self.relaxed else values
        else:
            values = torch.tensor(self.ticks, dtype=t.dtype, device=t.device)[:, None]
        flat[:, part * self.size : (part + 1) * self.size] = values
        return found


def moves(support: Constraint, t: Tensor) -> Moves | None:
    """Returns how the parts of a latent ``(N, *event)`` with this support are moved, or None where a picture moves none.

    Real numbers move from -3 to 3.
    """
    if isinstance(support, BlockConstraint):
        classes = tuple(float(k + 1) for k in range(support.classes))
        return Moves("block", classes, support.classes, relaxed=not isinstance(support, Blocks))
    if support is constraints.boolean:
        return Moves("bit", (0.0, 1.0))
    if support.is_discrete or not t.is_floating_point():
        return None
    return Moves("number", tuple(torch.linspace(-3, 3, 11, device="cpu").tolist()))
