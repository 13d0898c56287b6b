"""Estimators with discrete latents against sums over all states: every bound, K and objective, one site and several.

The reference is a sum over all states, or over all tuples of K states, of formulas written here, and knows nothing of traces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log, prod

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete import STATES, Discrete, X
from helpers import CPU, N_SE, within
from torch import Tensor, nn

from pyro_vae.estimators import (
    ARMS,
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    NVIL,
    PIWAE,
    REBAR,
    RELAX,
    RWS,
    STL,
    TVO,
    VIMCO,
    AnalyticKL,
    DisARM,
    DoubleCV,
    DReG,
    Enumerate,
    Estimator,
    Exact,
    GumbelSoftmax,
    Objective,
    ReinMax,
    Renyi,
    ScoreFunction,
    Stock,
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
    assert make().climbs == K  # what references of biases are chosen by
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


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("kind", STATES)
def test_exact_is_the_sum_over_all_tuples(kind, K):
    """Over sets of states with the number of their orders: fewer, and the same sum."""
    model = Discrete(kind)
    for c in (1.0, 0.3):
        value, expected = exact(model, iwae, K, c)
        with library_path():
            estimate, found = Exact(K).gradients(
                model.model, model.guide, list(model.parameters()), X, objective=Objective(beta=c)
            )
        if c == 1:
            torch.testing.assert_close(estimate.bound.mean(), value)
        torch.testing.assert_close(found, expected)
        assert estimate.optimized.evaluations == len(STATES[kind])
    assert Exact(K).climbs == K


def test_exact_where_a_state_has_no_probability():
    """It adds nothing, and no gradient becomes NaN, where p gives that state no probability either."""
    model = Discrete("classes")
    never = torch.tensor([[0.0, -torch.inf, 0], [0, 0, 0]], dtype=torch.float64)

    def guide(x):
        model.register("phi", model.phi)
        logits = (x @ model.phi["Q"] + model.phi["c"]).unflatten(-1, (2, 3)) + never
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.OneHotCategorical(logits=logits).to_event(1))

    with library_path(), seeded(CPU, 3):
        estimate, found = Exact(2).gradients(model.model, guide, list(model.parameters()), X)
        draws = VIMCO(2).estimate(model.model, guide, X.repeat(8000, 1)).bound.unflatten(0, (-1, len(X)))
    assert all(bool(each.isfinite().all()) for each in found)
    within(draws, estimate.bound)


def test_exact_refuses_what_it_cannot_sum():
    def mixed(x, obs=True):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            t = pyro.sample("t", dist.Normal(a, 1.0))
            if obs:
                pyro.sample("x", dist.Normal(t, 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match=r"Exact: the guide draws \['t'\].*all discrete; Enumerate"):
        Exact().estimate(mixed, partial(mixed, obs=False), X)
    model = Discrete("binary")
    with pytest.raises(ValueError, match=r"Exact: 8 of 16 states can be taken in 490,314 ways.*use VIMCO"):
        Exact(8).estimate(model.model, model.guide, X)
    with pytest.raises(ValueError, match="at least 1 particle"):
        Exact(0)


EVALUATIONS = {
    "leave-one-out": (partial(ScoreFunction, 3, control="leave-one-out"), 3),
    "DisARM": (partial(DisARM, M=3), 6),
    "REBAR": (partial(REBAR, 2), 6),
    "GumbelSoftmax": (partial(GumbelSoftmax, 2), 4),
    "GumbelSoftmax, straight-through": (partial(GumbelSoftmax, 2, straight_through=True), 2),
    "Enumerate": (Enumerate, 16),
    "Enumerate, K = 3": (partial(Enumerate, ELBO(3)), 48),
    "Exact, K = 3": (partial(Exact, 3), 16),
    "Pyro's Trace_ELBO": (partial(Stock, 3), 3),
    "Pyro's TraceGraph_ELBO": (partial(Stock, 3, pyro.infer.TraceGraph_ELBO), 3),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_of_the_model_are_counted(name):
    """What an estimator says is how many numbers the decoder gets for each datum; states, which have no data, but once."""
    make, expected = EVALUATIONS[name]
    model, seen = Discrete("binary"), []
    decoded = model.decoded

    def counting(t):
        seen.append(prod(t.shape[:-1]))
        return decoded(t)

    model.decoded = counting
    with library_path():
        estimate, _ = make().gradients(model.model, model.guide, list(model.parameters()), X)
    assert estimate.optimized.evaluations == expected
    if name.startswith(("Enumerate", "Exact")):
        assert seen == [16]
    else:  # Pyro's estimators follow a run that tells the sizes
        assert seen[-1] == expected * len(X)


def test_evaluations_with_the_states_of_pyro():
    """A site that Pyro enumerates in the guide has its states counted."""

    def model_of_four(x):
        with pyro.plate("data", len(x), dim=-1):
            t = sum(pyro.sample(f"t{j}", dist.Bernoulli(0.4)) for j in range(2))
            pyro.sample("x", dist.Normal(t, 1.0), obs=x[:, 0])

    def guide_of_four(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t0", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("t1", dist.Bernoulli(0.6))

    estimate, _ = Stock(2, pyro.infer.TraceEnum_ELBO).gradients(model_of_four, guide_of_four, [], X.float())
    assert estimate.optimized.evaluations == 4


BOUNDS: dict[str, tuple[Callable[[], Estimator], object]] = {
    "ELBO": (partial(ELBO, 3), 1),
    "STL": (partial(STL, 3), 1),
    "AnalyticKL": (partial(AnalyticKL, 3), 1),
    "IWAE": (partial(IWAE, 3), 3),
    "IWAE, stl": (partial(IWAE, 3, stl=True), 3),
    "DReG": (partial(DReG, 3), 3),
    "MIWAE": (partial(MIWAE, 3, 2), 3),
    "Renyi": (partial(Renyi, 3), "another objective"),
    "Renyi, alpha = 0": (partial(Renyi, 3, 0.0), 3),
    "RWS": (partial(RWS, 3), "another objective"),
    "TVO": (partial(TVO, 3), "another objective"),
    "PIWAE": (partial(PIWAE, 3, 2), "another objective"),
    "CIWAE": (partial(CIWAE, 3), "another objective"),
    "Enumerate": (partial(Enumerate, NVIL(3)), 1),
    "Trace_ELBO": (partial(Stock, 3), 1),
    "RenyiELBO": (partial(Stock, 3, pyro.infer.RenyiELBO), 3),
    "RenyiELBO, alpha = 0.5": (partial(Stock, 3, pyro.infer.RenyiELBO, {"alpha": 0.5}), "another objective"),
    "TraceTailAdaptive_ELBO": (partial(Stock, 3, pyro.infer.TraceTailAdaptive_ELBO), None),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_estimators_say_which_bound_they_climb(name):
    make, climbs = BOUNDS[name]
    assert make().climbs == climbs


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


@pytest.mark.parametrize("kind", ["binary", "classes"])
@pytest.mark.parametrize("straight_through", [False, True])
def test_the_bias_of_relaxed_draws_shrinks_with_the_temperature(kind, straight_through):
    """The distance of the mean gradient by φ from the exact one. That of straight-through draws does not go away."""
    model, gaps = Discrete(kind), []
    _, expected = exact(model, elbo, 1)
    phi = [i for i, (name, _) in enumerate(model.named_parameters()) if name.startswith("phi.")]
    for temperature in (2.0, 0.5, 0.1):
        estimator = GumbelSoftmax(1, temperature, lowest=0.01, straight_through=straight_through)
        _, found = estimates(estimator, model, runs=20, copies=600)
        away = torch.cat([(found[i].mean(0) - expected[i]).flatten() for i in phi])
        noise = torch.cat([(found[i].std(0) / 20**0.5).flatten() for i in phi])
        gaps.append((away.norm().item(), noise.norm().item()))
    (hot, _), (warm, error), (cold, noise) = gaps
    assert warm > N_SE * error, "no bias was seen"
    if straight_through:
        assert cold > N_SE * noise
    else:
        assert hot > warm + error > cold + noise
        assert cold < N_SE * noise


def squared(model: Discrete, estimator: Estimator, draws: int = 10_000) -> tuple[float, float]:
    """The variance of the gradient by the logits of one datum, summed over data and logits, and its standard error.

    Each draw of each datum has logits of its own, so that one call gives all.
    """
    shift = model.phi["c"]
    model.phi["c"] = nn.Parameter(shift.detach().repeat(len(X) * draws, 1))
    with library_path(), seeded(CPU, 3):
        _, (found,) = estimator.gradients(model.model, model.guide, [model.phi["c"]], X.repeat(draws, 1))
    model.phi["c"] = shift
    rows = (len(X) * draws * found).unflatten(0, (draws, len(X))).flatten(1)
    each = ((rows - rows.mean(0)) ** 2).sum(1)
    return each.mean().item(), (each.std() / draws**0.5).item()


def test_the_order_of_variances():
    """Theory: antithetic pairs have no more noise than independent ones, and these less than no baseline at all."""
    model = Discrete("binary")
    none, _ = squared(model, ScoreFunction(2))
    independent, error = squared(model, ScoreFunction(2, control="leave-one-out"))
    pairs, other = squared(model, DisARM())
    assert none > independent > pairs + N_SE * (error**2 + other**2) ** 0.5
    four, _ = squared(model, ARMS(4))
    assert four < pairs - N_SE * other


class OneSite(Discrete):
    """A guide and a prior of another distribution."""

    def __init__(self, of: Callable[[], dist.TorchDistribution]) -> None:
        super().__init__("binary")
        self.make = of

    def of(self, logits: Tensor) -> dist.TorchDistribution:
        return self.make().expand([*logits.shape[:-1], 4]).to_event(1)


NORMAL = partial(dist.Normal, torch.zeros((), dtype=torch.float64), 1.0)
POISSON = partial(dist.Poisson, torch.ones((), dtype=torch.float64))
GEOMETRIC = partial(dist.Geometric, torch.tensor(0.5, dtype=torch.float64))
REFUSED = {
    "DisARM: the guide has no site of Bernoulli latents": (
        DisARM(),
        OneSite(lambda: dist.Normal(torch.zeros(()).double(), 1.0)),
    ),
    "ARMS: the guide has no site of Bernoulli latents": (ARMS(), Discrete("classes")),
    "DoubleCV: the guide has no Bernoulli latents alone": (DoubleCV(), Discrete("chain")),
    "REBAR: the guide has no Bernoulli latents alone": (REBAR(), Discrete("chain")),
    "RELAX: the guide has no Bernoulli latents alone": (RELAX(), Discrete("classes")),
    "StraightThrough: latent 't' is Poisson, in whose place no real numbers": (
        StraightThrough(),
        OneSite(POISSON),
    ),
    "GumbelSoftmax: latent 't' is Poisson, in whose place": (
        GumbelSoftmax(),
        OneSite(POISSON),
    ),
    "ReinMax: latent 't' is Geometric, in whose place": (
        ReinMax(),
        OneSite(GEOMETRIC),
    ),
    r"ELBO differentiates through the guide's samples.*also DisARM": (ELBO(), Discrete("binary")),
}


@pytest.mark.parametrize("message", REFUSED)
def test_latents_that_an_estimator_is_not_for(message):
    estimator, model = REFUSED[message]
    with pytest.raises(ValueError, match=message), library_path():
        estimator.gradients(model.model, model.guide, list(model.parameters()), X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(DisARM, 3), "DisARM: antithetic particles are pairs, so that K is 2, got 3"),
        (partial(DisARM, 1), "K is 2, got 1"),
        (partial(DisARM, M=0), "at least 1 group"),
        (partial(ARMS, 1), "expected K of at least 2"),
        (partial(DoubleCV, 1), "expected K of at least 2"),
        (partial(DoubleCV, learning_rate=0.0), "positive learning_rate"),
        (partial(NVIL, hidden=0), "at least 1 hidden unit"),
        (partial(NVIL, decay=1.0), r"a decay in \[0, 1\)"),
        (partial(REBAR, temperature=0.0), "REBAR: expected a positive temperature, got 0.0"),
        (partial(RELAX, temperature=-1.0), "RELAX: expected a positive temperature, got -1.0"),
        (partial(RELAX, hidden=0), "at least 1 hidden unit"),
        (partial(GumbelSoftmax, temperature=0.0), "GumbelSoftmax: expected a positive temperature"),
        (partial(GumbelSoftmax, temperature=float("nan")), "temperature: expected a finite number"),
        (partial(GumbelSoftmax, lowest=0.0), "expected a positive lowest"),
        (partial(GumbelSoftmax, anneal=-0.1), "anneal of at least 0"),
        (partial(ReinMax, temperature=0.0), "ReinMax: expected a positive temperature"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("estimator", [DisARM(), StraightThrough(), GumbelSoftmax()])
def test_there_is_no_objective_without_noise(estimator):
    model = Discrete("binary")
    with pytest.raises(ValueError, match="draws the latents itself"), library_path():
        estimator.estimate(model.model, model.guide, X, objective=Objective(beta=0.0, noise=False))


def test_what_is_learned_is_learned():
    """The control variate of DoubleCV moves to where the variance is smaller, and REBAR's scale and temperature move."""
    model = Discrete("binary")
    for make in (
        partial(DoubleCV, learning_rate=0.02),
        partial(REBAR, learning_rate=0.02),
        partial(RELAX, learning_rate=0.02),
    ):
        fresh, taught = make(), make()
        with library_path(), seeded(CPU, 5):
            for _ in range(100):
                estimate, _ = taught.gradients(model.model, model.guide, list(model.phi.parameters()), X.repeat(50, 1))
                taught.after_step(estimate)
        taught.learning_rate = fresh.learning_rate = 1e-12
        (before, error), (after, other) = squared(model, fresh), squared(model, taught)
        assert after < before + N_SE * (error**2 + other**2) ** 0.5, (type(fresh), before, after)
        assert any(float((taught.state[name] - fresh.state.get(name, 0)).abs().max()) > 0.01 for name in taught.learns)


def test_the_average_of_nvil_has_no_draw_that_it_is_used_with():
    """The state before the step is used, and moves after it; evaluation moves nothing."""
    model, estimator = Discrete("binary"), NVIL(1)
    with library_path():
        estimate, _ = estimator.gradients(model.model, model.guide, list(model.parameters()), X)
        assert (estimator.state["steps"], estimator.state["average"]) == (0, 0)
        estimator.after_step(estimate)
        assert estimator.state["steps"] == 1
        torch.testing.assert_close(estimator.state["average"], estimate.bound.mean())
        before = {name: value.clone() for name, value in estimator.state.items()}
        estimator.estimate(model.model, model.guide, X)
    assert all(torch.equal(estimator.state[name], value) for name, value in before.items())


def test_stock_svi_trains_what_an_estimator_learns():
    pyro.clear_param_store()
    model, estimator = Discrete("binary"), DoubleCV(learning_rate=0.05)
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), estimator)
    for _ in range(5):
        svi.step(X)
    assert estimator.state["a: steps"] == 5
    assert abs(estimator.state["a"]) > 0.01
