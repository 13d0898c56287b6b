"""Figures that compare estimators: signal-to-noise and cost of their gradients, and what they reach in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.figures.canvas import new_figure, panels_of
from pyro_vae.figures.images import tiles
from pyro_vae.gradients import Interval, Line

PARAMETERS = {"phi": "φ, the guide's", "w": "w, the model's"}
_MARKERS = "osD^vP*X<>hp"


class SNRLine(NamedTuple):
    """Signal-to-noise ratio of one estimator's gradient by one part of the parameters, against K, and the fitted line."""

    K: Sequence[int]
    snr: Sequence[Interval]
    line: Line
    fit_from: int


class Curve(NamedTuple):
    """One estimator's test log p(x): one row a seed, at the same steps."""

    steps: np.ndarray
    seconds: np.ndarray
    log_px: np.ndarray


def snr(lines: Mapping[str, Mapping[str, SNRLine]], title: str = "") -> Figure:
    """Signal-to-noise ratio against K on logarithmic axes, by part of the parameters and estimator, with fitted lines."""
    figure = new_figure(11, 4.6, title)
    for axes, (part, of_part) in zip(figure.subplots(1, len(lines)), lines.items(), strict=True):
        for i, (name, (K, ratios, line, fit_from)) in enumerate(of_part.items()):
            seen = [(k, ratio) for k, ratio in zip(K, ratios, strict=True) if isfinite(ratio.value)]
            at, value = np.array([k for k, _ in seen]), np.array([interval for _, interval in seen]).reshape(-1, 3)
            slope = f": slope {line.slope.value:+.2f} [{line.slope.low:+.2f}, {line.slope.high:+.2f}]"
            _errors(axes, at, value, i, name + (slope if line.points >= 3 else ""))
            if line.points >= 3:
                fitted = at[at >= fit_from]
                ends = np.array([fitted.min(), fitted.max()])
                axes.plot(ends, np.exp(line.intercept) * ends**line.slope.value, color=f"C{i}", lw=1)
        _logarithmic(axes, f"gradient by {PARAMETERS[part]}")
        axes.set_ylabel("signal-to-noise ratio of one draw")
        _legend(axes)
    return figure


def cost(rows: Mapping[str, Mapping[str, tuple[Sequence[int], np.ndarray]]], title: str = "") -> Figure:
    """Variance × time of a draw against K, by part of the parameters and estimator; values with their intervals (n, 3)."""
    figure = new_figure(11, 4.4, title)
    for axes, (part, of_part) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        for i, (name, (K, value)) in enumerate(of_part.items()):
            _errors(axes, np.array(K), value, i, name, joined=True)
        _logarithmic(axes, f"gradient by {PARAMETERS[part]}")
        axes.set_ylabel("variance × milliseconds: less is better")
        _legend(axes)
    return figure


def convergence(curves: Mapping[str, Curve], title: str = "") -> Figure:
    """Test log p(x) against steps and against wall time: the mean over seeds, and the band from the lowest to the highest."""
    figure = new_figure(11, 4.2, title)
    panels = figure.subplots(1, 2, sharey=True)
    for i, (name, curve) in enumerate(curves.items()):
        for axes, at in zip(panels, (curve.steps, curve.seconds.mean(0)), strict=True):
            axes.plot(at, curve.log_px.mean(0), color=f"C{i}", marker=_MARKERS[i % len(_MARKERS)], ms=4, label=name)
            axes.fill_between(at, curve.log_px.min(0), curve.log_px.max(0), color=f"C{i}", alpha=0.2, lw=0)
    # The state before the first step would leave no room for the differences: the axis begins after a tenth of the way.
    settled = np.concatenate([curve.log_px[:, curve.steps > curve.steps[-1] / 10].ravel() for curve in curves.values()])
    margin = 0.05 * (settled.max() - settled.min()) or 1.0
    panels[0].set_ylim(settled.min() - margin, settled.max() + margin)
    for axes, label in zip(panels, ("steps", "seconds of training"), strict=True):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test log p(x), nats per datum")
    panels[0].legend(loc="lower right")
    return figure


def timings(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Milliseconds by contender (with keys case, contender, ms, spread): one panel a case, shortest at the top."""
    by_case = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, panels = panels_of(len(by_case), title, width=3.8, height=0.32 * len(names) + 1.0)
    for panel, case in zip(panels, by_case, strict=True):
        of_case = sorted((row for row in rows if row["case"] == case), key=lambda row: -row["ms"])
        colors = [f"C{names.index(row['contender']) % 10}" for row in of_case]
        panel.barh(
            range(len(of_case)), [row["ms"] for row in of_case], xerr=[row["spread"] for row in of_case], color=colors
        )
        panel.set_yticks(range(len(of_case)), [row["contender"] for row in of_case], fontsize=7)
        panel.set_title(case, fontsize=9)
        panel.set_xlabel("ms")
        panel.grid(alpha=0.3, axis="x")
    return figure


def growth(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Milliseconds against a size (keys by, size, contender, ms, spread), on logarithmic axes: one panel a size."""
    kinds = list(dict.fromkeys(row["by"] for row in rows))
    figure = new_figure(3.6 * len(kinds), 3.4, title)
    for panel, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        of_kind = [row for row in rows if row["by"] == kind]
        for i, name in enumerate(dict.fromkeys(row["contender"] for row in of_kind)):
            points = [row for row in of_kind if row["contender"] == name]
            value = np.array([[row["ms"], row["ms"] - row["spread"], row["ms"] + row["spread"]] for row in points])
            _errors(panel, np.array([row["size"] for row in points]), value, i, name, joined=True)
        panel.set(xscale="log", yscale="log", xlabel=kind, ylabel="ms")
        panel.grid(alpha=0.3, which="both", lw=0.4)
        panel.legend(fontsize=8)
    return figure


class Case(NamedTuple):
    """One trained VAE in pictures: data and their reconstructions, samples, latents of data and of the prior."""

    x: Tensor
    reconstructions: Tensor
    samples: Tensor
    t: Tensor
    t_prior: Tensor


def cases(columns: Mapping[str, Case], labels: Tensor | None, vmax: float, title: str = "") -> Figure:
    """Cases side by side: reconstructions, samples, and the latents of data (colored by label) over those of the prior.

    Above two dimensions the two latents with the largest variance over data are shown.
    """
    figure = new_figure(3 * len(columns) + 0.4, 8.2, title)
    axes = figure.subplots(3, len(columns), squeeze=False, height_ratios=[1, 1, 1.2])
    for j, (name, case) in enumerate(columns.items()):
        tiles(axes[0, j], [part[i : i + 6] for i in (0, 6, 12) for part in (case.x, case.reconstructions)], vmax)
        tiles(axes[1, j], [case.samples[i : i + 6] for i in range(0, 36, 6)], vmax)
        axes[0, j].set_title(name, fontsize=10)
        for of_images in axes[:2, j]:
            of_images.set(xticks=[], yticks=[])
            of_images.spines[:].set_visible(False)
        t, t_prior = case.t.cpu().numpy(), case.t_prior.cpu().numpy()
        used = np.sort(t.var(0).argsort()[::-1][:2])
        plane = axes[2, j]
        first, second = used[0], used[-1]
        plane.scatter(t_prior[:, first], t_prior[:, second], s=4, color="0.8", linewidths=0, label="prior")
        color = {} if labels is None else {"c": labels.cpu().numpy(), "cmap": "tab10"}
        plane.scatter(t[:, first], t[:, second], s=5, alpha=0.8, linewidths=0, **color)
        plane.set(xlabel=f"$t_{{{first + 1}}}$", aspect="equal", adjustable="datalim")
        plane.grid(alpha=0.3)
        if j == 0:
            plane.set_ylabel(f"$t_{{{second + 1}}}$")
    for row, label in enumerate(("x and its reconstruction", "samples, t ~ p(t)")):
        axes[row, 0].set_ylabel(label)
    axes[2, 0].legend(loc="upper left", fontsize=8, markerscale=3)
    return figure


def _errors(axes: Axes, at: np.ndarray, value: np.ndarray, i: int, label: str, joined: bool = False) -> None:
    """Points with their intervals (n, 3), if there are any."""
    if not len(at):
        return
    middle, low, high = value.T
    axes.errorbar(
        at,
        middle,
        yerr=np.stack([middle - low, high - middle]),
        color=f"C{i}",
        marker=_MARKERS[i % len(_MARKERS)],
        ms=5,
        ls="-" if joined else "",
        lw=1,
        capsize=2,
        label=label,
    )


def _logarithmic(axes: Axes, title: str) -> None:
    axes.set(xlabel="K", title=title)
    if axes.containers:  # a logarithmic axis with nothing on it cannot be drawn
        axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both", lw=0.4)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
