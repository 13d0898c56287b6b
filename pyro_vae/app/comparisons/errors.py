"""Test log p(x) of several trained models, with its errors over seeds and over data, and its differences to the first.

In every table ± is half the width of a 95 % interval: over seeds where there are several, and over data otherwise. Differences
are paired by seed and by datum; their intervals are for other seeds and other data, and hold all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Any

import numpy as np

from pyro_vae.evaluate import TRUSTED, Crossed, Mean, crossed, needed, probability_first
from pyro_vae.evaluate.statistics import student_reach

Values = Mapping[int, np.ndarray]
"""log p(x) (N,) of the same N test data by seed."""
RESULT, GAP, PAIRED, FIRST = "log p(x)", "to the first", "paired over data", "first"


@dataclass(frozen=True)
class Over:
    """What the spread is over.

    Attributes:
        seeds: the seeds.
        data: the number of test data.
        noun: what they are called.
    """

    seeds: Sequence[int]
    data: int
    noun: str

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
        return [RESULT, GAP, PAIRED, FIRST] if self.several else [RESULT, GAP, FIRST]

    @property
    def told(self) -> str:
        """What each ± is, and what is left out of it, below a table."""
        first = (
            f"{FIRST}: the probability that the row has the largest mean, by weights drawn for {{}} (Bayesian bootstrap). The "
            f"noise of the particles is part of all."
        )
        if not self.several:
            return (
                f"±: 95 % intervals over the {self.data} test {self.noun} (Student's t); those of differences are paired by "
                f"datum, and hold all at once (Bonferroni). Left out: the spread over seeds, since there is one, "
                f"{self.seeds[0]} (--seeds gives several). {first.format(self.noun)}"
            )
        listed = ", ".join(map(str, self.seeds))
        return (
            f"±: 95 % intervals over the seeds {listed} (Student's t). {GAP}: the difference seed by seed and datum by datum, "
            f"with an interval for other seeds and other {self.noun} (two-way analysis of variance); all of them hold at once "
            f"(Bonferroni). {PAIRED}: the same difference for these seeds, with its interval over the {self.data} test "
            f"{self.noun} alone. {first.format(f'seeds and {self.noun}')}"
        )


def compared(found: Mapping[Any, Values], over: Over) -> list[dict[str, Any]]:
    """The columns of the result for each model: text with ±, and numbers with the ends of intervals for the CSV file.

    Differences are to the first model, over the seeds that both have. Their intervals hold all at once.
    """
    rows, gaps = [], _gaps(found)
    first = _probability_first(found)
    for name, values in found.items():
        row: dict[str, Any] = {}
        result = crossed(np.stack(list(values.values())))
        row[RESULT] = _text(result.over_seeds, result.over_data, over)
        of_first, gap = values is next(iter(found.values())), gaps.get(name)
        row[GAP], row[PAIRED] = ("first", "") if of_first else ("no seed in common", "")
        reach = nan
        if gap is not None:
            both = crossed(gap, together=len(gaps))
            mean, reach = both.over_seeds.mean, _reach(both, over, len(gaps))
            row[GAP] = f"{mean:+.2f} ± {reach:.2f}" if isfinite(reach) else both.over_seeds.text(sign=True)
            row[PAIRED] = both.over_data.text(sign=True) if over.several else ""
        row[FIRST] = "" if first is None else f"{100 * first[name]:.0f} %"
        row["seeds"] = len(values)
        row |= _numbers(RESULT, result.over_seeds if over.several else result.over_data)
        row |= {f"{RESULT} ± over seeds": known(result.over_seeds.reach)}
        row |= {f"{RESULT} ± over data": known(result.over_data.reach)}
        row |= {f"{RESULT} ± over both": known(result.over_both)}
        row |= _interval(GAP, None if gap is None else mean, reach)
        row |= _numbers(f"{GAP} over seeds", None if gap is None else both.over_seeds)
        row |= _numbers(PAIRED, None if gap is None else both.over_data)
        rows.append(row)
    return rows


def _gaps(found: Mapping[Any, Values]) -> dict[Any, np.ndarray]:
    """The differences (S, N) of each other model to the first, over the seeds that both have, where there are any."""
    (_, first), *others = found.items()
    common = {name: [seed for seed in values if seed in first] for name, values in others}
    return {
        name: np.stack([values[seed] - first[seed] for seed in common[name]]) for name, values in others if common[name]
    }


def _reach(gap: Crossed, over: Over, together: int) -> float:
    """Half the width of a difference's interval: for other seeds and data, or for other data where there is one seed."""
    if over.several:
        return gap.over_both
    return student_reach(gap.over_data.n - 1, together) * gap.over_data.error


def _probability_first(found: Mapping[Any, Values]) -> dict[Any, float] | None:
    """The probability of each model to be the best, over the seeds that all have; None where there are none, or one model."""
    seeds = [seed for seed in next(iter(found.values())) if all(seed in values for values in found.values())]
    if len(found) < 2 or not seeds:
        return None
    values = np.stack([[of_seed[seed] for seed in seeds] for of_seed in found.values()])
    return dict(zip(found, probability_first(values).tolist(), strict=True)) if np.isfinite(values).all() else None


def told(found: Mapping[Any, Values], over: Over, shown: Callable[[Any], str] = str) -> list[str]:
    """The lines below a table: what each ± is, what is left out of it, and what would decide what is not decided.

    Args:
        found: log p(x) of each model.
        over: what the spread is over.
        shown: what a model is called.
    """
    lines = [over.told, _over_data(found, over)] if over.several else [over.told]
    return [*fewer(found, over, shown), *lines, *undecided(found, over, shown)]


def tell_left_out(
    rows: list[dict[str, Any]], models: Iterable[tuple[Mapping[str, Any], Mapping[int, Any]]], over: Over
) -> list[str]:
    """Tells in a table which seeds of each model were left out, where any were, and adds a row for each that has no other.

    Args:
        rows: the rows of the models that have a seed, in the order of the models.
        models: of each model the columns that name it, and what there is by seed.
        over: the seeds.

    Returns:
        The column that tells it, if there is one.
    """
    missing = [(named, [seed for seed in over.seeds if seed not in found], found) for named, found in models]
    if not any(seeds for _, seeds, _ in missing):
        return []
    of_rows = iter(rows)
    alone: list[dict[str, Any]] = []
    for named, seeds, found in missing:
        row = next(of_rows) if found else dict.fromkeys(rows[0], "") | dict(named)
        row[LEFT_OUT] = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}" if seeds else ""
        alone += [] if found else [row]
    rows += alone
    return [LEFT_OUT]


def fewer(found: Mapping[Any, Values], over: Over, shown: Callable[[Any], str] = str) -> list[str]:
    """A line for each model of which seeds were left out: its numbers are of the others alone."""
    lines = []
    for name, values in found.items():
        left = [str(seed) for seed in over.seeds if seed not in values]
        if left:
            kept = ", ".join(map(str, values))
            lines.append(
                f"{shown(name)}: left out {'seeds' if len(left) > 1 else 'seed'} {', '.join(left)} (see above). Its numbers "
                f"are of {'seeds' if len(values) > 1 else 'seed'} {kept} alone, which went well, and can look too good."
            )
    return lines


def undecided(found: Mapping[Any, Values], over: Over, shown: Callable[[Any], str] = str) -> list[str]:
    """A line that says of the differences that are not decided how many more seeds or data would decide them, if any."""
    gaps, parts = _gaps(found), []
    for name, gap in gaps.items():
        reach = _reach(crossed(gap, together=len(gaps)), over, len(gaps))
        if not isfinite(reach) or abs(gap.mean()) > reach:
            continue
        seeds, data = needed(gap, together=len(gaps))
        numbers = {"seeds": seeds, f"test {over.noun}": data}
        ways = [f"{number:,} {what}" for what, number in numbers.items() if number is not None]
        parts.append(f"{shown(name)}: {' or '.join(ways) if ways else 'not even 1,000 seeds or 1,000,000 test data'}")
    if not parts:
        return []
    here = f"{len(over.seeds)} seed{'s' if over.several else ''} and {over.data} test {over.noun}"
    return [
        f"Differences to the first that {here} do not decide, and about how many would, if they stay as they are: "
        f"{'; '.join(parts)}."
    ]


MISSING, TAIL = "missing", "heavy"
"""Columns that say how far log p(x) can be trusted."""
LEFT_OUT = "left out"
"""The column that names the seeds that were left out."""


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


def _interval(name: str, value: float | None, reach: float) -> dict[str, Any]:
    if value is None:
        return _numbers(name, None)
    return {f"{name} (number)": value, f"{name} low": known(value - reach), f"{name} high": known(value + reach)}


def _numbers(name: str, found: Mean | None) -> dict[str, Any]:
    if found is None:
        return {f"{name} (number)": "", f"{name} low": "", f"{name} high": ""}
    return {f"{name} (number)": found.mean, f"{name} low": known(found.low), f"{name} high": known(found.high)}


def known(value: float) -> float | str:
    """A number, or nothing where it is not known."""
    return value if np.isfinite(value) else ""
