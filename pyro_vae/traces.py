"""Log-probabilities (K, B) from a Pyro model, a Pyro guide and data.

No other module handles Pyro's traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal, Protocol, runtime_checkable

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import transform_to

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
        programs: the model, the guide, and the arguments that they were called with.
        kl_weight: the weight of log p(t) - log q(t|x,φ) in `log_w`. It is 1 in a bound and may be another number in an
            objective.
        kl: KL(q(t|x,φ)‖p(t)) in closed form, for an estimator that has asked for it.
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
    programs: tuple[Program, Program, tuple[Any, ...], dict[str, Any]]
    kl_weight: float | Tensor = 1.0
    kl: Float[Tensor, "K B"] | None = None

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
    plate = pyro.plate(_PARTICLES, K, dim=particle_dim)

    def run(program: Program) -> poutine.Trace:
        with plate, filled_where_masked():
            return _traced(program, *args, **kwargs)

    cut = _Cut(latents) if latents != "path" else None
    try:
        with cut or nullcontext():
            guide_trace = run(guide)
        model_trace = run(poutine.replay(model, trace=guide_trace))
    except ValueError as error:
        if f'"{_PARTICLES}", collide' not in str(error):
            raise
        raise ValueError(
            f"a plate stands where the particles do: give a max_plate_nesting above {max_plate_nesting}"
        ) from error
    guide_sites, model_sites = _sample_sites(guide_trace), _sample_sites(model_trace)
    observed_sites = frozenset(name for name, site in model_sites.items() if site["is_observed"])
    _check_latents(model_sites, guide_sites, observed_sites)
    sites = list(guide_sites.values()) + list(model_sites.values())
    data_dim = _data_dim(sites)
    shape = K, _size(sites, data_dim)

    def per_datum(value: Tensor) -> Tensor:
        return _per_datum(value, particle_dim, data_dim, shape)

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
        programs=(model, guide, args, kwargs),
    )


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
        guide_trace = _traced(guide, *args, **kwargs)
        model_trace = _traced(poutine.replay(model, trace=guide_trace), *args, **kwargs)
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
    with library_path():
        program = poutine.condition(poutine.uncondition(model), data=dict(values or {}))
        trace = _traced(program, *args)
    sites = _sample_sites(trace)
    if unknown := set(values or {}) - sites.keys():
        raise ValueError(f"the model has no latents {sorted(unknown)}; its sites are {sorted(sites)}")
    return {name: site["fn"] for name, site in sites.items() if site["infer"].get("was_observed")}


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
        trace = _traced(model, *args)
    return {
        name: Observation(site["fn"], site["value"], site["mask"])
        for name, site in _sample_sites(trace).items()
        if site["is_observed"]
    }


def draw_latents(guide: Program, *args: Any) -> dict[str, Tensor]:
    """Returns one draw from the guide, by site."""
    with library_path():
        return {name: site["value"] for name, site in _sample_sites(_traced(guide, *args)).items()}


def _traced(program: Program, *args: Any, **kwargs: Any) -> poutine.Trace:
    """Returns the trace of a run. Errors are those of the program, without the shapes of all sites that Pyro adds to them."""
    try:
        return poutine.trace(program).get_trace(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        own: BaseException = error
        while "Trace Shapes:" in str(own) and own.__cause__ is not None:
            own = own.__cause__
        raise own from own.__cause__


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
