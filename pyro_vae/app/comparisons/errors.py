"""Test log p(x) of several trained models, with its errors over seeds and over data, and its differences to the first.

In every table ± is half the width of a 95 % interval: over seeds where there are several, and over data otherwise. The
difference paired by datum stands beside that over seeds, in a column of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np

from pyro_vae.evaluate import TRUSTED, Mean, crossed

Values = Mapping[int, np.ndarray]
"""log p(x) (N,) of the same N test data by seed."""
RESULT, GAP, PAIRED = "log p(x)", "to the first", "paired over data"


@dataclass(frozen=True)
class Over:
    """What the spread is over.

    Attributes:
        seeds: the seeds.
        data: the number of test data.
        noun: what they are called.
        particles: K of log p(x) by importance sampling.
    """

    seeds: Sequence[int]
    data: int
    noun: str
    particles: int

    @property
    def several(self) -> bool:
        """Whether intervals are over seeds."""
        return len(self.seeds) > 1

    @property
    def what(self) -> str:
        """What intervals are over, for a title."""
        return f"over {len(self.seeds)} seeds" if self.several else f"over {self.noun}, one seed"

    @property
    def columns(self) -> list[str]:
        """The columns of the result."""
        return [RESULT, GAP, PAIRED] if self.several else [RESULT, GAP]

    @property
    def told(self) -> str:
        """What each ± is, and what is left out of it, below a table."""
        particles = "The noise of the particles is part of each."
        if not self.several:
            return (
                f"±: 95 % intervals over the {self.data} test {self.noun} (Student's t), of a difference paired by datum. Left "
                f"out: the spread over seeds, since there is one, {self.seeds[0]} (--seeds gives several). {particles}"
            )
        listed = ", ".join(map(str, self.seeds))
        return (
            f"±: 95 % intervals over the seeds {listed} (Student's t), of a difference seed by seed. {PAIRED}: the same "
            f"difference, with its interval over the {self.data} test {self.noun}, paired by datum, as means over seeds. "
            f"{particles}"
        )


def compared(found: Mapping[Any, Values], over: Over) -> list[dict[str, Any]]:
    """The columns of the result for each model: text with ±, and numbers with the ends of intervals for the CSV file.

    Differences are to the first model, over the seeds that both have.
    """
    first, rows = next(iter(found.values())), []
    for values in found.values():
        row: dict[str, Any] = {}
        result = crossed(np.stack(list(values.values())))
        row[RESULT] = _text(result.over_seeds, result.over_data, over)
        row[GAP], row[PAIRED] = ("first", "") if values is first else ("no seed in common", "")
        common, gap = [seed for seed in values if seed in first], None
        if common and values is not first:
            gap = crossed(np.stack([values[seed] - first[seed] for seed in common]))
            row[GAP] = _text(gap.over_seeds, gap.over_data, over, sign=True)
            row[PAIRED] = gap.over_data.text(sign=True) if over.several else ""
        row["seeds"] = len(values)
        row |= _numbers(RESULT, result.over_seeds if over.several else result.over_data)
        row |= {f"{RESULT} ± over seeds": known(result.over_seeds.reach)}
        row |= {f"{RESULT} ± over data": known(result.over_data.reach)}
        row |= {f"{RESULT} ± over both": known(result.over_both)}
        row |= _numbers(GAP, None if gap is None else gap.over_seeds if over.several else gap.over_data)
        row |= _numbers(PAIRED, None if gap is None else gap.over_data)
        rows.append(row)
    return rows


def told(found: Mapping[Any, Values], over: Over) -> list[str]:
    """The lines below a table: what each ± is, and what is left out of it."""
    return [over.told, _over_data(found, over)] if over.several else [over.told]


MISSING, TAIL = "missing", "heavy"
"""Columns that say how far log p(x) can be trusted."""


def trust(evidence: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of one model that say how far its log p(x) can be trusted, as means over seeds.

    Args:
        evidence: of each seed, what cells keep of `pyro_vae.evaluate.Evidence`.
    """
    kept = list(evidence)
    left = [float(each["left"]["value"]) for each in kept]
    shares = [each["unreliable"] / each["n"] for each in kept]
    known_k = not isnan(kept[0]["good_k"])
    missing = float(np.mean(left))
    return {
        MISSING: "not known" if isnan(missing) else f"≥ {max(missing, 0):.2f}",
        TAIL: f"{100 * np.mean(shares):.0f} %" if known_k else "",
        f"{MISSING} (number)": known(missing),
        f"{TAIL} (share of data)": float(np.mean(shares)) if known_k else "",
    }


def particles_told(evidence: Iterable[Mapping[str, Any]], noun: str) -> str:
    """The line below a table that says what its columns of `trust` are, and what follows from them.

    Args:
        evidence: what the cells of all models keep of `pyro_vae.evaluate.Evidence`.
        noun: what the data are called.
    """
    kept = list(evidence)
    K, good, left = kept[0]["K"], kept[0]["good_k"], [float(each["left"]["value"]) for each in kept]
    line = f"log p(x) by importance sampling with K = {K} particles is too low on average, which no ± holds. "
    if isnan(good) or all(map(isnan, left)):
        return f"{line}By how much, K of at least 100 can tell (--test_particles)."
    line += (
        f"{MISSING}: at least by how much, extrapolated from its rise with K; {TAIL}: for how many of the test {noun} the tail "
        f"of the weights is too heavy for K (k̂ above {good:.2f}), so that more can be missing."
    )
    if (most := np.nanmax(left)) > TRUSTED:
        line += (
            f" Differences of less than {most:.1f} nats can come from that: more particles decide (--test_particles)."
        )
    return line


def _over_data(found: Mapping[Any, Values], over: Over) -> str:
    """What the ± of the first model would be over data, and over seeds and data."""
    result = crossed(np.stack(list(next(iter(found.values())).values())))
    both = ""
    if np.isfinite(result.over_both):
        both = (
            f", and for other seeds and other {over.noun} at once ± {result.over_both:.2f}, which is never taken to be "
            f"narrower than either of the two"
        )
    return (
        f"Left out of the ± of log p(x): the spread over {over.noun}, much the same for all rows. Of the first row it is "
        f"± {result.over_data.reach:.2f}{both}."
    )


def _text(over_seeds: Mean, over_data: Mean, over: Over, sign: bool = False) -> str:
    return (over_seeds if over.several else over_data).text(sign=sign)


def _numbers(name: str, found: Mean | None) -> dict[str, Any]:
    if found is None:
        return {f"{name} (number)": "", f"{name} low": "", f"{name} high": ""}
    return {f"{name} (number)": found.mean, f"{name} low": known(found.low), f"{name} high": known(found.high)}


def known(value: float) -> float | str:
    """A number, or nothing where it is not known."""
    return value if np.isfinite(value) else ""
