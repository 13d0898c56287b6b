"""The metrics of a run: its bound and its log p(x) on the test data."""

from __future__ import annotations

from math import isnan
from typing import final

from torch.distributions import constraints

from pyro_vae.estimators import ScoreFunction
from pyro_vae.evaluate import Evidence, bits_per_dim, evaluate_bound, evidence, interval_of_median, mean
from pyro_vae.evaluate.latents import supports
from pyro_vae.missing import has_missing
from pyro_vae.models import VAE, discretized
from pyro_vae.reports.base import Measured, Metric, Row, Trained


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
        annealed = not any(support.is_discrete for support in supports(trained.model, first).values())
        each = {"log_px": found.log_px, "ess": found.ess, "pareto_k": found.pareto_k, "rise": found.rise()}
        return Measured(rows, values, found.notices(trained.noun, annealed=annealed), each)


@final
class DiscreteModel(Metric):
    """Of a VAE of relaxed latents: the bound and log p(x) of the model of discrete latents that its parameters define.

    The relaxed model is another model, whose bound is on another log p(x) (see `pyro_vae.models.discretized`).
    """

    def measure(self, trained: Trained) -> Measured:
        """Evaluates the ELBO on all test data, and log p(x) on the first ones with as many particles as the run was told.

        Raises:
            ValueError: the model is no VAE of relaxed latents.
        """
        if not isinstance(trained.model, VAE):
            raise ValueError(
                f"DiscreteModel: only of a VAE of relaxed latents is the discrete model known, and this is a "
                f"{type(trained.model).__name__}"
            )
        vae, nesting = discretized(trained.model), trained.plan.estimator.max_plate_nesting
        elbo = ScoreFunction(max_plate_nesting=nesting)
        totals = evaluate_bound(vae, trained.data.test, elbo, trained.plan.batch_size, seed=0)
        first, K, bound = trained.test(trained.test_images), trained.test_particles, totals.mean()
        found = evidence(vae, first, K, max_plate_nesting=nesting, compile=trained.plan.compile)
        counted = trained.counted(len(first))
        rows = [
            Row("ELBO of the discrete model", str(bound), f"all {len(trained.data.test)}"),
            Row(f"{trained.log_px} of the discrete model (importance sampling, K = {K})", str(found.mean), counted),
        ]
        notices = [f"Discrete model: {each}" for each in found.notices(trained.noun, annealed=False)]
        values = {"discrete_elbo": bound.as_dict(), "discrete_log_px": found.as_dict()}
        return Measured(rows, values, notices, {"discrete_log_px": found.log_px})


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
