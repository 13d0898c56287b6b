"""The amortized posterior q(t|x,φ) of data: its mean, its scale and draws; and what lies between the latents of two data."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.data import Columns, DataLike, columns_for
from pyro_vae.evaluate.bound import EVALUATED
from pyro_vae.evaluate.predictions import decode
from pyro_vae.kinds import WrongKindError, takes
from pyro_vae.missing import check_seen
from pyro_vae.relaxed import inside
from pyro_vae.scopes import evaluating, telling_memory
from pyro_vae.traces import Programs, run_guide

_MOMENTS = 1000
"""The number of draws that a mean is computed from where it has no closed form and nobody asked for draws."""


class Posterior(NamedTuple):
    """q(t|x,φ) at one latent site, for N data.

    Attributes:
        mean: E_q[t|x] ``(N, *event)``.
        scale: the standard deviation of each number of t ``(N, *event)``.
        draws: S draws for each datum ``(S, N, *event)``.
        exact: whether the mean and the scale are those of the distribution, in closed form. Otherwise they are those of the
            draws: the mean has a standard error of scale / √S.
    """

    mean: Tensor
    scale: Tensor
    draws: Tensor
    exact: bool


@takes
def posterior(
    programs: Programs,
    data: DataLike,
    draws: int = 1000,
    seed: int = 0,
    *,
    batch_size: int = 1000,
    max_plate_nesting: int = 1,
) -> dict[str, Posterior]:
    """Returns the mean, the scale and draws of q(t|x,φ) of each datum, by latent site, in the guide's order.

    This is the guide's posterior, not the model's: `gaps` says how far they are apart. A latent that the guide draws given
    another one has the mean and the scale of its draws; so has a flow, whose mean is not known.

    Args:
        programs: a model and a guide.
        data: N data, on the device of the programs.
        draws: S, the number of draws for each datum, at least two.
        seed: the seed of the draws.
        batch_size: the largest number of data at a time.
        max_plate_nesting: the number of plate dimensions that the programs use. With more than one, further plates stand
            beside N as they do in the guide.

    Raises:
        ValueError: there are fewer than two draws, or data without the labels that the programs take.
    """
    if draws < 2 or batch_size < 1:
        raise ValueError(f"draws and batch_size: expected at least 2 and 1, got {draws} and {batch_size}")
    columns = columns_for(programs, data)
    rows: list[dict[str, Posterior]] = []
    with telling_memory(draws=draws, batch_size=batch_size), evaluating(programs, columns.x.device, seed, "posterior"):
        size = max(1, min(batch_size, EVALUATED // draws))
        for batch in columns.batches(size):
            run = run_guide(programs.guide, *batch, K=draws, max_plate_nesting=max_plate_nesting)
            rows.append({name: _moments(value, q) for name, (value, q) in run.items()})
    axis = _axis_of_data(rows[0], len(columns), size, max_plate_nesting)
    found = {
        name: Posterior(
            torch.cat([row[name].mean for row in rows], axis),
            torch.cat([row[name].scale for row in rows], axis),
            torch.cat([row[name].draws for row in rows], axis + 1),
            all(row[name].exact for row in rows),
        )
        for name in rows[0]
    }
    for each in found.values():
        check_seen(each.mean, columns.x)
    return found


def _moments(value: Tensor, q: Any) -> Posterior:
    """The mean and the scale in closed form where q does not depend on latents before it, and those of the draws elsewhere."""
    closed = closed_form(q)
    if closed is not None and all(each.shape == value.shape and _constant(each) for each in closed):
        return Posterior(closed[0][0].clone(), closed[1][0].clone(), value, exact=True)
    scale, mean = torch.std_mean(value.double(), 0)
    kind = value.dtype if value.is_floating_point() else torch.get_default_dtype()
    return Posterior(mean.to(kind), scale.to(kind), value, exact=False)


def closed_form(q: Any) -> tuple[Tensor, Tensor] | None:
    """Returns the mean and the standard deviation of a distribution, or None where they are not known."""
    try:
        mean, scale = q.mean, q.variance.sqrt()
    except (NotImplementedError, AttributeError):
        return None
    known = mean.is_meta or bool((mean.isfinite() & scale.isfinite()).all())  # PyTorch's way to say that there is none
    return (mean, scale) if known else None


def _constant(value: Tensor) -> bool:
    """Whether a tensor is the same for each particle."""
    return value.is_meta or bool((value == value[:1]).all())


def _axis_of_data(row: dict[str, Posterior], N: int, size: int, max_plate_nesting: int) -> int:
    """The axis of the data among those of a site without its particles, which matters where there are several batches."""
    shapes = {each.mean.shape for each in row.values()}
    if max_plate_nesting == 1 or size >= N:
        return 0
    B = min(size, N)
    axes = [[i for i in range(max_plate_nesting) if shape[i : i + 1] == (B,)] for shape in shapes]
    return next((i for i in axes[0] if all(i in other for other in axes)), 0)


@takes
def interpolate(
    programs: Programs,
    x_a: DataLike,
    x_b: DataLike,
    steps: int = 10,
    how: Literal["linear", "spherical"] = "linear",
    *,
    seed: int = 0,
) -> Tensor:
    """Returns the means E[x|t] ``(steps, N, *x_shape)`` along the way from the latents of N data to those of N others.

    The ends are the posterior means (see `posterior`). Relaxed one-hot vectors, whose logarithms the latents are, sum to 1 on
    the whole way. Every latent site goes the same share of its way at the same time.

    Args:
        programs: a model and a guide.
        x_a: the N data that the ways start from. Where programs take labels, these are data with labels.
        x_b: the N data that they end at, with the same labels.
        steps: the number of points on each way, its ends included, at least two.
        how: "linear" goes straight; "spherical" turns at a constant angle, and changes the length of t evenly (White 2016), so
            that a way does not pass near 0, where a standard normal prior in many dimensions has no mass.
        seed: the seed of the draws, where posterior means have no closed form.

    Raises:
        ValueError: there are fewer than two steps, the two data are not equally many or have other labels, a latent is
            discrete, or "spherical" is asked for a latent that is no vector of real numbers.
    """
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, since both ends count, got {steps}")
    ends = [_columns(programs, x, name) for name, x in (("x_a", x_a), ("x_b", x_b))]
    if ends[0].x.shape != ends[1].x.shape:
        raise ValueError(
            f"x_a and x_b: expected equal shapes, got {tuple(ends[0].x.shape)} and {tuple(ends[1].x.shape)}"
        )
    y, other = ends[0].y, ends[1].y
    if y is not None and other is not None and not y.is_meta and not torch.equal(y, other):
        raise ValueError(
            "x_a and x_b: their labels differ, and there is no way between two labels: give data of the same labels"
        )
    known = _check_continuous(programs, ends[0], how)
    of_a, of_b = (posterior(programs, end, _MOMENTS, seed) for end in ends)
    way = _linear if how == "linear" else _spherical
    shares = torch.linspace(0, 1, steps, dtype=torch.float64).tolist()
    return torch.stack(
        [
            decode(
                programs,
                {name: inside(known[name], way(of_a[name].mean, of_b[name].mean, share)) for name in of_a},
                ends[0].x,
                y=y,
            )
            for share in shares
        ]
    )


def _columns(programs: Programs, x: DataLike, name: str) -> Columns:
    """What `columns_for` gives; what is wrong with the data names the argument."""
    try:
        return columns_for(programs, x)
    except WrongKindError as error:
        raise WrongKindError(f"{name}: {error}") from error


def _check_continuous(programs: Programs, columns: Columns, how: str) -> dict[str, Constraint]:
    """Checks that there are ways between the latents, and returns their supports."""
    found = supports(programs, columns)
    for name, support in found.items():
        if support.is_discrete:
            raise ValueError(f"interpolate: there is no way between values of {name!r}, which is discrete")
        if how == "spherical" and support not in (constraints.real, constraints.real_vector):
            raise ValueError(
                f"how: 'spherical' takes latents that are real numbers, and {name!r} is {support}: choose 'linear'"
            )
    return found


def supports(programs: Programs, columns: Columns) -> dict[str, Constraint]:
    """Returns the values that each latent of the guide can have, by site: of a single number, where they are independent."""
    with evaluating(programs, columns.x.device, "sites"):
        sites = run_guide(programs.guide, *columns.first(1).take(slice(None)))
    found = {}
    for name, (_, q) in sites.items():
        support = q.support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        found[name] = support
    return found


def _linear(a: Tensor, b: Tensor, share: float) -> Tensor:
    return torch.lerp(a, b, share)


def _spherical(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at this share of the angle between two vectors ``(N, ...)``, and of the difference between their lengths."""
    one, other = a.flatten(1).double(), b.flatten(1).double()
    lengths = one.norm(dim=1, keepdim=True), other.norm(dim=1, keepdim=True)
    unit = [each / length.clamp(min=1e-300) for each, length in zip((one, other), lengths, strict=True)]
    angle = 2 * torch.atan2(
        (unit[0] - unit[1]).norm(dim=1, keepdim=True), (unit[0] + unit[1]).norm(dim=1, keepdim=True)
    )
    turned = (((1 - share) * angle).sin() * unit[0] + (share * angle).sin() * unit[1]) / angle.sin()
    turned = turned * torch.lerp(*lengths, share)
    # Where two vectors point the same way or against each other, or one is 0, no turn is defined.
    straight = torch.lerp(one, other, share)
    defined = (angle.sin().abs() > 1e-6) & (lengths[0] > 0) & (lengths[1] > 0)
    return torch.where(defined, turned, straight).to(a.dtype).reshape(a.shape)
