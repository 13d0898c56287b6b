"""The family of a guide for one datum: the same guide, with parameters of each datum's own beside those of the encoder.

Three families are known. Each is a Pyro guide with leaves to be optimized, which starts at the amortized q or near it.

- ``"own"``: the guide's own family. Where its distributions are made of plain parameters (a Gaussian's m and s, logits, ...),
  each datum gets a number that is added to each of them, in unconstrained coordinates. Elsewhere, as in flows, each datum gets
  numbers that are added to what the guide's networks return for it; weights that all data share stay as they are.
- ``"diagonal"``: Gaussians with a diagonal covariance over all latents.
- ``"full_rank"``: one Gaussian with any covariance over all latents together, also where there are several sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Independent, MaskedDistribution, TransformedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import identity_transform

from pyro_vae.parts import Network
from pyro_vae.scopes import modules_of
from pyro_vae.traces import Program, Programs, layers, particles

Family = Literal["own", "diagonal", "full_rank"]

_ALTERNATIVES = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}
"""Parameters that say the same as another one, which is used in their place."""
_MOMENTS = 1000
"""The number of draws of the amortized q whose mean and covariance a Gaussian family starts from."""


@dataclass(frozen=True, eq=False)
class Members:
    """A guide with parameters of its own for each datum of a batch.

    Attributes:
        guide: the guide, which is called with this batch alone.
        leaves: the parameters. In the family "own", zeros are the amortized q itself.
        axes: the axis of the data in each of the leaves, counted from the right (below 0).
        plain: whether densities are as cheap at any t as at the guide's own draws, which those of flows are not.
    """

    guide: Program
    leaves: list[Tensor]
    axes: list[int]
    plain: bool = True

    def assign(self, values: list[Tensor], where: Tensor) -> None:
        """Sets the parameters of those data for which ``where`` (B,) is true."""
        with torch.no_grad():
            for leaf, value, axis in zip(self.leaves, values, self.axes, strict=True):
                leaf.copy_(torch.where(where.reshape([-1] + [1] * (-1 - axis)), value, leaf))


class NoFamilyError(ValueError):
    """The guide has no distribution of a known family for each datum."""


def members(programs: Programs, family: Family, batch: tuple[Tensor, ...], max_plate_nesting: int) -> Members:
    """Returns the family of a guide for the data of a batch, at the start of an optimization.

    It draws random numbers, and is called where programs are still (see `pyro_vae.scopes.still`).

    Raises:
        NoFamilyError: the guide has no such family.
    """
    with torch.enable_grad(), _trainable(programs):
        if family != "own":
            return _gaussian(programs, family, batch, max_plate_nesting)
        try:
            return _of_parameters(programs.guide, batch, max_plate_nesting)
        except NoFamilyError as reason:
            return _of_networks(programs, batch, str(reason))


@contextmanager
def _trainable(programs: Any) -> Iterator[None]:
    """Makes frozen parameters require a gradient inside, so that it is seen what depends on them."""
    frozen = [
        p for top in modules_of(programs) for p in top.parameters() if not p.requires_grad and p.is_floating_point()
    ]
    for each in frozen:
        each.requires_grad_(True)
    try:
        yield
    finally:
        for each in frozen:
            each.requires_grad_(False)


def _latent(msg: Any) -> bool:
    return not (msg["is_observed"] or isinstance(msg["fn"], _Subsample) or msg["infer"].get("_deterministic"))


class _Place(NamedTuple):
    """Where a latent site stands: its name, the dimension of the data, and the number of its batch dimensions."""

    site: str
    data_dim: int
    batch: int


class _Moved(Messenger):
    """Adds numbers to the parameters of the guide's distributions, in unconstrained coordinates.

    The first run makes the leaves: one for each parameter that depends on φ, for each datum.
    """

    def __init__(self, max_plate_nesting: int) -> None:
        super().__init__()
        self.nesting = max_plate_nesting
        self.leaves: dict[tuple[str, str], Tensor] = {}
        self.axes: dict[tuple[str, str], int] = {}
        self.units: dict[tuple[str, str], Tensor | float] = {}
        self.discovering = True

    def _pyro_sample(self, msg: Any) -> None:
        if not _latent(msg):
            return
        before = len(self.leaves)
        frames = {frame.name: frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}
        data_dim = frames.get("data", next(iter(frames.values()), -1))
        place = _Place(msg["name"], data_dim, len(msg["fn"].batch_shape))
        msg["fn"] = self._moved(msg["fn"], place)
        if self.discovering and len(self.leaves) == before and _depends(msg["fn"]):
            raise NoFamilyError(_unknown(msg["name"], msg["fn"]))

    def _moved(self, fn: Any, place: _Place) -> Any:
        if isinstance(fn, Independent):
            return self._moved(fn.base_dist, place).to_event(fn.reinterpreted_batch_ndims)
        if isinstance(fn, MaskedDistribution):
            return self._moved(fn.base_dist, place).mask(fn._mask)
        known = fn.arg_constraints
        if isinstance(fn, ExpandedDistribution) or not (known or isinstance(fn, TransformedDistribution)):
            raise NoFamilyError(_unknown(place.site, fn))
        if not known:
            return dist.TransformedDistribution(self._moved(fn.base_dist, place), fn.transforms)
        names = [name for name in known if _ALTERNATIVES.get(name) not in known]
        values = {name: getattr(fn, name) for name in names}
        moved = {name: self._added(name, values[name], fn, place) for name in names}
        if all(moved[name] is values[name] for name in names):
            return fn
        try:
            return type(fn)(**moved, validate_args=False)
        except TypeError:
            raise NoFamilyError(_unknown(place.site, fn)) from None

    def _added(self, name: str, value: Tensor, fn: Any, place: _Place) -> Tensor:
        """Returns the parameter with the numbers of each datum added, or the parameter itself if φ does not move it."""
        key = place.site, name
        if self.discovering and isinstance(value, Tensor) and value.requires_grad:
            self._make_leaf(key, value, fn, place)
        if key not in self.leaves:
            return value
        transform = _to(fn, name)
        if transform is identity_transform:
            return value + self.units[key] * self.leaves[key]
        added: Tensor = transform(transform.inv(value) + self.leaves[key])
        return added

    def _make_leaf(self, key: tuple[str, str], value: Tensor, fn: Any, place: _Place) -> None:
        name = key[1]
        try:
            transform = _to(fn, name)
            free = transform.inv(value.detach())
        except NotImplementedError:
            raise NoFamilyError(_unknown(place.site, fn)) from None
        event = value.dim() - place.batch
        if place.batch < -place.data_dim or event < 0:
            raise NoFamilyError(_unknown(place.site, fn))
        kept = max(0, place.batch - self.nesting)  # particles, which later sites have
        self.axes[key] = place.data_dim - event
        self.leaves[key] = torch.zeros_like(free[(0,) * kept], memory_format=torch.contiguous_format).requires_grad_()
        # A location moves in units of the amortized scale, so that steps are as long for a narrow q as for a wide one.
        self.units[key] = 1.0
        if transform is identity_transform and name == "loc":
            spread = _spread(fn)
            if spread is not None and spread.shape == value.shape:
                self.units[key] = spread[(0,) * kept]


def _to(fn: Any, name: str) -> Any:
    return torch.distributions.transform_to(fn.arg_constraints[name])


def _spread(fn: Any) -> Tensor | None:
    try:
        spread: Tensor = fn.stddev.detach()
    except (NotImplementedError, AttributeError):
        return None
    return spread if spread.is_meta or bool((spread.isfinite() & (spread > 0)).all()) else None


def _depends(fn: Any) -> bool:
    """Whether a distribution is a function of φ, as far as its draw or its density tells."""
    value = fn.rsample() if fn.has_rsample else fn.sample()
    return bool(value.requires_grad or fn.log_prob(value).requires_grad)


def _unknown(site: str, fn: Any) -> str:
    return (
        f"guide: at the site {site!r}, {type(layers(fn)[-1]).__name__} has no plain parameters that could be moved "
        f"for each datum, and no network of this library gives them: choose family='diagonal' or 'full_rank'"
    )


def _of_parameters(guide: Program, batch: tuple[Tensor, ...], max_plate_nesting: int) -> Members:
    """The family "own" of distributions with plain parameters."""
    moved = _Moved(max_plate_nesting)

    def members_guide(*args: Any) -> Any:
        with moved:
            return guide(*args)

    with pyro.plate("particles", 1, dim=-1 - max_plate_nesting):
        members_guide(*batch)
    moved.discovering = False
    return Members(members_guide, list(moved.leaves.values()), list(moved.axes.values()))


def _of_networks(programs: Programs, batch: tuple[Tensor, ...], reason: str) -> Members:
    """The family "own" of guides whose networks give what their distributions are made of.

    Raises:
        NoFamilyError: the guide runs no network whose output belongs to single data.
    """
    networks = {each: None for top in modules_of(programs) for each in top.modules() if isinstance(each, Network)}
    leaves: dict[nn.Module, Tensor] = {}
    running: list[nn.Module] = []

    def start(network: nn.Module, _inputs: Any) -> None:
        running.append(network)

    def make(network: nn.Module, _inputs: Any, output: Tensor) -> None:
        running.pop()
        if running or not isinstance(network, Network):  # a network inside another one
            return
        rank = len(network.out_shape) + 1
        if output.dim() < rank or output.shape[-rank] != len(batch[0]):
            raise NoFamilyError(reason)
        leaves[network] = torch.zeros(output.shape[-rank:], dtype=output.dtype, device=output.device).requires_grad_()

    with ExitStack() as stack:
        for each in networks:
            stack.enter_context(_hook(each.register_forward_pre_hook(start)))
            stack.enter_context(_hook(each.register_forward_hook(make)))
        programs.guide(*batch)
    if not leaves:
        raise NoFamilyError(reason)

    def guide(*args: Any) -> Any:
        with ExitStack() as stack:
            for each, leaf in leaves.items():
                stack.enter_context(_hook(each.register_forward_hook(_adding(leaf))))
            return programs.guide(*args)

    return Members(guide, list(leaves.values()), [-leaf.dim() for leaf in leaves.values()], plain=False)


def _adding(leaf: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _network, _inputs, output: output + leaf


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


class _Frames(Messenger):
    """Notes the data plate that each latent site stands in: its name and dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.plates: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if _latent(msg):
            frames = {frame.name: frame for frame in msg["cond_indep_stack"] if frame.vectorized}
            self.plates[msg["name"]] = frames.get("data", next(iter(frames.values()), None))


def _gaussian(programs: Programs, family: Family, batch: tuple[Tensor, ...], max_plate_nesting: int) -> Members:
    """Gaussians over all latents, t = m + L ε, which start at the mean and the covariance of draws of the amortized q.

    Raises:
        NoFamilyError: a latent is not made of real numbers, or stands in further plates.
    """
    with torch.no_grad():
        drawn = particles(programs.model, programs.guide, *batch, K=_MOMENTS, max_plate_nesting=max_plate_nesting)
        with _Frames() as frames:
            programs.guide(*batch)
    B, plate = len(batch[0]), next(iter(frames.plates.values()))
    sizes, events = {}, {}
    for name, t in drawn.values.items():
        q = drawn.distributions[name][0]
        _check_real(name, q, family)
        if max_plate_nesting != 1 or t.shape[: t.dim() - q.event_dim] != (_MOMENTS, B):
            raise NoFamilyError(
                f"family: {family!r} takes latents that stand in the data plate alone, and {name!r} stands in others too: "
                f"choose family='own'"
            )
        events[name] = t.shape[2:]
        sizes[name] = t[0, 0].numel()
    flat = torch.cat([t.reshape(_MOMENTS, B, -1) for t in drawn.values.values()], -1).double()
    mean, D = flat.mean(0), flat.shape[-1]
    away = flat - mean
    if family == "diagonal":
        root = away.square().mean(0).sqrt().diag_embed()
    else:
        covariance = torch.einsum("kbi,kbj->bij", away, away) / _MOMENTS
        scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        # A little is added to the diagonal, since more latents than draws would give a singular matrix.
        correlation = covariance / scale.unsqueeze(-1) / scale.unsqueeze(-2) + 1e-3 * torch.eye(D).to(scale)
        root = scale.unsqueeze(-1) * torch.linalg.cholesky(correlation)
    kind = next(iter(drawn.values.values()))
    mean, root = mean.to(kind), root.to(kind)
    shift, log_diagonal, below = (
        torch.zeros(B, D, dtype=kind.dtype, device=kind.device).requires_grad_(),
        torch.zeros(B, D, dtype=kind.dtype, device=kind.device).requires_grad_(),
        torch.zeros(B, D, D, dtype=kind.dtype, device=kind.device).requires_grad_(),
    )
    full = family == "full_rank"

    def guide(*_args: Any) -> None:
        T = log_diagonal.exp().diag_embed()
        L = root @ (
            T + below.tril(-1) if full else T
        )  # t = mean + root (shift + T eps), in the units of the amortized q
        loc = mean + (root @ shift.unsqueeze(-1)).squeeze(-1)
        eps: list[Tensor] = []  # of the sites before, as far as the covariance of later ones needs them
        with pyro.plate(plate.name, B, dim=plate.dim):
            start = 0
            for name, event in events.items():
                end = start + sizes[name]
                at, own = loc[:, start:end], L[:, start:end, start:end]
                if eps:
                    at = at + (L[:, start:end, :start] @ torch.cat(eps, -1).unsqueeze(-1)).squeeze(-1)
                t = pyro.sample(name, _site(at, own, event, full))
                if full:
                    away = t.reshape(*t.shape[: t.dim() - len(event)], sizes[name]) - at
                    eps.append(torch.linalg.solve_triangular(own, away.unsqueeze(-1), upper=False).squeeze(-1))
                start = end

    return Members(guide, [shift, log_diagonal, below] if full else [shift, log_diagonal], [-2, -2, -3][: 2 + full])


def _site(loc: Tensor, L: Tensor, event: torch.Size, full: bool) -> Any:
    """The distribution N(loc, L Lᵀ) of one site, for its event shape."""
    if full and event:
        return dist.MultivariateNormal(loc, scale_tril=L)
    scale = L.diagonal(dim1=-2, dim2=-1)
    shape = event if event else ()
    return dist.Normal(loc.reshape(*loc.shape[:-1], *shape), scale.reshape(*scale.shape[:-1], *shape)).to_event(
        len(event)
    )


def _check_real(name: str, q: Any, family: Family) -> None:
    support = q.support
    while hasattr(support, "base_constraint"):  # of independent numbers, and of mixtures
        support = support.base_constraint
    if support not in (constraints.real, constraints.real_vector):
        raise NoFamilyError(
            f"family: {family!r} is a Gaussian over real numbers, and the latent {name!r} is {support}: choose family='own'"
        )
    if family == "full_rank" and q.event_dim > 1:
        raise NoFamilyError(
            f"family: 'full_rank' takes latents that are vectors, and {name!r} has the shape {tuple(q.event_shape)}"
        )
