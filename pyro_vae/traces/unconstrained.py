"""log p(x,t) as a function of given latents, in coordinates that are all real numbers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_vae.traces.programs import Program, Site, layers, library_path, traced
from pyro_vae.traces.sites import (
    check_latents,
    data_dim_of,
    log_prob_of,
    plate_of_particles,
    sample_sites,
    size_of,
    summed_per_datum,
)


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
            sites = sample_sites(self._run(model, 1))
            guide_sites = {} if guide is None else sample_sites(self._run(guide, K))
            self._observed = frozenset(name for name, site in sites.items() if site["is_observed"])
            if len(self._observed) == len(sites):
                raise ValueError("the model has no latent site, so that its density at x is log p(x) itself")
            if guide is not None or not self._observed:
                check_latents(sites, guide_sites, self._observed)
            self._data_dim = data_dim_of([*guide_sites.values(), *sites.values()])
            self._B = size_of(list(sites.values()), self._data_dim)
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
            name: self._per_datum(log_prob_of(site, site["value"]), K) for name, site in sample_sites(trace).items()
        }
        log_det = reduce(add, (self._per_datum(each, K) for each in coordinates.log_det.values()))
        log_lik = reduce(add, (value for name, value in model.items() if name in self._observed))
        log_prior = reduce(add, (value for name, value in model.items() if name not in self._observed))
        if self._guide is None:
            return Densities(log_prior + log_det, log_lik)
        guide = self._kept
        if args or not guide:
            guide = sample_sites(self._run(poutine.replay(self._guide, trace=trace), K, None, args))
        values: dict[str, Any] = dict(trace.nodes)
        scores = [log_prob_of(site, values[name]["value"]) for name, site in guide.items()]
        log_q = reduce(add, (self._per_datum(each, K) for each in scores))
        return Densities(log_q + log_det, log_lik + (log_prior - log_q))

    def draw(self) -> Float[Tensor, "K B D"]:
        """Returns K draws for each datum from the density at which the path begins, without a gradient."""
        with torch.no_grad():
            if self._guide is None:
                return self.at({}, self._K)
            if self._kept:
                return self.at({name: site["fn"].sample() for name, site in self._kept.items()}, self._K)
            sites = sample_sites(self._run(self._guide, self._K))
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
        with library_path(), plate_of_particles(K, self._nesting), messenger or nullcontext():
            return traced(program, *(args or self._args))

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
        return summed_per_datum(summed, -rank, self._data_dim, (K, self._B))

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
