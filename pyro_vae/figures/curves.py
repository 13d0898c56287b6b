"""Figures of bounds: one run over its epochs, and several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vae.evaluate import interval, mean
from pyro_vae.figures.layout import MARKERS, new_figure, wrapped
from pyro_vae.figures.look import literal
from pyro_vae.kinds import takes
from pyro_vae.training import Epoch


@takes
def learning_curves(records: Sequence[Epoch], title: str = "", given: str = "") -> Figure:
    """Draws the bound, reconstruction and KL of training and validation data against the epoch, in nats per datum.

    Args:
        records: the records of the epochs.
        title: the title of the figure.
        given: what the model is given with x, such as "y" for labels, for what is written.
    """
    bar, comma = (f"|{given}", f",{given}") if given else ("", "")
    figure = new_figure(11, 3.4, title)
    epochs = [record.epoch for record in records]
    for axes, name, label in zip(
        figure.subplots(1, 3),
        ("bound", "reconstruction", "kl"),
        (
            f"bound on log p(x{bar})",
            f"reconstruction  E log p(x|t{comma})",
            f"KL  E log q(t|x{comma}) − log p(t)",
        ),
        strict=True,
    ):
        curves = [[getattr(getattr(record, split), name) for record in records] for split in ("train", "valid")]
        marker = "o" if len(records) < 15 else ""
        axes.plot(epochs, curves[0], color="C0", marker=marker, ms=3, label="train")
        axes.plot(epochs, curves[1], color="C1", marker=marker, ms=3, label="validation")
        axes.set(xlabel="epoch", ylabel="nats per datum", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        values = np.array(curves)
        _within(axes, values[:, _start(values, np.array(epochs)) :])
    figure.axes[0].legend(loc="lower right")
    return figure


@takes
def bounds(records: Mapping[str, Sequence[Epoch]], title: str = "", colors: Sequence[str] = ()) -> Figure:
    """Draws the bounds of several runs against the epoch, in nats per datum: of validation data, and dotted of training data.

    Args:
        records: the records of each run's epochs, by its name.
        title: the title of the figure.
        colors: the colors of the runs, which are repeated where there are more runs; matplotlib's own by default.
    """
    figure = new_figure(9, 3.6, title)
    axes = figure.subplots()
    shown: list[np.ndarray] = []
    for i, (name, epochs) in enumerate(records.items()):
        at = np.array([record.epoch for record in epochs])
        values = np.array([[getattr(record, split).bound for record in epochs] for split in ("train", "valid")])
        values[~np.isfinite(values)] = np.nan
        color = colors[i % len(colors)] if colors else f"C{i}"
        marker = MARKERS[i // len(colors) % len(MARKERS)] if colors and i >= len(colors) else ""
        marker = marker or ("o" if len(at) < 15 else "")
        axes.plot(at, values[0], color=color, ls=":", lw=1, marker="" if len(at) > 1 else "x", ms=4)
        axes.plot(at, values[1], color=color, marker=marker, ms=3, label=literal(name))
        shown.append(values[:, _start(values, at) :].ravel())
    _within(axes, np.concatenate(shown))
    axes.set(xlabel="epoch", ylabel="bound, nats per datum")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


_EXTREME = 3.0
"""How many times wider the range of all values must be than that of the later ones for the first ones to be left outside."""


def _start(values: np.ndarray, at: np.ndarray) -> int:
    """Returns from which of the moments ``at`` on values (n, T) are shown, so that the later ones can be told apart.

    It is the first one, unless the values of the first tenth are so far away that the others would look all the same.
    """
    first = int(np.searchsorted(at, at[0] + (at[-1] - at[0]) / 10, side="right"))
    later = values[:, first:]
    if later.shape[1] < 2 or np.ptp(values) <= _EXTREME * np.ptp(later):
        return 0
    return first


def _within(axes: Axes, values: np.ndarray) -> None:
    """Makes the vertical axis show these values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    margin = 0.05 * np.ptp(finite) or 1.0
    axes.set_ylim(finite.min() - margin, finite.max() + margin)


class Curve(NamedTuple):
    """One estimator's test log p(x), with one row for each seed, at the same steps."""

    steps: np.ndarray
    seconds: np.ndarray
    log_px: np.ndarray


@takes
def convergence(curves: Mapping[str, Curve], title: str = "") -> Figure:
    """Draws test log p(x) against steps and wall time.

    The line is the mean over seeds, and the band its 95 % interval over seeds (Student's t), where there are several.
    """
    figure = new_figure(11, 4.2, title)
    panels = figure.subplots(1, 2, sharey=True)
    shown: list[np.ndarray] = []
    steps = next(iter(curves.values())).steps
    start = _start(np.concatenate([curve.log_px for curve in curves.values()]), steps)
    for i, (name, curve) in enumerate(curves.items()):
        middle, low, high = np.array([interval(values) for values in curve.log_px.T]).T
        shown += [each[start:] for each in (middle, low, high)]
        for axes, at in zip(panels, (curve.steps, curve.seconds.mean(0)), strict=True):
            axes.plot(at, middle, color=f"C{i}", marker=MARKERS[i % len(MARKERS)], ms=4, label=name)
            if len(curve.log_px) > 1:
                axes.fill_between(at, low, high, color=f"C{i}", alpha=0.2, lw=0)
    _within(panels[0], np.concatenate(shown))
    moments = [(curve.steps, curve.seconds.mean(0)) for curve in curves.values()]
    for j, (axes, label) in enumerate(zip(panels, ("steps", "seconds of training"), strict=True)):
        low, high = min(each[j][start] for each in moments), max(each[j][-1] for each in moments)
        margin = 0.05 * (high - low) or 0.5
        axes.set_xlim(low - margin, high + margin)
        axes.set_xlabel(f"{label} (those before {low:.3g} lie far outside)" if start else label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test log p(x), nats per datum")
    panels[0].legend(loc="lower right")
    return figure


@takes
def gaps(bars: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str = "", *, over_seeds: bool = False) -> Figure:
    """Draws log p(x) and ELBO of the same data for each name, as means with their 95 % intervals (Student's t).

    The line between the two is the gap. With intervals over seeds, each seed is a small point.

    Args:
        bars: log p(x) and ELBO, each ``(S, N)`` for S seeds and N data.
        title: the title of the figure.
        over_seeds: whether intervals are over seeds, of means over data; otherwise over data, of means over seeds.
    """
    names = [wrapped(name) for name in bars]
    figure = new_figure(8.5, sum(0.35 + 0.15 * name.count("\n") for name in names) + 1.6, title)
    axes = figure.subplots()
    for i, (log_px, elbo) in enumerate(bars.values()):
        axes.plot([elbo.mean(), log_px.mean()], [i + 0.12, i - 0.12], color="0.6", lw=2, zorder=0)
        for values, color, marker, label, at in (
            (elbo, "C1", "s", "ELBO", i + 0.12),
            (log_px, "C0", "o", "log p(x)", i - 0.12),
        ):
            found = mean(values.mean(1 if over_seeds else 0))
            reach = found.reach if np.isfinite(found.reach) else None
            axes.errorbar(
                found.mean, at, xerr=reach, fmt=marker, color=color, capsize=3, label=label if i == 0 else None
            )
            if over_seeds:
                axes.plot(values.mean(1), np.full(len(values), at), ".", color=color, ms=4, alpha=0.6)
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.set(xlabel="nats per datum", ylim=(len(bars) - 0.4, -0.6))
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
