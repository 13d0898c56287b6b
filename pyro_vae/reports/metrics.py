"""The metrics of a run: its bound and its log p(x) on the test data."""

from __future__ import annotations

from typing import final

from torch.distributions import constraints

from pyro_vae.evaluate import bits_per_dim, evaluate_bound, log_px, mean
from pyro_vae.missing import has_missing
from pyro_vae.reports.base import Measured, Metric, Row, Trained


@final
class TestBound(Metric):
    """The bound that was trained, with its terms, on all test data."""

    __test__ = False  # for pytest: this is no test

    def measure(self, trained: Trained) -> Measured:
        """Evaluates the bound by the plan's estimator."""
        estimator = trained.plan.estimator
        totals = evaluate_bound(trained.model, trained.data.test, estimator, trained.plan.batch_size, seed=0)
        terms, bound, everything = totals.terms(), mean(totals.per_datum()), f"all {len(trained.data.test)}"
        rows = [
            Row(f"{type(estimator).__name__} bound (K = {estimator.K})", str(bound), everything),
            Row("  reconstruction  E log p(x|t)", f"{terms.reconstruction:.2f}", everything),
            Row("  KL  E log q(t|x) − log p(t)", f"{terms.kl:.2f}", everything),
        ]
        return Measured(rows, {"test": terms._asdict(), "test_bound": bound.as_dict()})


@final
class LogLikelihood(Metric):
    """log p(x) by importance sampling on the first test data; bits per dimension too where x is discrete."""

    def measure(self, trained: Trained) -> Measured:
        """Draws as many particles as the run was told."""
        first, K, plan = trained.test(trained.test_images), trained.test_particles, trained.plan
        nesting = plan.estimator.max_plate_nesting
        each = log_px(trained.model, first, K, max_plate_nesting=nesting, compile=plan.compile)
        found, support = mean(each), trained.data.support
        # Bits per dimension are of all dimensions, and so of data without missing values.
        discrete = isinstance(support, constraints.integer_interval) and support.upper_bound > 1
        discrete &= not has_missing(first.x)
        counted = f"all {len(first)}" if len(first) == len(trained.data.test) else f"first {len(first)}"
        name = "log p(x)" if first.y is None else "log p(x|y)"
        rows = [Row(f"{name} (importance sampling, K = {K})", str(found), counted)]
        values = {"log_px": {**found.as_dict(), "K": K}}
        if discrete:
            bits = mean(bits_per_dim(each, trained.data.x_shape))
            rows.append(Row("  in bits per dimension", bits.text(3), counted))
            values["bits_per_dim"] = bits.as_dict()
        return Measured(rows, values)
