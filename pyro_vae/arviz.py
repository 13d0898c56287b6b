"""Export to ArviZ: an amortized posterior as `InferenceData` or `xarray.DataTree`, and log p(x) for `az.compare`.

ArviZ has two lines: 0.23, for Python 3.11, and 1.x, for Python 3.12 and newer. Both are served, each with its own classes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import nan, prod, sqrt
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_vae._version import version
from pyro_vae.data import DataLike, Split, columns_for
from pyro_vae.evaluate.calibration import Calibration
from pyro_vae.evaluate.evidence import Evidence, Weights
from pyro_vae.evaluate.pareto import arviz, smoothed
from pyro_vae.kinds import takes
from pyro_vae.missing import check_seen
from pyro_vae.parts import Shape
from pyro_vae.scopes import evaluating, telling_memory
from pyro_vae.traces import Programs, described, library_path, observations, particles, simulate
from pyro_vae.view import View

_TOGETHER = 2**24
"""The size of the largest temporary tensor, particles × data × pixels."""

Groups = dict[str, dict[str, np.ndarray]]
"""Arrays by group and by name."""


@takes
def to_arviz(
    programs: Programs,
    data: DataLike,
    *,
    K: int = 1000,
    draws: int = 100,
    resample: bool = True,
    predictive: bool = True,
    max_plate_nesting: int = 1,
    seed: int = 0,
    view: View | None = None,
) -> Any:
    """Returns the posterior of each datum's latents, and all that ArviZ asks beside it, as ArviZ's own object.

    ====================== ====================================================================================================
    group                  content
    ====================== ====================================================================================================
    `posterior`            draws of each latent (chain, draw, datum, ...)
    `posterior_predictive` draws of x given these latents (chain, draw, datum, ...)
    `prior`                draws of each latent from p(t) (chain, draw, ...)
    `prior_predictive`     draws of x given those (chain, draw, ...)
    `log_likelihood`       log p(x|t) at the draws of `posterior` (chain, draw, datum), in nats
    `sample_stats`         `log_w`, the log importance weights of these draws (chain, draw, datum); for each datum `log_px` by K
                           particles, `elbo`, the effective sample size `ess` and `pareto_k`
    `observed_data`        x
    `constant_data`        labels, if there are any
    ====================== ====================================================================================================

    There is one chain, since the draws of a datum are independent. The attributes ``draws_from``, ``K``, ``seed``,
    ``sample_dims`` and the versions say how they were made.

    log p(x|t) of a latent that belongs to one datum is no score of a model: leaving the datum out leaves nothing of its
    posterior but the prior, and importance sampling from one to the other fails. Compare models by `to_elpd`, which takes the
    marginal log p(x) of data that were not trained on.

    Args:
        programs: a `VAE`, or any Pyro ``model`` and ``guide``.
        data: N data, on the device of the programs.
        K: the number of particles of each datum, from which draws are taken.
        draws: the number of draws of each datum.
        resample: whether the draws are chosen among the K with probabilities in proportion to their importance weights,
            smoothed by ArviZ, so that they are draws of the posterior as K grows. Otherwise they are the guide's own.
        predictive: whether there are draws of x, which take the most memory: draws × data × pixels.
        max_plate_nesting: the number of plate dimensions that the programs use.
        seed: the seed of all draws.
        view: names of columns and of classes, and what a datum is (see `pyro_vae.view.View`), for the names of dimensions.

    Returns:
        `arviz.InferenceData` by ArviZ 0.23, or `xarray.DataTree` by ArviZ 1.x.

    Raises:
        ValueError: there are no draws, or more draws of the guide's own than particles; or values of the data are missing and
            the model was not built for such data.
    """
    for name, value in (("K", K), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not resample and draws > K:
        raise ValueError(
            f"draws: there are K = {K} particles of each datum, and without resampling no more draws; got {draws}"
        )
    columns = columns_for(programs, data)
    size = max(1, _TOGETHER // (K * prod(columns.x.shape[1:])))
    batches: list[Groups] = []
    with telling_memory(K=K, draws=draws), evaluating(programs, columns.x.device, seed, "arviz"), library_path():
        for batch in columns.batches(size):
            batches.append(_of_batch(programs, batch, K, draws, resample, predictive, max_plate_nesting))
        priors = _of_prior(programs, columns.first(1).take(slice(None)), draws, predictive)
    groups = {
        group: {name: np.concatenate([each[group][name] for each in batches], _DATUM[group]) for name in values}
        for group, values in batches[0].items()
    }
    check_seen(torch.as_tensor(groups["sample_stats"]["log_px"]), columns.x)
    labels = columns.y if columns.y is not None else data.labels if isinstance(data, Split) else None
    if labels is not None:
        groups["constant_data"] = {"label": labels.cpu().numpy()}
    dims, coords = _named(groups, tuple(columns.x.shape[1:]), view or View())
    groups |= priors
    attrs = {
        "inference_library": "pyro_vae",
        "inference_library_version": version,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "python_version": sys.version.split()[0],
        "draws_from": "q(t|x), resampled by smoothed importance weights" if resample else "q(t|x)",
        "K": K,
        "seed": seed,
        "sample_dims": ["chain", "draw"],
    }
    return _as_arviz(groups, dims, coords, attrs)


@takes
def to_elpd(evidence: Evidence) -> Any:
    """Returns the log p(x) of held-out data as ArviZ's `ELPDData`, for `az.compare`, `az.plot_khat` and `az.plot_compare`.

    Its pointwise values are the marginal log p(x) of each datum, by importance sampling, with k̂ of the weights. Give
    `az.compare` the data in the same order for each model; standard errors of differences are then paired by datum. The number
    of parameters ``p`` is NaN, since nothing was left out. In ArviZ 0.23 the class says "loo", the only name it knows.

    Args:
        evidence: what `pyro_vae.evaluate.evidence` found for data that the model was not trained on.
    """
    from xarray import DataArray  # noqa: PLC0415  (it comes with ArviZ, whose import takes seconds)

    values, k = (each.cpu().numpy() for each in (evidence.log_px, evidence.pareto_k))
    N = len(values)
    pointwise, tails = (DataArray(each, dims=["datum"], coords={"datum": np.arange(N)}) for each in (values, k))
    numbers = {
        "elpd": values.sum(),
        "se": sqrt(N) * values.std(),
        "p": nan,
        "n_samples": evidence.K,
        "n_data_points": N,
        "warning": bool(evidence.notices()),
        "scale": "log",
        "good_k": evidence.good_k,
    }
    try:
        from arviz_stats.utils import ELPDData  # noqa: PLC0415
    except ImportError:
        of_loo = {"elpd": "elpd_loo", "p": "p_loo"}
        named = {of_loo.get(name, name): value for name, value in numbers.items()}
        named = {**named, "loo_i": pointwise, "pareto_k": tails}
        return arviz().stats.stats_utils.ELPDData(list(named.values()), index=list(named))
    return ELPDData(**numbers, elpd_i=pointwise, pareto_k=tails)


@takes
def pit_to_arviz(calibration: Calibration) -> Any:
    """Returns the ranks of a calibration as probability integral transforms, for ``az.plot_ecdf_pit`` of ArviZ 1.x.

    They stand in the group ``prior_sbc``, with the dimension ``sample`` for the simulated data: the rank among L draws plus a
    uniform number, over L + 1. If q(t|x) is the posterior they are uniform. The plot is
    ``az.plot_ecdf_pit(found, group="prior_sbc", sample_dims=["sample"])``.

    Args:
        calibration: what `pyro_vae.evaluate.calibrate` found.
    """
    n, J = calibration.ranks.shape
    noise = np.random.default_rng(calibration.seed).random((n, J))
    pit = (calibration.ranks + noise) / (calibration.L + 1)
    columns: dict[str, list[np.ndarray]] = {}
    for name, values in zip(calibration.names, pit.T, strict=True):
        columns.setdefault(name.partition("[")[0] if name in calibration.latents else name, []).append(values)
    groups = {"prior_sbc": {name: np.stack(each, 1) if len(each) > 1 else each[0] for name, each in columns.items()}}
    dims = {
        name: ["sample", f"{name}_latent"] if value.ndim > 1 else ["sample"]
        for name, value in groups["prior_sbc"].items()
    }
    coords = {"sample": np.arange(n)} | {
        dims[name][1]: np.arange(value.shape[1]) for name, value in groups["prior_sbc"].items() if value.ndim > 1
    }
    attrs = {"inference_library": "pyro_vae", "L": calibration.L, "seed": calibration.seed, "sample_dims": ["sample"]}
    return _as_arviz(groups, dims, coords, attrs)


_DATUM = {"posterior": 1, "posterior_predictive": 1, "log_likelihood": 1, "sample_stats": -1, "observed_data": 0}
"""Which dimension of each group's arrays is that of data, before there is one of chains."""


def _of_batch(
    programs: Programs, batch: tuple[Tensor, ...], K: int, draws: int, resample: bool, predictive: bool, nesting: int
) -> Groups:
    """The groups of a batch of data, whose draws have no chain yet."""
    found = particles(programs.model, programs.guide, *batch, K=K, max_plate_nesting=nesting)
    log_w = found.log_w.double()
    B = log_w.shape[1]
    chosen = torch.arange(draws, device=log_w.device)[:, None].expand(-1, B)
    if resample:
        probabilities = torch.as_tensor(smoothed(log_w.cpu().numpy()), device=log_w.device).exp()
        # Where the weights are NaN so is log p(x), which is told later.
        chosen = torch.multinomial(probabilities.nan_to_num(nan=1.0).T, draws, replacement=True).T
    at = torch.arange(B, device=log_w.device)

    def take(log_prob: Tensor) -> np.ndarray:
        return log_prob[chosen, at].cpu().numpy()

    weights = Weights(K, batch[0])
    weights.add(found.log_w)
    evidence = weights.found()
    # Of each latent, where the dimension of data is, counted from the right.
    data_dim = {name: found.plates[1] - q.event_dim for name, (q, _) in found.distributions.items()}
    t = {name: value.movedim(data_dim[name], 1)[chosen, at] for name, value in found.values.items()}
    # Dimensions of plates that a site does not stand in are of size 1, and no part of its value.
    plain = {
        name: value.reshape(draws, B, *_own_shape(value, found.distributions[name][0])) for name, value in t.items()
    }
    groups: Groups = {"posterior": {name: value.cpu().numpy() for name, value in plain.items()}}
    seen = {name: each.value for name, each in observations(programs.model, *batch).items()}
    if predictive:
        each = [
            _drawn(programs, {name: value[s].movedim(0, data_dim[name]) for name, value in t.items()}, batch)
            for s in range(draws)
        ]
        groups["posterior_predictive"] = {
            name: np.stack([one[name].reshape(seen[name].shape) for one in each]) for name in each[0]
        }
    groups["log_likelihood"] = {name: take(found.model[name]) for name in found.observed}
    of_datum = {
        "log_px": evidence.log_px,
        "elbo": log_w.mean(0),
        "ess": evidence.ess,
        "pareto_k": evidence.pareto_k,
    }
    groups["sample_stats"] = {"log_w": take(log_w)} | {name: value.cpu().numpy() for name, value in of_datum.items()}
    groups["observed_data"] = {name: value.cpu().numpy() for name, value in seen.items()}
    return groups


def _own_shape(t: Tensor, q: Any) -> list[int]:
    """The shape of a latent (S, B, ..., *event) behind draws and data, without the dimensions of plates of size 1."""
    plates = t.dim() - 2 - q.event_dim
    return [size for size in t.shape[2 : 2 + plates] if size > 1] + list(t.shape[2 + plates :])


def _drawn(programs: Programs, t: Mapping[str, Tensor], batch: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """Draws of what the model observes at given latents, by site."""
    return {name: p.sample().cpu().numpy() for name, p in described(programs.model, t, *batch).items()}


def _of_prior(programs: Programs, one: tuple[Tensor, ...], draws: int, predictive: bool) -> Groups:
    """The groups of the prior: as many data as there are draws, each with the inputs of one datum but for x."""
    many = tuple(each.expand(draws, *each.shape[1:]) for each in one)
    t, x = simulate(programs.model, *many)
    groups: Groups = {"prior": {name: value.cpu().numpy() for name, value in t.items()}}
    if predictive:
        groups["prior_predictive"] = {name: value.cpu().numpy() for name, value in x.items()}
    return groups


def _as_arviz(
    groups: Groups, dims: Mapping[str, list[str]], coords: Mapping[str, Any], attrs: Mapping[str, Any]
) -> Any:
    """ArviZ's object, with a dimension of one chain before that of draws."""
    import xarray  # noqa: PLC0415  (it comes with ArviZ, whose import takes seconds)

    datasets = {}
    for group, values in groups.items():
        variables = {}
        for name, value in values.items():
            own = (
                dims[name][1:]
                if group in ("prior", "prior_predictive")
                else ["datum"]
                if group == "log_likelihood"
                else dims[name]
            )
            drawn = value.ndim > len(own)
            variables[name] = (["chain", "draw", *own], value[None]) if drawn else (own, value)
        used = {dim for own, _ in variables.values() for dim in own}
        at = {name: value for name, value in coords.items() if name in used}
        at |= {"chain": np.arange(1), "draw": np.arange(next(iter(values.values())).shape[0])} if "draw" in used else {}
        datasets[group] = xarray.Dataset(variables, coords=at, attrs=dict(attrs))
    found = arviz()
    if found.__version__.startswith("0."):
        return found.InferenceData(**datasets, attrs=dict(attrs))
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(attrs)
    return tree


def _named(groups: Groups, x_shape: Shape, view: View) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The names of dimensions by variable, beside chain and draw, and their coordinates."""
    N = len(next(iter(groups["observed_data"].values())))
    dims: dict[str, list[str]] = {name: ["datum"] for name in ("log_w", "log_px", "elbo", "ess", "pareto_k", "label")}
    coords: dict[str, Any] = {"datum": np.arange(N)}
    latents = groups["posterior"]
    for name, value in latents.items():
        prefix = "latent" if len(latents) == 1 else f"{name}_latent"
        rest = value.shape[2:]
        names = [prefix] if len(rest) == 1 else [f"{prefix}_{i}" for i in range(len(rest))]
        dims[name] = ["datum", *names]
        coords |= {each: np.arange(size) for each, size in zip(names, rest, strict=True)}
    for name, value in groups["observed_data"].items():
        rest = value.shape[1:]
        names = _axes(view, rest) if rest == x_shape else [f"{name}_dim_{i}" for i in range(len(rest))]
        dims[name] = ["datum", *names]
        columns = np.array(view.columns) if names == ["column"] and len(view.columns) == rest[0] else None
        coords |= {
            each: np.arange(size) if columns is None else columns for each, size in zip(names, rest, strict=True)
        }
    return dims, coords


def _axes(view: View, x_shape: Shape) -> list[str]:
    """What the axes of a datum are called."""
    kind, axes = view.kind_of(x_shape), len(x_shape)
    if kind == "table" and axes == 1:
        return ["column"]
    if kind == "signal" and axes <= 2:
        return ["channel", "time"][2 - axes :]
    if kind == "image" and 2 <= axes <= 4:
        return (["row", "column"], ["channel", "row", "column"], ["channel", "slice", "row", "column"])[axes - 2]
    return [f"x_dim_{i}" for i in range(axes)]
