"""A training step with Bernoulli latents by each estimator for them, compiled and eager, and by Pyro and NumPyro."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from benchmarks.steps import LR, Case, Contender, numpyro, ours
from pyro_vae import Estimator
from pyro_vae.estimators import (
    ARMS,
    NVIL,
    REBAR,
    RELAX,
    DisARM,
    DoubleCV,
    Enumerate,
    GumbelSoftmax,
    ReinMax,
    ScoreFunction,
    StraightThrough,
)

BASE = "ScoreFunction"
"""The contender that the others are compared with: it does the work of Pyro's TraceGraph_ELBO without baselines."""
ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    BASE: ScoreFunction,
    "leave-one-out, K = 2": partial(ScoreFunction, 2, control="leave-one-out"),
    "NVIL": NVIL,
    "DisARM": DisARM,
    "ARMS, K = 4": ARMS,
    "DoubleCV, K = 2": DoubleCV,
    "REBAR": REBAR,
    "RELAX": RELAX,
    "StraightThrough": StraightThrough,
    "GumbelSoftmax": GumbelSoftmax,
    "ReinMax": ReinMax,
}
FEW_STATES = 2**8
"""How many states are enumerated at most: a step takes as many evaluations of the decoder."""


def cases(x: Tensor) -> Iterator[Case]:
    """Gives the cases: many bits, and so few that they can be enumerated."""
    for latent in (50, 6):
        yield Case(x[:100], 200, latent, prior="Bernoulli", guide="Bernoulli")


def contenders(case: Case) -> dict[str, Callable[[Case], Contender]]:
    """Returns the contenders of a case by their names, those of this project first."""
    few = {"Enumerate": Enumerate} if 2**case.latent <= FEW_STATES else {}
    found: dict[str, Callable[[Case], Contender]] = {}
    for name, make in {**ESTIMATORS, **few}.items():
        found[name] = partial(ours, compiled=True, make=make)
        found[f"{name}, eager"] = partial(ours, compiled=False, make=make)
    return found | {"Pyro TraceGraph_ELBO": graph, "NumPyro TraceGraph_ELBO": numpyro}


def graph(case: Case) -> Contender:
    """Pyro's ``SVI.step`` with its own estimator for discrete latents, on the same programs."""
    vae = case.vae()
    pyro.clear_param_store()
    elbo = pyro.infer.TraceGraph_ELBO(max_plate_nesting=1)
    svi = pyro.infer.SVI(vae.model, vae.guide, PyroOptim(torch.optim.Adam, {"lr": LR}), elbo)
    return Contender(lambda: svi.step(case.x), lambda: svi.evaluate_loss(case.x) / len(case.x))
