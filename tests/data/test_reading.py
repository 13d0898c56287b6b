"""Files whose numbers float32 cannot hold, or whose channels are last, are refused with advice, and never read wrongly."""

import numpy as np
import pytest
import torch
from torch.distributions import constraints

from pyro_vae import fit
from pyro_vae.data import Arrays, Split, View, make_splits, support_of
from pyro_vae.evaluate import log_px
from pyro_vae.likelihoods import Binomial, default_likelihood
from pyro_vae.models import ModelSpec


def read(tmp_path, x, labels=None, **options):
    path = tmp_path / "data.npz"
    np.savez(path, x=x, **({} if labels is None else {"labels": labels}))
    return Arrays(path, valid=10, test=10, **options).load()


def split_of(x, labels=None):
    """Split(x, labels) of NumPy arrays, which the tests' type checks would refuse before."""
    split = Split(torch.zeros(1, 1))
    vars(split).update(x=x, labels=labels)
    split.__post_init__()
    return split


def given(tmp_path, x, labels=None, **options):
    """The same numbers from Python."""
    return make_splits(split_of(x, labels), valid=10, test=10, **options)


ways = pytest.mark.parametrize("way", [read, given])


def rng():
    return np.random.default_rng(0)


LOST = {
    "offset": 1e9 + rng().normal(size=(100, 1)),
    "seconds": 1.7e9 + rng().uniform(0, 1000, size=(100, 1)),
    "nanoseconds": rng().integers(17 * 10**17, 18 * 10**17, (100, 1)),
    "integers": rng().integers(2**24, 2**30, (100, 1)),
    "unsigned": np.array([[2**64 - 1], [2**63 + 5]] * 50, dtype=np.uint64),
    "huge": 1e300 * rng().normal(size=(100, 1)),
    "tiny": 1e-60 * rng().normal(size=(100, 1)),
    "whole": (2.0**24 + rng().integers(0, 99, (100, 1))),
}


@ways
@pytest.mark.parametrize("name", LOST)
def test_numbers_that_float32_cannot_hold_are_refused_by_their_column(tmp_path, name, way):
    x = np.concatenate([rng().normal(size=(100, 2)), LOST[name]], 1) if LOST[name].dtype.kind == "f" else None
    x = np.concatenate([np.ones((100, 2), LOST[name].dtype), LOST[name]], 1) if x is None else x
    with pytest.raises(
        ValueError, match=r"float32.*cannot hold 1 of the 3 .*x\[:, 2\].*values would become \d+.*[Ss]ubtract"
    ):
        way(tmp_path, x)


@pytest.mark.parametrize("name", ["nanoseconds", "integers"])
def test_tensors_of_whole_numbers_that_float32_cannot_hold_are_refused(name):
    with pytest.raises(ValueError, match=r"float32.*cannot hold 1 of the 1 .*x\[:, 0\].*values would become"):
        Split(torch.from_numpy(LOST[name]))


def test_evaluation_refuses_what_training_does():
    x = rng().normal(size=(100, 3))
    model = ModelSpec(latent=2).build(given(None, x), 0)
    assert log_px(model, x[:5], 2).isfinite().all()
    assert log_px(model, x[:1], 2).isfinite().all()
    for n in (2, 100):  # also of two data, whose standard deviation says little
        with pytest.raises(ValueError, match=r"float32.*cannot hold 3 of the 3"):
            log_px(model, x[:n] + 1e9, 2)
    with pytest.raises(
        ValueError,
        match=r"to inf that Normal at site .x. cannot score.* 6 values are infinite",
    ):
        log_px(model, np.where(x > 2, np.inf, x), 2)


def test_a_loss_without_equal_numbers_is_told_by_its_size(tmp_path):
    """All 200 numbers stay different, and each is rounded by up to 64 seconds."""
    x = 1.7e9 + 1000 * np.arange(200.0)[:, None] + rng().uniform(size=(200, 1))
    with pytest.raises(ValueError, match=r"become 200 others, rounded by up to 6\d.* standard deviation is 5.77e\+04"):
        way_of_both(tmp_path, x)


def test_what_rounding_makes_of_a_constant_is_read(tmp_path):
    x = np.concatenate([rng().normal(size=(99, 2)), np.full((99, 1), 0.3)], 1)
    x[::2, 2] = 0.1 + 0.2
    assert 0 < np.ptp(x[:, 2]) < 1e-15
    way_of_both(tmp_path, x)


def way_of_both(tmp_path, x):
    given(tmp_path, x)
    read(tmp_path, x)


@ways
@pytest.mark.parametrize(
    "x",
    [
        1000 + 0.1 * rng().normal(size=(100, 3)),
        rng().normal(size=(100, 3)),
        rng().integers(0, 65536, (100, 3)).astype(np.uint16),
        rng().integers(-(2**24), 2**24, (100, 3)),
        np.full((100, 3), 0.1),
        rng().normal(size=(100, 3)).astype(np.float16),
        rng().normal(size=(100, 3)).astype(">f8"),
        rng().normal(size=(100, 3)).astype(np.longdouble),
        rng().normal(size=(100, 6))[:, ::-2],
        rng().integers(0, 2, (100, 3)).astype(bool),
    ],
    ids=lambda x: f"{x.dtype}-{x[0, 0]:.4g}",
)
def test_numbers_that_float32_holds_are_read(tmp_path, x, way):
    splits = way(tmp_path, x)
    together = torch.cat([splits.train.x, splits.valid.x, splits.test.x]).double().sort(0).values.numpy()
    np.testing.assert_allclose(together, np.sort(x.astype(np.float64), 0), rtol=1e-6)


@ways
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e300])
def test_labels_that_are_no_classes_are_refused(tmp_path, bad, way):
    labels = np.arange(100.0)
    labels[3] = bad
    with pytest.raises(ValueError, match="labels"):
        way(tmp_path, rng().normal(size=(100, 3)), labels)


def test_labels_that_are_no_classes_are_refused_in_tensors_too():
    with pytest.raises(ValueError, match="1 of 3 labels are NaN or infinite"):
        Split(torch.zeros(3, 2), torch.tensor([0.0, torch.nan, 1.0]))


@ways
@pytest.mark.parametrize("label", [2**64 - 1, 2**63 + 5, 2**53])
def test_unsigned_labels_are_not_read_as_negative(tmp_path, label, way):
    with pytest.raises(ValueError, match="labels up to"):
        way(tmp_path, rng().normal(size=(100, 3)), np.full(100, label, dtype=np.uint64))


@ways
@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinite_data_are_refused(tmp_path, bad, way):
    x = rng().normal(size=(100, 3))
    x[7, 1] = bad
    with pytest.raises(ValueError, match=r"1 of 300 values are infinite, the first in x\[:, 1\]"):
        way(tmp_path, x)


def test_infinite_test_data_and_columns_by_name_are_refused():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    bad = x.clone()
    bad[3, 1] = torch.inf
    with pytest.raises(ValueError, match="column 'size'"):
        make_splits(Split(bad), valid=9, test=9, view=View(columns=("weight", "size")))
    with pytest.raises(ValueError, match=r"test: .* values are infinite"):
        make_splits(Split(x), valid=9, test=Split(bad))


@ways
@pytest.mark.parametrize("shape", [(28, 28, 3), (28, 28, 1), (16, 8, 4), (50, 2), (8, 8, 8, 1)], ids=str)
def test_channels_last_are_recognized_and_moved_by_the_option(tmp_path, shape, way):
    x = rng().normal(size=(50, *shape))
    with pytest.raises(ValueError, match=rf"{shape[-1]} channels last.*--data.channels last.*--data.channels first"):
        way(tmp_path, x)
    assert way(tmp_path, x, channels="first").x_shape == shape
    moved = way(tmp_path, x, channels="last")
    assert moved.x_shape == (shape[-1], *shape[:-1])
    every = torch.cat([moved.train.x, moved.valid.x, moved.test.x]).flatten(1).sum(1).sort().values
    np.testing.assert_allclose(every, np.sort(x.reshape(50, -1).sum(1)), rtol=1e-4, atol=1e-4)


@ways
@pytest.mark.parametrize("shape", [(100,), (28, 28), (28, 28, 3), (1, 4)], ids=str)
def test_data_without_channels_get_one_by_the_option(tmp_path, shape, way):
    assert way(tmp_path, rng().normal(size=(50, *shape)), channels="none").x_shape == (1, *shape)


@ways
@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 8, 8), (12,), (3,), (2, 64), (8, 8)], ids=str)
def test_other_shapes_are_read_as_they_are(tmp_path, shape, way):
    assert way(tmp_path, rng().normal(size=(50, *shape))).x_shape == shape


LEVELS = np.random.default_rng(0).integers(0, 256, (50, 64))


@pytest.mark.parametrize(
    ("shape", "kind", "name"),
    [
        ((1, 8, 8), "auto", "DiscretizedLogistic"),
        ((8, 8), "auto", "DiscretizedLogistic"),
        ((64,), "image", "DiscretizedLogistic"),
        ((4, 4, 4), "auto", "DiscretizedLogistic"),
        ((64,), "auto", "NegativeBinomial"),
        ((1, 8, 8), "table", "NegativeBinomial"),
    ],
)
def test_images_of_levels_are_told_by_the_view_of_the_data(tmp_path, shape, kind, name):
    np.save(tmp_path / "x.npy", LEVELS.reshape(-1, *shape))
    splits = Arrays(tmp_path / "x.npy", valid=10, test=10, kind=kind).load()
    assert type(ModelSpec(latent=2).build(splits, 0).likelihood).__name__ == name


@pytest.mark.parametrize(
    ("x", "name", "reason"),
    [
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "Bernoulli", "0 or 1"),
        (torch.arange(256.0).repeat(4).reshape(-1, 1, 8, 8), "DiscretizedLogistic", "levels 0..255"),
        (torch.arange(17.0).repeat(64).reshape(-1, 1, 8, 8), "Binomial", "0..16"),
        (torch.arange(65536.0).reshape(-1, 1, 8, 8), "NegativeBinomial", "up to 65535"),
        (torch.tensor([[0.0, 3.0], [40.0, 2.0], [1.0, 60.0]]), "NegativeBinomial", "times their mean"),
        (torch.tensor([[2.0, 3.0], [3.0, 2.0], [1.0, 3.0]]), "Binomial", "0..3"),
        (torch.tensor([[0.5, -3.0]]), "Normal", "real"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_the_default_likelihood_fits_the_data_and_says_why(x, name, reason):
    choice = default_likelihood(support_of(x), x)
    made = choice.likelihood
    assert getattr(made, "func", made).__name__ == name
    assert reason in choice.reason


def blobs(largest, noise, N=400, side=12):
    """Images of one bump each, in whole numbers 0..largest."""
    g, at = np.random.default_rng(0), np.mgrid[:side, :side]
    place, width = g.uniform(2, side - 3, (2, N, 1, 1)), g.uniform(1, 2.5, (N, 1, 1))
    bump = np.exp(-((at[0] - place[0]) ** 2 + (at[1] - place[1]) ** 2) / 2 / width**2)
    return np.round(np.clip(bump + noise * g.normal(size=bump.shape), 0, 1) * largest)[:, None]


def spikes(largest):
    """Over-dispersed counts."""
    return np.random.default_rng(0).negative_binomial(0.3, 0.02, (400, 1, 8, 8)) % (largest + 1)


def uniform(largest):
    return np.random.default_rng(0).integers(0, largest + 1, (400, 1, 8, 8))


LARGEST = [15, 31, 63, 100, 127, 128, 200, 255]
IMAGES = {
    "blobs": lambda n: blobs(n, 0.0),
    "noisy": lambda n: blobs(n, 0.2),
    "spikes": spikes,
    "uniform": uniform,
    "binomial": lambda n: np.random.default_rng(0).binomial(n, 0.3, (400, 1, 8, 8)),
}


@pytest.mark.parametrize("largest", LARGEST)
@pytest.mark.parametrize("name", IMAGES)
def test_images_of_levels_and_counts_get_a_likelihood_that_is_wide_enough(name, largest):
    x = torch.as_tensor(IMAGES[name](largest), dtype=torch.float32)
    x[0, 0, 0, 0] = largest
    choice = default_likelihood(support_of(x), x)
    binomial = choice.likelihood.func is Binomial
    if name == "binomial":
        assert binomial is (largest < 128)
    elif largest > 31 or name in ("spikes", "uniform"):
        assert not binomial
        assert f"levels 0..{largest if largest < 128 else 255}" in choice.reason


def test_digits_stay_binomial(digits):
    assert default_likelihood(digits.support, digits.train.x, view=digits.view).likelihood.func is Binomial


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noisy", "spikes"])
def test_images_of_levels_and_counts_are_scored_better_than_by_the_uniform_distribution(name):
    for largest in (15, 63, 127):
        x = torch.as_tensor(IMAGES[name](largest), dtype=torch.float32)
        splits = make_splits(Split(x), valid=50, test=50)
        model = ModelSpec(latent=4).build(splits, 0)
        list(fit(model, splits, epochs=15, batch_size=50))
        assert log_px(model, splits.test, 20).mean() / x[0].numel() > -np.log(largest + 1), largest


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_real_numbers_of_any_size_are_read(tmp_path, scale):
    x = scale * rng().normal(size=(100, 3))
    splits = read(tmp_path, x)
    assert splits.support is constraints.real
    mean, spread = splits.dims(2).x_units / scale
    assert torch.allclose(mean, torch.zeros(3), atol=0.4)
    assert torch.allclose(spread, torch.ones(3), atol=0.3)


def test_a_learned_scale_begins_at_that_of_the_data():
    """Photographs in real numbers 0..255: at a scale of 1, the first bounds are 5,000 times lower."""
    x = torch.rand(100, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    splits = make_splits(Split(x), valid=10, test=10)
    assert not splits.standardize
    likelihood = ModelSpec(latent=2).build(splits, 0).likelihood
    assert likelihood.log_scale.exp().item() == pytest.approx(255 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("binarize", ["none", "fixed", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int16, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)], ids=str)
def test_tensors_of_whole_numbers_are_trained_as_those_of_floats_are(shape, dtype, binarize):
    x = torch.from_numpy(rng().integers(0, 9, (60, *shape))).to(dtype)
    found = []
    for each in (x, x.float()):
        splits = make_splits(Split(each), valid=10, test=10, binarize=binarize)
        model = ModelSpec(latent=2).build(splits, 0)
        last = list(fit(model, splits, epochs=1, batch_size=20))[-1]
        found.append((last.valid.bound, log_px(model, splits.test, 5)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_single_numbers_are_told_to_be_no_data_of_parts():
    for x in (torch.randn(50), torch.arange(50)):
        splits = make_splits(Split(x), valid=5, test=5)  # which programs of one's own take
        with pytest.raises(ValueError, match=r"x: expected data of shape \(N, ...\), .* x\[:, None\] makes a column"):
            ModelSpec(latent=2).build(splits, 0)


def test_masked_numbers_of_numpy_are_missing_and_labels_match_the_data():
    x = np.ma.masked_greater(rng().normal(size=(100, 3)), 1)
    splits = make_splits(split_of(x), valid=10, test=10)
    assert sum(int(part.x.isnan().sum()) for part in splits[:3]) == x.mask.sum()
    with pytest.raises(ValueError, match="1 of 3 labels are masked"):
        split_of(np.zeros((3, 1)), np.ma.masked_equal([0, 1, 2], 1))
    with pytest.raises(ValueError, match="labels: expected one for each of 100 data, got 9"):
        make_splits(split_of(rng().normal(size=(100, 3)), np.arange(9)), valid=10, test=10)


def test_no_advice_loses_numbers():
    """Tensors of float64 are refused with the advice to make them float32 only where that loses nothing."""
    x = torch.from_numpy(rng().normal(size=(100, 3)))
    model = ModelSpec(latent=2).build(make_splits(Split(x.float()), valid=10, test=10), 0)
    with pytest.raises(ValueError, match=r"make them the same.*x.to\(torch.float32\)"):
        log_px(model, x, 2)
    with pytest.raises(ValueError, match=r"float32.*cannot hold 3 of the 3"):
        log_px(model, x + 1e9, 2)


def test_no_data_and_no_numbers_are_told():
    with pytest.raises(ValueError, match=r"expected an array \(N, ...\) of N data, got shape \(0, 3\)"):
        make_splits(Split(torch.zeros(0, 3)), valid=1, test=1)
    for single in (np.array(3.0), torch.tensor(3.0)):
        with pytest.raises(ValueError, match=r"expected an array \(N, ...\) of N data, got a single number"):
            split_of(single)
