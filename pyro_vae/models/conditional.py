"""A model of data given their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import ClassVar, final

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.kinds import takes
from pyro_vae.models.base import ThreePartModel, check_prior, scored
from pyro_vae.parts import Dims, Guide, Likelihood, Prior, Units, check_batch


@final
class Conditional(ThreePartModel):
    """p(t) p(x|t,y) with q(t|x,y), a model of the data x of a given class y (Kingma et al. 2014; Sohn et al. 2015).

    The label is an input of both programs, ``model(x, y)`` and ``guide(x, y)``, and every bound is one on log p(x|y).
    The decoder receives y as a one-hot vector beside t. The encoder receives y as further channels of x, which are
    learned for each class, so that images stay images. One channel is added if it has at least as many pixels as there
    are classes. As many channels as are needed for one number per class are added to smaller images and to vectors.

    Args:
        dims: the sizes and the number of classes, filled in by the program.
        prior: p(t), made from the sizes.
        guide: q(t|x,y), made from the sizes.
        likelihood: p(x|t,y), made from the sizes.

    Raises:
        ValueError: the data have no labels 0, 1, ..., there are more classes than data, or the prior is made of the
            guide, which here needs a label.
    """

    inputs: ClassVar[tuple[str, ...]] = ("x", "y")

    def __init__(
        self,
        dims: Dims,
        prior: Callable[[Dims], Prior],
        guide: Callable[[Dims], Guide],
        likelihood: Callable[[Dims], Likelihood],
    ) -> None:
        if dims.classes is None:
            raise ValueError(
                "Conditional: needs data with a label for each datum, whole numbers from 0 on; of a file --data.labels names "
                "the column, or the array, that has them"
            )
        if dims.train is not None and dims.classes > len(dims.train):
            raise ValueError(
                f"Conditional: labels count classes from 0 on, and there would be {dims.classes} of them for {len(dims.train)} "
                f"training data: number the labels that occur 0, 1, ..."
            )
        self.classes, (channels, *pixels) = dims.classes, dims.seen_shape
        added = -(-self.classes // prod(pixels))
        wider = Dims(dims.latent, (channels + added, *pixels), classes=dims.classes)
        super().__init__(dims, prior(dims), guide(wider), likelihood(replace(dims, latent=dims.latent + self.classes)))
        self.units = Units(dims)
        self.embedding = nn.Embedding(self.classes, added * prod(pixels))
        check_prior(self)

    @takes
    def model(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Draws t and x from p(t) p(x|t,y), where x is observed if it is given.

        Args:
            x: observed data ``(B, *x_shape)``. If it is None, one datum is drawn for each label.
            y: labels ``(B,)``, whole numbers.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.

        Raises:
            ValueError: no labels are given.
        """
        y = _required(y)
        self.register("prior", self.prior)
        self.register("likelihood", self.likelihood)
        with pyro.plate("data", len(y), dim=-1):
            t = pyro.sample("t", self.prior())
            seen = self.prior.seen(t)
            one_hot = (y[:, None] == torch.arange(self.classes, device=y.device)).to(seen.dtype)
            given = torch.cat([seen, one_hot.expand(*seen.shape[:-1], -1)], -1)
            sample: Tensor = pyro.sample("x", self.likelihood(given), obs=scored(x, self.dims.x_shape))
        return sample

    @takes
    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draws t from q(t|x,y).

        Args:
            x: data ``(B, *x_shape)``.
            y: labels ``(B,)``, whole numbers.

        Returns:
            t, of shape ``(B, d)`` or ``(K, B, d)``.

        Raises:
            ValueError: no labels are given.
        """
        y = _required(y)
        check_batch(x, self.dims.x_shape)
        self.register("guide", self.posterior)
        self.register("embedding", self.embedding)
        seen = self.units.scaled(x)
        wider = torch.cat([seen, self.embedding(y).reshape(len(y), -1, *seen.shape[2:])], 1)
        with pyro.plate("data", len(x), dim=-1):
            sample: Tensor = pyro.sample("t", self.posterior(wider))
        return sample


def _required(y: Tensor | None) -> Tensor:
    if y is None:
        raise ValueError("Conditional: its model and guide are called with labels too, model(x, y) and guide(x, y)")
    return y
