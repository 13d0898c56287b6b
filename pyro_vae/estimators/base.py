"""The base class of all estimators: a bound on log p(x) in nats per datum, and a gradient of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, NamedTuple, final

import pyro.infer
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.estimators.divergence import closed_form_kl
from pyro_vae.estimators.objective import Objective
from pyro_vae.kinds import WrongKindError, takes
from pyro_vae.parts import overridable
from pyro_vae.scopes import seeded
from pyro_vae.traces import Latents, Particles, Program, Sites, library_path, particles


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


Climbs = int | Literal["another objective"] | None
"""Which bound a gradient is an estimate of (see `Estimator.climbs`)."""


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
        learned: the gradient of the mean surrogate by those tensors of the estimator's state that it learns.
    """

    bound: Float[Tensor, " B"]
    surrogate: Float[Tensor, " B"]
    particles: Particles
    optimized: Particles
    learned: dict[str, Tensor] = {}  # noqa: RUF012  (the field of a tuple)


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
        averages: whether the bound is a mean of log w over particles, so that the expectation of log w over a discrete site
            of the guide may take the place of draws (see `pyro_vae.estimators.Enumerate`).
        climbs: the number J of particles of the bound L_J = E log (1/J) Σ_j w_j that its gradient is an estimate of, with or
            without a bias: 1 for the ELBO. It is "another objective" where it is none of these, and None where it isn't told.
            A bias is measured against the gradient of the same bound alone.
        draws_itself: whether the latents are drawn by `draw`, which holds where a class overrides it.
        for_discrete: whether it is for guides with discrete sites alone.
        enumerate: the discrete sites of the guide over which expectations are taken in place of draws.
        learns: the names of those tensors of the state that follow the gradient of the surrogate, uphill, by Adam (Kingma and
            Ba 2015). They are constants in the gradient by all else.
        learning_rate: the rate of this Adam.
        state: tensors, by name, that `advance` and Adam update after each step.

    Raises:
        ValueError: K is below 1.
    """

    latents: Latents = "path"
    M: int = 1
    closed_form_kl: bool = False
    per_datum: bool = True
    averages: bool = False
    climbs: Climbs = None
    draws_itself: bool = False
    for_discrete: bool = False
    enumerate: Sites = ()
    learns: tuple[str, ...] = ()
    learning_rate: float = 1e-3
    state: dict[str, Tensor]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the constructors of this project's estimators check the kinds of their arguments."""
        super().__init_subclass__(**kwargs)
        cls.draws_itself = cls.draws_itself or "draw" in vars(cls)
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

    @property
    def drawn(self) -> int:
        """How many particles are drawn for each datum: M groups of K."""
        return self.M * self.K

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
    def begin(self, draws: Particles) -> dict[str, Tensor]:
        """Returns those parts of the first state, by name, that have sizes of the data (see `learnable` for what is learned).

        Args:
            draws: a draw of the latents of some data, which tells their sizes.
        """
        del draws
        return {}

    @overridable
    def drawn_from_q(self, draws: Particles) -> Particles:
        """Returns those of the particles that are draws of the latents from q.

        The bound and all other numbers that are reported are theirs. An estimator that also evaluates the programs at other
        values, such as relaxed ones, overrides this method.
        """
        return draws

    @overridable
    def draw(self, site: str, q: TorchDistributionMixin, alike: bool) -> Tensor:
        """Returns K draws for each datum of a latent, in place of the guide's own.

        An estimator whose particles are not independent draws overrides this method. Where the draws are functions of φ, it
        differentiates through them ("path"), also where the guide's own draws are not.

        Args:
            site: the name of the latent.
            q: its distribution in the guide, with the M·K particles as the first dimension.
            alike: whether the distribution is the same for all particles of a datum. It is not for a latent that is drawn
                given another one.
        """
        del site, alike
        value: Tensor = q.rsample() if q.has_rsample else q.sample()
        return value

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
        self.prepare(model, guide, *args, **kwargs)
        with self._learning() as learned:
            estimate = self.estimate(model, guide, *args, objective=objective, kl_weight=kl_weight, **kwargs)
        found = torch.autograd.grad(
            estimate.surrogate.mean(), [*leaves, *learned.values()], allow_unused=True, materialize_grads=True
        )
        slopes = dict(zip(learned, found[len(leaves) :], strict=True))
        return estimate._replace(learned=slopes), list(found[: len(leaves)])

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
        self.prepare(model, guide, *args, **kwargs)

        def draw() -> Particles:
            found = particles(
                model,
                guide,
                *args,
                K=self.drawn,
                max_plate_nesting=self.max_plate_nesting,
                latents=self.latents,
                drawing=self.draw if self.draws_itself else None,
                enumerate=self.enumerate,
                **kwargs,
            )
            if self.latents != "fixed":
                self._require_rsample(found)
            return replace(found, kl=closed_form_kl(found)) if self.closed_form_kl else found

        with torch.set_grad_enabled(torch.is_grad_enabled() and (objective.noise or self.latents != "path")):
            draws = draw()
        reported = self.drawn_from_q(draws)
        if objective.is_the_bound and type(self).surrogate is Estimator.surrogate:
            surrogate = self.bound(draws)
            return Estimate(surrogate.detach(), surrogate, draws, draws)
        with torch.no_grad():
            bound = self.bound(reported)
        optimized = draws
        if not objective.noise:
            self._require_closed_form(objective)
            with objective.sampling(guide):
                optimized = draw()
        if not objective.is_the_bound:
            optimized = objective.reweigh(optimized, kl_weight, self.closed_form_kl)
        surrogate = self.surrogate(optimized)
        if objective.alpha:
            surrogate = surrogate + objective.alpha * _auxiliary(optimized)
        return Estimate(bound, surrogate, reported, optimized)

    @final
    @torch.no_grad()
    def after_step(self, estimate: Estimate, learning: bool = True) -> None:
        """Updates the state after a step that was taken with this estimate.

        Nothing else changes the state but `learn`, which is called too unless ``learning`` is false.
        """
        for name, value in self.advance(estimate.optimized).items():
            self.state[name].copy_(value)
        if learning:
            self.learn(estimate.learned)

    @final
    @torch.no_grad()
    def learn(self, slopes: Mapping[str, Tensor]) -> None:
        """Moves what is learned by a step of Adam along these gradients, uphill (Kingma and Ba 2015, algorithm 1)."""
        for name, slope in slopes.items():
            value, mean, square, steps = (self.state[each] for each in _kept(name))
            steps.add_(1)
            mean.mul_(0.9).add_(slope, alpha=0.1)
            square.mul_(0.999).addcmul_(slope, slope, value=0.001)
            step = (mean / (1 - 0.9**steps)) / ((square / (1 - 0.999**steps)).sqrt() + 1e-8)
            value.add_(step, alpha=self.learning_rate)

    @property
    @final
    def averaged(self) -> list[Tensor]:
        """What of the state is an average over data: all real numbers but those that are learned."""
        learned = {each for name in self.learns for each in _kept(name)}
        return [value for name, value in self.state.items() if value.is_floating_point() and name not in learned]

    @final
    def prepare(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
        """Makes those parts of the state that have sizes of the data, unless there are such; every step does so first.

        No random number is used up.
        """
        if all(name in self.state for name in self.learns):
            return
        device = next((each.device for each in args if isinstance(each, Tensor)), torch.device("cpu"))
        with torch.no_grad(), seeded(device, "begin"), library_path():
            draws = particles(model, guide, *args, max_plate_nesting=self.max_plate_nesting, **kwargs)
            self.state = self.state | self.begin(draws)

    @final
    @contextmanager
    def _learning(self) -> Iterator[dict[str, Tensor]]:
        """Lets what is learned require a gradient meanwhile, and gives it."""
        own, learned = self.state, {name: self.state[name].detach().requires_grad_() for name in self.learns}
        self.state = own | learned
        try:
            yield learned
        finally:
            self.state = own

    @final
    def to(self, device: torch.device) -> None:
        """Moves the state to a device."""
        self.state = {name: value.to(device) for name, value in self.state.items()}

    def _require_rsample(self, draws: Particles) -> None:
        if blocked := [name for name, has_rsample in draws.reparameterized.items() if not has_rsample]:
            raise ValueError(
                f"{type(self).__name__} differentiates through the guide's samples, but its sites {blocked} have no "
                f"rsample; use a reparameterized guide, or ScoreFunction, NVIL, VIMCO, RWS or TVO; for discrete sites there "
                f"are also DisARM, ARMS, DoubleCV, REBAR, RELAX, GumbelSoftmax, StraightThrough and ReinMax, and Enumerate "
                f"where they have few values"
            )

    def _require_closed_form(self, objective: Objective) -> None:
        if self.draws_itself:
            raise ValueError(
                f"objective: {type(self).__name__} draws the latents itself, so that there is no objective without noise"
            )
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
        self.prepare(model, guide, *args, **kwargs)
        with self._learning() as learned:
            estimate = self.estimate(model, guide, *args, **kwargs)
        loss = _loss(estimate)
        if loss.requires_grad:
            loss.backward()
        # The loss is minus the surrogate, summed over data.
        slopes = {name: -value.grad / len(estimate.bound) for name, value in learned.items() if value.grad is not None}
        self.after_step(estimate._replace(learned=slopes))
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


def _auxiliary(draws: Particles) -> Tensor:
    """The guide's auxiliary log-probabilities of each datum (B,)."""
    if not draws.auxiliary:
        raise ValueError(
            "objective: alpha weighs the guide's auxiliary log-probabilities, and it has none: SemiSupervised has some, and a "
            "guide of your own marks an observed site by infer={'auxiliary': True}"
        )
    return torch.stack(list(draws.auxiliary.values())).sum(0).mean(0)


def learnable(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors that an estimator learns, with what Adam keeps of each, as entries of its state."""
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        kept = (value, torch.zeros_like(value), torch.zeros_like(value), value.new_zeros(()))
        found |= dict(zip(_kept(name), kept, strict=True))
    return found


def _kept(name: str) -> tuple[str, str, str, str]:
    """The names of what is learned, and of the moments and the number of steps that Adam keeps of it."""
    return name, f"{name}: mean", f"{name}: square", f"{name}: steps"


def _loss(estimate: Estimate) -> Tensor:
    value = estimate.surrogate + (estimate.bound - estimate.surrogate).detach()
    return -(value * estimate.particles.scale).sum()


def require_particles(K: int, least: int, estimator: Estimator, why: str) -> None:
    """Raises ValueError if there are too few particles."""
    if least > K:
        raise ValueError(f"{type(estimator).__name__}: expected K of at least {least}, got {K}: {why}")
