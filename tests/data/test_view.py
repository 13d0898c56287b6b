"""What kind data are is told by their shape, unless somebody says it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import constraints

from pyro_vae.data import Arrays, Digits, Split, View, make_splits


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((), "table"),
        ((1,), "table"),
        ((30,), "table"),
        ((31,), "signal"),
        ((1, 5), "signal"),
        ((4, 64), "signal"),
        ((4, 4), "image"),
        ((5, 64), "image"),
        ((64, 2), "image"),
        ((3, 8, 8), "image"),
        ((1, 8, 8, 8), "image"),
    ],
)
def test_the_shape_tells_the_kind(shape, kind):
    assert View().kind_of(shape) == kind
    assert View("image").kind_of(shape) == "image"


def test_named_columns_are_a_table():
    assert View(columns=("a",) * 50).kind_of((50,)) == "table"


def test_an_unknown_kind_is_refused():
    view = View()
    object.__setattr__(view, "kind", "video")  # the tests' type checks would refuse it before
    with pytest.raises(ValueError, match="kind: expected one of auto, image, signal, table, got 'video'"):
        view.__post_init__()


@pytest.mark.parametrize("binarize", ["none", "dynamic", "fixed"])
def test_a_view_goes_with_the_splits(binarize):
    view = View("signal", ink=True)
    splits = make_splits(Split(torch.rand(9, 5)), valid=2, test=2, binarize=binarize, view=view)
    assert splits.view == splits.to(torch.device("meta")).view == view
    assert make_splits(Split(torch.rand(9, 5)), valid=2, test=2, binarize=binarize).view == View()


def test_data_sets_say_how_they_are_shown(tmp_path):
    assert Digits().load().view == View(ink=True)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 16)))
    arrays = Arrays(tmp_path / "x.npy", valid=2, test=2, kind="image", ink=True).load()
    assert arrays.view == View("image", ink=True)
    assert arrays.support is constraints.real
