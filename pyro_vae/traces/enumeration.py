"""Discrete latents that are summed out: all values of a site in one run of the programs, each a state of its own.

A site of the model that the guide does not sample, and that is marked ``infer={"enumerate": "parallel"}``, as Pyro has it
(also by `pyro.infer.config_enumerate`), is summed out of p: log p(x,t) = log Σ_z p(x,t,z). A site of the guide is summed out
where an estimator asks for it: log w becomes E_q(z) log w. Each site has a dimension of states, left of the particles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log10, prod
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_vae.traces.programs import Program, Site, layers, library_path, traced
from pyro_vae.traces.sites import PARTICLES, data_dim_of, per_state, sample_sites

MOST_STATES = 2**16
"""How many states of all enumerated sites together one run may have, for each datum."""

Sites = Collection[str] | Literal["all"]
"""The names of sites, or all that are discrete."""


class Enumeration(Messenger):
    """Gives discrete sites all their values at once, in a dimension of their own, in the order in which they occur.

    It stands outside of the plate of particles, and is used for one run of the guide and then for one of the model.

    Args:
        rank: the number of dimensions of plates, particles included.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.sizes = rank, dict[str, int]()
        self.in_guide = 0
        self._wanted: Callable[[Site], bool] = _marked

    def of_guide(self, sites: Sites) -> Enumeration:
        """Enumerates these sites in the run that follows."""
        self._wanted = _is_discrete if sites == "all" else lambda msg: msg["name"] in sites
        return self

    def of_model(self) -> Enumeration:
        """Enumerates the marked sites in the run that follows, but for those whose values it is given."""
        self.in_guide, self._wanted = len(self.sizes), _marked
        return self

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample) or not self._wanted(msg):
            return
        values = states_of(msg["name"], msg["fn"], self.sizes)
        self.sizes[msg["name"]] = len(values)
        ones = [1] * (self.rank + len(self.sizes) - 1)
        msg["value"], msg["done"] = values.reshape(len(values), *ones, *values.shape[1:]), True

    def check(self, sites: dict[str, Site], data_dim: int) -> None:
        """Checks that the enumerated sites stand in the plate of the data alone.

        Raises:
            ValueError: one stands in another plate too.
        """
        _check_plates(self.sizes, sites, data_dim)


@dataclass(frozen=True)
class States:
    """All states of the enumerated sites of a guide, each with its log-probabilities in nats (S, K, B).

    Attributes:
        log_lik: log p(x|z,w) of each state z.
        log_prior: log p(z).
        log_q: log q(z|x,φ).
    """

    log_lik: Tensor
    log_prior: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Summed:
    """Log-probabilities (K, B) in which states are summed out (see `summed_out`).

    Attributes:
        model: by site; sites of the model that are summed out together have one entry, with all their names.
        guide: by site, without those that are summed out.
        observed: the names of entries of the model that are given the latents.
        per_datum: a function that takes the expectation of a table of states, and returns (K, B).
        log_states: a function that returns the log-probabilities of the states of a site (S, K, B), by its name: log p(z|t,x)
            of one that is summed out of p, and log q(z|x) of one of the guide.
        dependent: the sites of the guide that are drawn given those that are summed out.
        states: a function that returns what the expectations are taken over.
    """

    model: dict[str, Tensor]
    guide: dict[str, Tensor]
    observed: frozenset[str]
    per_datum: Callable[[Tensor], Tensor]
    log_states: Callable[[str], Tensor]
    dependent: tuple[str, ...]
    states: Callable[[], States]


def summed_out(
    enumeration: Enumeration, model: dict[str, Tensor], guide: dict[str, Tensor], observed: frozenset[str]
) -> Summed:
    """Sums states out of tables of log-probabilities.

    States of the model alone are summed out of p: the entry of its latents that depend on them is log p(t) = log Σ_z p(t,z),
    and that of what it observes is log p(x|t) = log Σ_z p(x,t,z) - log p(t). Then the expectation over q(z) of each entry is
    taken for the states z of the guide; -log q(z) is in the entry of the model that holds z.

    Args:
        enumeration: which sites have states.
        model: tables of the model's sites, (states..., K, B), the states of later sites first.
        guide: tables of the guide's sites.
        observed: the names of the model's observed sites.
    """
    n, names = len(enumeration.sizes), list(enumeration.sizes)
    axis = {name: n - 1 - i for i, name in enumerate(names)}
    in_p, in_q = names[enumeration.in_guide :], names[: enumeration.in_guide]

    def varies(name: str, table: Tensor, sites: Sequence[str]) -> bool:
        return name in sites or any(table.shape[axis[site]] > 1 for site in sites)

    def log_states(name: str) -> Tensor:
        own, tables = (in_p, whole_model) if name in in_p else (in_q, {each: whole_guide[each] for each in in_q})
        joint = torch.stack(torch.broadcast_tensors(*tables.values())).sum(0)
        others = [axis[each] for each in own if each != name]
        marginal = joint.logsumexp(others, keepdim=True) if others else joint
        moved = marginal.log_softmax(axis[name]).movedim(axis[name], 0)
        return moved.reshape(len(moved), -1, *moved.shape[-2:])[:, 0]

    whole_model, whole_guide = model, guide
    entry = {name: name for name in model}
    if in_p:
        axes = tuple(axis[name] for name in in_p)
        moved = [name for name, table in model.items() if varies(name, table, in_p)]
        latent, seen = ([name for name in moved if (name in observed) is kind] for kind in (False, True))
        prior = torch.stack(torch.broadcast_tensors(*(model[name] for name in latent))).sum(0)
        joined = ", ".join(latent)
        new = {joined: prior.logsumexp(axes, keepdim=True)}
        entry |= dict.fromkeys(latent, joined)
        if seen:
            joint = sum((model[name] for name in seen), prior)
            new[", ".join(seen)] = joint.logsumexp(axes, keepdim=True) - new[joined]
            observed = (observed - set(seen)) | {", ".join(seen)}
        model = {name: table for name, table in model.items() if name not in moved} | new
    before, seen_of_p, drawn_in_q = dict(model), frozenset(observed), dict(guide)

    def states() -> States:
        sizes = [enumeration.sizes[name] if name in in_q else 1 for name in reversed(names)]

        def whole(tables: list[Tensor]) -> Tensor:
            total = torch.stack(torch.broadcast_tensors(*tables)).sum(0)
            return total.expand(*sizes, *total.shape[n:]).reshape(-1, *total.shape[n:])

        return States(
            whole([table for name, table in before.items() if name in seen_of_p]),
            whole([table for name, table in before.items() if name not in seen_of_p]),
            whole([drawn_in_q[name] for name in in_q]),
        )

    model, guide = dict(model), dict(guide)
    log_q: Tensor | None = None
    for name in in_q:
        table = guide.pop(name)
        log_q = table if log_q is None else log_q + table
        model[entry[name]] = model[entry[name]] - table

    def per_datum(table: Tensor) -> Tensor:
        whole = table.reshape(*[1] * (n + 2 - table.dim()), *table.shape)
        if log_q is not None and any(whole.shape[axis[name]] > 1 for name in in_q):
            weights = log_q.exp()
            # A state of no probability adds nothing, also where log p is minus infinity.
            whole = (weights * torch.where(weights > 0, whole, 0.0)).sum([axis[name] for name in in_q], keepdim=True)
        return whole.reshape(whole.shape[n:])

    dependent = tuple(name for name, table in guide.items() if varies(name, table, in_q))
    return Summed(
        {name: per_datum(table) for name, table in model.items()},
        {name: per_datum(table) for name, table in guide.items()},
        observed,
        per_datum,
        log_states,
        dependent,
        states,
    )


def states_of(name: str, distribution: Any, others: dict[str, int] | None = None) -> Tensor:
    """Returns all values that a discrete site can have (S, *event_shape), those of a vector in all combinations.

    Args:
        name: the name of the site, for messages.
        distribution: its distribution.
        others: the numbers of states of sites that are enumerated with it.

    Raises:
        ValueError: it is continuous or has no end of values, or there are more than `MOST_STATES` of them.
    """
    one, times = _factors(name, distribution, others)
    index = torch.cartesian_prod(*[torch.arange(len(one), device=one.device)] * times).reshape(-1, times)
    found: Tensor = one[index].reshape(-1, *distribution.event_shape)
    return found


def numbers_of_states(model: Program, guide: Program, *args: Any) -> tuple[int, int]:
    """Returns how many states the sites of a guide have together, and how many those of a model that are summed out.

    Both programs run once, and no state is made.

    Raises:
        ValueError: a site of the guide is continuous or has no end of values, stands in a plate inside that of the data, or
            there are more than `MOST_STATES` in all.
    """
    with library_path():
        guide_trace = traced(guide, *args)
        sites = sample_sites(traced(poutine.replay(model, trace=guide_trace), *args))
    in_q = sample_sites(guide_trace)
    in_p = {n: site for n, site in sites.items() if n not in in_q and not site["is_observed"] and _marked(site)}
    sizes: dict[str, int] = {}
    for name, site in {**in_q, **in_p}.items():
        one, times = _factors(name, site["fn"], sizes)
        sizes[name] = len(one) ** times
    _check_plates(sizes, {**sites, **in_q}, data_dim_of([*sites.values(), *in_q.values()]))
    return prod(sizes[name] for name in in_q), prod(sizes[name] for name in in_p)


def _check_plates(names: Collection[str], sites: Mapping[str, Site], data_dim: int) -> None:
    for name in names:
        frames = [each for each in sites[name]["cond_indep_stack"] if each.vectorized and each.name != PARTICLES]
        if inner := [each.name for each in frames if each.dim != data_dim]:
            raise ValueError(
                f"site {name!r} stands in the plate {inner[0]!r} inside that of the data, where a sum over its values is "
                f"one for each place of that plate: sum it out in closed form, or train with "
                f"Stock(elbo=pyro.infer.TraceEnum_ELBO)"
            )


def _factors(name: str, distribution: Any, others: dict[str, int] | None) -> tuple[Tensor, int]:
    """Returns the values of one number or vector of a site, and how many of these a value of the site is made of.

    The arguments and the errors are those of `states_of`.
    """
    innermost, event = layers(distribution)[-1], distribution.event_shape
    kind = type(innermost).__name__.lstrip("_")
    blocks = getattr(innermost.support, "classes", None)
    if blocks is not None:  # one-hot vectors one after another
        one, times = (
            torch.eye(blocks, device=innermost.logits.device, dtype=innermost.logits.dtype),
            event[-1] // blocks,
        )
    elif not innermost.has_enumerate_support:
        raise ValueError(f"site {name!r} cannot be enumerated: {kind} is continuous, or has infinitely many values")
    else:
        inner = innermost.event_shape
        one = innermost.enumerate_support(expand=False)
        one = one.reshape(len(one), *inner)
        times = event[: len(event) - len(inner)].numel()
    states = len(one) ** times
    for other in (others or {}).values():
        states *= other
    if states > MOST_STATES:
        with_others = f" together with {sorted(others)}" if others else ""
        raise ValueError(
            f"site {name!r} cannot be enumerated: {len(one)}^{times} values of {kind}{with_others} are {counted(states)} "
            f"states for each datum and particle, and {MOST_STATES:,} are the most"
        )
    return one, times


def counted(number: int) -> str:
    """Returns a whole number as messages show it, a large one as a power of ten."""
    return f"{number:,}" if number < 1e12 else f"10^{log10(number):.0f}"


def table_of(log_prob: Tensor, enumeration: Enumeration, data_dim: int, shape: tuple[int, int]) -> Tensor:
    """Returns the log-probability of a site as a table (states..., K, B), summed over the site's own plates."""
    return per_state(log_prob, enumeration.rank, len(enumeration.sizes), data_dim, shape)


def _marked(msg: Site) -> bool:
    infer = msg["infer"] or {}
    if infer.get("enumerate") and infer.get("num_samples"):
        raise ValueError(
            f"site {msg['name']!r}: a sum over draws (num_samples) is not exact: leave it out of infer, or train with "
            f"Stock(elbo=pyro.infer.TraceEnum_ELBO)"
        )
    return bool(infer.get("enumerate"))


def _is_discrete(msg: Site) -> bool:
    try:
        return bool(layers(msg["fn"])[-1].support.is_discrete)
    except NotImplementedError:
        return False
