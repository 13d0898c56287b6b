"""A metric of what a discrete latent finds out about the classes of data."""

from __future__ import annotations

from typing import final

from pyro_vae.evaluate import class_probabilities, classified
from pyro_vae.reports.base import Measured, Metric, Row, Trained
from pyro_vae.traces import inputs_of


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
