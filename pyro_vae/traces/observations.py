"""What a model observes: its distributions, its values, and draws of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyro_vae.traces.programs import Program, layers, library_path, traced
from pyro_vae.traces.sites import Observation, log_prob_of, sample_sites


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
        trace = traced(model, *args)
    sites = sample_sites(trace)
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
        trace = traced(poutine.condition(model, data=dict(latents)), *args)
    return {name: site["fn"] for name, site in sample_sites(trace).items() if name not in latents}


class _Unconditioned(UnconditionMessenger):
    """Draws what a model observes, but for deterministic values, which Pyro counts as observed."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


def observations(model: Program, *args: Any) -> dict[str, Observation]:
    """Returns what the model observes when it is called with these arguments, by site. Latents are drawn from the prior."""
    with library_path():
        trace = traced(model, *args)
    return {
        name: Observation(site["fn"], site["value"], site["mask"])
        for name, site in sample_sites(trace).items()
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
    with library_path(), _Unconditioned():
        trace = traced(model, *args)
    sites = sample_sites(trace)
    if factors := [name for name, site in sites.items() if any(isinstance(each, Unit) for each in layers(site["fn"]))]:
        raise ValueError(f"the model has the factors {factors}, so that no data can be drawn from it")
    drawn: dict[str, Tensor] = {name: site["value"] for name, site in sites.items()}
    would_observe = {name for name, site in sites.items() if site["infer"].get("was_observed")}
    return (
        {name: value for name, value in drawn.items() if name not in would_observe},
        {name: value for name, value in drawn.items() if name in would_observe},
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
        given = sample_sites(traced(model, *args))
        with _Unconditioned():
            trace = traced(model, *args)
        drawn, places = sample_sites(trace), dict[str, int]()
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
        again = sample_sites(traced(poutine.condition(model, data=latents), *whole))
        for name in drawn:
            one, other = (log_prob_of(each[name], again[name]["value"]) for each in (drawn, again))
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
