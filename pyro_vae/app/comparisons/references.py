"""What a bias is measured against: the mean gradient of the same bound, exact where that can be computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyro_vae.app.comparisons.folder import EstimatorFactory
from pyro_vae.app.comparisons.names import label
from pyro_vae.data import Columns
from pyro_vae.estimators import ELBO, IWAE, VIMCO, Estimator, Exact, ScoreFunction, number_of_sets
from pyro_vae.evaluate import Draws, exact_gradient
from pyro_vae.scopes import still
from pyro_vae.traces import MOST_STATES, Programs, is_reparameterized, numbers_of_states

LEAVE_ONE_OUT = "ScoreFunction(control=leave-one-out)"
"""What the leave-one-out estimator of the ELBO is called in tables."""
ANOTHER, NOT_TOLD = "another objective", "not told"
"""What stands in place of a reference where there is none."""
_INSTEAD = "leave --reference out, and a mean over draws is the reference"


@dataclass(frozen=True)
class Reference:
    """A reference of an estimator's gradient.

    Attributes:
        name: what it is called; empty where there is none.
        K: its number of particles.
        make: a function that makes the estimator whose mean it is; None where it is exact, and where there is none.
        why_not: why no bias is measured against it: it is not known to be the gradient of the same bound.
    """

    name: str = ""
    K: int = 0
    make: Callable[[int], Estimator] | None = None
    why_not: str = ""

    @property
    def shown(self) -> str:
        """What stands in the table."""
        return self.why_not or (f"{self.name}, K = {self.K}" if self.make else self.name)


class References:
    """The reference of each estimator: the one that was named, or the best one that there is for the bound it climbs.

    Without a name, and for ``Exact``, the bound L_J that an estimator climbs decides: the reference is exact where all latents
    are discrete and have few enough states, and otherwise the mean of an unbiased gradient of L_J. That is the pathwise one for
    guides with ``rsample``, and the leave-one-out one for others (`VIMCO` for J ≥ 2).

    Args:
        described: how the reference was described, if it was.
        make: makes it.
        particles: the numbers of particles that are compared.
        programs: the model and the guide.
        batch: the data.

    Raises:
        ValueError: the one that was named cannot be made, or cannot be computed here.
    """

    def __init__(
        self,
        described: str | Mapping[str, Any] | None,
        make: EstimatorFactory | None,
        particles: list[int],
        programs: Programs,
        batch: Columns,
    ) -> None:
        self.programs, self.batch = programs, batch
        name = label(described) if described is not None else ""
        self.named = make
        for K in particles if make else []:
            try:
                made = make(K)  # type: ignore[misc]
            except ValueError as error:  # without it nothing can be compared
                raise ValueError(f"reference {name} at K = {K}: {error}") from error
            if isinstance(made, Exact):
                self.named = None
        self.name = name if self.named else ""
        """The name of a reference that is the same for all estimators, if there is one."""
        self.states: int | None = None
        if not self.named:
            try:
                with still(programs, batch.x.device, "states"):
                    self.states, _ = numbers_of_states(programs.model, programs.guide, *batch.take(slice(None)))
            except ValueError as error:
                if make:
                    raise ValueError(f"reference {name}: {error}: {_INSTEAD}") from error
        with still(programs, batch.x.device, "rsample"):
            self.reparameterized = is_reparameterized(programs.guide, *batch.take(slice(None)))
        self._exact: dict[tuple[int, int], Draws] = {}
        self._drawn: dict[tuple[str, int], Draws] = {}

    def of(self, estimator: Estimator, K: int) -> Reference:
        """The reference of an estimator at K."""
        J = estimator.climbs
        if self.named:
            its = (made := self.named(K)).climbs
            same = J is None or its is None or (its == J if isinstance(its, int) else type(made) is type(estimator))
            return Reference(self.name, K, self.named, "" if same else ANOTHER)
        if not isinstance(J, int):
            return Reference(why_not=NOT_TOLD if J is None else ANOTHER)
        if self.states is not None and number_of_sets(self.states, J) <= MOST_STATES:
            return Reference("exact ELBO" if J == 1 else f"exact L_{J}", J)
        if self.reparameterized:
            return Reference("ELBO", K, ELBO) if J == 1 else Reference("IWAE", J, IWAE)
        if J == 1:
            return Reference(LEAVE_ONE_OUT, max(K, 2), partial(ScoreFunction, control="leave-one-out"))
        return Reference("VIMCO", J, VIMCO)

    def known(self, reference: Reference) -> bool:
        """Whether its draws are there."""
        return reference.make is None or (reference.name, reference.K) in self._drawn

    def draws(
        self, reference: Reference, nesting: int, draw: Callable[[str, Callable[[int], Estimator], int], Draws]
    ) -> Draws:
        """Its gradient. Draws are kept until those of another K are asked for.

        Args:
            reference: a reference that there is.
            nesting: the number of plate dimensions that the programs use.
            draw: draws gradients of an estimator, by its name.
        """
        if reference.make is None:
            if (reference.K, nesting) not in self._exact:
                self._exact[reference.K, nesting] = exact_gradient(self.programs, self.batch, reference.K, nesting)
            return self._exact[reference.K, nesting]
        key = reference.name, reference.K
        if key not in self._drawn:
            self._drawn = {kept: each for kept, each in self._drawn.items() if kept[1] == reference.K}
            self._drawn[key] = draw(reference.name, reference.make, reference.K)
        return self._drawn[key]
