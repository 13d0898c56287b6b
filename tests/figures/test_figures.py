"""Figures draw what they are given, for every shape of data that there is."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

from pyro_vae import figures
from pyro_vae.data import Split, Splits, support_of
from pyro_vae.evaluate import GROUPS, SIDES, Draws, RankCurve, Terms, fit_line, moments
from pyro_vae.figures.look import MISSING
from pyro_vae.training import Epoch


def saved(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


SHAPES = {
    "image": [(1, 8, 8), (8, 9), (3, 8, 8), (12,), (2, 3, 4), (4, 5, 5), (1, 4, 5, 6)],
    "signal": [(2, 40), (1,)],
    "table": [(1,), (2, 3)],
}


@pytest.mark.parametrize(("kind", "shape"), [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes])
def test_data_of_any_shape_and_kind(kind, shape, tmp_path):
    """Nine data, one of which is missing wholly and one in part."""
    x, look, ticks = torch.rand(9, *shape), figures.Look(kind), [-2.0, 0.0, 2.0]
    means = x.clone()
    x[0], x.view(9, -1)[1, 0] = torch.nan, torch.nan
    saved(figures.reconstructions(x, means, look, "title"), tmp_path)
    saved(figures.samples(means, look, x=x), tmp_path)
    saved(figures.samples(means, look, x=x, names=["a", "b", "c"]), tmp_path)
    saved(figures.plane(means, ticks, look), tmp_path)
    saved(figures.traversals(means, ["$t_1$"] * 3, ticks, look), tmp_path)
    saved(figures.side_by_side({"one": means, "two": means}, look, x=x), tmp_path)


def brightness(figure) -> list[float]:
    """What is painted for each image of a figure, from 0 (black) to 1 (white), as the mean over its pixels."""
    painted = [image.to_rgba(image.get_array(), norm=True)[..., :3] for image in figure.axes[0].images]
    return [float(pixels.mean()) for pixels in painted]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-7, -2), (0, 65_535), (100, 140)])
def test_images_are_painted_over_the_whole_range_of_the_data(low, high, dtype, channels):
    """The lowest value is black, the highest white, the middle gray, in data and in means, gray and color."""
    levels = torch.tensor([low, (low + high) / 2, high])
    x = levels.reshape(3, 1, 1, 1).expand(3, channels, 4, 4)
    split = Split((x if dtype == torch.float32 else x.round().to(dtype)).float())
    look = figures.look_of(Splits(split, split, split, constraints.real))
    expected = [float((value - low) / (high - low)) for value in split.x[:, 0, 0, 0]]
    assert brightness(figures.reconstructions(split.x, split.x, look)) == pytest.approx(2 * expected, abs=0.01)
    for figure in (
        figures.samples(split.x[[0, 1, 2, 2]], look),
        figures.side_by_side({"one": split.x[[0, 1, 2, 2]]}, look),
    ):
        assert brightness(figure) == pytest.approx([*expected, 1.0], abs=0.01)


def test_ink_is_dark_and_light_is_light():
    x = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(4, 1, 1, 1)
    assert brightness(figures.samples(x, figures.Look(ink=True))) == pytest.approx([1, 0, 1, 0])
    assert brightness(figures.samples(x, figures.Look())) == pytest.approx([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("support", "values", "expected"),
    [
        (constraints.boolean, [0, 0, 0], (0, 1)),
        (constraints.unit_interval, [0.2, 0.4, 0.5], (0, 1)),
        (constraints.integer_interval(0, 16), [3, 5, 9], (0, 16)),
        (constraints.nonnegative_integer, [3, 5, 9], (3, 9)),
        (constraints.real, [-3, torch.nan, 4.5], (-3, 4.5)),
        (constraints.real, [-3, torch.inf, 4.5], (-3, 4.5)),
        (constraints.real, [2, 2, 2], (2, 3)),
        (constraints.real, [torch.nan] * 3, (0, 1)),
    ],
)
def test_the_range_is_that_of_the_support_or_of_the_data(support, values, expected):
    split = Split(torch.tensor(values).float().reshape(3, 1))
    look = figures.look_of(Splits(split, split, split, support))
    assert (look.low, look.high) == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_missing_pixels_have_a_color_of_their_own(channels):
    x = torch.full((1, channels, 2, 2), 0.5)
    x[0, 0, 0, 0] = torch.nan
    figure = figures.samples(x, figures.Look())
    (image,) = figure.axes[0].images
    painted = image.to_rgba(image.get_array(), norm=True)[..., :3]
    assert painted[0, 0] == pytest.approx(matplotlib.colors.to_rgb(MISSING))
    assert painted[1, 1] == pytest.approx([0.5] * 3, abs=0.01)


def test_a_signal_and_its_reconstruction_are_lines_in_one_panel():
    x, means = torch.randn(3, 2, 20), torch.randn(3, 2, 20)
    figure = figures.reconstructions(x, means, figures.Look("signal", -3, 3))
    assert len(figure.axes) == 6 - 3  # one line of three panels
    for axes, datum, mean in zip(figure.axes, x, means, strict=True):
        lines = np.stack([line.get_ydata() for line in axes.lines])
        np.testing.assert_allclose(lines, torch.cat([datum, mean]).numpy(), rtol=1e-6)


def test_a_table_has_a_named_panel_for_each_column():
    x, means = torch.randn(40, 3), torch.randn(40, 3)
    x[0, 1] = torch.nan
    look = figures.Look("table", columns=("age", "height", "weight"))
    figure = figures.reconstructions(x, means, look)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["age", "height", "weight"]
    for j, axes in enumerate(panels):
        seen = x[:, j].isfinite()
        offsets = axes.collections[0].get_offsets()
        np.testing.assert_allclose(offsets, torch.stack([x[seen, j], means[seen, j]], 1).numpy(), rtol=1e-6)


def test_a_histogram_counts_shares_of_data_and_of_samples():
    """A column of whole numbers has a bin for each; what samples have beyond the bins is not spread over the others."""
    x, drawn = torch.tensor([0.0, 1.0, 1.0, 2.0]).reshape(4, 1), torch.tensor([1.0, 1.0, 1.0, 2.0]).reshape(4, 1)
    figure = figures.samples(drawn, figures.Look("table"), x=x)
    filled, line = (patch.get_xy()[:, 1] for patch in figure.axes[0].patches)
    assert max(filled) == pytest.approx(2 / 4)
    assert max(line) == pytest.approx(3 / 4)


@pytest.mark.parametrize("epochs", [1, 30])
def test_learning_curves_show_every_record(epochs, tmp_path):
    records = [
        Epoch(e, Terms(-100 - 50 / e, -80 - 50 / e, 20.0), Terms(-101 - 50 / e, -80.0, 21.0), 1e-3, 1.0)
        for e in range(1, epochs + 1)
    ]
    figure = figures.learning_curves(records)
    saved(figure, tmp_path)
    assert all(tick == round(tick) for axes in figure.axes for tick in axes.get_xticks())
    train, valid = figure.axes[0].lines
    assert train.get_xdata().tolist() == [record.epoch for record in records]
    assert valid.get_ydata().tolist() == [record.valid.bound for record in records]


@pytest.mark.parametrize("n", [1, 2, 4, 5])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("alike", [False, True])
def test_latents_of_few_data(n, shape, alike, tmp_path):
    """t-SNE needs several different points: the test set may be one datum, and latents without noise may coincide."""
    t = torch.randn(n, *shape)
    figure = figures.latents(t[:1].expand(n, *shape) if alike else t, None)
    saved(figure, tmp_path)
    assert len(figure.axes[0].collections[0].get_offsets()) == n


@pytest.mark.parametrize(
    ("site", "j", "shape", "expected"),
    [
        ("a", 0, (), "a"),
        ("a", 0, (1,), "a"),
        ("a", 1, (2,), "a[2]"),
        ("a", 3, (2, 3), "a[2,1]"),
        ("t", 0, (1,), "$t$"),
        ("t", 2, (4,), "$t_{3}$"),
    ],
)
def test_coordinates_are_called_by_their_place(site, j, shape, expected):
    assert figures.coordinate(site, j, shape) == expected


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("classes", [None, 3, 50])
def test_latents(d, classes, tmp_path):
    labels = None if classes is None else torch.arange(60) % classes
    figure = figures.latents(torch.randn(60, d), labels)
    saved(figure, tmp_path)
    points = sum(len(collection.get_offsets()) for collection in figure.axes[0].collections)
    assert points == 60


@pytest.mark.parametrize(
    ("shape", "top", "outlier", "expected"),
    [
        ((16, 16), 7000.0, 65535.0, (800, 7000)),  # one saturated pixel of a 16-bit camera
        ((1, 16, 16), 7000.0, 65535.0, (800, 7000)),
        ((16, 16), 40000.0, 65535.0, (0, 65535)),  # most of the range is used
        ((16, 16), 200.0, 255.0, (0, 255)),  # levels 0..255 keep their range
        ((16, 16), 3.5, 900.5, (800e-3, 3.5)),  # real numbers
        ((256,), 3.5, 900.5, (800e-3, 900.5)),  # lines would leave their panel
    ],
)
def test_a_few_bright_pixels_leave_no_image_dark(shape, top, outlier, expected):
    """The range is told by all but a thousandth of the values at either end, here of 100 images."""
    low = 0.8 if top == 3.5 else min(800.0, top / 4)
    x = torch.linspace(low, top, 100 * 256)
    x = (x if top == 3.5 else x.round())[torch.randperm(len(x))].reshape(100, *shape)
    x.view(-1)[0] = outlier
    data = Split(x)
    look = figures.look_of(Splits(data, data, data, support_of(x)))
    assert (look.low, look.high) == pytest.approx(expected, rel=0.01)


def test_no_global_state_of_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)
    saved(figures.samples(torch.rand(4, 1, 4, 4), figures.Look()), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_comparisons_with_little_to_show(tmp_path):
    """One K, one seed, an estimator that is not resolved, no labels."""
    draws = Draws(dict.fromkeys(SIDES, torch.randn(GROUPS, 9)), dict.fromkeys(SIDES, [9.0] * GROUPS), 0.01, 3)
    found = moments(draws, draws)["w"]
    line = figures.SNRLine([3], [found.snr()], fit_line([3], [found.log_snr()]), 1)
    saved(figures.snr({"w": {"IWAE": line}, "phi": {"IWAE": line}}), tmp_path)
    cost = {"IWAE": ([3], np.array([found.variance]))}
    saved(figures.cost({"w": cost, "phi": cost}), tmp_path)
    one = figures.Curve(np.array([0, 10]), np.array([[0.0, 1.0]]), np.array([[-200.0, -100.0]]))
    saved(figures.convergence({"IWAE": one}), tmp_path)


@pytest.mark.parametrize("over_seeds", [False, True])
def test_bars_are_95_percent_intervals_over_seeds_or_over_data(over_seeds):
    """Their ends are SciPy's, and each seed is a point where they are over seeds."""
    log_px, elbo = np.random.default_rng(0).normal(-100, 3, (2, 3, 20))
    axes = figures.gaps({"one": (log_px, elbo)}, over_seeds=over_seeds).axes[0]
    for values, bars in zip((elbo, log_px), axes.containers, strict=True):
        means = values.mean(1 if over_seeds else 0)
        expected = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
        (segment,) = bars[2][0].get_segments()
        np.testing.assert_allclose(segment[:, 0], expected)
    points = [line.get_xdata() for line in axes.lines if line.get_marker() == "."]
    assert len(points) == (2 if over_seeds else 0)
    if over_seeds:
        np.testing.assert_allclose(points[0], elbo.mean(1))


def test_the_band_of_a_curve_is_the_interval_over_seeds():
    values = np.random.default_rng(0).normal(-100, 3, (4, 3))
    curve = figures.Curve(np.array([0, 10, 20]), np.ones((4, 3)), values)
    axes = figures.convergence({"IWAE": curve}).axes[0]
    low, high = stats.t.interval(0.95, 3, values.mean(0), stats.sem(values))
    drawn = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert drawn.min() == pytest.approx(low.min())
    assert drawn.max() == pytest.approx(high.max())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), values.mean(0))


@pytest.mark.parametrize(
    ("kind", "shape"), [("image", (1, 8, 8)), ("image", (3, 8, 8)), ("signal", (2, 40)), ("table", (5,))]
)
def test_cases_of_any_kind(kind, shape, tmp_path):
    x = torch.rand(36, *shape)
    data = x[:18].clone()
    data[0] = torch.nan
    case = figures.Case(data, x[:18], x, torch.randn(40, 3), torch.randn(50, 3))
    saved(figures.cases({"one": case, "other": case}, None, figures.Look(kind)), tmp_path)


@pytest.mark.parametrize(("latents", "points"), [(1, 2), (5, 99), (40, 20)])
def test_calibration_draws_each_curve_with_its_band(latents, points, tmp_path):
    """Latents and joint quantities as differences from the level, coverage and TARP against it."""
    level = np.arange(1, points + 1) / (points + 1)
    names = [f"t[{j}]" for j in range(latents)] + ["log p(x|t)", "log p(t)", "log w", "coverage", "TARP"]
    curves = [
        RankCurve(name, level, level**1.2, np.maximum(level - 0.1, 0), np.minimum(level + 0.1, 1), 0.5 if i else 0.01)
        for i, name in enumerate(names)
    ]
    figure = figures.calibration(curves, "title")
    saved(figure, tmp_path)
    first, joint, coverage, tarp = figure.axes
    assert len(first.lines) == latents + 1  # and the line at 0
    assert first.get_legend().get_texts()[0].get_text().endswith("not calibrated")
    assert len(first.get_legend().get_texts()) == min(latents, 5)
    assert len(joint.lines) == 4
    np.testing.assert_allclose(joint.lines[0].get_ydata(), level**1.2 - level)
    np.testing.assert_allclose(coverage.lines[1].get_ydata(), level**1.2)
    assert (coverage.get_title(), tarp.get_title()) == ("expected coverage", "TARP")
    band = coverage.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(min(level[-1] + 0.1, 1))
    assert len(figures.calibration(curves[-2:]).axes) == 2
    with pytest.raises(ValueError, match="curves: expected at least one"):
        figures.calibration([])
