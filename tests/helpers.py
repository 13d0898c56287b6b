"""What tests share: small parts and models of every class, steps of them, and statistical comparison."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import Exact, LinearGaussian, ciwae, elbo, iwae, iwae_stl, piwae, renyi, rws, tvo
from pyro.infer import RenyiELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.optim import Adam

from pyro_vae import VAE, Dims, Estimator, Guide, Likelihood, Network, Prior, guides, priors
from pyro_vae.data import Data, Split, make_splits
from pyro_vae.estimators import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    NVIL,
    PIWAE,
    RWS,
    STL,
    TVO,
    VIMCO,
    AnalyticKL,
    DReG,
    Objective,
    Renyi,
    ScoreFunction,
    Stock,
)
from pyro_vae.guides import DiagonalNormal, InverseAutoregressive, MixtureOfNormals, PerDatum, SemiAmortized
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.models import Conditional, Ladder, TwoLayer
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.scopes import mode, seeded
from pyro_vae.traces import inputs_of, library_path, parameters
from pyro_vae.training.compiled_step import Graph
from pyro_vae.training.optimizers import fuse
from pyro_vae.training.step import Update

CPU = torch.device("cpu")
N_SE = 4.5  # of a normal: one false alarm in 150,000 numbers


def within(estimates: Tensor, exact: Tensor) -> None:
    """The mean of independent estimates (N, ...) is the exact value within N_SE standard errors, and those are small."""
    error = estimates.std(0) / len(estimates) ** 0.5
    deviation = (estimates.mean(0) - exact).abs()
    assert (deviation <= N_SE * error + 1e-10).all(), f"{(deviation / error).max():.1f} standard errors off"


BITS = torch.bernoulli(torch.full((20, 1, 4, 4), 0.5), generator=torch.Generator().manual_seed(0))
DIMS = Dims(2, (1, 4, 4), train=BITS)
SMALL = Dims(1, (1,), train=BITS[:, 0, 0, :1])
NETWORK = partial(MLP, hidden=[8])
OPTIONS = {"network": NETWORK, "exemplars": 12, "drawn": 6, "classes": 2}
"""Options that default to more than these small data hold, by name."""


def subclasses(base: type) -> list[type]:
    """All concrete subclasses of the project."""
    found = []
    for cls in base.__subclasses__():
        found += subclasses(cls)
        if cls.__module__.startswith("pyro_vae") and not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found.append(cls)
    return found


PARTNERS: dict[type, type] = {
    priors.Bernoulli: guides.Bernoulli,
    priors.AutoregressiveBernoulli: guides.Bernoulli,
    priors.OneHotCategorical: guides.OneHotCategorical,
    priors.Concrete: guides.Concrete,
    guides.Bernoulli: priors.Bernoulli,
    guides.OneHotCategorical: priors.OneHotCategorical,
    guides.Concrete: priors.Concrete,
}
"""Priors and guides whose latents are not all real vectors, each with a guide or a prior of such latents."""
DISCRETE = [
    guides.Bernoulli,
    guides.OneHotCategorical,
    *(priors.Bernoulli, priors.AutoregressiveBernoulli, priors.OneHotCategorical),
]
"""Those of them whose latents are discrete."""
REAL_PRIORS = [cls for cls in subclasses(Prior) if cls not in PARTNERS]
REAL_GUIDES = [cls for cls in subclasses(Guide) if cls not in PARTNERS]


def with_gaps(x: Tensor, share: float = 0.3, seed: int = 0) -> Tensor:
    """Data with this share of values missing at random; the first datum is whole, and the second has no value at all."""
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    gone[0], gone[1] = False, True
    return x.masked_fill(gone, torch.nan)


PRIORS, GUIDES, LIKELIHOODS = subclasses(Prior), subclasses(Guide), subclasses(Likelihood)
NETWORKS, DATA = subclasses(Network), subclasses(Data)
ESTIMATORS = [cls for cls in subclasses(Estimator) if not cls.for_discrete]
"""Those for any latents, or for latents with rsample."""
OF_DISCRETE = [cls for cls in subclasses(Estimator) if cls.for_discrete]
"""Those for discrete latents alone."""


def build(cls: type, dims: Dims = DIMS, device: str = "cpu"):
    """A part with its default options, but for `OPTIONS`."""
    torch.manual_seed(0)
    options = {name: value for name, value in OPTIONS.items() if name in inspect.signature(cls).parameters}
    with torch.device(device):
        return cls(dims, **options)


def vae_of(cls: type, device: str = "cpu", dims: Dims = DIMS) -> VAE:
    """A VAE with this part in its place."""
    prior = build(cls if cls in PRIORS else PARTNERS.get(cls, StandardNormal), dims, device)
    guide = build(cls if cls in GUIDES else PARTNERS.get(cls, DiagonalNormal), dims, device)
    return VAE(prior, guide, build(cls if cls in LIKELIHOODS else Bernoulli, dims, device))


def part_of(cls: type, dims: Dims = DIMS):
    """A part, in a VAE."""
    vae = vae_of(cls, dims=dims)
    return next(part for part in (vae.prior, vae.posterior, vae.likelihood) if type(part) is cls)


def data_for(cls: type, vae: VAE, size: int) -> torch.Tensor:
    """Training data, or such as this likelihood gives."""
    if cls not in LIKELIHOODS:
        return BITS[:size]
    with torch.no_grad():
        return vae.model(n=size)


@contextmanager
def refusing_unknown_kl(estimator: type) -> Iterator[None]:
    """Skips the test where an estimator refuses a KL that is not known in closed form, or latents without rsample."""
    try:
        yield
    except ValueError as refused:
        unknown = estimator.closed_form_kl and "no closed-form KL is known" in str(refused)
        if not (unknown or (estimator.latents != "fixed" and "rsample" in str(refused))):
            raise
        pytest.skip(str(refused))


def elbo_of(vae: Any, K: int = 1) -> Estimator:
    """An estimator of the ELBO that takes this model's latents."""
    return ScoreFunction(K) if type(getattr(vae, "posterior", None)) in DISCRETE else ELBO(K)


def update_of(vae, x, estimator=None, optimizer=Adam, dynamic=False, y=None, **options):
    """An `Update` with the first step done, so that the optimizer has its state."""
    columns = Split(x, y, dynamic=dynamic).columns(inputs_of(vae))
    leaves = [leaf for side in parameters(vae.model, vae.guide, *columns.tensors) for leaf in side.values()]
    made = optimizer(leaves)
    fuse(made)
    objective = options.pop("objective", Objective())
    update = Update(vae, estimator or ELBO(), objective, columns, made, {"both": leaves}, **options)
    with library_path(), seeded(CPU, "first step"):
        update(torch.arange(len(x)), objective.weight(1), "both")
    return update


def agree(update, steps=3, tolerance=1e-4):
    """Compiled and eager steps from one state with the same random numbers: sums, bounds, and the weights they end in."""
    index = torch.arange(len(update.columns)).flip(0)
    with library_path(), mode(update.programs, training=True):
        graph, ends = Graph(update, index, "both"), []
        for step in (graph, partial(update, phase="both")):
            with graph._put_back() as moved, seeded(CPU, "steps"):
                found = [step(index, 0.7) for _ in range(steps)]
                ends.append((torch.stack([sums.row for sums in found]), found[-1].bound, torch.cat(moved())))
    for one, other in zip(*ends, strict=True):
        gap, size = (one - other).norm(), other.norm()
        assert gap <= tolerance * size + 1e-6, (gap, size)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


CASES: dict[str, tuple[Estimator, Exact]] = {
    "ELBO": (ELBO(2), elbo),
    "AnalyticKL": (AnalyticKL(2), elbo),
    "STL": (STL(2), elbo),
    "ScoreFunction": (ScoreFunction(2), elbo),
    "ScoreFunction, running mean": (ScoreFunction(1, control="running"), elbo),
    "NVIL": (NVIL(2, hidden=4), elbo),
    "ScoreFunction, leave-one-out": (ScoreFunction(3, control="leave-one-out"), elbo),
    "IWAE": (IWAE(2), iwae),
    "IWAE, K = 1": (IWAE(1), elbo),
    "IWAE with STL": (IWAE(2, stl=True), iwae_stl),
    "DReG": (DReG(2), iwae),
    "VIMCO": (VIMCO(2), iwae),
    "VIMCO, K = 3": (VIMCO(3), partial(iwae, K=3, nodes=30)),
    "Renyi(0.5)": (Renyi(2, alpha=0.5), partial(renyi, 0.5)),
    "Renyi(-1)": (Renyi(2, alpha=-1.0), partial(renyi, -1.0)),
    "Renyi(2)": (Renyi(2, alpha=2.0), partial(renyi, 2.0)),
    "MIWAE": (MIWAE(M=3, K=2), iwae),
    "PIWAE": (PIWAE(M=2, K=2), piwae),
    "CIWAE": (CIWAE(2, beta=0.3), partial(ciwae, 0.3)),
    "RWS": (RWS(2), rws),
    "RWS with DReG": (RWS(2, dreg=True), rws),
    "TVO, one term": (TVO(2, partitions=1), elbo),
    "TVO": (TVO(500, partitions=3), partial(tvo, TVO(500, partitions=3).betas)),
}

STOCK: dict[str, tuple[Estimator, Exact]] = {
    "Stock(Trace_ELBO)": (Stock(2), elbo),
    "Stock(TraceMeanField_ELBO)": (Stock(1, TraceMeanField_ELBO), elbo),
    "Stock(TraceGraph_ELBO)": (Stock(2, TraceGraph_ELBO), elbo),
    "Stock(RenyiELBO)": (Stock(2, RenyiELBO, {"alpha": 0.5}), partial(renyi, 0.5)),
}
ALL = CASES | STOCK


def independent_gradients(
    estimator: Estimator, oracle: LinearGaussian, x: Tensor, runs: int, copies: int, **options
) -> tuple[Tensor, list[Tensor]]:
    """Independent estimates: the value (runs,), and the gradient of each parameter (runs, ...), each of `copies` draws."""
    vae, values, found = oracle.vae, [], []
    estimator, leaves = deepcopy(estimator), list(vae.parameters())
    if estimator.learns:
        estimator.state = {}  # what it learned in another test, on other data
    many = x.repeat(copies, 1)
    with library_path(), seeded(CPU, 7):
        for _ in range(runs):
            estimate, gradients = estimator.gradients(vae.model, vae.guide, leaves, many, **options)
            estimator.after_step(estimate)
            values.append(estimate.bound.mean())
            found.append(gradients)
    return torch.stack(values), [torch.stack(one) for one in zip(*found, strict=True)]


def exact_gradients(exact: Exact, oracle: LinearGaussian, x: Tensor, c: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """The exact value, and the exact gradient of each parameter, by w of the one objective and by φ of the other."""
    value, by_w, by_phi = exact(oracle, x, c)
    phi = list(oracle.vae.posterior.parameters())
    w = [*oracle.vae.prior.parameters(), *oracle.vae.likelihood.parameters()]
    found = [torch.autograd.grad(of, p, retain_graph=True, allow_unused=True) for of, p in ((by_w, w), (by_phi, phi))]
    by_leaf = dict(zip([*w, *phi], [*found[0], *found[1]], strict=True))
    leaves = list(oracle.vae.parameters())
    return value.detach(), [torch.zeros_like(p) if by_leaf[p] is None else by_leaf[p] for p in leaves]


def parts_of(model, guide: type = DiagonalNormal, dims: Dims = DIMS, **options):
    """A model of several parts, from the class or a partial of it."""
    return model(dims, *(partial(build, cls) for cls in (StandardNormal, guide, Bernoulli)), **options)


KINDS_OF_MODEL = {
    "flow": lambda: vae_of(InverseAutoregressive),
    "mixture": lambda: vae_of(MixtureOfNormals),
    "refined": lambda: vae_of(SemiAmortized),
    "per datum": lambda: vae_of(PerDatum),
    "prior of the guide": lambda: vae_of(VampPrior),
    "two layers": lambda: parts_of(partial(TwoLayer, top=3)),
    "two layers, flow": lambda: parts_of(partial(TwoLayer, top=3), InverseAutoregressive),
    "ladder": lambda: parts_of(partial(Ladder, top=3)),
    "labels": lambda: parts_of(Conditional, dims=replace(DIMS, classes=3)),
    "missing": lambda: vae_of(DiagonalNormal, dims=replace(DIMS, missing=True)),
}
"""One model of every kind, for what takes them all. "labels" is given them, and "missing" takes data with gaps."""


REFUSED = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
"""Optimizers that training refuses, or that are not for these parameters."""
OPTIMIZERS = {
    name: getattr(torch.optim, name)
    for name in sorted(torch.optim.__all__)
    if name[0].isupper() and name not in REFUSED
} | {
    "SGD momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
    "RMSprop centered": partial(torch.optim.RMSprop, centered=True, momentum=0.5),
    "Adam amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "Adam no fuse": partial(torch.optim.Adam, foreach=True),
}
"""Every optimizer of PyTorch that trains, and some with other options."""


SEVENTY = torch.bernoulli(torch.full((70, 1, 4, 4), 0.5), generator=torch.Generator().manual_seed(0))
FIFTY = make_splits(Split(SEVENTY), valid=10, test=10)
"""Seventy data of which fifty are trained on."""
TABLE = ["--data", "Arrays", "--data.path", "x.npy", "--latent", "2", "--batch_size", "10"]
"""Options of a command that trains on a small table, which the test writes."""


def small_vae(network=None) -> VAE:
    """A VAE of `FIFTY` with always the same first weights."""
    torch.manual_seed(0)
    dims, net = FIFTY.dims(2), partial(MLP, hidden=[6])
    return VAE(StandardNormal(dims), DiagonalNormal(dims, network or net), Bernoulli(dims, net))


def state_of(vae) -> Tensor:
    """All parameters and buffers as one vector."""
    return torch.cat([each.detach().flatten().double() for each in vae.state_dict().values()])
