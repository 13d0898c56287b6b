"""What values a latent can have, in p and in q: a bound on log p(x) needs both to be the same."""

from __future__ import annotations

from math import inf, isinf
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.traces.programs import layers


class Kind(NamedTuple):
    """What a distribution describes.

    Attributes:
        mass: whether it has probabilities of single values, and not a density.
        shape: the shape of one value.
        range: the smallest and the largest number, where the support is an interval; otherwise None.
        name: the name of the distribution.
        support: its support, or None where it declares none.
    """

    mass: bool
    shape: torch.Size
    range: tuple[Any, Any] | None
    name: str
    support: Any


def kind_of(distribution: Any) -> Kind:
    """Returns what a distribution describes."""
    innermost = layers(distribution)[-1]
    name = type(innermost).__name__.lstrip("_")
    try:
        support = innermost.support
    except NotImplementedError:
        support = None
    while (base := getattr(support, "base_constraint", None)) is not None:
        support = base
    mass = isinstance(innermost, Delta) or bool(getattr(support, "is_discrete", False))
    return Kind(mass, torch.Size(distribution.event_shape), _range(support), name, support)


def check_kinds(name: str, q: Any, p: Any) -> None:
    """Checks that p and q of a latent are both masses or both densities, of values of the same shape and in the same interval.

    Otherwise log p(t) - log q(t|x) compares what cannot be compared: a density is one over some length, a mass has no unit.

    Args:
        name: the name of the site.
        q: its distribution in the guide.
        p: its distribution in the model.

    Raises:
        ValueError: they are not.
    """
    in_q, in_p = kind_of(q), kind_of(p)
    if in_q.mass != in_p.mass:
        raise ValueError(
            f"latent {name!r} {_said(in_q)} in the guide, and {_said(in_p)} in the model: their ratio is no bound on log p(x); "
            f"choose both discrete, or both continuous"
        )
    if in_q.shape != in_p.shape:
        raise ValueError(
            f"latent {name!r}: one draw has shape {tuple(in_q.shape)} in the guide ({in_q.name}), and {tuple(in_p.shape)} in "
            f"the model ({in_p.name})"
        )
    if not _same(in_q, in_p):
        raise ValueError(
            f"latent {name!r}: the guide's {in_q.name} draws from {_shown(in_q)}, and the model's {in_p.name} from "
            f"{_shown(in_p)}; a bound on log p(x), and log p(x) itself, need the same values in both"
        )


def _said(kind: Kind) -> str:
    """What a latent is, in words."""
    if not kind.mass:
        return f"has a density ({kind.name})"
    return f"is a point mass ({kind.name})" if kind.name == Delta.__name__ else f"is discrete ({kind.name})"


def _same(q: Kind, p: Kind) -> bool:
    if q.range is not None and p.range is not None:
        return all(_equal(one, other) for one, other in zip(q.range, p.range, strict=True))
    if q.support is None or p.support is None or type(q.support) is not type(p.support):
        return q.support is None or p.support is None or (q.range is None and p.range is None)
    own = [{name: value for name, value in vars(each.support).items() if isinstance(value, int)} for each in (q, p)]
    return own[0] == own[1]


def _equal(one: Any, other: Any) -> bool:
    """Whether two ends are the same; ends that are tensors are not read, since that would wait for the device."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return not any(isinstance(each, float) and isinf(each) for each in (one, other))
    return bool(one == other)


def _range(support: Any) -> tuple[Any, Any] | None:
    """The ends of a support that is an interval."""
    if support is constraints.real:
        return -inf, inf
    if support is constraints.boolean:
        return 0, 1
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None and high is None:
        return None
    return -inf if low is None else low, inf if high is None else high


def _shown(kind: Kind) -> str:
    if kind.range is None:
        return str(kind.support)
    low, high = kind.range
    return "all real numbers" if (low, high) == (-inf, inf) else f"{low} to {high}"
