"""Estimators with discrete latents against sums over all states: every bound, K and objective, one site and several.

The reference is a sum over all states, or over all tuples of K states, of formulas written here, and knows nothing of traces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log

import pytest
import torch
from discrete import STATES, Discrete, X
from helpers import CPU, within
from torch import Tensor

from pyro_vae.estimators import (
    ARMS,
    ELBO,
    NVIL,
    REBAR,
    RELAX,
    STL,
    TVO,
    VIMCO,
    AnalyticKL,
    DisARM,
    DoubleCV,
    Enumerate,
    Estimator,
    GumbelSoftmax,
    Objective,
    ReinMax,
    ScoreFunction,
    StraightThrough,
)
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path

Value = Callable[[Tensor], Tensor]
"""The bound of K draws (..., B) as a function of their log weights (..., K, B)."""


def elbo(log_w: Tensor) -> Tensor:
    return log_w.mean(-2)


def iwae(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(-2) - log(log_w.shape[-2])


def exact(model: Discrete, value: Value, K: int, c: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """The mean over data of a K-particle objective, summed over all tuples of states, and its gradients."""
    log_lik, log_prior, log_q = model.table()
    log_w = log_lik + c * (log_prior - log_q)
    index = torch.cartesian_prod(*[torch.arange(len(log_w))] * K).reshape(-1, K)
    weights = log_q[index].sum(1).exp()
    total = (weights * value(log_w[index])).sum(0).mean()
    return total.detach(), list(
        torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
    )


def estimates(
    estimator: Estimator, model: Discrete, runs: int = 40, copies: int = 400, **options
) -> tuple[Tensor, list[Tensor]]:
    """Independent estimates of the value and of the gradient of each parameter; what an estimator learns moves meanwhile."""
    values, found, many = [], [], X.repeat(copies, 1)
    with library_path(), seeded(CPU, 7):
        for _ in range(runs):
            estimate, gradients = estimator.gradients(
                model.model, model.guide, list(model.parameters()), many, **options
            )
            estimator.after_step(estimate)
            values.append(estimate.bound.mean())
            found.append(gradients)
    return torch.stack(values), [torch.stack(one) for one in zip(*found, strict=True)]


UNBIASED: dict[str, tuple[Callable[[], Estimator], Value, int, tuple[str, ...]]] = {
    "ScoreFunction": (partial(ScoreFunction, 2), elbo, 1, tuple(STATES)),
    "leave-one-out": (partial(ScoreFunction, 3, control="leave-one-out"), elbo, 1, tuple(STATES)),
    "NVIL": (partial(NVIL, 2, hidden=5, learning_rate=0.05), elbo, 1, tuple(STATES)),
    "DisARM": (DisARM, elbo, 1, ("binary", "chain", "two sites")),
    "DisARM, 3 pairs": (partial(DisARM, M=3), elbo, 1, ("binary", "chain")),
    "DisARM, IWAE of 2": (partial(DisARM, M=2, bound="IWAE"), iwae, 2, ("binary", "chain", "two sites")),
    "DisARM, IWAE of 1": (partial(DisARM, M=1, bound="IWAE"), elbo, 1, ("binary",)),
    "ARMS": (partial(ARMS, 4), elbo, 1, ("binary", "chain", "two sites")),
    "ARMS, 3": (partial(ARMS, 3, M=2), elbo, 1, ("binary", "chain")),
    "ARMS, IWAE of 2": (partial(ARMS, 3, M=2, bound="IWAE"), iwae, 2, ("binary", "chain", "two sites")),
    "DoubleCV": (partial(DoubleCV, 2, learning_rate=0.05), elbo, 1, ("binary", "two sites")),
    "DoubleCV, 4": (partial(DoubleCV, 4, learning_rate=0.05), elbo, 1, ("binary",)),
    "REBAR": (partial(REBAR, learning_rate=0.02), elbo, 1, ("binary", "two sites")),
    "REBAR, K = 2": (partial(REBAR, 2, temperature=1.0, learning_rate=0.02), elbo, 1, ("binary",)),
    "RELAX": (partial(RELAX, hidden=6, temperature=0.4, learning_rate=0.02), elbo, 1, ("binary", "two sites")),
    "VIMCO": (partial(VIMCO, 2), iwae, 2, tuple(STATES)),
    "TVO of one term": (partial(TVO, 2, partitions=1), elbo, 1, ("binary", "chain")),
}
CASES = [(name, kind) for name, (*_, kinds) in UNBIASED.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_unbiased(name, kind):
    make, value, K, _ = UNBIASED[name]
    model = Discrete(kind)
    bound, expected = exact(model, value, K)
    values, found = estimates(make(), model)
    within(values, bound)
    for gradient, each in zip(expected, found, strict=True):
        within(each, gradient)


@pytest.mark.parametrize("c", [0.5, 2.0])
@pytest.mark.parametrize("name", ["NVIL", "DisARM", "DisARM, IWAE of 2", "ARMS", "DoubleCV", "REBAR", "RELAX"])
def test_unbiased_with_another_weight_of_the_kl(name, c):
    make, value, K, _ = UNBIASED[name]
    model = Discrete("binary")
    _, expected = exact(model, value, K, c)
    _, found = estimates(make(), model, objective=Objective(beta=c))
    for gradient, each in zip(expected, found, strict=True):
        within(each, gradient)


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("inner", [ELBO, AnalyticKL, STL, partial(ScoreFunction, 2, control="leave-one-out")])
def test_enumeration_is_the_sum(kind, inner):
    model = Discrete(kind)
    for c in (1.0, 0.3):
        value, expected = exact(model, elbo, 1, c)
        with library_path():
            estimate, found = Enumerate(inner()).gradients(
                model.model, model.guide, list(model.parameters()), X, objective=Objective(beta=c)
            )
        if c == 1:
            torch.testing.assert_close(estimate.bound.mean(), value)
        torch.testing.assert_close(found, expected)


BIASED: dict[str, Callable[[], Estimator]] = {
    "StraightThrough": partial(StraightThrough, 2),
    "ReinMax": partial(ReinMax, 2),
    "GumbelSoftmax": partial(GumbelSoftmax, 2),
    "GumbelSoftmax, straight-through": partial(GumbelSoftmax, 2, straight_through=True),
    "StraightThrough, sampled KL": partial(StraightThrough, 2, kl="sampled"),
    "ReinMax, sampled KL": partial(ReinMax, 2, kl="sampled"),
    "GumbelSoftmax, sampled KL": partial(GumbelSoftmax, 2, kl="sampled"),
}


@pytest.mark.parametrize("kind", ["binary", "classes", "chain"])
@pytest.mark.parametrize("name", BIASED)
def test_the_bound_of_a_biased_gradient_is_that_of_the_discrete_model(name, kind):
    model = Discrete(kind)
    bound, expected = exact(model, elbo, 1)
    values, found = estimates(BIASED[name](), model)
    within(values, bound)
    if not name.startswith("GumbelSoftmax") or "straight" in name:  # w too is evaluated at relaxed draws
        for (of, _), gradient, each in zip(model.named_parameters(), expected, found, strict=True):
            if of.startswith("w."):
                within(each, gradient)
