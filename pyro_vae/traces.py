"""Log-probabilities (K, B) from a Pyro model, a Pyro guide and data.

No other module handles Pyro's traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta, Independent, MaskedDistribution, Unit
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor, nn
from torch.distributions import biject_to, constraints, transform_to

Program = Callable[..., Any]
"""A Pyro model or guide."""
Site = Mapping[str, Any]

Latents = Literal["path", "fixed", "leaves"]
"""How φ acts on the draws.

The draws are functions of φ for "path". They are constants for "fixed", so that φ acts through the density of q alone.
Densities are evaluated at a copy of the draws for "leaves", so that derivatives by this copy can be taken.
"""


@runtime_checkable
class Programs(Protocol):
    """A Pyro model and a Pyro guide that are trained and evaluated together, and called with the same data.

    A `VAE` is an example. An attribute ``inputs``, a tuple of names, declares the arguments of both programs in their
    order: ``("x",)`` for the data alone, or ``("x", "y")`` for the data and their labels. Programs without this
    attribute are called with x alone.
    """

    @property
    def model(self) -> Program:
        """The Pyro model p(t) p(x|t,w)."""

    @property
    def guide(self) -> Program:
        """The Pyro guide q(t|x,φ)."""


def inputs_of(programs: Any) -> tuple[str, ...]:
    """Returns the names of the programs' arguments: ``("x",)``, unless they declare others (see `Programs`)."""
    return tuple(getattr(programs, "inputs", ("x",)))


_PARTICLES = "particles"


@dataclass(frozen=True)
class Particles:
    """K draws of the latents for each of B data, and their log-probabilities in nats.

    The scales of plates and handlers are left out: every number belongs to one datum and one particle. A mask is
    included, since it says which data exist.

    Attributes:
        model: the log-probability (K, B) of each sample site of the model, summed over its own event and plates.
        guide: the same for the guide's sites.
        observed: the names of the model's observed sites.
        values: the latents by site, with K as the first dimension.
        reparameterized: whether each of the guide's sites has a pathwise gradient.
        scale: the product of the scales of plates and handlers: one number, or one number for each datum (B,).
        drawn: the latents as the guide drew them, which depend on φ unless ``latents`` is "fixed". `values` are the
            same tensors unless ``latents`` is "leaves"; then each is a function of φ and of the leaves before it.
        distributions: the distributions q and p of each latent site in this run of the programs, with their masks.
        guide_at: a function that returns the guide's log-probabilities by site at other values of its latents. Each is
            given the latents before it as they were in the run: the guide does not run again, since it may be random
            beyond its sample sites.
        per_datum: a function that sums a tensor of a site's batch shape over the site's own plates, and returns (K, B).
        vectors: a function that returns the values of a latent, by the name of its site, as vectors (K, B, d): all numbers
            that belong to one datum, in the order of its plates and of its event.
        programs: the model, the guide, and the arguments that they were called with.
        kl_weight: the weight of log p(t) - log q(t|x,φ) in `log_w`. It is 1 in a bound and may be another number in an
            objective.
        kl: KL(q(t|x,φ)‖p(t)) in closed form, for an estimator that has asked for it.
        plates: the dimensions of the particles and of the data among the batch dimensions of sites, both below 0.
    """

    model: dict[str, Float[Tensor, "K B"]]
    guide: dict[str, Float[Tensor, "K B"]]
    observed: frozenset[str]
    values: dict[str, Tensor]
    reparameterized: dict[str, bool]
    scale: float | Tensor
    drawn: dict[str, Tensor]
    distributions: dict[str, tuple[TorchDistributionMixin, TorchDistributionMixin]]
    guide_at: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    per_datum: Callable[[Tensor], Tensor]
    vectors: Callable[[str], Tensor]
    programs: tuple[Program, Program, tuple[Any, ...], dict[str, Any]]
    kl_weight: float | Tensor = 1.0
    kl: Float[Tensor, "K B"] | None = None
    plates: tuple[int, int] = (-2, -1)

    @property
    def log_lik(self) -> Float[Tensor, "K B"]:
        """Σ log p over the observed sites: log p(x|t,w)."""
        return _sum([value for name, value in self.model.items() if name in self.observed], self.guide)

    @property
    def log_prior(self) -> Float[Tensor, "K B"]:
        """Σ log p over the model's latent sites: log p(t)."""
        return _sum([value for name, value in self.model.items() if name not in self.observed], self.guide)

    @property
    def log_q(self) -> Float[Tensor, "K B"]:
        """Σ log q over the guide's sites: log q(t|x,φ)."""
        return _sum(list(self.guide.values()), self.model)

    @property
    def log_w(self) -> Float[Tensor, "K B"]:
        """The log importance weight: log p(x|t,w) + kl_weight (log p(t) - log q(t|x,φ)).

        It is log p(x,t) - log q(t|x,φ) if kl_weight is 1.
        """
        return self.log_lik + self.kl_weight * (self.log_prior - self.log_q)

    @property
    def log_p(self) -> Float[Tensor, "K B"]:
        """The terms of `log_w` that depend on the model's parameters: log p(x|t,w) + kl_weight log p(t)."""
        return self.log_lik + self.kl_weight * self.log_prior

    @property
    def sites(self) -> dict[str, Float[Tensor, "K B"]]:
        """Every log-probability by the name of its site, such as ``"guide t"`` and ``"model x"``, the guide's first."""
        return {f"guide {name}": value for name, value in self.guide.items()} | {
            f"model {name}": value for name, value in self.model.items()
        }


def particles(
    model: Program,
    guide: Program,
    *args: Any,
    K: int = 1,
    max_plate_nesting: int = 1,
    latents: Latents = "path",
    first: Mapping[str, Tensor] | None = None,
    **kwargs: Any,
) -> Particles:
    """Runs the guide, and the model on the guide's draws, with K particles in one vectorized pass.

    The plate of particles expands the guide's distribution, so that an encoder runs once for each datum.

    Args:
        model: a Pyro model p(x, t). All its sample sites are in one vectorized data plate. This plate is named
            ``"data"`` if all sites share several plates.
        guide: a Pyro guide q(t|x).
        *args: the arguments that both programs are called with.
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the programs use. The particles' dimension is left of
            them.
        latents: "path" keeps t as a function of φ; "fixed" detaches t, so that φ acts through the density of q alone;
            "leaves" evaluates every density at a copy of t that is a leaf, so that derivatives by t can be taken.
        first: values of latents by site, as one run of the model without particles drew them. They take the place of what
            the guide draws for the first particle, and what the guide draws after them is given them.
        **kwargs: the keyword arguments that both programs are called with.

    Returns:
        The log-probabilities (see `Particles`).

    Raises:
        ValueError: K is below 1, there is no data plate, only one of the programs samples a latent, or sites have
            different scales.
    """
    if K < 1:
        raise ValueError(f"K: expected at least 1 particle, got {K}")
    particle_dim = -1 - max_plate_nesting

    def run(program: Program) -> poutine.Trace:
        with _plate_of_particles(K, max_plate_nesting):
            return poutine.trace(program).get_trace(*args, **kwargs)

    cut = _Cut(latents) if latents != "path" else None
    placed = _First(first) if first else nullcontext()
    with placed, cut or nullcontext():
        guide_trace = run(guide)
    model_trace = run(poutine.replay(model, trace=guide_trace))
    guide_sites, model_sites = _sample_sites(guide_trace), _sample_sites(model_trace)
    observed_sites = frozenset(name for name, site in model_sites.items() if site["is_observed"])
    _check_latents(model_sites, guide_sites, observed_sites)
    sites = list(guide_sites.values()) + list(model_sites.values())
    data_dim = _data_dim(sites)
    shape = K, _size(sites, data_dim)

    def per_datum(value: Tensor) -> Tensor:
        return _per_datum(value, particle_dim, data_dim, shape)

    def vectors(name: str) -> Tensor:
        value, event_dim = values[name], guide_sites[name]["fn"].event_dim
        return value.movedim((particle_dim - event_dim, data_dim - event_dim), (0, 1)).reshape(*shape, -1)

    values = {name: site["value"] for name, site in guide_sites.items()}
    drawn = values if cut is None else {name: cut.drawn[name] for name in values}

    def guide_at(at: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: per_datum(_log_prob(site, at[name])) for name, site in guide_sites.items()}

    return Particles(
        model={name: per_datum(_log_prob(site, site["value"])) for name, site in model_sites.items()},
        guide=guide_at(values),
        observed=observed_sites,
        values=values,
        reparameterized={name: bool(site["fn"].has_rsample) for name, site in guide_sites.items()},
        scale=_scale({**model_sites, **guide_sites}, shape[1]),
        drawn=drawn,
        distributions={name: (_masked(site), _masked(model_sites[name])) for name, site in guide_sites.items()},
        guide_at=guide_at,
        per_datum=per_datum,
        vectors=vectors,
        programs=(model, guide, args, kwargs),
        plates=(particle_dim, data_dim),
    )


def singles(draws: Particles) -> dict[str, Tensor]:
    """Returns the latents with each draw of each datum as a particle of its own, for `crossed`.

    There are K·B of them by site, (K·B, ..., *event) with a data plate of size 1. That of particle k and datum b is number
    k·B + b.
    """
    particle_dim, data_dim = draws.plates
    found = {}
    for name, value in draws.values.items():
        event = draws.distributions[name][0].event_dim
        whole = value.reshape(*[1] * (event - particle_dim - value.dim()), *value.shape)
        found[name] = whole.movedim(data_dim - event, 1).flatten(0, 1).unsqueeze(data_dim - particle_dim)
    return found


def crossed(
    program: Program, latents: Mapping[str, Tensor], *args: Any, max_plate_nesting: int = 1
) -> dict[str, Float[Tensor, "M B"]]:
    """Returns the log-probability of each of M values of the latents for each of B data, by site, in nats.

    Args:
        program: a guide, for log q(t_m|x_b), or a model, for log p(t_m).
        latents: M values of all latents, as `singles` returns them.
        *args: what the program is called with: B data.
        max_plate_nesting: the number of plate dimensions that the programs use.
    """
    particle_dim, B = -1 - max_plate_nesting, len(args[0])
    M = len(next(iter(latents.values())))
    with pyro.plate(_PARTICLES, M, dim=particle_dim):
        sites = _sample_sites(poutine.trace(_At(latents, B)(program)).get_trace(*args))
    data_dim = _data_dim(list(sites.values()))
    return {
        name: _per_datum(_log_prob(sites[name], sites[name]["value"]), particle_dim, data_dim, (M, B))
        for name in latents
    }


class _At(Messenger):
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


@contextmanager
def _plate_of_particles(K: int, max_plate_nesting: int) -> Iterator[None]:
    """Runs programs with K particles, whose dimension is left of the programs' own plates."""
    try:
        with pyro.plate(_PARTICLES, K, dim=-1 - max_plate_nesting), filled_where_masked():
            yield
    except ValueError as error:
        if f'"{_PARTICLES}", collide' not in str(error):
            raise
        raise ValueError(
            f"a plate stands where the particles do: give a max_plate_nesting above {max_plate_nesting}"
        ) from error


class _Cut(Messenger):
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


class _First(Messenger):
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


class _Filled(Messenger):
    """Fills in what a mask leaves out and nothing could score (see `filled_where_masked`)."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] and isinstance(msg["value"], Tensor) and not isinstance(msg["fn"], _Subsample):
            msg["value"] = Observation(msg["fn"], msg["value"], msg["mask"]).filled()


def filled_where_masked() -> AbstractContextManager[Any]:
    """Runs programs so that a missing value (NaN) under a mask gives no NaN in the gradient.

    A mask sets the log-probability to 0, and its derivative is then 0 times that of the log-probability, which is NaN at
    NaN. So a value that the distribution can score stands in for it. A NaN that is not masked stays.
    """
    return _Filled()


class _ModuleParams(Messenger):
    """Makes ``pyro.param`` return a module's own parameter, so that Pyro's global store is not used.

    ``pyro.module`` asks for each parameter under a name with a divider. The tensor that it passes is used unchanged,
    also where a compiled graph has replaced the parameter by another tensor.
    """

    def _pyro_param(self, msg: Any) -> None:
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(init, nn.Parameter) or _MODULE_NAMESPACE_DIVIDER in msg["name"]:
            msg["value"], msg["done"] = init, True


@contextmanager
def library_path() -> Iterator[None]:
    """Runs Pyro programs as this library does: parameters stay in their modules, and nothing is validated at each step.

    A bare ``pyro.param`` belongs to no module and still lives in Pyro's store. The validation flags of Pyro and of
    PyTorch and ``module_local_params`` are restored at the end.
    """
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False), _ModuleParams():
        yield


def parameters(
    model: Program, guide: Program, *args: Any, **kwargs: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the parameters that one run of each program uses, as unconstrained leaves by name.

    The parameters of the model (w) come first, then those of the guide (φ). A parameter that both use counts as the
    guide's.
    """
    with library_path():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    phi = _parameters(guide_trace)
    taken = {id(value) for value in phi.values()}
    return {name: value for name, value in _parameters(model_trace).items() if id(value) not in taken}, phi


@contextmanager
def parameters_used() -> Iterator[list[Tensor]]:
    """Gives a list that holds, at the end, the unconstrained leaf of each parameter that programs used meanwhile."""
    found: list[Tensor] = []
    with poutine.trace(param_only=True) as captured:
        yield found
    found += _parameters(captured.trace).values()


def observed(
    model: Program, *args: Any, values: Mapping[str, Tensor] | None = None
) -> dict[str, TorchDistributionMixin]:
    """Returns the distribution p(x|t) of each site that the model observes.

    Args:
        model: a Pyro model.
        *args: the arguments that the model is called with.
        values: values of latents by site. The other latents are drawn from the prior.
    """
    with library_path(), poutine.condition(data=dict(values or {})), _Unconditioned():
        trace = poutine.trace(model).get_trace(*args)
    sites = _sample_sites(trace)
    if unknown := set(values or {}) - sites.keys():
        raise ValueError(f"the model has no latents {sorted(unknown)}; its sites are {sorted(sites)}")
    return {name: site["fn"] for name, site in sites.items() if site["infer"].get("was_observed")}


def described(model: Program, latents: Mapping[str, Tensor], *args: Any) -> dict[str, TorchDistributionMixin]:
    """Returns p(x|t) at each site that the model observes, as `observed` does, and draws no x for it.

    Args:
        model: a Pyro model.
        latents: values of all latents by site.
        *args: the arguments that the model is called with. Where a site depends on another observed one, it is at these values.
    """
    with library_path():
        trace = poutine.trace(poutine.condition(model, data=dict(latents))).get_trace(*args)
    return {name: site["fn"] for name, site in _sample_sites(trace).items() if name not in latents}


class _Unconditioned(UnconditionMessenger):
    """Draws what a model observes, but for deterministic values, which Pyro counts as observed."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


def layers(distribution: Any) -> list[Any]:
    """Returns a distribution and those inside it, under ``to_event`` and masks, the innermost last."""
    found = [distribution]
    while isinstance(found[-1], Independent | MaskedDistribution):
        found.append(found[-1].base_dist)
    return found


@dataclass(frozen=True, eq=False)
class Observation:
    """What a model observes at one of its sites.

    Attributes:
        distribution: the distribution at the site.
        value: the observed value.
        mask: the site's mask, or None.
    """

    distribution: Any
    value: Tensor
    mask: Any

    @property
    def masks(self) -> list[tuple[Tensor, torch.Size]]:
        """The masks of the site and of its distribution that are tensors, each with the batch shape that it stands for."""
        inner = [each for each in layers(self.distribution) if isinstance(each, MaskedDistribution)]
        found = [(self.mask, self.distribution.batch_shape)] + [(each._mask, each.batch_shape) for each in inner]
        return [(torch.as_tensor(mask), shape) for mask, shape in found if mask is not None and mask is not True]

    def filled(self) -> Tensor:
        """Returns the observed value, with another one in place of each number that a mask leaves out and none could score.

        These are NaN, infinite numbers, and those outside of the support, such as a -1 that stands for a missing count.
        """
        masks, inner = self.masks, layers(self.distribution)[-1]
        if not masks or not self.value.is_floating_point():
            return self.value
        fits = inner.support.check(self.value)
        gone = ~(fits.reshape(*fits.shape, *[1] * (self.value.dim() - fits.dim())) & self.value.isfinite())
        rank = len(self.distribution.batch_shape) + len(self.distribution.event_shape)
        for mask, shape in masks:
            exists = mask.to(self.value.device).expand(shape)
            gone = gone & ~exists.reshape(*shape, *[1] * (rank - len(shape)))
        return torch.where(gone, _inside(inner, self.value), self.value)

    def scored(self, value: Tensor) -> Tensor:
        """Returns whether each number of a value at this site is finite and in the support, or is masked and so not scored.

        The result has the batch shape of the innermost distribution, which is the shape of the value unless its numbers
        belong together.
        """
        scored: Tensor = layers(self.distribution)[-1].support.check(value)
        finite = ~value.isinf()  # the real numbers of PyTorch hold infinity
        scored = scored & (finite.flatten(scored.dim()).all(-1) if value.dim() > scored.dim() else finite)
        for mask, shape in self.masks:
            exists = mask.to(scored.device).expand(shape)
            scored = scored | ~exists.reshape(*shape, *[1] * (scored.dim() - len(shape)))
        return scored


def _inside(distribution: Any, like: Tensor) -> Tensor:
    """Returns values that the distribution can score with a finite derivative: its mean, or others where that is none."""
    support = distribution.support
    if support.is_discrete:
        return torch.as_tensor(getattr(support, "lower_bound", 0), dtype=like.dtype, device=like.device)
    try:
        other = transform_to(support)(like.new_zeros(())) if not support.event_dim else like.new_full((), 0.5)
    except NotImplementedError:
        other = like.new_full((), 0.5)
    try:
        mean: Tensor = distribution.mean.detach()
    except (NotImplementedError, AttributeError):
        return other
    fits = support.check(mean)
    fits = fits.reshape(*fits.shape, *[1] * (mean.dim() - fits.dim())) & mean.isfinite()
    return torch.where(fits, mean, other)


def observations(model: Program, *args: Any) -> dict[str, Observation]:
    """Returns what the model observes when it is called with these arguments, by site. Latents are drawn from the prior."""
    with library_path():
        trace = poutine.trace(model).get_trace(*args)
    return {
        name: Observation(site["fn"], site["value"], site["mask"])
        for name, site in _sample_sites(trace).items()
        if site["is_observed"]
    }


def simulate(model: Program, *args: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns one draw of all sites from a model, p(t) p(x|t): the latents, and what it would observe, by site.

    Args:
        model: a Pyro model.
        *args: the arguments that the model is called with. What it is told to observe is drawn in its place.

    Raises:
        ValueError: the model has a factor, so that what it defines is more than what it draws.
    """
    with library_path():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args)
    sites = _sample_sites(trace)
    if factors := [name for name, site in sites.items() if any(isinstance(each, Unit) for each in layers(site["fn"]))]:
        raise ValueError(f"the model has the factors {factors}, so that no data can be drawn from it")
    drawn: dict[str, Tensor] = {name: site["value"] for name, site in sites.items()}
    would_observe = {name for name, site in sites.items() if site["infer"].get("was_observed")}
    return (
        {name: value for name, value in drawn.items() if name not in would_observe},
        {name: value for name, value in drawn.items() if name in would_observe},
    )


def draw_latents(guide: Program, *args: Any) -> dict[str, Tensor]:
    """Returns one draw from the guide, by site."""
    with library_path():
        return {name: site["value"] for name, site in _sample_sites(poutine.trace(guide).get_trace(*args)).items()}


def run_guide(guide: Program, *args: Any, K: int = 1, max_plate_nesting: int = 1) -> dict[str, tuple[Tensor, Any]]:
    """Returns K draws from the guide for each datum, with K leading, and the distributions that they are from, by site.

    The distribution of a site that depends on latents before it is that at their draws.
    """
    with library_path(), pyro.plate(_PARTICLES, K, dim=-1 - max_plate_nesting):
        sites = _sample_sites(poutine.trace(guide).get_trace(*args))
    return {name: (site["value"], site["fn"]) for name, site in sites.items()}


class Densities(NamedTuple):
    """Log densities (K, B) of latents in unconstrained coordinates z, in nats (see `Unconstrained`).

    Attributes:
        start: log of the density at which a path begins, p(t) or q(t|x,φ), with the log Jacobian of t = f(z).
        ratio: log p(x,t) minus log of that density, so that both together are log p(x,t) with the log Jacobian.
    """

    start: Float[Tensor, "K B"]
    ratio: Float[Tensor, "K B"]


class _Place(NamedTuple):
    """A latent's numbers in z, their shape beside particles and data, and how many dimensions of it are of one draw."""

    numbers: slice
    shape: torch.Size
    event_dim: int


class Unconstrained:
    """log p(x,t), and the density at which a path to it begins, as functions of given latents.

    The latents of all sites stand one after another in z (K, B, D), for K particles of B data. Each is t = f(z), where f is
    PyTorch's bijection of all real numbers to the support (``biject_to``); a support may depend on the latents before it.
    Densities are those of z, and so contain log |det ∂f/∂z|.

    A guide with one latent site runs once, so that one which is random beyond its site (such as `SemiAmortized`, which takes
    steps with draws of its own) is one density here. A guide with several sites runs again at each call.

    Args:
        model: a Pyro model p(x,t), with all sample sites in one vectorized data plate (see `particles`).
        guide: the guide q(t|x,φ) at which a path begins, or None for a path that begins at the prior.
        *args: the arguments that both are called with.
        K: the number of particles.
        max_plate_nesting: the number of plate dimensions that the programs use.

    Attributes:
        repeats: whether the guide has the same density when it runs again.

    Raises:
        ValueError: the sites do not stand in one data plate; a latent is discrete, has no density, or has a support that is
            not known; the guide cannot score what it did not draw; or the model, or a guide with several sites, is random
            beyond its sample sites.
    """

    def __init__(self, model: Program, guide: Program | None, *args: Any, K: int, max_plate_nesting: int = 1) -> None:
        self._model, self._guide, self._args, self._K = model, guide, args, K
        self._nesting = max_plate_nesting
        with torch.no_grad():
            sites = _sample_sites(self._run(model, 1))
            guide_sites = {} if guide is None else _sample_sites(self._run(guide, K))
            self._observed = frozenset(name for name, site in sites.items() if site["is_observed"])
            if len(self._observed) == len(sites):
                raise ValueError("the model has no latent site, so that its density at x is log p(x) itself")
            if guide is not None or not self._observed:
                _check_latents(sites, guide_sites, self._observed)
            self._data_dim = _data_dim([*guide_sites.values(), *sites.values()])
            self._B = _size(list(sites.values()), self._data_dim)
            latents = {name: site for name, site in sites.items() if name not in self._observed}
            for name, site in (*latents.items(), *guide_sites.items()):
                _check_density(name, site)
            self._events = {name: len(site["fn"].event_shape) for name, site in latents.items()}
            self._places: dict[str, _Place] = {}
            at = 0
            for name, site in latents.items():
                z = _bijection(name, site).inv(site["value"])
                event_dim = z.dim() - 1 - max_plate_nesting
                rest = z.movedim(self._dims(event_dim), (0, 1)).shape[2:]
                self._places[name] = _Place(slice(at, at + rest.numel()), rest, event_dim)
                at += rest.numel()
            self._kept = guide_sites if len(guide_sites) == 1 else {}
            self.repeats = self._check_repeats()

    def __call__(self, z: Float[Tensor, "K B D"], *args: Any) -> Densities:
        """Returns the log densities at z.

        Args:
            z: the latents in unconstrained coordinates.
            *args: arguments of the programs in place of those that this object was made with. The guide then runs again.
        """
        K = len(z)
        coordinates = _Coordinates({name: self._numbers(z, place) for name, place in self._places.items()})
        trace = self._run(self._model, K, coordinates, args)
        model = {
            name: self._per_datum(_log_prob(site, site["value"]), K) for name, site in _sample_sites(trace).items()
        }
        log_det = reduce(add, (self._per_datum(each, K) for each in coordinates.log_det.values()))
        log_lik = reduce(add, (value for name, value in model.items() if name in self._observed))
        log_prior = reduce(add, (value for name, value in model.items() if name not in self._observed))
        if self._guide is None:
            return Densities(log_prior + log_det, log_lik)
        guide = self._kept
        if args or not guide:
            guide = _sample_sites(self._run(poutine.replay(self._guide, trace=trace), K, None, args))
        values: dict[str, Any] = dict(trace.nodes)
        scores = [_log_prob(site, values[name]["value"]) for name, site in guide.items()]
        log_q = reduce(add, (self._per_datum(each, K) for each in scores))
        return Densities(log_q + log_det, log_lik + (log_prior - log_q))

    def draw(self) -> Float[Tensor, "K B D"]:
        """Returns K draws for each datum from the density at which the path begins, without a gradient."""
        with torch.no_grad():
            if self._guide is None:
                return self.at({}, self._K)
            if self._kept:
                return self.at({name: site["fn"].sample() for name, site in self._kept.items()}, self._K)
            sites = _sample_sites(self._run(self._guide, self._K))
            return self.at({name: site["value"] for name, site in sites.items()}, self._K)

    def at(self, values: Mapping[str, Tensor], K: int) -> Float[Tensor, "K B D"]:
        """Returns the coordinates z of given latents, without a gradient.

        Args:
            values: the latents by site, with K particles. Those that are left out are drawn from the prior.
            K: the number of particles.

        Raises:
            ValueError: a value is not in the support that the model has at its site.
        """
        inverse = _Inverse(values)
        with torch.no_grad():
            self._run(self._model, K, inverse)
        found = [inverse.z[name].movedim(self._dims(place.event_dim), (0, 1)) for name, place in self._places.items()]
        return torch.cat([each.reshape(K, self._B, -1) for each in found], -1)

    def with_particles(self, name: str, value: Tensor) -> Tensor:
        """Returns values of a latent site that were drawn without particles, with 1 as the size of the particles' dimension."""
        batch = value.dim() - self._events[name]
        missing = 1 + self._nesting - batch
        return value.reshape([1] * missing + list(value.shape))

    def _run(
        self, program: Program, K: int, messenger: Messenger | None = None, args: tuple[Any, ...] = ()
    ) -> poutine.Trace:
        with library_path(), _plate_of_particles(K, self._nesting), messenger or nullcontext():
            return poutine.trace(program).get_trace(*(args or self._args))

    def _dims(self, event_dim: int) -> tuple[int, int]:
        """Returns the dimensions of the particles and of the data in numbers of this many event dimensions."""
        return -1 - self._nesting - event_dim, self._data_dim - event_dim

    def _numbers(self, z: Tensor, place: _Place) -> Tensor:
        numbers = z[..., place.numbers].reshape(*z.shape[:2], *place.shape)
        return numbers.movedim((0, 1), self._dims(place.event_dim))

    def _per_datum(self, value: Tensor, K: int) -> Tensor:
        """Returns a tensor of a site's batch shape as (K, B); dimensions of one draw are summed too."""
        rank = 1 + self._nesting
        summed = value.flatten(rank).sum(-1) if value.dim() > rank else value
        return _per_datum(summed, -rank, self._data_dim, (K, self._B))

    def _check_repeats(self) -> bool:
        """Returns whether the guide has the same density in two runs.

        Raises:
            ValueError: the model has not, or the guide, and it has several sites; or the guide cannot score given values.
        """
        z = self.draw()
        try:
            one, other = self(z), self(z, *self._args)
        except (NotImplementedError, KeyError) as error:  # transforms without an inverse raise these
            raise ValueError(
                "the guide cannot score latents that it did not draw, which a path from the guide needs: let the path start at "
                "the prior"
            ) from error
        if z.is_meta:
            return True
        model, guide = (
            torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)
            for a, b in ((one.start + one.ratio, other.start + other.ratio), (one.start, other.start))
        )
        if not model:
            raise ValueError(
                "the model is random beyond its sample sites, so that log p(x,t) is no function of the latents: make what it "
                "draws a sample site, or leave it out in evaluation mode"
            )
        if not (guide or self._kept):
            raise ValueError(
                "the guide is random beyond its sample sites, so that log q(t|x) is no function of the latents: let the path "
                "start at the prior"
            )
        return guide


class _Coordinates(Messenger):
    """Gives each latent the value f(z) of its numbers z, and keeps log |det ∂f/∂z|."""

    def __init__(self, z: Mapping[str, Tensor]) -> None:
        self.z, self.log_det = z, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        if (name := msg["name"]) in self.z:
            f = _bijection(name, msg)
            msg["value"], msg["done"] = f(self.z[name]), True
            self.log_det[name] = f.log_abs_det_jacobian(self.z[name], msg["value"])


class _Inverse(Messenger):
    """Gives latents their values, and keeps z = f⁻¹(t) of all."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values, self.z = values, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        name, t = msg["name"], msg["value"]
        f = _bijection(name, msg)
        z = self.z[name] = f.inv(t)
        if name in self.values and not z.is_meta:
            again = f(z)
            if (
                again.shape != t.shape
                or bool(((again - t).abs() > 1e-3 * (1 + t.abs())).any())
                or bool(z.isnan().any())
            ):
                raise ValueError(
                    f"site {name!r}: the guide draws values that are not in the support of the model's distribution "
                    f"({msg['fn'].support}): let the path start at the prior"
                )


_OF_MIXTURE: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())
"""The support of a mixture, which is that of its components. PyTorch knows it since 2.7."""


def _bijection(name: str, site: Site) -> Any:
    """Returns the bijection of all real numbers to the support of a latent.

    Raises:
        ValueError: none is known.
    """
    try:
        support = site["fn"].support
        while isinstance(support, _OF_MIXTURE):
            support = support.base_constraint
        return biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"latent {name!r}: PyTorch knows no bijection of all real numbers to the support of its distribution "
            f"({type(layers(site['fn'])[-1]).__name__}), which moves along a gradient need"
        ) from error


def _check_density(name: str, site: Site) -> None:
    """Checks that a latent has a density with a gradient.

    Raises:
        ValueError: it is discrete, or a point mass.
    """
    innermost = layers(site["fn"])[-1]
    try:
        discrete = innermost.support.is_discrete
    except NotImplementedError:  # the support is not declared
        discrete = False
    if discrete or not site["value"].is_floating_point():
        raise ValueError(
            f"latent {name!r} is discrete ({type(innermost).__name__}): it has no gradient to move along, so that annealed "
            f"importance sampling is not possible; importance sampling is"
        )
    if isinstance(innermost, Delta):
        raise ValueError(
            f"latent {name!r} is a point mass (Delta), which has no density: annealed importance sampling needs a density"
        )


def simulate_arguments(
    model: Program, *args: Any, inputs: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """Draws t ~ p(t) and x ~ p(x|t) for each datum, without a gradient.

    Where values of x are missing (NaN), they are missing in what is drawn too.

    Args:
        model: a Pyro model.
        *args: the arguments that the model is called with, of which those that it observes are drawn anew.
        inputs: the names of the arguments.

    Returns:
        the latents by site, and the arguments of the model with the drawn data.

    Raises:
        ValueError: what the model observes is none of its arguments, or its distributions depend on what it observes.
    """
    with library_path(), torch.no_grad():
        given = _sample_sites(poutine.trace(model).get_trace(*args))
        with _Unconditioned():
            trace = poutine.trace(model).get_trace(*args)
        drawn, places = _sample_sites(trace), dict[str, int]()
        for name, site in given.items():
            if site["is_observed"]:
                found = [i for i, each in enumerate(args) if _is_same(each, site["value"])]
                named = [i for i in found if inputs[i] == name] or found
                if not named:
                    raise ValueError(
                        f"data cannot be simulated from the model: what it observes at site {name!r} is none of its arguments "
                        f"{inputs} as they are"
                    )
                places[name] = named[0]
        whole = list(args)
        for name, place in places.items():
            whole[place] = drawn[name]["value"].to(args[place].dtype)
            if args[place].is_floating_point():
                whole[place] = whole[place].masked_fill(args[place].isnan(), torch.nan)
        latents = {name: site["value"] for name, site in drawn.items() if name not in places}
        again = _sample_sites(poutine.trace(poutine.condition(model, data=latents)).get_trace(*whole))
        for name in drawn:
            one, other = (_log_prob(each[name], again[name]["value"]) for each in (drawn, again))
            if not one.is_meta and not torch.allclose(one, other, rtol=1e-3, atol=1e-2, equal_nan=True):
                raise ValueError(
                    f"data cannot be simulated from the model: the distribution at site {name!r} depends on what the model "
                    f"observes"
                )
    return latents, tuple(whole)


def _is_same(argument: Any, value: Tensor) -> bool:
    """Whether an observed value is an argument, but for its type and for what a model puts where a value is missing (NaN)."""
    if not isinstance(argument, Tensor) or argument.shape != value.shape:
        return False
    return argument.is_meta or bool(((argument.to(value.dtype) == value) | argument.isnan()).all())


def _parameters(trace: poutine.Trace) -> dict[str, Tensor]:
    """Returns the unconstrained leaf of each parameter.

    Pyro's store makes it an attribute of the value. A module's own parameter is a leaf itself.
    """
    values: dict[str, Any] = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "param"}
    return {name: value.unconstrained() if hasattr(value, "unconstrained") else value for name, value in values.items()}


def _sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Returns the sites that have a log-probability, without subsample indices and deterministic values."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not site["infer"].get("_deterministic")
    }


def _check_latents(model: dict[str, Site], guide: dict[str, Site], observed_sites: frozenset[str]) -> None:
    latents = model.keys() - observed_sites
    if not observed_sites:
        raise ValueError("the model observes nothing: give one of its sites obs=...")
    if missing := latents - guide.keys():
        raise ValueError(
            f"the guide does not sample the model's latent sites {sorted(missing)}; it samples {sorted(guide)}"
        )
    if unused := guide.keys() - latents:
        raise ValueError(
            f"the guide samples {sorted(unused)}, which are not latent sites of the model {sorted(latents)}"
        )


def _data_dim(sites: list[Site]) -> int:
    """Returns the dimension of the data, which is that of the plate that all sites share."""
    frames = [
        {frame.name: frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != _PARTICLES}
        for site in sites
    ]
    shared = {name: dim for name, dim in frames[0].items() if all(name in other for other in frames)}
    if len(shared) > 1 and "data" in shared:
        shared = {"data": shared["data"]}
    if len(shared) != 1:
        found = f"they share {sorted(shared)}" if shared else "there is none"
        raise ValueError(
            f'all sample sites must stand in one vectorized data plate, such as pyro.plate("data", len(x), dim=-1); {found}'
        )
    return int(next(iter(shared.values())))


def _size(sites: list[Site], dim: int) -> int:
    return next(int(frame.size) for frame in sites[0]["cond_indep_stack"] if frame.dim == dim)


def _log_prob(site: Site, value: Tensor) -> Tensor:
    """Returns the log-probability of a value at a site, without its scale and with its mask."""
    log_prob: Tensor = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, 1.0, site["mask"])


def _masked(site: Site) -> TorchDistributionMixin:
    """Returns the distribution of a site with the site's mask."""
    fn: TorchDistributionMixin = site["fn"]
    return fn if site["mask"] is None else fn.mask(site["mask"])


def _per_datum(value: Tensor, particle_dim: int, data_dim: int, shape: tuple[int, int]) -> Tensor:
    """Returns a tensor of a site's batch shape as (K, B), summed over the site's other plates."""
    if value.shape == shape and particle_dim == -2:
        return value
    rank = max(value.dim(), -particle_dim)
    full = [1] * (rank - value.dim()) + list(value.shape)
    value = value.reshape(full)
    full[particle_dim], full[data_dim] = shape
    return value.expand(full).movedim((particle_dim, data_dim), (0, 1)).reshape(*shape, -1).sum(-1)


def _scale(sites: dict[str, Site], size: int) -> float | Tensor:
    """Returns the one scale that all sites share, as a number or as (B,)."""
    (first, first_site), *others = sites.items()
    scale = first_site["scale"]
    for name, site in others:
        other = site["scale"]
        if other is not scale and not torch.equal(torch.as_tensor(scale).cpu(), torch.as_tensor(other).cpu()):
            raise ValueError(
                f"sites {first!r} and {name!r} have different scales ({scale} and {other}): a bound has one scale for each "
                f"datum; weight the terms of an objective in the estimator, not by poutine.scale"
            )
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return float(scale)
    return scale.reshape(-1).expand(size)


def _sum(terms: list[Tensor], other: dict[str, Tensor]) -> Tensor:
    return reduce(add, terms) if terms else torch.zeros_like(next(iter(other.values())))
