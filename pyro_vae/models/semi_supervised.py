"""A model of data and their classes, of which some are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, ClassVar, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.kinds import takes
from pyro_vae.models.base import ThreePartModel, check_prior, scored
from pyro_vae.networks import MLP, NetworkFactory
from pyro_vae.parts import Dims, Guide, Likelihood, Prior, Units, check_batch

_SURE = 1e4
"""The logit of a class that is known; the others have a probability of zero in every floating-point type."""


@final
class SemiSupervised(ThreePartModel):
    """p(y) p(t) p(x|t,y) with q(y|x) q(t|x,y), M2 of Kingma et al. 2014 (section 2.1).

    Both programs are called with x and with the labels that are known, and -1 for those that are not: ``--data.labelled 100``
    says how many. Where the class is known, q(y|x) is sure of it, and the bound is one on log p(x,y) (their equation 6); where
    it is not, one on log p(x) (equation 7), best with the estimator `Enumerate`. Validation and test data come without labels,
    so that their bound is one on log p(x); the metric `Classes` compares q(y|x) with them.

    q(y|x) learns nothing from known classes by the bound alone. ``--objective.alpha`` adds α log q(y|x) for each of them
    (equation 9). A datum counts as one in either term: the authors' α of 0.1 N for the mean over the labelled data is 0.1 N
    divided by their number here, with N data in all.

    Args:
        dims: the sizes and the number of classes, filled in by the program.
        prior: p(t), made from the sizes.
        guide: q(t|x,y), made from the sizes.
        likelihood: p(x|t,y), made from the sizes.
        classifier: the network of q(y|x), which maps x to a logit for each class.

    Raises:
        ValueError: the data have no labels 0, 1, ..., or the prior is made of the guide, which here needs a label.
    """

    inputs: ClassVar[tuple[str, ...]] = ("x", "labelled")

    def __init__(
        self,
        dims: Dims,
        prior: Callable[[Dims], Prior],
        guide: Callable[[Dims], Guide],
        likelihood: Callable[[Dims], Likelihood],
        classifier: NetworkFactory = MLP,
    ) -> None:
        if dims.classes is None:
            raise ValueError(
                "SemiSupervised: needs data with a label for each datum, whole numbers from 0 on; --data.labelled says how "
                "many of them the model is told, and of a file --data.labels names the column, or the array, that has them"
            )
        self_classes, (channels, *pixels) = dims.classes, dims.seen_shape
        added = -(-self_classes // prod(pixels))
        wider = Dims(dims.latent, (channels + added, *pixels), classes=dims.classes)
        super().__init__(dims, prior(dims), guide(wider), likelihood(replace(dims, latent=dims.latent + self_classes)))
        self.classes = self_classes
        self.units = Units(dims)
        self.embedding = nn.Linear(self.classes, added * prod(pixels), bias=False)
        self.classifier = classifier(dims.seen_shape, (self.classes,))
        check_prior(self)

    @takes
    def model(self, x: Tensor | None = None, labelled: Tensor | None = None, *, n: int = 1) -> Tensor:
        """Draws y, t and x from p(y) p(t) p(x|t,y), where x is observed if it is given. All classes are as probable.

        Args:
            x: observed data ``(B, *x_shape)``. If it is None, x is drawn.
            labelled: the known classes ``(B,)``, which the guide tells the model of.
            n: the number of data that are drawn if x is None.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.
        """
        del labelled
        self.register("prior", self.prior)
        self.register("likelihood", self.likelihood)
        like = next(self.embedding.parameters())
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(logits=like.new_zeros(self.classes)))
            t = pyro.sample("t", self.prior())
            given = _joined(t, y.to(t.dtype))
            sample: Tensor = pyro.sample("x", self.likelihood(given), obs=scored(x, self.dims.x_shape))
        return sample

    @takes
    def guide(self, x: Tensor, labelled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws y and t from q(y|x) q(t|x,y), where y is known if a label is given.

        Args:
            x: data ``(B, *x_shape)``.
            labelled: the known classes ``(B,)``, and -1 where there is none.

        Returns:
            y and t, of shapes ``(B, classes)`` and ``(B, d)``, or ``(K, B, classes)`` and ``(K, B, d)``.
        """
        check_batch(x, self.dims.x_shape)
        self.register("guide", self.posterior)
        self.register("embedding", self.embedding)
        self.register("classifier", self.classifier)
        seen = self.units.scaled(x)
        logits = self.classifier(seen)
        known = torch.full_like(x.flatten(1)[:, 0], -1, dtype=torch.int64) if labelled is None else labelled
        told = known.unsqueeze(-1) == torch.arange(self.classes, device=known.device)
        sure = torch.where((known >= 0).unsqueeze(-1), _SURE * told.to(logits.dtype), logits)
        with pyro.plate("data", len(x), dim=-1):
            with pyro.poutine.mask(mask=False):  # no part of a bound, also not for Pyro's own estimators
                q = dist.OneHotCategorical(logits=logits).mask(known >= 0)
                obs = torch.where(told, 1.0, torch.zeros_like(logits))
                infer: Any = {"auxiliary": True}
                pyro.sample("label", q, obs=_first_where_none(obs), infer=infer)
            y = pyro.sample("y", dist.OneHotCategorical(logits=sure))
            channels = self.embedding(y.to(seen.dtype)).unflatten(-1, (-1, *seen.shape[2:]))
            given = _joined(seen, channels, -max(1, seen.dim() - 1))
            t = pyro.sample("t", self.posterior(given))
        return y, t


def _joined(one: Tensor, other: Tensor, dim: int = -1) -> Tensor:
    """Joins tensors along a dimension that is counted from the end, for all states and particles of either."""
    lead = torch.broadcast_shapes(one.shape[:dim], other.shape[:dim])
    return torch.cat([each.expand(*lead, *each.shape[dim:]) for each in (one, other)], dim)


def _first_where_none(one_hot: Tensor) -> Tensor:
    """Returns one-hot vectors, with the first class where there is none, whose probability is masked."""
    none = one_hot.sum(-1, keepdim=True) == 0
    first = torch.zeros_like(one_hot)
    first[..., 0] = 1.0
    return torch.where(none, first, one_hot)
