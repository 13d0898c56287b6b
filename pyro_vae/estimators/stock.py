"""Pyro's own estimators in the form of an `Estimator`, so that they can be compared with those of this project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import pyro.infer
import torch
from torch import Tensor

from pyro_vae.estimators.base import Climbs, Estimate, Estimator
from pyro_vae.estimators.objective import Objective
from pyro_vae.traces import Evaluations, Particles, Program, filled_where_masked, parameters_used, particles


@final
class Stock(Estimator):
    """An unchanged estimator of ``pyro.infer``, such as Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO or RenyiELBO.

    Bound: minus Pyro's loss, divided by the batch size. It is the same for each datum, since Pyro returns only the sum.

    Gradient: the gradient that Pyro's ``loss_and_grads`` leaves in the parameters. There is no surrogate.

    Domain: the domain of the stock estimator. The objective must be the bound.

    Args:
        K: the number of particles, which are vectorized.
        elbo: the class of the estimator, which the command line names by its import path.
        options: further arguments of that class, for example {"alpha": 0.5}.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.
    """

    latents = "fixed"
    per_datum = False

    def __init__(
        self,
        K: int = 1,
        elbo: type[pyro.infer.ELBO] = pyro.infer.Trace_ELBO,
        options: dict[str, Any] | None = None,
        max_plate_nesting: int = 1,
    ) -> None:
        super().__init__(K, max_plate_nesting)
        given = {"num_particles": K, "vectorize_particles": True, "max_plate_nesting": max_plate_nesting}
        try:
            self.elbo: Any = elbo(**given, **(options or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"options: {elbo.__name__} does not take {options} ({error})") from error
        self.climbs = _climbed(self.elbo, K)

    def bound(self, draws: Particles) -> Tensor:
        """Returns the bound of each datum (B,), which Pyro estimates with draws of its own.

        The given draws only tell which programs were called and with which arguments.

        Raises:
            ValueError: the objective is not the bound, or each datum has its own scale.
        """
        model, guide, args, kwargs = draws.programs
        size = self._size(draws)
        with torch.no_grad(), filled_where_masked():
            return torch.full_like(draws.log_w[0], -self.elbo.loss(model, guide, *args, **kwargs) / size)

    def gradients(
        self,
        model: Program,
        guide: Program,
        leaves: Sequence[Tensor],
        *args: Any,
        objective: Objective | None = None,
        kl_weight: float | Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Estimate, list[Tensor]]:
        """Returns the estimate, and Pyro's gradient of the mean bound by each of the leaves.

        The attribute ``grad`` of every parameter that the programs register is afterwards as it was.

        Raises:
            ValueError: the objective is not the bound, or each datum has its own scale.
        """
        objective = objective or Objective()
        with torch.no_grad(), parameters_used() as used:
            draws = particles(model, guide, *args, K=self.K, max_plate_nesting=self.max_plate_nesting, **kwargs)
            draws = draws if objective.is_the_bound else objective.reweigh(draws, kl_weight)
        if not objective.noise:
            raise ValueError("Stock: Pyro's estimators draw t with noise; use one of pyro_vae.estimators")
        size = self._size(draws)
        # Pyro adds its gradient to that of every parameter, also of those that are not among the leaves.
        touched = {id(each): each for each in (*leaves, *used)}.values()
        kept = [each.grad for each in touched]
        for each in touched:
            each.grad = None
        try:
            with filled_where_masked(), Evaluations(self.max_plate_nesting) as evaluations:
                loss = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
            found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / -size for leaf in leaves]
        finally:
            for each, grad in zip(touched, kept, strict=True):
                each.grad = grad
        bound = torch.full_like(draws.log_w[0], -loss / size)
        draws = replace(draws, evaluations=evaluations.number)  # those of Pyro's own run, which may have other states
        return Estimate(bound, bound, draws, draws), found

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Returns Pyro's own differentiable loss.

        Raises:
            ValueError: the class has none, as RenyiELBO and TraceGraph_ELBO have none; ``loss_and_grads`` works for all.
        """
        if not torch.is_grad_enabled():
            return torch.tensor(float(self.elbo.loss(model, guide, *args, **kwargs)))
        if not hasattr(self.elbo, "differentiable_loss"):
            raise ValueError(
                f"Stock: {type(self.elbo).__name__} has no differentiable loss in Pyro; use loss_and_grads"
            )
        loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Returns Pyro's own loss, and adds its gradient to that of the parameters."""
        return float(self.elbo.loss_and_grads(model, guide, *args, **kwargs))

    def _size(self, draws: Particles) -> float:
        """Returns the number of data in Pyro's sum, multiplied by the plate's scale."""
        if not isinstance(draws.kl_weight, float) or draws.kl_weight != 1:
            raise ValueError("Stock: Pyro's estimators have no weight of the KL; use one of pyro_vae.estimators")
        if isinstance(draws.scale, Tensor):
            raise ValueError(
                "Stock: Pyro's loss is one sum, which scales of their own for each datum cannot be taken out of"
            )
        return draws.log_w.shape[1] * draws.scale


def _climbed(elbo: Any, K: int) -> Climbs:
    """Returns which bound an estimator of Pyro climbs; of a class that is derived from one of these, nothing is told."""
    of_elbo = ("Trace_ELBO", "TraceGraph_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
    names = {*of_elbo, *(f"Jit{name}" for name in of_elbo)}
    if type(elbo) in {getattr(pyro.infer, name) for name in names}:
        return 1
    if type(elbo) is pyro.infer.RenyiELBO:
        return K if elbo.alpha == 0 else "another objective"
    return None
