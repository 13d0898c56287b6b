"""The bound over data with its error, and an estimator that has no value for each datum."""

from __future__ import annotations

from math import isnan

import pyro.infer
import pytest
from oracles import LinearGaussian
from torch.distributions import constraints

from pyro_vae import TrainingPlan
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, Stock
from pyro_vae.evaluate import evaluate_bound, mean
from pyro_vae.reports import TestBound, Trained


def test_the_error_is_over_data():
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()  # the bound of each datum is then log p(x)
    x = oracle.data(30)
    totals = evaluate_bound(oracle.vae, x, ELBO(), seed=0)
    assert totals.mean()[:3] == pytest.approx(mean(oracle.log_px(x).detach())[:3])


@pytest.mark.parametrize("kind", [pyro.infer.Trace_ELBO, pyro.infer.TraceGraph_ELBO, pyro.infer.RenyiELBO])
def test_what_pyro_sums_over_a_batch_has_no_interval_and_a_reason(kind):
    oracle = LinearGaussian.random()
    oracle.set_guide_to_posterior()
    split = Split(oracle.data(30))
    plan = TrainingPlan(estimator=Stock(2, kind))
    totals = evaluate_bound(oracle.vae, split, plan.estimator, seed=0)
    found = totals.mean()
    assert found.mean == totals.terms().bound
    assert isnan(found.error)
    assert found.n == 30
    with pytest.raises(ValueError, match="Stock has the bound of a whole batch, and none for each datum"):
        totals.per_datum()
    trained = Trained(oracle.vae, Splits(split, split, split, constraints.real), plan, [])
    measured = TestBound().measure(trained)
    assert measured.rows[0].value.endswith(" (no ±: Stock has no value for each datum)")
    assert isnan(measured.values["test_bound"]["standard_error"])
    assert measured.values["test_bound"]["standard_error_missing"] == "no ±: Stock has no value for each datum"
