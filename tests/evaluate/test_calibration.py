"""Calibration: exact p-values by enumeration, ranks and coverage by closed forms, and what is said of wrong posteriors."""

from __future__ import annotations

from itertools import product
from math import log

import numpy as np
import pytest
import torch
from oracles import LinearGaussian
from scipy import stats

from pyro_vae.data import columns_for
from pyro_vae.evaluate import calibrate
from pyro_vae.evaluate.calibration import collection
from pyro_vae.evaluate.calibration.bands import band, counts_below, holm, null, p_value
from pyro_vae.evaluate.calibration.collection import References, Run, chosen
from pyro_vae.evaluate.calibration.ranks import JOINT, Particles, products, rank, ranks_of, rounded
from pyro_vae.evaluate.calibration.simulation import drawn_from
from pyro_vae.scopes import seeded

CPU = torch.device("cpu")
SMALL = [(3, 2), (4, 3), (6, 2), (3, 5)]
"""n and L, with few enough vectors of ranks that all can be looked at."""


def gamma(ranks, n, L) -> float:
    """The statistic, by SciPy."""
    found = []
    for k in range(1, L + 1):
        count, binomial = sum(r < k for r in ranks), stats.binom(n, k / (L + 1))
        found.append(2 * min(binomial.cdf(count), binomial.sf(count - 1)))
    return min(found)


@pytest.mark.parametrize(("n", "L"), SMALL)
def test_p_values_are_exact(n, L):
    """All (L + 1)^n vectors of ranks have the same chance under the null."""
    vectors = list(product(range(L + 1), repeat=n))
    statistics = np.array([gamma(ranks, n, L) for ranks in vectors])
    for ranks, statistic in zip(
        vectors[:: max(1, len(vectors) // 60)], statistics[:: max(1, len(vectors) // 60)], strict=True
    ):
        exact = (statistics <= statistic * (1 + 1e-7)).mean()
        assert p_value(np.array(ranks, dtype=np.int64), L) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("n", "L"), SMALL)
@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_a_curve_leaves_its_band_where_its_p_value_is_at_most_alpha(n, L, alpha):
    low, high = band(n, L, alpha).T
    left = 0
    vectors = np.array(list(product(range(L + 1), repeat=n)))
    for ranks in vectors:
        share = counts_below(ranks, null(n, L).points) / n
        outside = bool(((share < low - 1e-9) | (share > high + 1e-9)).any())
        assert outside == (p_value(ranks, L) <= alpha)
        left += outside
    assert left / len(vectors) <= alpha


def test_p_values_of_many_ranks_are_uniform():
    rng = np.random.default_rng(0)
    p = np.array([p_value(rng.integers(0, 51, 200), 50) for _ in range(400)])
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert p_value(rng.integers(0, 50, 200), 50) > 1e-9  # a rank that never occurs is no sign at n = 200


def test_small_p_values_stay_positive_and_ordered():
    far = [p_value(np.full(500, k, dtype=np.int64), 100) for k in (0, 50)]
    assert 0 < far[0] < far[1] < 1e-9


def test_holm():
    """By hand: unweighted, p × 3, × 2, × 1; and with weights, in the order of p / weight."""
    assert holm([0.01, 0.04, 0.03], [1, 1, 1]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.01, 0.2], [0.5, 0.5, 1.0]) == pytest.approx([0.04, 0.04, 0.2])
    assert holm([0.01, 0.015, 0.9], [0.5, 1.0, 0.5]) == pytest.approx([0.03, 0.03, 0.9])  # 0.015 × 2 comes first


def test_ranks_count_the_draws_below():
    values = torch.tensor([[0.5, -9.0, 9.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.2, 0.2, 0.2]])
    assert rank(values).tolist() == [2, 0, 3]


@pytest.mark.parametrize("levels", [1, 2, 3, 10**6])
def test_ranks_of_exchangeable_values_are_uniform(levels):
    """With 1, 2, 3 and very many different values: ties are broken at random, and each of the L + 1 ranks occurs."""
    with seeded(CPU, 1):
        ranks = rank(torch.randint(0, levels, (5, 50_000)).double())
    assert stats.chisquare(np.bincount(ranks.numpy(), minlength=5)).pvalue > 1e-4
    assert int(ranks.max()) == 4


def test_log_probabilities_that_differ_by_rounding_errors_are_equal():
    terms = [torch.full((9, 1), -700.1), torch.full((9, 1), 655.3)]
    noise = 1e-5 * torch.randn(9, 1)
    for dtype, equal in ((torch.float32, True), (torch.float64, False)):
        value = (terms[0] + terms[1]).to(dtype) + noise.to(dtype)
        assert (len(rounded(value, [term.to(dtype) for term in terms]).unique()) <= 2) is equal
    infinite = torch.tensor([[-torch.inf], [-1.0], [-2.0]])
    assert rounded(infinite, [infinite]).flatten().tolist()[0] == -torch.inf


def exact(d: int, n: int = 8) -> LinearGaussian:
    oracle = LinearGaussian.random(d, n)
    oracle.set_guide_to_posterior()
    return oracle


def encoder(oracle: LinearGaussian):
    return oracle.vae.posterior.network.layers[0]


def altered(d: int, how: str) -> LinearGaussian:
    """The oracle with a guide that is the posterior but for one thing."""
    oracle = exact(d)
    layer = encoder(oracle)
    with torch.no_grad():
        if how in ("narrow", "wide"):
            layer.bias[d:] += log(0.8 if how == "narrow" else 1.25)
        elif how == "shifted":
            layer.bias[:d] += 0.2 * layer.bias[d:].exp()
        elif how == "prior":
            layer.weight.zero_()
            layer.bias.zero_()
    return oracle


@pytest.mark.parametrize(("d", "dtype"), [(1, torch.float64), (2, torch.float32), (5, torch.float64)])
def test_the_posterior_itself_has_uniform_ranks(d, dtype):
    """Of every quantity, log w too, which is the same for all t but for rounding errors."""
    oracle = exact(d)
    x = oracle.data(1)
    found = calibrate(oracle.vae.to(dtype), x.to(dtype), 3000, 9, seed=d)
    for ranks in found.ranks.T:
        counts = np.bincount(ranks, minlength=10)
        assert len(counts) == 10
        assert stats.chisquare(counts).pvalue > 1e-4
    assert found.calibrated
    assert found.notices() == []


@pytest.mark.parametrize("size", [10**6, 20])
def test_the_truth_is_scored_as_the_draws_are(size, monkeypatch):
    """At the posterior, log w is log p(x) for every t, in one chunk of particles and in several; the first t is the truth."""
    monkeypatch.setattr(collection, "_SIZE", size)
    oracle = exact(2)
    columns = columns_for(oracle.vae, oracle.data(4))
    batch, truth = drawn_from(oracle.vae.model, columns, (0,))
    assert not torch.equal(batch[0], columns.x)
    with torch.no_grad():
        found = Run(oracle.vae, 8, 1).drawn(batch, truth, 7)
        exactly = oracle.log_px(batch[0]).expand(7, 4)
        log_q = oracle.posterior(batch[0]).log_prob(found.t)
    assert torch.equal(found.t[0], truth["t"])
    assert len(found.t[:, 0, 0].unique()) == 7
    torch.testing.assert_close(found.log_w, exactly)
    torch.testing.assert_close(found.log_q, log_q)
    torch.testing.assert_close(found.log_prior, torch.distributions.Normal(0.0, 1.0).log_prob(found.t).sum(-1))


def test_false_alarms():
    """At most 5 % of repetitions, by every diagnostic alone and by all together: within 4.5 errors of it here."""
    oracle, repetitions = exact(2), 80
    found = [calibrate(oracle.vae, oracle.data(1), 50, 20, seed=seed) for seed in range(repetitions)]
    most = repetitions * 0.05 + 4.5 * (repetitions * 0.05 * 0.95) ** 0.5
    assert (np.stack([each.p for each in found]) <= 0.05).sum(0).max() <= most
    assert sum(not each.calibrated for each in found) <= most
    assert sum(bool(each.notices()) for each in found) <= most


SEEN = {
    "narrow": ({"latents", "log w", "coverage"}, "is too narrow for", "overconfident"),
    "wide": ({"latents", "log w", "coverage"}, "is too wide for", "too often"),
    "shifted": ({"latents", "log w"}, "lies too high for", "too little mass"),
    "prior": ({"log p(x|t)", "log w", "TARP"}, "q(t|x) ignores x", "less well"),
}
"""For each wrong posterior: what is seen at least, and what is said."""


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("how", SEEN)
def test_wrong_posteriors_are_seen_and_named(d, how):
    oracle = altered(d, how)
    found = calibrate(oracle.vae, oracle.data(1), 600, 50, seed=1)
    flagged = {
        name if name in JOINT else "latents" for name, wrong in zip(found.names, found.flagged, strict=True) if wrong
    }
    expected, *said = SEEN[how]
    assert expected <= flagged
    told = " ".join(found.notices())
    assert not found.calibrated
    for each in (*said, "What to do"):
        assert each in told
    for other, (_, first, _) in SEEN.items():
        assert (first in told) == (other == how)
    if how == "prior":
        assert not {"latents", "coverage", "log p(t)"} & flagged  # what passes q = p


@pytest.fixture
def power(monkeypatch):
    """The script of experiments/, whose posteriors are correlated."""
    from conftest import EXPERIMENTS

    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    from benchmarks import calibration_power

    return calibration_power


def test_dropped_correlations_are_seen_by_joint_quantities_alone(power):
    like = torch.zeros(1, power.N_OBSERVED, dtype=torch.float64)
    found = calibrate(power.linear_gaussian(2, "independent"), like, 800, 50, seed=1)
    assert not found.flagged[:2].any()
    assert found.flagged[found.names.index("log w")]
    told = [each for each in found.notices() if "misses dependence" in each]
    assert len(told) == 1
    W = power.weights(2)
    covariance = torch.linalg.inv(torch.eye(2).double() + W.T @ W)
    expected = float(covariance[0, 1] / covariance.diagonal().prod().sqrt())
    truth, draws = found.correlations
    assert truth[0, 1] == pytest.approx(expected, abs=4.5 / 800**0.5)
    assert draws[0, 1] == pytest.approx(0, abs=0.02)
    right = calibrate(power.linear_gaussian(2, "exact"), like, 800, 50, seed=1)
    assert right.correlations[1][0, 1] == pytest.approx(expected, abs=0.03)
    assert right.calibrated


def test_the_table_of_power(power, capsys):
    power.main(["--repetitions", "2", "--null", "2", "--n", "40", "--draws", "10", "--d", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 + len(power.ALTERED)
    assert power.clopper_pearson(3, 40) == pytest.approx(stats.binomtest(3, 40).proportion_ci(method="exact"))
    assert power.clopper_pearson(0, 9)[0] == 0
    with pytest.raises(SystemExit):
        power.main(["--help"])
    assert "Clopper" in capsys.readouterr().out


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("how", ["narrow", "wide"])
def test_coverage_is_that_of_a_wrong_scale(d, how):
    """A region of level a of N(m, c² S) is a ball, which holds the truth with the chance F(c² F⁻¹(a)), with the F of χ²_d."""
    oracle, c = altered(d, how), 0.8 if how == "narrow" else 1.25
    found = calibrate(oracle.vae, oracle.data(1), 2000, 199, seed=2)
    for level in (0.2, 0.5, 0.9):
        covered = found.coverage(level)
        assert abs(covered.mean - stats.chi2.cdf(c**2 * stats.chi2.ppf(level, d), d)) < 4.5 * covered.error + 2 / 200
        inside = found.interval_coverage(found.names[0], level)
        exactly = stats.chi2.cdf(c**2 * stats.chi2.ppf(found.interval_level(level), 1), 1)
        assert abs(inside.mean - exactly) < 4.5 * inside.error + 2 / 200
    curve = found.curve("coverage")
    assert curve.found[curve.level == 0.5] == found.coverage(0.5).mean


def test_central_intervals_of_few_draws():
    found = calibrate(exact(1).vae, exact(1).data(1), 500, 9, seed=0)
    assert found.interval_level(0.9) == pytest.approx(0.8)  # one of ten ranks is left out at each end
    assert abs(found.interval_coverage("t", 0.9).mean - 0.8) < 4.5 * 0.4 / 500**0.5
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
        found.coverage(1.0)
    with pytest.raises(ValueError, match=r"name: expected one of t, log p\(x\|t\)"):
        found.curve("t[1]")


def test_share_of_x_is_that_of_the_posterior():
    """Var t = 1 = Var E[t|x] + Var[t|x]."""
    oracle = exact(2)
    found = calibrate(oracle.vae, oracle.data(1), 3000, 3, seed=0)
    expected = 1 - oracle.posterior(oracle.data(1)).covariance_matrix.diagonal(dim1=-2, dim2=-1)[0]
    assert found.share_of_x == pytest.approx(expected.detach().numpy(), abs=0.02)


@pytest.mark.parametrize("how", ["narrow", "wide"])
def test_importance_weights_mend_a_wrong_scale(how):
    oracle = altered(2, how)
    found = calibrate(oracle.vae, oracle.data(1), 500, 50, M=1000, seed=3)
    assert not calibrate(oracle.vae, oracle.data(1), 500, 50, seed=3).calibrated
    assert found.calibrated
    assert found.notices() == []
    c2, d = (0.8 if how == "narrow" else 1.25) ** 2, 2
    # E w² = ∏ ∫ p²/q = (c² / √(2 c² - 1))^d, and the effective sample size is M / E w².
    expected = 1000 / (c2 / (2 * c2 - 1) ** 0.5) ** d
    if how == "wide":  # the weights of the other have no fourth moment, so that their sample size is far from its limit
        assert float(np.median(found.ess)) == pytest.approx(expected, rel=0.02)
    assert float(np.median(found.ess)) > 0.98 * expected


def test_too_few_weights_are_told():
    oracle = altered(5, "prior")
    found = calibrate(oracle.vae, oracle.data(1), 100, 50, M=100, seed=0)
    assert "effective sample size" in found.notices()[-1]
    assert "what they leave" in found.notices()[0]


def test_draws_are_chosen_without_replacement_by_their_weights():
    """The chance to be among 2 of 3 is w_i + Σ_j w_j w_i / (1 - w_j)."""
    w, copies = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 40_000
    log_w = torch.cat([torch.zeros(1), w.log()])[:, None].expand(4, copies)
    zero = torch.zeros(4, copies, dtype=torch.float64)
    t = torch.arange(4.0, dtype=torch.float64)[:, None, None].expand(4, copies, 1)
    with seeded(CPU, 0):
        found, ess = chosen(Particles(t, log_w, zero, zero), 2)
    assert (found.t[0] == 0).all()
    assert torch.equal(found.log_lik[1:], log_w.gather(0, found.t[1:, :, 0].long()))
    share = torch.tensor([float((found.t[1:] == i).sum()) for i in (1, 2, 3)]) / copies
    exactly = torch.stack([w[i] + sum(w[j] * w[i] / (1 - w[j]) for j in range(3) if j != i) for i in range(3)])
    assert (share - exactly).abs().max() < 4.5 * 0.5 / copies**0.5
    assert ess == pytest.approx(1 / float((w**2).sum()))


def test_units_of_latents_do_not_matter_to_tarp():
    from pyro_vae.data import Columns

    with seeded(CPU, 4):
        t, x, there = torch.randn(6, 40, 2).double(), torch.randn(40, 3), torch.randn(30, 2).double()
    ranks = []
    for scale in (torch.ones(2), torch.tensor([1e-3, 50.0])):
        references = References(Columns((x,)), [((x[:30],), there * scale)])
        zero = torch.zeros(6, 40)
        drawn = Particles(t * scale, zero, zero, zero)
        ranks.append(ranks_of(drawn, True, references.nearest((x,)), references.unit)[:, -1])
    assert torch.equal(*ranks)
    assert torch.equal(references.nearest((x[:30],)), there * scale)  # each datum is nearest to itself


def test_products_of_normal_scores():
    with seeded(CPU, 5):
        z = torch.randn(200, 3, 2, dtype=torch.float64)
        t = torch.stack([z[..., 0], 0.8 * z[..., 0] + 0.6 * z[..., 1]], -1).exp()  # scores do not depend on units
        found = products(t)
    assert found.draws[:, 0, 1].mean() == pytest.approx(0.8, abs=0.1)
    scores = stats.norm.ppf((stats.rankdata(t[:, 0, 0]) - 0.5) / 200)
    assert found.truth[0, 0, 0] == pytest.approx(scores[0] ** 2)
    assert found.draws[0, 0, 0] == pytest.approx((scores[1:] ** 2).mean())


def test_all_is_seeded_and_nothing_moves():
    oracle, state = exact(2), torch.get_rng_state()
    one, same, other = (calibrate(oracle.vae, oracle.data(1), 30, 5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(one.ranks, same.ranks)
    assert not np.array_equal(one.ranks, other.ranks)
    assert "t[1]" in str(one)
    assert one.n == 30
