"""Guides that are random beyond their sample sites: dropout, a mask or noise of the user's own, with one latent and two.

The randomness is a part of the guide: q(t|x) is a mixture over it, and an estimator's objective is the mean, over masks, of
its bound with the mask held fixed. So a density must be computed with the mask that the draws were made with. References are
enumerations of all masks, with quadrature over the latents.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import CASES, CPU, ESTIMATORS, N_SE, agree, exact_gradients, independent_gradients, update_of, within
from oracles import kl_to_prior, log_mean, piwae_of_two, random_oracle_and_data
from torch import Tensor, nn

from pyro_vae import Dims, Estimator, Model
from pyro_vae.estimators import (
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    STL,
    VIMCO,
    AnalyticKL,
    DReG,
    Objective,
    ScoreFunction,
    Stock,
)
from pyro_vae.estimators.paths import path, path_log_w
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path, particles

KINDS = ["dropout", "mask", "noise"]


def over_cases(exact, kind: str, c: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """The value and the gradients of one estimator's objective, summed over the masks with their probabilities."""
    oracle, x = random_oracle_and_data(kind)
    features, totals = oracle.vae.posterior.network, []
    for probability, fixed in features.cases:
        features.fixed = fixed
        value, gradients = exact_gradients(exact, oracle, x, c)
        each = [probability * part for part in (value, *gradients)]
        totals = each if not totals else [total + part for total, part in zip(totals, each, strict=True)]
    return totals[0], totals[1:]


def check_one_latent(name: str, kind: str, c: float = 1.0, **options) -> None:
    estimator, exact = CASES[name]
    if isinstance(estimator, PIWAE):  # with fewer particles, because there is a quadrature for each mask
        estimator, exact = PIWAE(M=2, K=1), piwae_of_two
    value, expected = over_cases(exact, kind, c)
    oracle, x = random_oracle_and_data(kind)
    copies = 10 if estimator.K >= 100 else 200
    values, found = independent_gradients(estimator, oracle, x, runs=30, copies=copies, **options)
    if c == 1:
        within(values, value)
    for gradient, estimates in zip(expected, found, strict=True):
        within(estimates, gradient)


SOON = ["STL", "IWAE with STL", "DReG", "PIWAE", "RWS with DReG"]
"""Estimators that evaluate q apart from its draws. The others are slow cases here, and are all tried with two latents."""


def some(names: list[str]) -> list:
    """Cases, of which those that are not named are slow."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", some([*SOON, "ELBO", "ScoreFunction", "TVO"]))
def test_one_latent(name):
    check_one_latent(name, "dropout")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", some(SOON))
def test_one_latent_with_randomness_of_the_users_own(name, kind):
    check_one_latent(name, kind)


@pytest.mark.parametrize("name", some([*SOON, "ScoreFunction, running mean"]))
def test_one_latent_with_an_objective(name):
    check_one_latent(name, "dropout", 0.7, objective=Objective(beta=0.7, free_nats=0.01))


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "c"), [(Objective(beta=2.0), 2.0), (Objective(free_nats=100.0), 0.0)])
@pytest.mark.parametrize("name", CASES)
def test_one_latent_with_other_objectives(name, objective, c):
    check_one_latent(name, "dropout", c, objective=objective)


@pytest.mark.parametrize(
    ("estimator", "c", "kind"),
    [(AnalyticKL(2), 1.5, "dropout"), (AnalyticKL(2), 1.5, "noise"), (STL(2), 0.0, "dropout"), (IWAE(2), 0.0, "mask")],
)
def test_one_latent_without_noise(estimator, c, kind):
    """t is the mean of q for the mask at hand: log p(x|m) - c KL, summed over the masks."""

    def exact(oracle, x, c):
        m = oracle.vae.posterior.network(x)[:, :1]
        log_lik = torch.distributions.Normal(m @ oracle.W.T + oracle.b, oracle.variance.sqrt()).log_prob(x).sum(-1)
        value = (log_lik - c * kl_to_prior(oracle, x)).mean()
        return value, value, value

    _, expected = over_cases(exact, kind, c)
    oracle, x = random_oracle_and_data(kind)
    objective = Objective(beta=c, noise=False)
    _, found = independent_gradients(estimator, oracle, x, runs=30, copies=100, objective=objective)
    for gradient, estimates in zip(expected, found, strict=True):
        within(estimates, gradient)


class Chain(Model):
    """p(t2) p(t1|t2) p(x|t1), with dropout of a feature of x for each datum and of the latent drawn first for each particle.

    Args:
        upward: whether the guide draws t1 first, and t2 given t1, as `TwoLayer` does; otherwise t2 first, as in `Ladder`.
    """

    def __init__(self, upward: bool = True) -> None:
        super().__init__(Dims(1, (2,)))
        generator = torch.Generator().manual_seed(0)

        def numbers(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.4 * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.upward = upward
        self.w = nn.ParameterDict({"top": numbers(1), "down": numbers(2), "decoder": numbers(2, 2)})
        self.phi = nn.ParameterDict({"first": numbers(2, 3), "second": numbers(2, 4)})
        self.fixed: tuple[Tensor, Tensor] | None = None

    def given(self, t2: Tensor) -> dist.Normal:
        return dist.Normal(self.w["down"][0] + (1 + self.w["down"][1]) * t2, 0.8)

    def decoded(self, t1: Tensor) -> dist.Normal:
        slope, shift = self.w["decoder"]
        return dist.Normal((1 + slope) * t1.unsqueeze(-1) + shift, 0.7)

    def top(self) -> dist.Normal:
        return dist.Normal(self.w["top"][0], torch.ones((), dtype=torch.float64))

    def first(self, x: Tensor) -> tuple[dist.Normal, Tensor]:
        """q of the latent that is drawn first, and the features that remained."""
        kept = torch.bernoulli(torch.full_like(x[..., 0], 0.5)) if self.fixed is None else self.fixed[0]
        features = torch.stack([2 * kept * x[..., 0], x[..., 1]], -1)
        a, b = self.phi["first"]
        return dist.Normal(features @ a[:2] + a[2], (0.2 * (features @ b[:2]) + b[2] - 0.3).exp()), features

    def second(self, features: Tensor, t: Tensor) -> dist.Normal:
        kept = nn.functional.dropout(torch.ones_like(t), 0.5) if self.fixed is None else 2 * self.fixed[1]
        t, (a, b) = kept * t, self.phi["second"]
        return dist.Normal(
            features @ a[:2] + a[2] + (0.4 + a[3]) * t, (0.2 * (features @ b[:2]) + b[2] - 0.2 + 0.1 * t.tanh()).exp()
        )

    def model(self, x: Tensor | None = None) -> Tensor:
        self.register("w", self.w)
        with pyro.plate("data", len(x)):
            t1 = pyro.sample("t1", self.given(pyro.sample("t2", self.top())))
            return pyro.sample("x", self.decoded(t1).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        self.register("phi", self.phi)
        one, other = ("t1", "t2") if self.upward else ("t2", "t1")
        with pyro.plate("data", len(x)):
            first, features = self.first(x)
            t = pyro.sample(one, first)
            pyro.sample(other, self.second(features, t))


X = torch.tensor([[0.8, -0.4], [-0.5, 1.1]], dtype=torch.float64)


def gradients_of(estimator: Estimator, chain: Chain, stratified: bool = False, runs: int = 30, **options) -> Tensor:
    """Independent estimates (runs, parameters): masks are drawn, or each combination is given to as many data."""
    leaves, particles = list(chain.parameters()), estimator.K * estimator.M
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * (1 + particles))
    x = X.repeat(len(masks) * 40, 1)
    if stratified:
        of_datum = masks.repeat_interleave(2, 0).repeat(40, 1)
        chain.fixed = of_datum[:, 0], of_datum[:, 1:].T
    found = []
    with library_path(), seeded(CPU, "chain", stratified):
        for _ in range(runs):
            estimate, gradients = estimator.gradients(chain.model, chain.guide, leaves, x, **options)
            estimator.after_step(estimate)
            found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(found)


def of_two(cls: type[Estimator]) -> list[Estimator]:
    """Estimators of this class with two particles in all."""
    if cls in (MIWAE, PIWAE):
        return [cls(K=1, M=2)]
    controls = ("none", "running", "leave-one-out")
    return [cls(2, control=each) for each in controls] if cls is ScoreFunction else [cls(2)]


@pytest.mark.parametrize("objective", [Objective(beta=0.7, free_nats=1e-3), pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_two_latents(cls, objective):
    """The mean gradient with masks that are drawn is the one over all masks, each held fixed."""
    objective = None if cls is Stock else objective
    for estimator in of_two(cls):
        chains = [Chain(upward=cls is not AnalyticKL) for _ in range(2)]
        drawn = gradients_of(estimator, chains[0], objective=objective)
        fixed = gradients_of(estimator, chains[1], stratified=True, objective=objective)
        error = ((drawn.var(0) + fixed.var(0)) / len(drawn)).sqrt()
        assert ((drawn.mean(0) - fixed.mean(0)).abs() <= N_SE * error + 1e-10).all()
        assert error.median() < 0.05, "the test could not tell a wrong gradient"


@pytest.mark.parametrize("upward", [True, False])
def test_two_forms_of_the_path_agree_in_each_draw(upward):
    """log w without the score of q, and ∂log w/∂t ∂t/∂φ with the draws as leaves: one gradient by φ, for c = 0.7 in log w."""
    chain, found = Chain(upward), []
    leaves = list(chain.phi.parameters())
    with library_path():
        for latents in ("path", "leaves"):
            with seeded(CPU, "draws"):
                draws = replace(particles(chain.model, chain.guide, X, K=3, latents=latents), kl_weight=0.7)
            surrogate = path_log_w(draws) if latents == "path" else path(draws, torch.ones(3, 2, dtype=torch.float64))
            found.append(torch.autograd.grad(surrogate.sum(), leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@cache
def exact_of_chain(K: int) -> tuple[Tensor, Tensor]:
    """The value and the gradient of L_K, which is the ELBO if K = 1: by quadrature over ε, for all combinations of masks."""
    chain, nodes = Chain(), {1: 30, 2: 13}[K]
    points, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(nodes))
    eps = torch.cartesian_prod(*[points] * 2 * K).T.reshape(2, K, -1, 1)
    weights = torch.cartesian_prod(*[weights / weights.sum()] * 2 * K).prod(-1)
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * (1 + K))
    total = torch.zeros((), dtype=torch.float64)
    for kept in masks:
        chain.fixed = kept[0], kept[1:, None, None]
        q1, features = chain.first(X)
        t1 = q1.loc + q1.scale * eps[0]
        q2 = chain.second(features, t1)
        t2 = q2.loc + q2.scale * eps[1]
        log_p = chain.top().log_prob(t2) + chain.given(t2).log_prob(t1) + chain.decoded(t1).log_prob(X).sum(-1)
        log_w = log_p - q1.log_prob(t1) - q2.log_prob(t2)
        total = total + (weights @ log_mean(log_w)).mean() / len(masks)
    gradients = torch.autograd.grad(total, list(chain.parameters()))
    return total.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize(
    ("estimator", "K"),
    [
        (STL(2), 1),
        (DReG(2), 2),
        (VIMCO(2), 2),
        *(
            pytest.param(estimator, K, marks=pytest.mark.slow)
            for estimator, K in (
                (ELBO(2), 1),
                (ScoreFunction(2, "leave-one-out"), 1),
                (MIWAE(K=1, M=2), 1),
                (IWAE(2), 2),
                (MIWAE(K=2, M=1), 2),
                (Stock(2), 1),
            )
        ),
    ],
)
def test_two_latents_by_quadrature(estimator, K):
    """The mean gradient by every parameter is that of the bound, within N_SE standard errors."""
    _, expected = exact_of_chain(K)
    within(gradients_of(estimator, Chain()), expected)


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(cls, marks=() if cls in (STL, DReG, PIWAE) else pytest.mark.slow)
        for cls in ESTIMATORS
        if cls is not Stock
    ],
)
def test_a_traced_step_draws_the_same_masks(cls, traced):
    """Three steps of the graph and of the eager step, from one state with one seed, end in the same weights."""
    for estimator in of_two(cls)[-1:]:
        agree(update_of(Chain(upward=cls is not AnalyticKL), X.repeat(3, 1), estimator), tolerance=1e-6)
