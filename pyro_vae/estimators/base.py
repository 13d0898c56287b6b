"""The base class of all estimators: a bound on log p(x) in nats per datum, and a gradient of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple, TypeVar, final

import pyro.infer
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.estimators.divergence import closed_form_kl
from pyro_vae.estimators.objective import Objective
from pyro_vae.kinds import WrongKindError, takes
from pyro_vae.traces import Latents, Particles, Program, particles

Method = TypeVar("Method", bound=Callable[..., Any])


def overridable(method: Method) -> Method:
    """Marks a concrete method that a subclass may override.

    No subclass overrides any other concrete method.
    """
    method.__overridable__ = True  # type: ignore[attr-defined]
    return method


def _begun(init: Callable[..., None]) -> Callable[..., None]:
    """Returns the constructor of an estimator, which then checks that it called that of `Estimator`."""

    @wraps(init)
    def checking(self: Estimator, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if "K" not in vars(self):
            raise WrongKindError(
                f"{type(self).__name__}: its __init__ must call that of Estimator: begin it with super().__init__(K)"
            )

    return checking


class Estimate(NamedTuple):
    """The result of an estimator for a batch.

    Attributes:
        bound: the bound on log p(x) of each datum, in nats (B,), without a gradient.
        surrogate: the quantity that is differentiated, for each datum (B,). Its gradient is the estimator's gradient;
            its value has no meaning of its own.
        particles: the draws behind the bound, with their log-probabilities.
        optimized: the draws behind the surrogate. They are those behind the bound, unless the objective is without
            noise. Then the programs run once more, with a randomness beyond their sample sites (dropout) that is
            another one: neither the bound nor the surrogate mixes numbers of both runs.
    """

    bound: Float[Tensor, " B"]
    surrogate: Float[Tensor, " B"]
    particles: Particles
    optimized: Particles


class Estimator(pyro.infer.ELBO, ABC):
    """A bound on log p(x) and its gradient, for any Pyro model and guide.

    A new estimator implements `bound`, and also `surrogate` if its gradient is not the gradient of the bound. Both are
    functions of the log-probabilities of K draws for each datum, and have no side effects; each is called once in a
    step. The class attributes say how the draws are made. An estimator that learns from step to step keeps tensors in
    `state` and implements `advance`.

    An estimator is a `pyro.infer.ELBO`, so that ``pyro.infer.SVI(loss=...)`` accepts it too. There it follows Pyro's
    convention: the loss is minus the bound, summed over the batch and multiplied by the plate's scale.

    Args:
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the Pyro programs use.

    Attributes:
        latents: how φ acts on the draws (see `pyro_vae.traces.Latents`). All values but "fixed" need guides with
            ``rsample``.
        M: the number of groups of K particles. All M·K particles are drawn along one dimension.
        closed_form_kl: whether the KL is computed in closed form, and not estimated from the draws.
        per_datum: whether `bound` has a value of its own for each datum. Where it has only that of a whole batch, no interval
            over data can be told.
        state: tensors, by name, that `advance` updates after each step.

    Raises:
        ValueError: K is below 1.
    """

    latents: Latents = "path"
    M: int = 1
    closed_form_kl: bool = False
    per_datum: bool = True
    state: dict[str, Tensor]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the constructors of this project's estimators check the kinds of their arguments."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls) and cls.__module__.partition(".")[0] == "pyro_vae":
            cls.__init__ = takes(cls.__init__)  # type: ignore[method-assign]
        elif "__init__" in vars(cls):
            cls.__init__ = _begun(cls.__init__)  # type: ignore[method-assign]

    @takes
    def __init__(self, K: int = 1, max_plate_nesting: int = 1) -> None:
        if K < 1:
            raise ValueError(f"K: expected at least 1 particle, got {K}")
        if max_plate_nesting < 0:
            raise ValueError(f"max_plate_nesting: expected at least 0, got {max_plate_nesting}")
        super().__init__(num_particles=K, max_plate_nesting=max_plate_nesting)
        self.K = K
        self.state = {}

    @abstractmethod
    def bound(self, draws: Particles) -> Float[Tensor, " B"]:
        """Returns the bound of each datum, in nats."""

    @overridable
    def surrogate(self, draws: Particles) -> Float[Tensor, " B"]:
        """Returns the quantity that is differentiated, for each datum.

        It is the bound, unless an estimator has a gradient of its own.
        """
        return self.bound(draws)

    @overridable
    def advance(self, draws: Particles) -> dict[str, Tensor]:
        """Returns the tensors of the state, by name, after a step that was taken with these draws.

        An estimator without a state returns none. The step itself uses the state from before the step, since the state
        must not depend on the draws that it is used with.
        """
        del draws
        return {}

    @overridable
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
        """Draws particles, and returns the estimate and the gradient of the mean surrogate by each of the leaves.

        The gradient points uphill. An estimator that computes its gradient without a surrogate overrides this method.
        The other arguments are those of `estimate`.
        """
        estimate = self.estimate(model, guide, *args, objective=objective, kl_weight=kl_weight, **kwargs)
        found = torch.autograd.grad(estimate.surrogate.mean(), leaves, allow_unused=True, materialize_grads=True)
        return estimate, list(found)

    @final
    def estimate(
        self,
        model: Program,
        guide: Program,
        *args: Any,
        objective: Objective | None = None,
        kl_weight: float | Tensor | None = None,
        **kwargs: Any,
    ) -> Estimate:
        """Draws particles, and returns the bound and the surrogate of each datum.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            *args: the arguments that both programs are called with.
            objective: the objective that is optimized in place of the bound. The returned bound does not depend on it.
            kl_weight: the weight of the KL in this step, which replaces the objective's β.
            **kwargs: the keyword arguments that both programs are called with.

        Raises:
            ValueError: the guide or the objective is outside the estimator's domain.
        """
        objective = objective or Objective()

        def draw() -> Particles:
            nesting, K = self.max_plate_nesting, self.M * self.K
            found = particles(model, guide, *args, K=K, max_plate_nesting=nesting, latents=self.latents, **kwargs)
            if self.latents != "fixed":
                self._require_rsample(found)
            return replace(found, kl=closed_form_kl(found)) if self.closed_form_kl else found

        with torch.set_grad_enabled(torch.is_grad_enabled() and (objective.noise or self.latents != "path")):
            draws = draw()
        if objective.is_the_bound and type(self).surrogate is Estimator.surrogate:
            surrogate = self.bound(draws)
            return Estimate(surrogate.detach(), surrogate, draws, draws)
        with torch.no_grad():
            bound = self.bound(draws)
        optimized = draws
        if not objective.noise:
            self._require_closed_form(objective)
            with objective.sampling(guide):
                optimized = draw()
        if not objective.is_the_bound:
            optimized = objective.reweigh(optimized, kl_weight, self.closed_form_kl)
        return Estimate(bound, self.surrogate(optimized), draws, optimized)

    @final
    @torch.no_grad()
    def after_step(self, estimate: Estimate) -> None:
        """Updates the state after a step that was taken with this estimate.

        Nothing else changes the state.
        """
        for name, value in self.advance(estimate.optimized).items():
            self.state[name].copy_(value)

    @final
    def to(self, device: torch.device) -> None:
        """Moves the state to a device."""
        self.state = {name: value.to(device) for name, value in self.state.items()}

    def _require_rsample(self, draws: Particles) -> None:
        if blocked := [name for name, has_rsample in draws.reparameterized.items() if not has_rsample]:
            raise ValueError(
                f"{type(self).__name__} differentiates through the guide's samples, but its sites {blocked} have no "
                f"rsample; use a reparameterized guide, or ScoreFunction, VIMCO, RWS or TVO"
            )

    def _require_closed_form(self, objective: Objective) -> None:
        if objective.beta > 0 and not self.closed_form_kl:
            raise ValueError(
                f"objective: without noise the KL cannot be estimated from draws: use the estimator AnalyticKL, or "
                f"beta = 0 (got {type(self).__name__} and beta = {objective.beta:g})"
            )
        if self.latents == "fixed":
            raise ValueError(
                f"objective: without noise φ acts through t alone, which {type(self).__name__} does not differentiate"
            )

    @overridable
    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Returns Pyro's loss: minus the scaled sum of the bound, with the estimator's own gradient.

        The state does not change.
        """
        return _loss(self.estimate(model, guide, *args, **kwargs))

    @overridable
    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Returns Pyro's loss as a number, adds its gradient to that of the parameters, and updates the state."""
        estimate = self.estimate(model, guide, *args, **kwargs)
        loss = _loss(estimate)
        if loss.requires_grad:
            loss.backward()
        self.after_step(estimate)
        return loss.item()

    @final
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Returns Pyro's loss as a number, without a gradient."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    @final
    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        """Raises NotImplementedError, since `estimate` makes its own traces and never calls this hook of Pyro."""
        raise NotImplementedError


def _loss(estimate: Estimate) -> Tensor:
    value = estimate.surrogate + (estimate.bound - estimate.surrogate).detach()
    return -(value * estimate.particles.scale).sum()


def require_particles(K: int, least: int, estimator: Estimator, why: str) -> None:
    """Raises ValueError if there are too few particles."""
    if least > K:
        raise ValueError(f"{type(estimator).__name__}: expected K of at least {least}, got {K}: {why}")
