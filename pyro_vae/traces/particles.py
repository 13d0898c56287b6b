"""Draws of the latents of B data with K particles, and their log-probabilities (K, B)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import pyro
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_vae.traces.programs import Program, library_path, traced
from pyro_vae.traces.sites import (
    PARTICLES,
    check_latents,
    data_dim_of,
    log_prob_of,
    masked,
    plate_of_particles,
    sample_sites,
    scale_of,
    size_of,
    summed_per_datum,
    total,
)

Latents = Literal["path", "fixed", "leaves"]
"""How φ acts on the draws.

The draws are functions of φ for "path". They are constants for "fixed", so that φ acts through the density of q alone.
Densities are evaluated at a copy of the draws for "leaves", so that derivatives by this copy can be taken.
"""


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
        with plate_of_particles(K, max_plate_nesting):
            return traced(program, *args, **kwargs)

    cut = _Cut(latents) if latents != "path" else None
    placed = _First(first) if first else nullcontext()
    with placed, cut or nullcontext():
        guide_trace = run(guide)
    model_trace = run(poutine.replay(model, trace=guide_trace))
    guide_sites, model_sites = sample_sites(guide_trace), sample_sites(model_trace)
    observed_sites = frozenset(name for name, site in model_sites.items() if site["is_observed"])
    check_latents(model_sites, guide_sites, observed_sites)
    sites = list(guide_sites.values()) + list(model_sites.values())
    data_dim = data_dim_of(sites)
    shape = K, size_of(sites, data_dim)

    def per_datum(value: Tensor) -> Tensor:
        return summed_per_datum(value, particle_dim, data_dim, shape)

    def vectors(name: str) -> Tensor:
        value, event_dim = values[name], guide_sites[name]["fn"].event_dim
        return value.movedim((particle_dim - event_dim, data_dim - event_dim), (0, 1)).reshape(*shape, -1)

    values = {name: site["value"] for name, site in guide_sites.items()}
    drawn = values if cut is None else {name: cut.drawn[name] for name in values}

    def guide_at(at: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: per_datum(log_prob_of(site, at[name])) for name, site in guide_sites.items()}

    return Particles(
        model={name: per_datum(log_prob_of(site, site["value"])) for name, site in model_sites.items()},
        guide=guide_at(values),
        observed=observed_sites,
        values=values,
        reparameterized={name: bool(site["fn"].has_rsample) for name, site in guide_sites.items()},
        scale=scale_of({**model_sites, **guide_sites}, shape[1]),
        drawn=drawn,
        distributions={name: (masked(site), masked(model_sites[name])) for name, site in guide_sites.items()},
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
    with pyro.plate(PARTICLES, M, dim=particle_dim):
        sites = sample_sites(traced(_At(latents, B)(program), *args))
    data_dim = data_dim_of(list(sites.values()))
    return {
        name: summed_per_datum(log_prob_of(sites[name], sites[name]["value"]), particle_dim, data_dim, (M, B))
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


def draw_latents(guide: Program, *args: Any) -> dict[str, Tensor]:
    """Returns one draw from the guide, by site."""
    with library_path():
        return {name: site["value"] for name, site in sample_sites(traced(guide, *args)).items()}


def run_guide(guide: Program, *args: Any, K: int = 1, max_plate_nesting: int = 1) -> dict[str, tuple[Tensor, Any]]:
    """Returns K draws from the guide for each datum, with K leading, and the distributions that they are from, by site.

    The distribution of a site that depends on latents before it is that at their draws.
    """
    with library_path(), pyro.plate(PARTICLES, K, dim=-1 - max_plate_nesting):
        sites = sample_sites(traced(guide, *args))
    return {name: (site["value"], site["fn"]) for name, site in sites.items()}
