"""Moments of gradient draws: against known moments, and against exact gradients by quadrature."""

from __future__ import annotations

import json
from math import isnan, log, nan, sqrt

import numpy as np
import pytest
import torch
from discrete import STATES, Discrete, X
from oracles import LinearGaussian, elbo, iwae

from pyro_vae.estimators import ELBO, IWAE, STL, VIMCO, DReG, Enumerate, Exact, GumbelSoftmax, ScoreFunction
from pyro_vae.evaluate import GROUPS, SIDES, Draws, Moments, draw_gradients, exact_gradient, fit_line, moments
from pyro_vae.traces import numbers_of_states


def gaussian_draws(mean: torch.Tensor, scale: torch.Tensor, n: int, generator: torch.Generator) -> Draws:
    """What `draw_gradients` would return for draws from N(mean, diag scale²), n in each group."""
    draws = mean + scale * torch.randn(GROUPS, n, len(mean), generator=generator, dtype=torch.float64)
    means, squares = draws.mean(1), draws.square().sum(-1).mean(1)
    return Draws(dict.fromkeys(SIDES, means), dict.fromkeys(SIDES, squares.tolist()), 0.001, 1)


def test_intervals_cover_the_known_moments():
    """In 300 repetitions a 95 % interval covers in 285 ± 4; the jackknife may be a little wide, hence no upper limit."""
    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.linspace(0.1, 0.5, 30, dtype=torch.float64), torch.linspace(1, 3, 30, dtype=torch.float64)
    other = mean + 0.1
    norm, variance = mean.norm().item(), scale.square().sum().item()
    truth = {"norm": norm, "variance": variance, "snr": norm / sqrt(variance), "bias": sqrt(0.3) / other.norm().item()}
    covered, seen = dict.fromkeys(truth, 0), {name: [] for name in truth}
    for _ in range(300):
        draws, reference = (gaussian_draws(m, scale, 20, generator) for m in (mean, other))
        found = moments(draws, reference)["w"]
        for name, value in truth.items():
            interval = found.snr() if name == "snr" else getattr(found, name)
            covered[name] += interval.low <= value <= interval.high
            seen[name].append(interval.value)
    for name, value in truth.items():
        assert covered[name] >= 276, (name, covered[name])
        middle = np.nanmedian(seen[name])
        assert abs(middle - value) < 0.1 * value, (name, middle, value)


def test_the_norm_has_no_noise_in_it():
    """100 draws of 10,000 coordinates: the mean's norm is 1, and the norm of the mean of the draws is 10."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.full((10_000,), 0.01, dtype=torch.float64)
    draws = gaussian_draws(mean, torch.ones(10_000, dtype=torch.float64), 5, generator)
    found = moments(draws, draws)["phi"]
    assert draws.means["w"].mean(0).norm() > 8
    assert found.norm.low <= 1 <= found.norm.high < 3
    assert found.bias.value == 0 or isnan(found.bias.value)


def test_what_is_not_resolved_is_not_a_number():
    generator = torch.Generator().manual_seed(2)
    draws = gaussian_draws(torch.zeros(50, dtype=torch.float64), torch.ones(50, dtype=torch.float64), 5, generator)
    found = moments(draws, draws)["w"]
    assert isnan(found.snr().value)
    assert isnan(found.bias.value)
    assert str(found.snr()) == "not resolved"


def test_moments_of_an_estimator_against_quadrature():
    """Norm and bias of the ELBO's gradient, taken for that of L_2, by w and by φ."""
    oracle = LinearGaussian.random(d=1, n=2)
    vae, x = oracle.vae, oracle.data(2)
    parameters = {"w": [*vae.prior.parameters(), *vae.likelihood.parameters()], "phi": list(vae.posterior.parameters())}

    def exact(value):
        gradients = {}
        for part, leaves in parameters.items():
            gradients[part] = torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves, retain_graph=True)])
        return gradients

    lower, tighter = exact(elbo(oracle, x)[0]), exact(iwae(oracle, x)[0])
    many = x.repeat(100, 1)  # the mean gradient is that of x, with less noise
    reference, *others = (draw_gradients(vae, many, e, 200, type(e).__name__) for e in (IWAE(2), ELBO(2), DReG(2)))
    found, same = (moments(draws, reference) for draws in others)
    for part in SIDES:
        norm, bias = lower[part].norm().item(), (lower[part] - tighter[part]).norm() / tighter[part].norm()
        assert found[part].norm.low <= norm <= found[part].norm.high
        assert (found[part].norm.high - found[part].norm.low) < 0.3 * norm
        assert 0 < found[part].bias.low <= bias <= found[part].bias.high
        assert same[part].bias.low == 0
        assert same[part].bias.high < 0.5 * bias


def test_variances_keep_the_order_that_is_known():
    """STL's variance vanishes at the posterior, and the score function's is above the reparameterized one's."""
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    x = oracle.data(3)
    draws = {e: draw_gradients(oracle.vae, x, e(1), 200) for e in (ELBO, STL, ScoreFunction)}
    variance = {e: moments(draw, draws[ELBO])["phi"].variance for e, draw in draws.items()}
    assert variance[STL].value < 1e-20
    assert variance[ScoreFunction].low > variance[ELBO].high


def sum_over_states(model: Discrete, K: int) -> dict[str, torch.Tensor]:
    """The gradient of the mean of L_K, summed over all K-tuples of states."""
    log_lik, log_prior, log_q = model.table()
    index = torch.cartesian_prod(*[torch.arange(len(log_q))] * K).reshape(-1, K)
    log_w = (log_lik + log_prior - log_q)[index]
    total = (log_q[index].sum(1).exp() * (log_w.logsumexp(1) - log(K))).sum(0).mean()
    sides = {"w": model.w, "phi": model.phi}
    found = torch.autograd.grad(
        total, [*model.w.values(), *model.phi.values()], allow_unused=True, materialize_grads=True
    )
    slopes = iter(found)
    return {side: torch.cat([next(slopes).flatten() for _ in own]) for side, own in sides.items()}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("K", [1, 2])
def test_the_exact_gradient_is_the_sum_over_states(kind, K):
    model = Discrete(kind)
    found, expected = exact_gradient(model, X, K), sum_over_states(model, K)
    for side in SIDES:
        assert found.means[side].shape == (GROUPS, len(expected[side]))
        torch.testing.assert_close(found.means[side][0], expected[side])
        same = moments(found, found)[side]
        assert same.noiseless
        assert same.norm.low == pytest.approx(same.norm.high)
        assert same.norm.value == pytest.approx(expected[side].norm().item())
    assert found.evaluations == len(STATES[kind]) == numbers_of_states(model.model, model.guide, X)[0]


def test_a_bias_against_the_exact_gradient():
    """Its interval holds the distance of the known mean gradients, and 0 where the bound is the same."""
    model = Discrete("binary")
    one, two = (sum_over_states(model, K) for K in (1, 2))
    draws = draw_gradients(model, X, VIMCO(2), 1000)
    exact, noisy = exact_gradient(model, X), draw_gradients(model, X, ScoreFunction(2, control="leave-one-out"), 1000)
    for side in SIDES:
        bias = (two[side] - one[side]).norm() / one[side].norm()
        found = moments(draws, exact)[side].bias
        assert found.low <= bias <= found.high
        assert moments(draws, exact_gradient(model, X, 2))[side].bias.low == 0
        assert moments(noisy, exact)[side].bias.low == 0


def test_the_interval_of_a_bias_against_an_exact_gradient_covers_it():
    """In 300 repetitions a 95 % interval covers in 285 ± 4; it is narrower than one against as many noisy draws."""
    generator = torch.Generator().manual_seed(7)
    mean = torch.linspace(0.1, 0.5, 30, dtype=torch.float64)
    other = mean + 0.1
    exact = Draws(dict.fromkeys(SIDES, other.expand(GROUPS, -1)), {}, 0.0, 1)
    covered, ones, widths = 0, torch.ones(30, dtype=torch.float64), []
    for _ in range(300):
        draws, noisy = (gaussian_draws(m, ones, 20, generator) for m in (mean, other))
        found, against_draws = (moments(draws, reference)["w"].bias for reference in (exact, noisy))
        covered += found.low <= sqrt(0.3) / other.norm().item() <= found.high
        widths.append([each.high - each.low for each in (found, against_draws)])
    assert covered >= 276
    narrow, wide = np.median(widths, axis=0)
    assert narrow < 0.8 * wide


def test_gradients_without_noise_are_told_as_such():
    """Their variance is rounding, by which nothing is divided; in float32 too."""
    model = Discrete("binary").float()
    x = X.float()
    exact = exact_gradient(model, x)
    for estimator in (Enumerate(), Exact()):
        found = draw_gradients(model, x, estimator, GROUPS)
        for side in SIDES:
            m = moments(found, exact)[side]
            assert m.noiseless
            assert m.variance == (0.0, 0.0, 0.0)
            assert isnan(m.snr().value)
            assert m.bias.low == 0 <= m.bias.high <= 1e-5
            assert moments(found, exact_gradient(model, x, 2))[side].bias.low > 1e-3  # another bound
    noisy = moments(draw_gradients(model, x, GumbelSoftmax(), GROUPS), exact)["phi"]
    assert not noisy.noiseless
    assert draw_gradients(model, x, GumbelSoftmax(3), GROUPS).evaluations == 6


def test_there_is_no_exact_gradient_of_what_is_random_or_continuous():
    oracle = LinearGaussian.random()
    with pytest.raises(ValueError, match="Exact: the guide draws"):
        exact_gradient(oracle.vae, oracle.data(2))
    with pytest.raises(ValueError, match="Normal is continuous"):
        numbers_of_states(oracle.vae.model, oracle.vae.guide, oracle.data(2))

    class Restless(Discrete):
        def decoded(self, t):
            return super().decoded(t) * torch.rand(())

    with pytest.raises(ValueError, match="random beyond their latents"):
        exact_gradient(Restless("binary"), X)


def test_draws_are_reproducible_and_leave_no_gradient():
    oracle = LinearGaussian.random()
    x, counted = oracle.data(3), []
    draws = [draw_gradients(oracle.vae, x, IWAE(3), GROUPS, seed=4, on_draw=counted.append) for _ in range(2)]
    assert torch.equal(draws[0].means["w"], draws[1].means["w"])
    assert counted == [*range(1, GROUPS + 1)] * 2
    assert all(parameter.grad is None for parameter in oracle.vae.parameters())


@pytest.mark.parametrize("N", [0, GROUPS - 1, GROUPS + 1])
def test_draws_come_in_groups(N):
    oracle = LinearGaussian.random()
    with pytest.raises(ValueError, match=f"draws: expected a multiple of {GROUPS}.*got N = {N}"):
        draw_gradients(oracle.vae, oracle.data(2), ELBO(), N)


def test_the_mean_of_a_reference_resolves_a_noisy_gradient():
    generator = torch.Generator().manual_seed(5)
    mean, ones = torch.full((50,), 0.02, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    noisy, clean = gaussian_draws(mean, ones, 5, generator), gaussian_draws(mean, 0.01 * ones, 5, generator)
    found = moments(noisy, clean)["w"]
    assert isnan(found.snr().value)
    assert found.snr(mean_of_reference=True).value == pytest.approx(0.02, rel=0.05)  # ‖mean‖ = 0.02 √50, √tr Cov = √50


def test_moments_survive_json():
    generator = torch.Generator().manual_seed(3)
    draws = gaussian_draws(torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), 5, generator)
    found = moments(draws, draws)["w"]
    again = Moments.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again.snr() == found.snr()


def test_the_fitted_line():
    K = [10, 100, 1000, 10_000]
    exact = [(2 - 0.5 * log(k), 0.1) for k in K]
    line = fit_line(K, exact)
    assert line.slope.value == pytest.approx(-0.5)
    assert line.intercept == pytest.approx(2)
    # Four equal errors: se² = 0.1² / Σ(log K - mean)², and Student's 97.5 % point with 2 degrees of freedom is 4.303.
    spread = np.square(np.log(K) - np.log(K).mean()).sum()
    assert line.slope.high - line.slope.value == pytest.approx(4.303 * 0.1 / sqrt(spread), rel=1e-3)
    assert fit_line(K, [(nan, nan), *exact[1:]]).slope.value == pytest.approx(-0.5)
    assert isnan(fit_line(K, [(nan, nan), (nan, nan), *exact[2:]]).slope.value)
    bent = fit_line(K, [(y + 0.5 * (-1) ** i, e) for i, (y, e) in enumerate(exact)])
    assert bent.slope.high - bent.slope.low > 3 * (line.slope.high - line.slope.low)


def test_the_interval_of_a_slope_covers_it():
    """Of 300 fits to noisy points, 285 ± 4 intervals would hold the slope; they never narrow below the points' errors."""
    rng = np.random.default_rng(0)
    K, error = [10, 30, 100, 300, 1000], np.array([0.02, 0.03, 0.05, 0.1, 0.2])
    covered = 0
    for _ in range(300):
        y = 1 + 0.5 * np.log(K) + error * rng.standard_normal(5)
        slope = fit_line(K, list(zip(y, error, strict=True))).slope
        covered += slope.low <= 0.5 <= slope.high
    assert covered >= 280
