"""Figures draw what they are given, for every shape of data that there is."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from pyro_vae import figures
from pyro_vae.evaluate import GROUPS, SIDES, Draws, Terms, fit_line, moments
from pyro_vae.training import Epoch


def saved(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 9), (3, 8, 8), (12,), (2, 3, 4)])
def test_images_of_any_shape(shape, tmp_path):
    images = torch.rand(25, *shape)
    saved(figures.reconstructions(images, images, "title"), tmp_path)
    saved(figures.samples(images, vmax=1.0), tmp_path)
    saved(figures.plane(images, [-2.0, -1.0, 0.0, 1.0, 2.0], vmax=1.0), tmp_path)
    saved(figures.traversals(images, ["$t_1$"] * 5, [-2.0, -1.0, 0.0, 1.0, 2.0], vmax=1.0), tmp_path)


@pytest.mark.parametrize("epochs", [1, 30])
def test_learning_curves_show_every_record(epochs, tmp_path):
    records = [
        Epoch(e, Terms(-100 - 50 / e, -80 - 50 / e, 20.0), Terms(-101 - 50 / e, -80.0, 21.0), 1e-3, 1.0)
        for e in range(1, epochs + 1)
    ]
    figure = figures.learning_curves(records)
    saved(figure, tmp_path)
    train, valid = figure.axes[0].lines
    assert train.get_xdata().tolist() == [record.epoch for record in records]
    assert valid.get_ydata().tolist() == [record.valid.bound for record in records]


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("classes", [None, 3, 50])
def test_latents(d, classes, tmp_path):
    labels = None if classes is None else torch.arange(60) % classes
    figure = figures.latents(torch.randn(60, d), labels)
    saved(figure, tmp_path)
    points = sum(len(collection.get_offsets()) for collection in figure.axes[0].collections)
    assert points == 60


def test_no_global_state_of_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)
    saved(figures.samples(torch.rand(4, 1, 4, 4), vmax=1.0), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_comparisons_with_little_to_show(tmp_path):
    """One K, one seed, an estimator that is not resolved, no labels."""
    draws = Draws(dict.fromkeys(SIDES, torch.randn(GROUPS, 9)), dict.fromkeys(SIDES, [9.0] * GROUPS), 0.01)
    found = moments(draws, draws)["w"]
    line = figures.SNRLine([3], [found.snr()], fit_line([3], [found.log_snr()]), 1)
    saved(figures.snr({"w": {"IWAE": line}, "phi": {"IWAE": line}}), tmp_path)
    cost = {"IWAE": ([3], np.array([found.variance]))}
    saved(figures.cost({"w": cost, "phi": cost}), tmp_path)
    one = figures.Curve(np.array([0, 10]), np.array([[0.0, 1.0]]), np.array([[-200.0, -100.0]]))
    saved(figures.convergence({"IWAE": one}), tmp_path)
    images = torch.rand(36, 1, 8, 8)
    case = figures.Case(images[:18], images[:18], images, torch.randn(40, 3), torch.randn(50, 3))
    saved(figures.cases({"one": case, "other": case}, None, 1.0), tmp_path)
