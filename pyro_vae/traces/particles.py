"""Draws of the latents of B data with K particles, and their log-probabilities (K, B)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.traces.enumeration import Enumeration, Sites, States, summed_out, table_of
from pyro_vae.traces.messengers import Alike, At, Cut, Drawing, Drawn, First, Latents
from pyro_vae.traces.programs import Program, library_path, traced
from pyro_vae.traces.sites import (
    PARTICLES,
    auxiliary_sites,
    check_latents,
    data_dim_of,
    evaluations_of,
    log_prob_of,
    masked,
    plate_of_particles,
    sample_sites,
    scale_of,
    size_of,
    summed_per_datum,
    total,
)


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
        alike: the sites of the guide whose distribution is the same for all particles, where an estimator draws them itself.
        enumerated: the names of sites that are summed out. None of them is in the fields above but in `model`, under a key
            with the names of all sites that are summed out together.
        expected: those of them that the guide has, over which expectations were taken.
        dependent: sites of the guide that are drawn given those in `expected`.
        states: a function that returns the states of the sites in `expected`, with their log-probabilities; None where
            there are none.
        evaluations: how often log p of what the model observes was computed for each datum in the run behind these
            particles: once for each of them and for each of their states. `some` does not change it.
        log_states: a function that returns the log-probabilities of the states of a site that is summed out (S, K, B): those of
            q(z|x) for one in `expected`, and those of p(z|t,x) for any other one.
        auxiliary: log-probabilities by site that an objective may add, and that are part of no bound: those of the guide's
            observed sites that are marked ``infer={"auxiliary": True}``.
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
    alike: frozenset[str] = frozenset()
    enumerated: frozenset[str] = frozenset()
    expected: frozenset[str] = frozenset()
    dependent: tuple[str, ...] = ()
    states: Callable[[], States] | None = None
    evaluations: int = 0
    log_states: Callable[[str], Tensor] | None = None
    auxiliary: dict[str, Float[Tensor, "K B"]] = field(default_factory=dict)

    @property
    def log_lik(self) -> Float[Tensor, "K B"]:
        """Σ log p over the observed sites: log p(x|t,w)."""
        return total([value for name, value in self.model.items() if name in self.observed], self.guide)

    @property
    def log_prior(self) -> Float[Tensor, "K B"]:
        """Σ log p over the model's latent sites: log p(t)."""
        return total([value for name, value in self.model.items() if name not in self.observed], self.guide)

    @property
    def log_q(self) -> Float[Tensor, "K B"]:
        """Σ log q over the guide's sites: log q(t|x,φ)."""
        return total(list(self.guide.values()), self.model)

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

    def some(self, which: slice) -> Particles:
        """Returns some of the particles.

        Log-probabilities and values are theirs; the functions and the distributions are those of all particles.
        """
        model, guide, values, drawn = (
            {name: value[which] for name, value in kept.items()}
            for kept in (self.model, self.guide, self.values, self.drawn)
        )
        kl = None if self.kl is None else self.kl[which]
        return replace(self, model=model, guide=guide, values=values, drawn=drawn, kl=kl)


def particles(
    model: Program,
    guide: Program,
    *args: Any,
    K: int = 1,
    max_plate_nesting: int = 1,
    latents: Latents = "path",
    first: Mapping[str, Tensor] | None = None,
    drawing: Drawing | None = None,
    enumerate: Sites = (),
    **kwargs: Any,
) -> Particles:
    """Runs the guide, and the model on the guide's draws, with K particles in one vectorized pass.

    The plate of particles expands the guide's distribution, so that an encoder runs once for each datum. Latents of the model
    that are marked ``infer={"enumerate": "parallel"}``, and that the guide does not sample, are summed out.

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
        drawing: how latents are drawn, in place of the guide.
        enumerate: discrete sites of the guide that are not drawn either: the expectation of log w over them is taken.
        **kwargs: the keyword arguments that both programs are called with.

    Returns:
        The log-probabilities (see `Particles`).

    Raises:
        ValueError: K is below 1, there is no data plate, only one of the programs samples a latent, sites have different
            scales, a latent has a mass in one program and a density in the other, or it cannot be enumerated.
    """
    if K < 1:
        raise ValueError(f"K: expected at least 1 particle, got {K}")
    particle_dim = -1 - max_plate_nesting
    enumeration, alike = Enumeration(-particle_dim), Alike(-particle_dim)
    cut = Cut(latents) if latents != "path" else None
    drawn_by = Drawn(drawing, alike) if drawing else None
    with ExitStack() as handlers:
        for each in (
            First(first) if first else None,
            cut,
            drawn_by,
            enumeration.of_guide(enumerate) if enumerate else None,
        ):
            if each:
                handlers.enter_context(each)
        handlers.enter_context(plate_of_particles(K, max_plate_nesting))
        if drawing:
            handlers.enter_context(alike)
        guide_trace = traced(guide, *args, **kwargs)
    with enumeration.of_model(), plate_of_particles(K, max_plate_nesting):
        model_trace = traced(poutine.replay(model, trace=guide_trace), *args, **kwargs)
    guide_sites, model_sites = sample_sites(guide_trace), sample_sites(model_trace)
    expected = frozenset(list(enumeration.sizes)[: enumeration.in_guide])
    if enumerate != "all" and (unknown := sorted(set(enumerate) - expected)):
        raise ValueError(
            f"the guide draws no site {unknown[0]!r} that could be enumerated; it draws {sorted(guide_sites)}"
        )
    observed_sites = frozenset(name for name, site in model_sites.items() if site["is_observed"])
    enumerated = frozenset(enumeration.sizes)
    check_latents(model_sites, guide_sites, observed_sites, enumerated)
    sites = list(guide_sites.values()) + list(model_sites.values())
    data_dim = data_dim_of(sites)
    shape = K, size_of(sites, data_dim)

    def per_datum(value: Tensor) -> Tensor:
        return summed_per_datum(value, particle_dim, data_dim, shape)

    model_terms = {name: log_prob_of(site, site["value"]) for name, site in model_sites.items()}
    guide_terms = {name: log_prob_of(site, site["value"]) for name, site in guide_sites.items()}
    dependent: tuple[str, ...] = ()
    states, log_states = None, None
    observed = observed_sites
    evaluations = max(evaluations_of(model_terms[name].shape, max_plate_nesting) for name in observed_sites)
    if enumerated:
        enumeration.check({**model_sites, **guide_sites}, data_dim)

        def table(value: Tensor) -> Tensor:
            return table_of(value, enumeration, data_dim, shape)

        summed = summed_out(
            enumeration,
            {name: table(term) for name, term in model_terms.items()},
            {name: table(term) for name, term in guide_terms.items()},
            observed_sites,
        )
        model_terms, guide_terms, observed, dependent = summed.model, summed.guide, summed.observed, summed.dependent
        states, log_states = summed.states if enumeration.in_guide else None, summed.log_states

        def per_datum(value: Tensor) -> Tensor:
            return summed.per_datum(table(value))

    else:
        model_terms = {name: per_datum(term) for name, term in model_terms.items()}
        guide_terms = {name: per_datum(term) for name, term in guide_terms.items()}
    own = {name: site for name, site in guide_sites.items() if name not in enumerated}

    def vectors(name: str) -> Tensor:
        value, event_dim = values[name], own[name]["fn"].event_dim
        return value.movedim((particle_dim - event_dim, data_dim - event_dim), (0, 1)).reshape(*shape, -1)

    values = {name: site["value"] for name, site in own.items()}
    drawn = values if cut is None else {name: cut.drawn[name] for name in values}

    def guide_at(at: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: per_datum(log_prob_of(site, at[name])) for name, site in own.items()}

    return Particles(
        model=model_terms,
        guide=guide_terms,
        observed=observed,
        values=values,
        reparameterized={
            name: bool(site["fn"].has_rsample) or (drawn_by is not None and name in drawn_by.names)
            for name, site in own.items()
        },
        scale=scale_of({**model_sites, **guide_sites}, shape[1]),
        drawn=drawn,
        distributions={name: (masked(site), masked(model_sites[name])) for name, site in own.items()},
        guide_at=guide_at,
        per_datum=per_datum,
        vectors=vectors,
        programs=(model, guide, args, kwargs),
        plates=(particle_dim, data_dim),
        alike=frozenset(alike.names),
        enumerated=enumerated,
        expected=expected,
        dependent=dependent,
        states=states,
        evaluations=evaluations,
        log_states=log_states,
        auxiliary={
            name: per_datum(site["fn"].log_prob(site["value"])) for name, site in auxiliary_sites(guide_trace).items()
        },
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
    with pyro.plate(PARTICLES, M, dim=particle_dim):
        sites = sample_sites(traced(At(latents, B)(program), *args))
    data_dim = data_dim_of(list(sites.values()))
    return {
        name: summed_per_datum(log_prob_of(sites[name], sites[name]["value"]), particle_dim, data_dim, (M, B))
        for name in latents
    }


def draw_latents(guide: Program, *args: Any) -> dict[str, Tensor]:
    """Returns one draw from the guide, by site."""
    with library_path():
        return {name: site["value"] for name, site in sample_sites(traced(guide, *args)).items()}


def is_reparameterized(guide: Program, *args: Any) -> bool:
    """Returns whether all sites of a guide have ``rsample``. It runs once."""
    with library_path():
        return all(site["fn"].has_rsample for site in sample_sites(traced(guide, *args)).values())


def run_guide(guide: Program, *args: Any, K: int = 1, max_plate_nesting: int = 1) -> dict[str, tuple[Tensor, Any]]:
    """Returns K draws from the guide for each datum, with K leading, and the distributions that they are from, by site.

    The distribution of a site that depends on latents before it is that at their draws.
    """
    with library_path(), pyro.plate(PARTICLES, K, dim=-1 - max_plate_nesting):
        sites = sample_sites(traced(guide, *args))
    return {name: (site["value"], site["fn"]) for name, site in sites.items()}
