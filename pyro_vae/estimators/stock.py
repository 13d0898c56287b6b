"""Pyro's own estimators in the slot of ours, so that they can be compared."""

from __future__ import annotations

from typing import Any, final

import pyro.infer
import torch
from torch import Tensor

from pyro_vae.base import Estimator
from pyro_vae.particles import Particles, parameters


@final
class Stock(Estimator):
    """An estimator of ``pyro.infer``, such as Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO or RenyiELBO, as it is.

    Bound: minus Pyro's loss over the batch size, the same for each datum: Pyro tells the sum alone.

    Gradient: what Pyro's ``loss_and_grads`` leaves in the parameters.

    Domain: that of the stock estimator; no objective but the bound.

    Args:
        K: number of particles, vectorized.
        elbo: the class, by its import path on the command line.
        options: further arguments of that class, for example {"alpha": 0.5}.
        max_plate_nesting: number of plate dimensions the Pyro programs use.
    """

    latents = "fixed"

    def __init__(
        self,
        K: int = 1,
        elbo: type[pyro.infer.ELBO] = pyro.infer.Trace_ELBO,
        options: dict[str, Any] | None = None,
        max_plate_nesting: int = 1,
    ) -> None:
        super().__init__(K, max_plate_nesting)
        given = {"num_particles": K, "vectorize_particles": True, "max_plate_nesting": max_plate_nesting}
        self.elbo: Any = elbo(**given, **(options or {}))

    def combine(self, draws: Particles) -> tuple[Tensor, Tensor]:
        """Returns bound and surrogate (B,); the particles beside them are other draws than Pyro's.

        Raises:
            ValueError: an objective other than the bound.
        """
        if not isinstance(draws.kl_weight, float) or draws.kl_weight != 1:
            raise ValueError("Stock: Pyro's estimators have no weight of the KL; use one of pyro_vae.estimators")
        model, guide, args, kwargs = draws.programs
        if isinstance(draws.scale, Tensor):
            raise ValueError(
                "Stock: Pyro's loss is one sum, which scales of their own for each datum cannot be taken out of"
            )
        size = draws.log_w.shape[1] * draws.scale
        if not torch.is_grad_enabled():
            bound = torch.full_like(draws.log_w[0], -self.elbo.loss(model, guide, *args, **kwargs) / size)
            return bound, bound
        leaves = [leaf for of in parameters(model, guide, *args, **kwargs) for leaf in of.values()]
        kept = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        loss = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        # A linear function of the parameters that has Pyro's gradient: it goes where every surrogate goes.
        terms = [(leaf * leaf.grad).sum() for leaf in leaves if leaf.grad is not None]
        linear = sum(terms, torch.zeros_like(draws.log_w[0, 0])) / size
        for leaf, grad in zip(leaves, kept, strict=True):
            leaf.grad = grad
        return torch.full_like(draws.log_w[0], -loss / size), -linear.expand(draws.log_w.shape[1])
