"""Metrics that diagnose a trained model: how near its log p(x) is, where its gap comes from, and whether q(t|x) is calibrated.

Each is one class, as the metrics of `train` are, and fills the same slot.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, final

from pyro_vae.evaluate import Annealing, Mean, ais, bracket, calibrate, elbo_surgery, gaps, generalization_gap
from pyro_vae.evaluate.annealing.path import Start
from pyro_vae.evaluate.families import Family
from pyro_vae.evaluate.statistics import student_reach
from pyro_vae.reports.base import Measured, Metric, Row, Trained


def _as_trained(trained: Trained) -> dict[str, Any]:
    """How chains run a model that was trained so."""
    return {"max_plate_nesting": trained.plan.estimator.max_plate_nesting, "compile": trained.plan.compile}


@final
class AIS(Metric):
    """log p(x) by annealed importance sampling: a lower bound that comes nearer than one from the guide's own draws.

    Args:
        images: how many test data, counted from the first.
        chains: how many chains each datum has.
        temperatures: the number of steps from the start to the posterior; more come nearer, and take longer.
        leapfrog: the number of leapfrog steps of a move.
        start: the guide; or the prior, from where nothing depends on the guide, and which gives the rate-distortion curve.
    """

    def __init__(
        self, images: int = 100, chains: int = 16, temperatures: int = 200, leapfrog: int = 3, start: Start = "guide"
    ) -> None:
        self.images, self.chains = images, chains
        self.annealing = Annealing(temperatures=temperatures, leapfrog=leapfrog, start=start)

    def measure(self, trained: Trained) -> Measured:
        """Anneals on the first test data."""
        first = trained.test(self.images)
        found = ais(trained.model, first, self.chains, annealing=self.annealing, **_as_trained(trained))
        error, counted = found.error_of_chains, trained.counted(len(first))
        rows = [Row(f"{trained.log_px} (annealing, T = {self.annealing.temperatures})", str(found.mean), counted)]
        if isfinite(error):
            rows.append(Row("  ± from its chains", f"± {student_reach(float('inf')) * error:.2f}", counted))
        values = {
            "ais": {**found.mean.as_dict(), "error_of_chains": error, "temperatures": self.annealing.temperatures}
        }
        if found.curve is not None:
            curve = found.curve
            values["rate_distortion"] = {
                name: getattr(curve, name).tolist()
                for name in ("beta", "rate", "rate_error", "distortion", "distortion_error")
            }
        return Measured(rows, values, found.notices(), {"ais": found.log_px, "ais_error": found.error})


@final
class Bracket(Metric):
    """log p(x) from both sides, on data that the model draws: how far annealing can be trusted for this model.

    Args:
        images: how many data are drawn.
        chains: how many chains each datum has in each direction.
        temperatures: the number of steps between the prior or the guide and the posterior.
        leapfrog: the number of leapfrog steps of a move.
        start: the guide, or the prior.
    """

    def __init__(
        self, images: int = 50, chains: int = 16, temperatures: int = 200, leapfrog: int = 3, start: Start = "guide"
    ) -> None:
        self.images, self.chains = images, chains
        self.annealing = Annealing(temperatures=temperatures, leapfrog=leapfrog, start=start)

    def measure(self, trained: Trained) -> Measured:
        """Draws data like the first test data, and anneals in both directions."""
        first = trained.test(self.images)
        found = bracket(trained.model, first, self.chains, annealing=self.annealing, **_as_trained(trained))
        drawn = f"{len(first)} simulated"
        rows = [
            Row(f"{trained.log_px} of simulated data, at least", str(found.mean_lower), drawn),
            Row("  at most", str(found.mean_upper), drawn),
            Row("  width of the bracket", str(found.mean_width), drawn),
        ]
        means = {"lower": found.mean_lower, "upper": found.mean_upper, "width": found.mean_width}
        return Measured(rows, {"bracket": {name: each.as_dict() for name, each in means.items()}}, found.notices())


@final
class Gaps(Metric):
    """Where the gap between log p(x) and the ELBO comes from: the family of the guide, its encoder, or the training data.

    Args:
        images: how many test data, and training data, counted from the first.
        family: the family in which the best q of each datum is looked for: the guide's own, or Gaussians.
        steps: the number of steps in a round of refinement.
        rounds: the largest number of rounds.
        copies: the number of draws of each datum in a step.
    """

    def __init__(
        self, images: int = 50, family: Family = "own", steps: int = 200, rounds: int = 10, copies: int = 100
    ) -> None:
        self.images, self.family, self.steps, self.rounds, self.copies = images, family, steps, rounds, copies

    def measure(self, trained: Trained) -> Measured:
        """Refines q for each of the first test data, and of the first training data."""
        test = trained.test(self.images)
        train = trained.columns(trained.data.train).first(self.images)
        options = {
            "family": self.family,
            "steps": self.steps,
            "rounds": self.rounds,
            "copies": self.copies,
            "max_plate_nesting": trained.plan.estimator.max_plate_nesting,
        }
        of_test, of_train = (gaps(trained.model, each, **options) for each in (test, train))
        found, general, counted = of_test.summary(), generalization_gap(of_train, of_test), trained.counted(len(test))
        rows = [
            Row(f"{trained.log_px} − ELBO", str(found["whole"]), counted),
            Row("  approximation gap: log p − best q", str(found["approximation"]), counted),
            Row("  amortization gap: best q − q", str(found["amortization"]), counted),
            Row(f"  {trained.log_px}, training − test", str(general["log_px"]), f"{len(train)} and {len(test)}"),
        ]
        values = {
            "gaps": {name: each.as_dict() for name, each in found.items()},
            "generalization": {name: each.as_dict() for name, each in general.items()},
        }
        each = {
            "log_px_refined": of_test.log_px, "elbo": of_test.bound, "elbo_best": of_test.best,
            "approximation": of_test.approximation, "amortization": of_test.amortization,
        }  # fmt: skip
        return Measured(rows, values, of_test.notices(), each)


@final
class Surgery(Metric):
    """The KL term of the ELBO in its parts: mutual information of x and t, and KL(q(t)‖p(t)); latents that are not in use.

    Args:
        images: how many test data, counted from the first.
        draws: how many draws each datum has.
    """

    def __init__(self, images: int = 1000, draws: int = 10) -> None:
        self.images, self.draws = images, draws

    def measure(self, trained: Trained) -> Measured:
        """Compares the draws of each of the first test data with q(t|x) of all of them."""
        first, nesting = trained.test(self.images), trained.plan.estimator.max_plate_nesting
        found = elbo_surgery(trained.model, first, draws=self.draws, max_plate_nesting=nesting)
        given, others, counted = found.given(), found.population(), trained.counted(len(first))
        low, high = others["information_low"], others["information_high"]
        used = sum(int(each.sum()) for each in found.used.values())
        rows = [
            Row("mutual information I(x;t) of these", _of_draws(given["information"]), counted),
            Row(f"  of other {trained.noun}, at least", str(low), counted),
            Row("  at most", str(high), counted),
            Row("KL(q(t)‖p(t)) of these", _of_draws(given["marginal_kl"]), counted),
            Row("latents in use", f"{used} of {sum(each.numel() for each in found.used.values())}", counted),
        ]
        values = {
            "surgery": {name: each.as_dict() for name, each in (given | others).items()},
            "kl_per_dimension": {name: each.tolist() for name, each in found.kl_per_dimension.items()},
            "activity": {name: each.tolist() for name, each in found.activity.items()},
        }
        each = {"information": found.information, "marginal_kl": found.marginal_kl}
        return Measured(rows, values, found.notices(), each)


def _of_draws(found: Mean) -> str:
    """A mean over these very data, whose error comes from the draws."""
    return f"{found.mean:.2f} ± {found.reach:.2f}"


@final
class Calibration(Metric):
    """Whether q(t|x) is the posterior of its own model, on data that the model draws: ranks, coverage, TARP.

    Args:
        images: how many data are drawn.
        draws: how many draws of q each has.
        of: if it is given, the draws are chosen among so many by their importance weights: what is left after correcting q.
    """

    def __init__(self, images: int = 500, draws: int = 100, of: int | None = None) -> None:
        self.images, self.draws, self.of = images, draws, of

    def measure(self, trained: Trained) -> Measured:
        """Draws t and x from the model, and compares t with draws of q(t|x)."""
        from pyro_vae import figures  # noqa: PLC0415  (matplotlib)

        nesting = trained.plan.estimator.max_plate_nesting
        like = trained.test(self.images)
        found = calibrate(trained.model, like, self.images, self.draws, M=self.of, max_plate_nesting=nesting)
        drawn, flagged = f"{found.n} simulated", int(found.flagged.sum())
        covered = found.coverage(0.9)
        rows = [
            Row("quantities that q(t|x) does not calibrate", f"{flagged} of {len(found.names)}", drawn),
            Row("  truth in its 90 % region", f"{100 * covered.mean:.1f} % ± {100 * covered.reach:.1f}", drawn),
        ]
        p = {name: float(value) for name, value in zip(found.names, found.adjusted, strict=True)}
        values = {"calibration": {"calibrated": found.calibrated, "p_adjusted": p, "coverage_90": covered.as_dict()}}
        title = f"calibration of q(t|x) on {found.n} data of the model's own"
        return Measured(
            rows, values, found.notices(), figures={"calibration": figures.calibration(found.curves, title)}
        )
