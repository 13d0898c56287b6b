"""Means and their intervals, against SciPy by fixed examples, and by how often they hold the truth."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from scipy import stats

import pyro_vae.evaluate as ev
from pyro_vae.evaluate.statistics import student_reach

VALUES = np.random.default_rng(0).normal(-100, 3, (4, 30)) + np.random.default_rng(1).normal(0, 2, (4, 1))
"""Values of 4 seeds and 30 data."""


def test_plus_minus_is_the_95_percent_interval_of_student():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = ev.mean(values)
    assert (found.mean - found.reach, found.mean + found.reach) == pytest.approx((low, high))
    assert found.as_dict() == pytest.approx(
        {"mean": 3.0, "low": low, "high": high, "standard_error": stats.sem(values), "n": 4}
    )
    assert ev.interval(values) == pytest.approx((3.0, low, high))
    assert str(found) == f"3.00 ± {(high - low) / 2:.2f}"
    assert found.text(3, sign=True) == f"+3.000 ± {(high - low) / 2:.3f}"
    assert str(ev.mean(values[:1])) == "1.00 (no ±: a single value)"  # of one value no spread is known


def test_over_seeds_and_over_data_each_is_the_interval_of_the_other_ones_means():
    found = ev.crossed(VALUES)
    for mean, axis in ((found.over_seeds, 1), (found.over_data, 0)):
        means = VALUES.mean(axis)
        low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
        assert (mean.mean - mean.reach, mean.mean + mean.reach) == pytest.approx((low, high))


def test_paired_differences_are_those_of_the_paired_t_test():
    one, other = VALUES.mean(0), VALUES.mean(0) + np.random.default_rng(2).normal(0.3, 0.2, 30)
    low, high = stats.ttest_rel(other, one).confidence_interval(0.95)
    assert ev.interval(other - one)[1:] == pytest.approx((low, high))


def test_over_both_is_satterthwaites_interval():
    """By the table of the two-way analysis of variance without repetitions, written out."""
    S, N = VALUES.shape
    seeds, data, mean = VALUES.mean(1), VALUES.mean(0), VALUES.mean()
    of_seeds = N * ((seeds - mean) ** 2).sum() / (S - 1)
    of_data = S * ((data - mean) ** 2).sum() / (N - 1)
    whole = ((VALUES - mean) ** 2).sum()
    rest = (whole - (S - 1) * of_seeds - (N - 1) * of_data) / ((S - 1) * (N - 1))
    total = of_seeds + of_data - rest
    freedom = total**2 / (of_seeds**2 / (S - 1) + of_data**2 / (N - 1) + rest**2 / ((S - 1) * (N - 1)))
    expected = stats.t.ppf(0.975, freedom) * (total / (S * N)) ** 0.5
    found = ev.crossed(VALUES)
    assert found.over_both == pytest.approx(max(expected, found.over_seeds.reach, found.over_data.reach))
    for few in (VALUES[:1], VALUES[:, :1]):
        assert isnan(ev.crossed(few).over_both)
    assert ev.crossed(np.ones((2, 3))).over_both == 0


def test_intervals_hold_the_truth_as_often_as_they_say():
    """2,000 repetitions: 95 % within 4.5 standard errors (0.022), for other seeds alone and for other seeds and data.

    An interval over seeds is on the same data, and holds the mean over all seeds on them. That over both is never narrower than
    either, so that it may hold the truth more often.
    """
    rng = np.random.default_rng(3)
    hits = np.zeros(2)
    for _ in range(2000):
        of_data = rng.normal(0, 2, (1, 20))
        values = rng.normal(0, 1, (3, 1)) + of_data + rng.normal(0, 1, (3, 20))
        found = ev.crossed(values)
        hits += abs(values.mean() - of_data.mean()) <= found.over_seeds.reach, abs(values.mean()) <= found.over_both
    assert hits[0] / 2000 == pytest.approx(0.95, abs=0.022)
    assert hits[1] / 2000 > 0.93


@pytest.mark.parametrize("n", [2, 5, 6, 9, 11, 40])
def test_the_interval_of_a_median_is_that_of_the_sign_test(n):
    values = np.random.default_rng(n).exponential(size=n)
    expected = stats.quantile_test(values, q=0.0, p=0.5).confidence_interval(0.95)
    value, low, high = ev.interval_of_median(values)
    assert value == np.median(values)
    assert (low, high) == pytest.approx(tuple(expected), nan_ok=True)


def test_several_intervals_hold_at_once():
    """Bonferroni: of three means of independent data, at least 95 % of 1,000 repetitions hold all three."""
    assert student_reach(5, 3) == pytest.approx(stats.t.ppf(1 - 0.05 / 6, 5))
    single, three = ev.crossed(VALUES), ev.crossed(VALUES, together=3)
    assert three.over_both > single.over_both
    assert three.over_seeds == single.over_seeds
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(1000):
        values = rng.normal(0, 1, (3, 4, 1)) + rng.normal(0, 2, (3, 1, 20)) + rng.normal(0, 1, (3, 4, 20))
        hits += all(abs(each.mean()) <= ev.crossed(each, together=3).over_both for each in values)
    assert hits / 1000 > 0.95 - 4 * (0.95 * 0.05 / 1000) ** 0.5


def test_the_number_of_seeds_that_would_decide_is_where_the_interval_leaves_0():
    """Without spread over data it is the least n with t(n - 1) s / √n below the mean, of the one-sample t test."""
    values = np.array([1.0, -0.5, 2.0, 0.3])[:, None] + np.zeros((1, 5))
    seeds, data = ev.needed(values)
    s, mean = values[:, 0].std(ddof=1), values.mean()
    expected = next(n for n in range(5, 999) if stats.t.ppf(0.975, n - 1) * s / n**0.5 < mean)
    assert seeds == expected
    assert data is None  # more data do not change what seeds leave open
    over_data = np.random.default_rng(5).normal(0.1, 1, (1, 100))
    seeds, data = ev.needed(over_data)
    assert seeds is None
    s, mean = over_data.std(ddof=1), over_data.mean()
    expected = next(n for n in range(101, 10**6) if stats.t.ppf(0.975, n - 1) * s / n**0.5 < abs(mean))
    assert data == pytest.approx(expected, rel=0.05)
    assert ev.needed(np.zeros((2, 3)) + np.array([[1e-9], [-1e-9]])) == (None, None)


def test_the_probability_to_be_first():
    """Of two models whose difference over data is normal, it is Φ(mean / standard error) within 0.03; of equals a half."""
    rng = np.random.default_rng(6)
    base = rng.normal(0, 5, (1, 200))
    gap = rng.normal(0.1, 1, (1, 200))
    found = ev.probability_first(np.stack([base, base + gap]))
    assert found.sum() == pytest.approx(1)
    assert found[1] == pytest.approx(stats.norm.cdf(gap.mean() / (gap.std(ddof=1) / 200**0.5)), abs=0.03)
    seeds = np.array([1.0, -1.0])[:, None] + np.zeros((2, 50))
    assert ev.probability_first(np.stack([seeds, np.zeros((2, 50))]))[0] == pytest.approx(0.5, abs=0.03)
    copies = ev.probability_first(np.stack([base, base, base + gap]))  # of one model, as where a row stands there twice
    assert copies[0] == copies[1] == pytest.approx(found[0] / 2, abs=0.03)
