"""Handlers that give the latents of a program other values than those that it would draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

Latents = Literal["path", "fixed", "leaves"]
"""How φ acts on the draws.

The draws are functions of φ for "path". They are constants for "fixed", so that φ acts through the density of q alone.
Densities are evaluated at a copy of the draws for "leaves", so that derivatives by this copy can be taken.
"""

Drawing = Callable[[str, TorchDistributionMixin, bool], Tensor]
"""How an estimator draws the latent of a site, in place of the guide: from the name of the site, its distribution for K
particles and B data, and whether that distribution is the same for all particles."""


class At(Messenger):
    """Gives the latents the same values for each of B data, whatever the program would draw."""

    def __init__(self, latents: Mapping[str, Tensor], B: int) -> None:
        super().__init__()
        self.latents, self.B = latents, B

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.latents:
            return
        value = self.latents[msg["name"]]
        frames = {frame.name: frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}
        event, data_dim = msg["fn"].event_dim, frames.get("data", next(iter(frames.values()), -1))
        shape = list(value.shape)
        shape[data_dim - event] = self.B
        msg["value"], msg["done"], msg["is_observed"] = value.expand(shape), True, True


class Cut(Messenger):
    """Cuts each latent off from φ when it is drawn: the rest of the run gets a constant, or a leaf of the same value.

    So one run gives the draws as functions of φ, and all densities at the copies. A second run would be wrong for a
    guide that is random beyond its sample sites, such as one with dropout.
    """

    def __init__(self, latents: Latents) -> None:
        super().__init__()
        self.leaves = latents == "leaves"
        self.drawn: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample) or not isinstance(msg["value"], Tensor):
            return
        copy = msg["value"].detach()
        self.drawn[msg["name"]] = msg["value"] if self.leaves else copy
        msg["value"] = copy.requires_grad_() if self.leaves and copy.is_floating_point() else copy


class First(Messenger):
    """Puts given values in the place of what is drawn for the first particle.

    Args:
        values: the values by site, without the dimension of particles.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            value = msg["value"].clone()
            value[0] = self.values[msg["name"]]
            msg["value"] = value


class Alike(Messenger):
    """Notes which latents have the same distribution for all particles: it stands inside of their plate.

    Args:
        rank: the number of dimensions of plates, that of the particles included.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.names = rank, set[str]()

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], TorchDistributionMixin) and not isinstance(msg["fn"], _Subsample):
            shape = msg["fn"].batch_shape
            if len(shape) < self.rank or shape[-self.rank] == 1:
                self.names.add(msg["name"])


class Drawn(Messenger):
    """Draws latents as an estimator does.

    Args:
        drawing: how.
        alike: which latents have the same distribution for all particles, as they occur.
    """

    def __init__(self, drawing: Drawing, alike: Alike) -> None:
        super().__init__()
        self.drawing, self.alike, self.names = drawing, alike, set[str]()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        msg["value"], msg["done"] = self.drawing(msg["name"], msg["fn"], msg["name"] in self.alike.names), True
        self.names.add(msg["name"])
