"""Data sets: splits, binarization, and what a bad file says."""

from __future__ import annotations

import pickle
import urllib.request

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.distributions import constraints

from pyro_vae.data import MNIST, Arrays, Digits, FashionMNIST, Split, support_of
from pyro_vae.guides import DiagonalNormal


def test_digits_are_all_there_once():
    splits = Digits().load()
    assert [len(part) for part in splits[:3]] == [1300, 200, 297]
    assert splits.x_shape == (1, 8, 8)
    assert splits.support.upper_bound == 16
    everything = torch.cat([part.x for part in splits[:3]])
    assert everything.min() == 0
    assert everything.max() == 16

    def rows(x):
        return sorted(map(tuple, np.asarray(x).reshape(1797, 64).tolist()))

    assert rows(everything) == rows(load_digits().data)
    assert (
        torch.cat([part.labels for part in splits[:3]]).bincount().tolist()
        == np.bincount(load_digits().target).tolist()
    )


def test_splits_are_seeded():
    again, other = Digits().load(), Digits(split_seed=1).load()
    assert torch.equal(Digits().load().test.x, again.test.x)
    assert not torch.equal(again.test.x, other.test.x)


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST])
def test_torchvision_format(cls, mnist_root):
    splits = cls(mnist_root, valid=50).load()
    assert [len(part) for part in splits[:3]] == [250, 50, 100]
    assert splits.x_shape == (1, 28, 28)
    assert splits.train.dynamic
    assert not splits.valid.dynamic
    assert splits.support is constraints.boolean
    gray = cls(mnist_root, binarize="none", valid=50).load()
    levels = cls(mnist_root, binarize="levels", valid=50).load()
    torch.testing.assert_close(levels.train.x / 255, gray.train.x)
    assert (levels.train.x == levels.train.x.round()).all()
    assert levels.support.upper_bound == 255
    assert gray.support is constraints.unit_interval
    assert gray.train.x.max() == 1
    torch.testing.assert_close(splits.train.x, gray.train.x)


def test_dynamic_binarization_has_the_pixels_as_its_mean(mnist_root):
    split = MNIST(mnist_root, valid=50).load().train
    draws = torch.stack([split.columns().take(slice(0, 20))[0] for _ in range(400)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = split.x[:20]
    error = (p * (1 - p) / 400).sqrt()
    z = (draws.mean(0) - p)[error > 0] / error[error > 0]
    assert z.abs().max() < 5.5  # of 15,000 numbers
    assert z.std() == pytest.approx(1.0, abs=0.03)


def test_the_test_set_is_the_same_for_every_run(mnist_root):
    torch.manual_seed(1)
    one = MNIST(mnist_root, valid=50).load()
    torch.manual_seed(2)
    two = MNIST(mnist_root, valid=30, binarize="fixed", split_seed=4).load()
    assert torch.equal(one.test.x, two.test.x)
    assert set(one.test.x.unique().tolist()) == {0.0, 1.0}


def test_encoders_see_data_within_one(digits):
    """Counts 0..16 are divided by 16 for the networks of guides, and by nothing where values are within [-1, 1] already."""
    dims, seen = digits.dims(2), []
    assert dims.x_scale == 16
    guide = DiagonalNormal(dims)
    guide.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    guide(digits.train.x[:50])
    torch.testing.assert_close(seen[0], digits.train.x[:50] / 16)
    assert Digits(binarize="fixed").load().dims(2).x_scale == 1


def test_batches_hold_every_datum_once_and_keep_the_rest():
    split = Split(torch.arange(10.0)[:, None])
    batches = [x for (x,) in split.columns().batches(4)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat(batches).flatten().tolist() == list(range(10))
    order = split.columns().order()
    assert order.sort().values.tolist() == list(range(10))
    assert order.tolist() != list(range(10))


def test_arrays(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 3, 5))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, labels=np.arange(100))
    np.savez(tmp_path / "one.npz", anything=x)
    for name in ("x.npy", "x.npz", "one.npz"):
        splits = Arrays(tmp_path / name, valid=10, test=20).load()
        assert [len(part) for part in splits[:3]] == [70, 10, 20]
        assert splits.support is constraints.real
    labeled = Arrays(tmp_path / "x.npz", valid=10, test=20).load().train
    torch.testing.assert_close(labeled.x, torch.from_numpy(x[labeled.labels.numpy()]).float())


@pytest.mark.parametrize(
    ("values", "support"),
    [
        ([0.0, 1.0], "Boolean()"),
        ([0.0, 3.0], "IntegerInterval(lower_bound=0, upper_bound=3)"),
        ([0.0, 0.5], "Interval(lower_bound=0.0, upper_bound=1.0)"),
        ([-1.0, 2.0], "Real()"),
    ],
)
def test_support_of(values, support):
    assert str(support_of(torch.tensor(values))) == support


BAD = {
    "nan": (np.array([[1.0, np.nan]] * 9), r"x\[:, 1\] has no value, since all of it is missing"),
    "infinite": (np.array([[np.inf, 1.0]] * 9), r"9 of 18 values are infinite, the first in x\[:, 0\]"),
    "empty": (np.zeros((0, 3)), r"got shape \(0, 3\)"),
    "flat": (np.zeros(9), r"expected an array \(N, ...\) of N data, got shape \(9,\)"),
    "text": (np.array([["a", "b"]] * 9), "expected numbers in x, got <U1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_say_what_is_wrong(name, tmp_path):
    array, message = BAD[name]
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        Arrays(tmp_path / "x.npy", valid=2, test=2).load()


def test_bad_files_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.npy: there is no such file"):
        Arrays(tmp_path / "none.npy").load()
    (tmp_path / "junk.npy").write_bytes(b"junk")
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04junk")
    np.save(tmp_path / "object.npy", np.array([{"a": 1}] * 5, dtype=object), allow_pickle=True)
    for name in ("junk.npy", "pickled.npy", "cut.npz", "object.npy"):
        with pytest.raises(ValueError, match=r"not a readable .npy or .npz file of numbers"):
            Arrays(tmp_path / name).load()
    np.savez(tmp_path / "two.npz", a=np.ones((5, 2)), b=np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"expected an array named x, got \['a', 'b'\]"):
        Arrays(tmp_path / "two.npz").load()
    np.savez(tmp_path / "labels.npz", x=np.ones((5, 2)), labels=np.ones(4))
    with pytest.raises(ValueError, match="one label for each of 5 data"):
        Arrays(tmp_path / "labels.npz").load()


def test_bad_sizes_and_binarization(tmp_path):
    for options, message in (
        ({"valid": 2000}, "valid: expected between 1 and 1499 of 1500 data, got 2000"),
        ({"test": 1797}, "test: expected between 1 and 1796"),
        ({"valid": 0}, "valid"),
    ):
        with pytest.raises(ValueError, match=message):
            Digits(**options).load()
    with pytest.raises((ValueError, TypeError), match="dynamic"):
        Digits(binarize="sometimes").load()
    np.save(tmp_path / "x.npy", np.array([[-1.0, 3.0]] * 9))
    with pytest.raises(ValueError, match=r"binarize: expected values in \[0, 1\] or counts, got values from -1 to 3"):
        Arrays(tmp_path / "x.npy", binarize="fixed", valid=2, test=2).load()


def test_no_network_says_where_to_put_the_files(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(OSError, match=r"neither read from .*MNIST/raw nor downloaded .* Put its four files"):
        MNIST(tmp_path).load()


def test_damaged_mnist(mnist_root, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist_root / "MNIST" / "raw").iterdir():
        (raw / file.name).write_bytes(file.read_bytes())
    (raw / "train-images-idx3-ubyte").write_bytes(b"junk")
    with pytest.raises(OSError, match="could be neither read"):
        MNIST(tmp_path).load()


@pytest.mark.parametrize("inputs", [("x", "y"), ("y", "x")])
def test_pixels_are_drawn_anew_and_labels_are_not(inputs):
    """Wherever x stands among the inputs of the programs."""
    x, y = torch.full((40, 4), 0.5), torch.arange(40) % 3
    taken = Split(x, y, dynamic=True).columns(inputs).take(slice(0, 30))
    by_name = dict(zip(inputs, taken, strict=True))
    assert torch.equal(by_name["y"], y[:30])
    assert set(by_name["x"].unique().tolist()) == {0.0, 1.0}


def test_the_seed_divides_validation_from_training_data(mnist_root):
    """Also where the test data come apart, which no seed changes."""
    one, other = (MNIST(mnist_root, binarize="none", valid=50, split_seed=seed).load() for seed in (0, 1))
    assert not torch.equal(one.valid.x, other.valid.x)
    assert torch.equal(one.test.x, other.test.x)
