"""Log-probabilities (K, B) of sites, with states of discrete latents summed out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.traces.enumeration import Enumeration
from pyro_vae.traces.sites import per_state, summed_per_datum


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
        log_states: a function, where there are states, that returns the log-probabilities of those of a site (S, K, B), by its
            name: log p(z|t,x) of one that is summed out of p, and log q(z|x) of one of the guide.
        dependent: the sites of the guide that are drawn given those that are summed out.
        states: a function that returns what expectations are taken over, where they are.
    """

    model: dict[str, Tensor]
    guide: dict[str, Tensor]
    observed: frozenset[str]
    per_datum: Callable[[Tensor], Tensor]
    log_states: Callable[[str], Tensor] | None = None
    dependent: tuple[str, ...] = ()
    states: Callable[[], States] | None = None


def reduced(
    enumeration: Enumeration,
    model: dict[str, Tensor],
    guide: dict[str, Tensor],
    observed: frozenset[str],
    data_dim: int,
    shape: tuple[int, int],
) -> Summed:
    """Sums log-probabilities over the sites' own plates and over states.

    Args:
        enumeration: which sites have states, if there are any.
        model: log-probabilities of the model's sites, of their batch shapes.
        guide: those of the guide's sites.
        observed: the names of the model's observed sites.
        data_dim: the dimension of the data.
        shape: K and B.
    """
    rank, states = enumeration.rank, len(enumeration.sizes)

    def table(value: Tensor) -> Tensor:
        return (
            per_state(value, rank, states, data_dim, shape)
            if states
            else summed_per_datum(value, -rank, data_dim, shape)
        )

    of_model, of_guide = ({name: table(term) for name, term in terms.items()} for terms in (model, guide))
    if not states:
        return Summed(of_model, of_guide, observed, table)
    found = summed_out(enumeration, of_model, of_guide, observed)
    of_states = found.states if enumeration.in_guide else None
    return replace(found, per_datum=lambda value: found.per_datum(table(value)), states=of_states)


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
