"""Figures can be read: nothing is cut without need, each color is named, and labels do not stand on each other."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from pyro_vae import figures
from pyro_vae.evaluate import Interval, Terms, fit_line
from pyro_vae.training import Epoch


def records(first, T=20):
    """Curves that settle slowly, with one value of the first epoch."""
    return [
        Epoch(e, *[Terms(*[-100 - 20 * np.exp(-e / 8) + first * (e == 1)] * 3)] * 2, 1e-3, 1.0) for e in range(1, T + 1)
    ]


@pytest.mark.parametrize(("first", "all_shown"), [(0.0, True), (-10.0, True), (-5000.0, False)])
def test_learning_curves_cut_the_first_epochs_only_where_they_are_extreme(first, all_shown):
    axes = figures.learning_curves(records(first)).axes[0]
    values = axes.lines[0].get_ydata()
    assert bool(axes.get_ylim()[0] < values[0]) is all_shown
    assert axes.get_ylim()[0] < min(values[2:])


def test_learning_curves_of_a_conditional_model_say_so():
    titles = [axes.get_title() for axes in figures.learning_curves(records(0.0), given="y").axes]
    assert titles == ["bound on log p(x|y)", "reconstruction  E log p(x|t,y)", "KL  E log q(t|x,y) − log p(t)"]


def curve(first):
    values = np.array([first, -110, -103, -101, -100.0])
    return figures.Curve(
        np.array([0, 26, 52, 78, 104]), np.array([[0, 1, 2, 3, 4.0]] * 2), np.stack([values, values + 0.7])
    )


@pytest.mark.parametrize(("first", "start"), [(-115.0, 0), (-500.0, 1)])
def test_convergence_shows_each_evaluation_and_its_band_and_leaves_no_gap(first, start):
    figure = figures.convergence({"one": curve(first), "other": curve(first - 1)})
    (low, high), left = figure.axes[0].get_ylim(), figure.axes[0].get_xlim()[0]
    for axes in figure.axes:
        for band in axes.collections:
            shown = [y for x, y in band.get_paths()[0].vertices if x >= axes.lines[0].get_xdata()[start]]
            assert low <= min(shown)
            assert max(shown) <= high
    steps = figure.axes[0].lines[0].get_xdata()
    assert steps[start] - 0.1 * steps[-1] < left <= steps[start]
    assert ("lie far outside" in figure.axes[0].get_xlabel()) is bool(start)


def drawn(figure):
    figure.canvas.draw()
    return figure.canvas.get_renderer()


def test_the_legend_of_missing_values_stands_on_no_label():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    means = x.clone()
    x[0] = torch.nan
    figure = figures.reconstructions(x, means, figures.Look("table", -3, 3), "title")
    renderer = drawn(figure)
    legend = figure.legends[0].get_window_extent(renderer)
    labels = [axes.xaxis.label for axes in figure.axes if axes.get_xlabel()]
    assert len(labels) == 4  # below the last panel of each column
    assert not any(legend.overlaps(label.get_window_extent(renderer)) for label in labels)


def of_classes(n=10):
    labels = torch.arange(30) % n
    t, prior, x = torch.randn(30, 2), torch.randn(50, 2), torch.rand(18, 1, 4, 4)
    clouds = {name: figures.Cloud(prior, t, None, [0, 1]) for name in ("a", "b")}
    yield figures.against_prior(clouds, labels, name=lambda k: f"class {k:g}")
    cases = {name: figures.Case(x, x, x, t, prior) for name in ("a", "b")}
    yield figures.cases(cases, labels, figures.Look(), label=lambda k: f"class {k:g}")


def test_each_class_has_a_color_that_the_legend_names_and_none_is_gray():
    for figure in of_classes():
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [f"class {k}" for k in range(10)]
        named = [to_rgb(line.get_color()) for line in legend.get_lines()]
        assert len({*named}) == 10
        assert not any(r == g == b and r > 0 for r, g, b in named)
        points = figure.axes[-1].collections[-1]
        np.testing.assert_allclose(
            [to_rgb(color) for color in points.get_facecolors()], [named[i % 10] for i in range(30)]
        )


def test_signals_are_not_clipped_and_their_channels_are_named():
    x, look = torch.rand(3, 2, 20), figures.Look("signal", 0, 1)
    x[1] *= 1.8
    for figure in (
        figures.reconstructions(x, x, look),
        figures.samples(x, look),
        figures.plane(x[:1].expand(4, 2, 20) * 1.8, [-1.0, 1.0], look),
    ):
        low, high = figure.axes[0].get_ylim()
        values = [line.get_ydata() for axes in figure.axes for line in axes.lines]
        assert low < min(map(np.min, values))
        assert max(map(np.max, values)) < high
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts[-2:] == ["channel 1", "channel 2"]
    x[1, 0, 0] = 1e6  # what is far outside does not make all others flat
    assert figures.reconstructions(x, x, look).axes[0].get_ylim()[1] < 3
    assert not figures.samples(x[:, :1], look).legends


def test_a_color_bar_is_not_as_tall_as_the_page():
    ticks = [-1.0, 0.0, 1.0]
    figure = figures.traversals(torch.rand(30, 2, 20), [f"$t_{j}$" for j in range(10)], ticks, figures.Look("signal"))
    drawn(figure)
    assert figure.axes[-1].get_position().height * figure.get_figheight() < 3


def test_an_estimator_without_a_resolved_point_is_named():
    none, K = Interval(nan, nan, nan), [1, 10, 100]

    def line(*ratios):
        return figures.SNRLine(K, ratios, fit_line(K, [(nan, nan)] * 3), 10)

    figure = figures.snr({"phi": {"IWAE": line(Interval(1.0, 0.8, 1.2), none, none), "DReG": line(none, none, none)}})
    texts = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert texts == {"IWAE (2 of 3 K not resolved)", "DReG: not resolved at any K"}
