"""A training step, eagerly through the Pyro programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vae.data import Columns
from pyro_vae.estimators import Estimate, Estimator, Objective
from pyro_vae.evaluate.bound import Sums, part_of, sums
from pyro_vae.precision import Precision, in_precision
from pyro_vae.scopes import is_out_of_memory
from pyro_vae.together import Together
from pyro_vae.traces import Programs


@runtime_checkable
class Step(Protocol):
    """One training step."""

    def __call__(self, index: Tensor, kl_weight: float, phase: str, undisturbed: bool = False) -> Sums:
        """Updates the parameters of a phase, and returns sums over the batch.

        Args:
            index: the indices of the batch.
            kl_weight: the weight of the KL.
            phase: the name of the phase.
            undisturbed: nothing but steps ran since the last step, so that nothing else can have changed.
        """


@dataclass(frozen=True)
class Update:
    """Everything that a training step needs; called, it takes a step.

    Attributes:
        programs: the Pyro model and guide that are trained.
        estimator: the estimator whose gradient is followed.
        objective: what is optimized.
        columns: the training data, which batches are indices into.
        optimizer: the optimizer of all parameters.
        phases: the parameters that move in each phase, by its name; those of "both" are all of them.
        clip_norm: the largest norm of the gradient by the parameters that move; None clips nothing.
        precision: the precision of the networks' matrix products.
        norms: whether the norms of the gradient are told.
        together: the processes that share each batch out, if there are several.
    """

    programs: Programs
    estimator: Estimator
    objective: Objective
    columns: Columns
    optimizer: Optimizer
    phases: Mapping[str, Sequence[Tensor]]
    clip_norm: float | None = None
    precision: Precision = "fp32"
    norms: bool = False
    together: Together | None = None

    def __call__(self, index: Tensor, kl_weight: float, phase: str, undisturbed: bool = False) -> Sums:
        """One step, eagerly (see `Step`)."""
        del undisturbed
        leaves = self.leaves(phase)
        found, gradients = self.gradients(self.columns.tensors, index, kl_weight, leaves, self.of_phi(leaves))
        return self.follow(leaves, found, gradients)

    def follow(self, leaves: Sequence[Tensor], found: Sums, gradients: Sequence[Tensor]) -> Sums:
        """The optimizer's step, with what `gradients` returned, which several processes sum up first. Returns their sums.

        Raises:
            ValueError: the optimizer cannot take it.
            LostError: another process is gone.
        """
        if self.together:
            found, gradients = self._joined(self.together, leaves, found, gradients)
        self.optimizer.zero_grad(set_to_none=True)  # an estimator of Pyro's may have left gradients of the other side
        for leaf, gradient in zip(leaves, gradients, strict=True):
            # PyTorch's fused optimizers read a gradient in the order of the parameter's memory, whatever its own order is.
            same = gradient.stride() == leaf.stride()
            leaf.grad = gradient if same else torch.empty_like(leaf).copy_(gradient)
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(f"optimizer: {type(self.optimizer).__name__} cannot take this step: {error}") from error
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def candidates(self, phase: str) -> Sequence[Tensor]:
        """The parameters of a phase, and those of the programs' module that were given to the optimizer since training began.

        These move in every phase, unless the name of their group says which side they are of.
        """
        known, groups = self.phases["both"], self.optimizer.param_groups
        if sum(len(group["params"]) for group in groups) == len(known):
            return self.phases[phase]
        module, other = self.programs, {"E": "w", "M": "phi"}.get(phase)
        new = set(map(id, module.parameters() if isinstance(module, nn.Module) else ())) - set(map(id, known))
        added = (each for group in groups if group.get("name", "") != other for each in group["params"])
        return [*self.phases[phase], *(each for each in added if id(each) in new)]

    def leaves(self, phase: str) -> list[Tensor]:
        """The parameters that a step of a phase moves: those that require a gradient now.

        Raises:
            ValueError: there are none.
        """
        found = [leaf for leaf in self.candidates(phase) if leaf.requires_grad]
        if not found:
            raise ValueError(
                f"phase {phase!r}: none of its parameters requires a gradient any more, so that its steps would move nothing"
            )
        return found

    def of_phi(self, leaves: Sequence[Tensor]) -> list[bool] | None:
        """Whether each of these parameters is in the group of φ; None where nobody asks for norms."""
        if not self.norms:
            return None
        groups = (group["params"] for group in self.optimizer.param_groups if group.get("name") == "phi")
        phi = {id(each) for group in groups for each in group}
        return [id(leaf) in phi for leaf in leaves]

    def gradients(
        self,
        tensors: Sequence[Tensor],
        index: Tensor,
        kl_weight: float | Tensor,
        leaves: Sequence[Tensor],
        of_phi: Sequence[bool] | None = None,
    ) -> tuple[Sums, list[Tensor]]:
        """Returns sums over a batch, and the clipped gradient of minus the mean surrogate by the leaves.

        The estimator's state moves on. Of several processes, each returns its own part, which `follow` sums up.

        Args:
            tensors: the training data.
            index: the indices of the batch.
            kl_weight: the weight of the KL.
            leaves: the parameters.
            of_phi: whether each of them is one of φ: the sums have then the norms of the gradient before it is clipped.
        """
        if self.together:
            return self._share(self.together, tensors, index, kl_weight, leaves)
        estimate, gradients = self._estimate(tensors, index, kl_weight, leaves)
        norms, gradients = self._clipped(gradients, of_phi)
        self.estimator.after_step(estimate)
        return sums(estimate)._replace(norms=norms), gradients

    def _estimate(
        self, tensors: Sequence[Tensor], index: Tensor, kl_weight: float | Tensor, leaves: Sequence[Tensor]
    ) -> tuple[Estimate, list[Tensor]]:
        """The estimate over a batch, and the gradient of minus its mean surrogate."""
        batch = self.columns.take(index, tensors)
        model, guide = (in_precision(each, self.precision) for each in (self.programs.model, self.programs.guide))
        estimate, uphill = self.estimator.gradients(
            model, guide, leaves, *batch, objective=self.objective, kl_weight=kl_weight
        )
        return estimate, [gradient.neg() for gradient in uphill]

    def _clipped(
        self, gradients: list[Tensor], of_phi: Sequence[bool] | None
    ) -> tuple[Float64[Tensor, " 2"] | None, list[Tensor]]:
        """The norms of a gradient, where they are asked for, and the gradient, clipped."""
        norms = None if of_phi is None else _norms(gradients, of_phi)
        if self.clip_norm:
            # The formula of torch.nn.utils.clip_grad_norm_, on tensors that are no parameter's.
            factor = (self.clip_norm / (nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
            gradients = [gradient * factor for gradient in gradients]
        return norms, gradients

    def _share(
        self,
        together: Together,
        tensors: Sequence[Tensor],
        index: Tensor,
        kl_weight: float | Tensor,
        leaves: Sequence[Tensor],
    ) -> tuple[Sums, list[Tensor]]:
        """What this process adds to the sums and to the gradient, and the estimator's state after it, times its share.

        The gradient is that by the leaves, and then that by what the estimator learns.
        """
        with together.share(index, self.estimator.drawn) as (own, place, share):
            estimate, gradients = self._estimate(tensors, own, kl_weight, leaves)
        self.estimator.after_step(estimate, learning=False)
        for value in self.estimator.averaged:
            value.mul_(share)
        slopes = [*gradients, *estimate.learned.values()]
        return part_of(sums(estimate), place, len(index), share), [slope * share for slope in slopes]

    def _joined(
        self, together: Together, leaves: Sequence[Tensor], found: Sums, gradients: Sequence[Tensor]
    ) -> tuple[Sums, list[Tensor]]:
        """The sums over all processes."""
        state = self.estimator.averaged
        row, bound, *summed = together.sum([found.row, found.bound, *state, *gradients])
        for value, new in zip(state, summed, strict=False):
            value.copy_(new)
        of_leaves, learned = summed[len(state) : len(state) + len(leaves)], summed[len(state) + len(leaves) :]
        self.estimator.learn(dict(zip(self.estimator.learns, learned, strict=True)))
        norms, gradients = self._clipped(of_leaves, self.of_phi(leaves))
        return Sums(row, bound, norms), gradients


def _norms(gradients: Sequence[Tensor], of_phi: Sequence[bool]) -> Tensor:
    """The norm of the gradient by w, and by φ (2,)."""
    found = []
    for side in (False, True):
        mine = [gradient for gradient, phi in zip(gradients, of_phi, strict=True) if phi is side]
        found.append(nn.utils.get_total_norm(mine) if mine else gradients[0].new_zeros(()))
    return torch.stack(found).detach().to(torch.float64)
