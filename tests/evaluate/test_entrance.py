"""What evaluation and training say of data and numbers that they cannot take, in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_vae import ModelSpec, fit
from pyro_vae.data import Split, make_splits
from pyro_vae.estimators import ELBO
from pyro_vae.evaluate import encode, evaluate_bound, log_px, reconstruct
from pyro_vae.training import TrainingPlan


@pytest.fixture(scope="module")
def splits():
    return make_splits(Split(torch.randn(60, 4, generator=torch.Generator().manual_seed(0))), valid=10, test=10)


@pytest.fixture(scope="module")
def model(splits):
    return ModelSpec(latent=2).build(splits, 0)


def bound(model, x):
    return evaluate_bound(model, x, ELBO())


def evidence(model, x):
    return log_px(model, x, 2)


EVALUATIONS = pytest.mark.parametrize("evaluate", [evidence, bound, encode, reconstruct])


@EVALUATIONS
def test_no_data_are_refused(model, splits, evaluate):
    with pytest.raises(ValueError, match="data: expected at least one datum, got none"):
        evaluate(model, splits.test.x[:0])


@EVALUATIONS
def test_a_wrong_shape_is_told_without_the_shapes_of_all_sites(model, splits, evaluate):
    with pytest.raises(ValueError, match=r"^x: a batch of shape \(N, 4\) is expected, got shape \(10, 3\)$") as told:
        evaluate(model, splits.test.x[:, :3])
    assert "Trace Shapes" not in str(told.value)
    assert "\n" not in str(told.value)


def test_numbers_of_numpy_are_numbers(splits):
    whole = {"epochs": np.int64(1), "batch_size": np.int32(20), "seed": np.uint8(3), "clip_norm": np.float32(5)}
    plan = TrainingPlan(**{name: value.item() for name, value in whole.items()})
    given = TrainingPlan()
    for name, value in whole.items():
        object.__setattr__(given, name, value)  # the tests' type checks would refuse it before
    given.__post_init__()
    assert given == plan
    assert all(type(getattr(given, name)) in (int, float) for name in whole)
    model = ModelSpec(latent=2).build(splits, 0)
    assert len(list(fit(model, splits, given))) == 1
