"""The metrics of a run: its bound and its log p(x) on the test data."""

from __future__ import annotations

from math import isnan
from typing import final

from torch.distributions import constraints

from pyro_vae.evaluate import (
    Evidence,
    bits_per_dim,
    class_probabilities,
    classified,
    evaluate_bound,
    evidence,
    interval_of_median,
    mean,
)
from pyro_vae.missing import has_missing
from pyro_vae.reports.base import Measured, Metric, Row, Trained
from pyro_vae.traces import inputs_of


@final
class TestBound(Metric):
    """The bound that was trained, with its terms, on all test data."""

    __test__ = False  # for pytest: this is no test

    def measure(self, trained: Trained) -> Measured:
        """Evaluates the bound by the plan's estimator."""
        estimator = trained.plan.estimator
        totals = evaluate_bound(trained.model, trained.data.test, estimator, trained.plan.batch_size, seed=0)
        terms, bound, everything = totals.terms(), totals.mean(), f"all {len(trained.data.test)}"
        rows = [Row(f"{type(estimator).__name__} bound (K = {estimator.K})", str(bound), everything)]
        elbo = f"{terms.reconstruction - terms.kl:.2f}"
        if elbo != f"{bound.mean:.2f}":  # then these terms are not that bound's
            rows.append(Row("ELBO of the same draws", elbo, everything))
        given = f",{trained.given}" if trained.given else ""
        rows += [
            Row(f"  reconstruction  E log p(x|t{given})", f"{terms.reconstruction:.2f}", everything),
            Row(f"  KL  E log q(t|x{given}) − log p(t)", f"{terms.kl:.2f}", everything),
        ]
        values = {"test": terms._asdict(), "test_bound": bound.as_dict()}
        return Measured(rows, values, each={"bound": totals.per_datum()} if estimator.per_datum else {})


@final
class LogLikelihood(Metric):
    """log p(x) by importance sampling on the first test data, and how far it can be trusted.

    Where x is discrete, in bits per dimension too.
    """

    def measure(self, trained: Trained) -> Measured:
        """Draws as many particles as the run was told."""
        first, K, plan = trained.test(trained.test_images), trained.test_particles, trained.plan
        nesting = plan.estimator.max_plate_nesting
        found = evidence(trained.model, first, K, max_plate_nesting=nesting, compile=plan.compile)
        support = trained.data.support
        # Bits per dimension are of all dimensions, and so of data without missing values.
        discrete = isinstance(support, constraints.integer_interval) and support.upper_bound > 1
        discrete &= not has_missing(first.x)
        counted = trained.counted(len(first))
        rows = [Row(f"{trained.log_px} (importance sampling, K = {K})", str(found.mean), counted)]
        values = {"log_px": found.as_dict()}
        if discrete:
            bits = mean(bits_per_dim(found.log_px, trained.data.x_shape))
            rows.append(Row("  in bits per dimension", bits.text(3), counted))
            values["bits_per_dim"] = bits.as_dict()
        rows += [Row(f"  {quantity}", value, counted) for quantity, value in _diagnostics(found)]
        each = {"log_px": found.log_px, "ess": found.ess, "pareto_k": found.pareto_k, "rise": found.rise()}
        return Measured(rows, values, found.notices(trained.noun), each)


@final
class Classes(Metric):
    """How well a discrete latent of few values tells the classes of the test data.

    A model that learns from labels is judged by q(y|x), and one that sums y out by p(y|x), whose values are matched with the
    classes one for one (Hungarian method), on the labels that they are judged on.

    Args:
        site: the name of the latent.
        K: the number of particles of p(y|x).
    """

    def __init__(self, site: str = "y", K: int = 100) -> None:
        self.site, self.K = site, K

    def measure(self, trained: Trained) -> Measured:
        """Compares the most probable values with all labels.

        Raises:
            ValueError: the data have no labels, or the model has no such latent.
        """
        test, nesting = trained.data.test, trained.plan.estimator.max_plate_nesting
        if test.labels is None:
            raise ValueError("Classes: the test data have no labels to compare with")
        found = class_probabilities(trained.model, test, self.site, self.K, max_plate_nesting=nesting)
        matched = "labelled" not in inputs_of(trained.model)
        told = classified(found, test.labels, matched)
        what = f"p({self.site}|x), matched with the labels" if matched else f"q({self.site}|x)"
        value = f"{100 * told.accuracy.mean:.1f} ± {100 * told.accuracy.reach:.1f} %"
        values = {"accuracy": told.accuracy.as_dict(), "matching": told.matching, "counts": told.counts.tolist()}
        return Measured([Row(f"accuracy of {what}", value, f"all {len(test)}")], {"classes": values})


def _diagnostics(found: Evidence) -> list[tuple[str, str]]:
    """What the particles say, as rows of a table."""
    ess = interval_of_median(found.ess.cpu().numpy())
    rows = [(f"effective particles of {found.K}, median", f"{ess.value:.3g}" if isnan(ess.low) else str(ess))]
    if found.K >= 10:
        rows.append((f"rise from K = {found.K / 10:.4g} to {found.K}", str(mean(found.rise()))))
    if not isnan(found.left.value):
        rows.append(("missing still, at least", str(found.left)))
    if not isnan(found.good_k):
        rows.append((f"data with k̂ above {found.good_k:.2f}", f"{found.unreliable} of {len(found.log_px)}"))
    return rows
