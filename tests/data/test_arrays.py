"""Files of one's own with nothing said: how many data are held out, and what is not taken in silence."""

from __future__ import annotations

import numpy as np
import pytest
from torch.distributions import constraints

from pyro_vae.data import Arrays


@pytest.mark.parametrize(
    ("N", "sizes"),
    [(3, (1, 1, 1)), (10, (6, 2, 2)), (500, (300, 100, 100)), (3000, (1000,) * 3), (4001, (2001, 1000, 1000))],
)
def test_a_thousand_are_held_out_or_a_fifth(tmp_path, N, sizes):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(N, 2)))
    assert tuple(map(len, Arrays(tmp_path / "x.npy").load()[:3])) == sizes


def test_too_many_held_out_names_the_options(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(500, 2)))
    with pytest.raises(
        ValueError, match=r"^test: expected between 1 and 499 of 500 data, got 1000: .* --data.test, say"
    ):
        Arrays(tmp_path / "x.npy", test=1000).load()


def test_arrays_that_are_not_read_are_told(tmp_path, caplog):
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    np.savez(tmp_path / "d.npz", x=x, y=y, when=y)
    assert Arrays(tmp_path / "d.npz").load().classes is None
    assert "of its arrays only x is read, and not 'when', 'y'. --data.labels when takes one as labels" in caplog.text
    caplog.clear()
    assert Arrays(tmp_path / "d.npz", labels="y").load().classes == 3
    assert "only x is read, and not 'when'" in caplog.text
    caplog.clear()
    np.savez(tmp_path / "d.npz", x=x, labels=y)
    assert Arrays(tmp_path / "d.npz").load().classes == 3
    assert not caplog.text


@pytest.mark.parametrize("binarize", ["fixed", "dynamic"])
def test_what_counts_are_divided_by_is_told(tmp_path, caplog, binarize):
    counts = np.random.default_rng(0).integers(0, 65, (50, 4))
    counts[0, 0] = 64
    np.save(tmp_path / "x.npy", counts)
    assert Arrays(tmp_path / "x.npy", binarize=binarize).load().support is constraints.boolean
    assert "its numbers, which go up to 64, are divided by 64" in caplog.text
    caplog.clear()
    np.save(tmp_path / "x.npy", counts / 64)
    Arrays(tmp_path / "x.npy", binarize=binarize).load()
    assert not caplog.text
