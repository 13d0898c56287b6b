"""Data that do not fit into memory: rows of a file that are read when they are used give the bits that data in memory give."""

from __future__ import annotations

import json
import os
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vae import ModelSpec, fit, stored
from pyro_vae.app.comparisons.cell import data_digest
from pyro_vae.data import Arrays, Splits, npy_files
from pyro_vae.evaluate import evidence, reconstruct
from pyro_vae.figures import look_of
from pyro_vae.guides import DiagonalNormal, PerDatum
from pyro_vae.likelihoods import default_likelihood
from pyro_vae.missing import count_missing, filling_of, has_missing, observed_ends, observed_mean, spread_of
from pyro_vae.models import TwoLayer
from pyro_vae.networks import MLP
from pyro_vae.priors import ExemplarPrior, VampPrior
from pyro_vae.stored import Stored, blocks

RNG = np.random.default_rng(0)
GAPS = RNG.normal(3, 2, (120, 6)).astype(np.float32)
GAPS[RNG.random(GAPS.shape) < 0.2] = np.nan
ARRAYS = {
    "real numbers": (RNG.normal(size=(120, 5)) * [1, 10, 100, 0.1, 1] + [0, 5, 900, 0, 0], {}),
    "missing values": (GAPS, {}),
    "counts": (RNG.integers(0, 17, (120, 4, 4), dtype=np.uint8), {"channels": "none"}),
    "levels": (RNG.integers(0, 256, (120, 4, 4, 3), dtype=np.uint8), {"channels": "last"}),
    "bits": (RNG.integers(0, 2, (120, 6)).astype(bool), {}),
    "a signal": (RNG.normal(size=(120, 1, 40)).astype(np.float16), {}),
}
PIXELS = RNG.integers(0, 17, (120, 1, 4, 4)).astype(">i4")
SPEC = ModelSpec(guide=partial(DiagonalNormal, network=partial(MLP, hidden=[6])), latent=2)


@pytest.fixture
def in_pieces(monkeypatch):
    """Blocks of a few rows, and no held-out data in memory: what a large file has, of small files."""
    monkeypatch.setattr(stored, "HELD", 0)
    monkeypatch.setattr(stored, "BLOCK", 300)


@pytest.fixture
def never_held(monkeypatch):
    """No held-out data in memory, and all data in one block, in which sums are those of data in memory."""
    monkeypatch.setattr(stored, "HELD", 0)


@pytest.fixture
def held_if_held_out(monkeypatch):
    """Held-out data in memory, as those are whose pixels were drawn once, and blocks of a few rows."""
    monkeypatch.setattr(stored, "HELD", 3000)
    monkeypatch.setattr(stored, "BLOCK", 300)


def both(tmp_path, array: np.ndarray, **options) -> tuple[Splits, Splits]:
    """Data in memory, and the same data in their file."""
    np.save(tmp_path / "x.npy", array)
    given = {"valid": 20, "test": 30} | options
    return tuple(Arrays(tmp_path / "x.npy", in_memory=each, **given).load() for each in (True, False))


def trained(data: Splits, spec: ModelSpec = SPEC, **options) -> tuple[Tensor, list]:
    """The weights after two epochs, and the bounds of each."""
    model = spec.build(data, 0)
    records = [(each.train, each.valid) for each in fit(model, data, epochs=2, batch_size=16, **options)]
    return torch.cat([value.flatten().double() for value in model.state_dict().values()]), records


@pytest.mark.parametrize(
    ("name", "compile"), [*((name, "off") for name in ARRAYS), ("real numbers", "on"), ("missing values", "on")]
)
def test_weights_after_two_epochs_have_the_same_bits(tmp_path, never_held, traced, caplog, name, compile):
    array, options = ARRAYS[name]
    inside, outside = both(tmp_path, array, **options)
    assert isinstance(outside.train.x, Stored)
    weights, records = trained(inside, compile=compile)
    others, same = trained(outside, compile=compile)
    assert torch.equal(weights, others)
    assert records == same
    assert "eagerly" not in caplog.text


@pytest.mark.parametrize("compile", ["off", "on"])
def test_so_they_have_where_pixels_are_drawn_anew(tmp_path, held_if_held_out, traced, compile):
    inside, outside = both(tmp_path, PIXELS, binarize="dynamic")
    assert isinstance(outside.train.x, Stored)
    assert torch.equal(outside.test.x, inside.test.x)
    one, other = (trained(each, compile=compile) for each in (inside, outside))
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("name", ["real numbers", "counts", "bits", "levels"])
def test_so_they_have_where_the_file_has_many_blocks(tmp_path, in_pieces, name):
    array, options = ARRAYS[name]
    inside, outside = both(tmp_path, array, **options)
    assert len(list(blocks(outside.train.x))) > 3
    weights, records = trained(inside)
    others, same = trained(outside)
    if name in (
        "real numbers",
        "bits",
    ):  # their means are the same: those are rounded from float64, and these are exact
        assert torch.equal(weights, others)
        assert records == same
    torch.testing.assert_close(weights, others, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_told_of_data_is_the_same(tmp_path, in_pieces, name):
    array, options = ARRAYS[name]
    inside, outside = both(tmp_path, array, **options)
    assert (inside.x_shape, inside.view, inside.standardize) == (outside.x_shape, outside.view, outside.standardize)
    assert str(inside.support) == str(outside.support)
    assert inside.missing == outside.missing
    assert data_digest(inside) == data_digest(outside)
    assert look_of(inside) == look_of(outside)
    chosen = [default_likelihood(each.support, each.train.x, each.standardize, each.view) for each in (inside, outside)]
    assert chosen[0].reason == chosen[1].reason
    x, y = inside.train.x, outside.train.x
    assert observed_ends(x) == observed_ends(y)
    assert count_missing(x) == count_missing(y)
    assert has_missing(x) == has_missing(y)
    assert torch.equal(filling_of(x), filling_of(y))
    torch.testing.assert_close(observed_mean(x), observed_mean(y))
    assert spread_of(x.flatten(1)) == pytest.approx(spread_of(y), rel=1e-5)
    one, other = inside.dims(2), outside.dims(2)
    assert one.x_scale == other.x_scale
    if one.x_units is not None:
        torch.testing.assert_close(one.x_units, other.x_units, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(prior=partial(VampPrior, components=5), latent=2),
        ModelSpec(prior=partial(ExemplarPrior, exemplars=9, drawn=3), latent=2),
        ModelSpec(guide=PerDatum, latent=2),
        ModelSpec(model=TwoLayer, latent=2),
    ],
    ids=["VampPrior", "ExemplarPrior", "PerDatum", "TwoLayer"],
)
def test_parts_that_look_at_the_training_data_take_them_from_the_file(tmp_path, in_pieces, spec):
    inside, outside = both(tmp_path, ARRAYS["real numbers"][0])
    assert torch.equal(trained(inside, spec)[0], trained(outside, spec)[0])


def test_evaluation_is_the_same(tmp_path, in_pieces):
    inside, outside = both(tmp_path, GAPS, standardize=True)
    model = SPEC.build(inside, 0)
    for data in (inside, outside):
        assert isinstance(data.test.x, Stored) == (data is outside)
    found = [evidence(model, each.test, K=20, batch_size=10).log_px for each in (inside, outside)]
    assert torch.equal(*found)
    assert torch.equal(*(reconstruct(model, each.test.first(5)) for each in (inside, outside)))


def test_held_out_data_are_in_memory_where_they_fit(tmp_path):
    _, data = both(tmp_path, ARRAYS["counts"][0], channels="none")
    assert not any(isinstance(each.x, Stored) for each in (data.valid, data.test))


def test_a_training_in_memory_goes_on_from_a_file(tmp_path, held_if_held_out):
    inside, outside = both(tmp_path, PIXELS, binarize="dynamic")
    whole = SPEC.build(inside, 0)
    list(fit(whole, inside, epochs=2, batch_size=16))
    cut = SPEC.build(inside, 0)
    next(fit(cut, inside, epochs=2, batch_size=16, checkpoint=tmp_path / "c", checkpoint_every="10 steps"))
    again = SPEC.build(outside, 0)
    records = list(fit(again, outside, epochs=2, batch_size=16, checkpoint=tmp_path / "c"))
    assert records
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(60.0).reshape(30, 2) * 1e-3 + 1e9,
        (np.arange(60).reshape(30, 2) + 2**53).astype(np.int64),
        np.where(np.arange(60).reshape(30, 2) == 7, 1e200, 0.5),
        np.where(np.arange(60).reshape(30, 2) == 8, np.inf, 0.5),
        np.where(np.arange(60).reshape(30, 2) % 2 == 1, np.nan, 0.5),
        np.full((30, 2), 0.1),
        np.full((30, 2), 1 / 3 + 1e6),
        np.arange(60).reshape(30, 2).astype(np.uint64),
    ],
    ids=["digits", "large", "overflow", "infinite", "missing", "constant", "large constant", "whole"],
)
def test_numbers_are_refused_alike(tmp_path, in_pieces, array, default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        np.save(tmp_path / "x.npy", array)
        told = []
        for in_memory in (True, False):
            try:
                Arrays(tmp_path / "x.npy", in_memory=in_memory).load()
                told.append("")
            except ValueError as error:
                told.append(str(error))
        assert told[0] == told[1]
    finally:
        torch.set_default_dtype(before)


def test_what_cannot_be_read_row_by_row_is_told(tmp_path):
    x = RNG.normal(size=(20, 3))
    np.savez(tmp_path / "x.npz", x=x)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for name in ("x.npz", "x.csv"):
        with pytest.raises(ValueError, match=r"in_memory: .* cannot be read row by row, which only a .npy file can"):
            Arrays(tmp_path / name, in_memory=False).load()
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    with pytest.raises(ValueError, match=r"Fortran's order.*np.ascontiguousarray"):
        Arrays(tmp_path / "f.npy", in_memory=False).load()
    np.save(tmp_path / "x.npy", np.array([["a", "b"]]))
    with pytest.raises(TypeError, match="expected numbers in x"):
        Arrays(tmp_path / "x.npy", in_memory=False).load()
    np.save(tmp_path / "x.npy", np.empty((0, 3)))
    with pytest.raises(ValueError, match=r"expected an array \(N, ...\) of N data, got shape \(0, 3\)"):
        Arrays(tmp_path / "x.npy", in_memory=False).load()
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"there is no array 'y' of labels in it, but \['x'\]"):
        Arrays(tmp_path / "x.npy", labels="y", in_memory=False).load()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        Arrays(tmp_path / "y.npy", in_memory=False).load()


def test_pixels_that_would_be_drawn_once_and_kept_are_refused(tmp_path, never_held):
    np.save(tmp_path / "x.npy", RNG.random((30, 1, 4, 4)))
    with pytest.raises(ValueError, match=r"^binarize: the pixels of 18 data .* choose dynamic"):
        Arrays(tmp_path / "x.npy", binarize="fixed", in_memory=False).load()


def test_a_file_that_changes_while_it_is_in_use_is_told(tmp_path, never_held):
    np.save(tmp_path / "x.npy", RNG.normal(size=(100, 3)))
    x = Arrays(tmp_path / "x.npy", in_memory=False).load().train.x
    os.truncate(tmp_path / "x.npy", 300)
    with pytest.raises(ValueError, match="was changed while it is in use"):
        x[:2]


def test_by_default_a_file_is_read_where_it_fits(tmp_path, never_held, monkeypatch, caplog):
    np.save(tmp_path / "x.npy", RNG.normal(size=(100, 3)))
    assert not isinstance(Arrays(tmp_path / "x.npy").load().train.x, Stored)
    monkeypatch.setattr(npy_files, "_memory", lambda: 4000)
    assert isinstance(Arrays(tmp_path / "x.npy").load().train.x, Stored)
    assert "takes more than a quarter of the memory" in caplog.text
    assert "--data.in_memory true reads it whole" in caplog.text
    assert not isinstance(Arrays(tmp_path / "x.npy", in_memory=True).load().train.x, Stored)


def test_rows_in_any_order(tmp_path, never_held):
    x = RNG.normal(size=(50, 3)).astype(np.float32)
    _, data = both(tmp_path, x, valid=1, test=1)
    rows = data.train.x
    whole = rows[:]
    for key in (torch.tensor([3, 4, 5, 1, 1, 47]), slice(2, 40, 3), torch.tensor([9, -1]), whole[:, 0] > 0):
        assert torch.equal(rows[key], whole[key])
    assert torch.equal(rows[-2], whole[-2])
    with pytest.raises(IndexError):
        rows[48]
    assert repr(rows) == "Stored((48, 3), torch.float32, cpu)"


def test_what_would_read_everything_is_refused(tmp_path, never_held):
    _, data = both(tmp_path, ARRAYS["real numbers"][0])
    with pytest.raises(ValueError, match=r"these data are not in memory, and mean would read all of them"):
        data.train.x.mean()


def test_by_the_command_line(tmp_path, script, held_if_held_out):
    np.save(tmp_path / "x.npy", RNG.random((90, 1, 6, 6)).astype(np.float32))
    told = []
    for where in ("true", "false"):
        code, out, err = script(
            "train", "--data", "Arrays", "--data.path", "x.npy", "--data.binarize", "dynamic", "--data.in_memory", where,
            "--epochs", "2", "--batch_size", "20", "--test_particles", "10", "--out", where, "--latent", "2",
        )  # fmt: skip
        assert code == 0, out + err
        assert "Left out: figure" not in out + err
        assert "Left out: metric" not in out + err
        result = json.loads((tmp_path / where / "result.json").read_text())
        told.append((result["test"], result["log_px"]))
    np.testing.assert_allclose(list(told[0][0].values()), list(told[1][0].values()), rtol=1e-4)
