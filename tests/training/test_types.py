"""Floating-point types: PyTorch's default, the model's and the data's may differ."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import DIMS, build

from pyro_vae import VAE, fit, load, save
from pyro_vae.data import Digits
from pyro_vae.estimators import DReG, ScoreFunction
from pyro_vae.evaluate import encode, evaluate_bound, log_px, reconstruct, sample
from pyro_vae.guides import DiagonalNormal, InverseAutoregressive, SemiAmortized
from pyro_vae.likelihoods import Bernoulli, DiscretizedLogistic, NegativeBinomial
from pyro_vae.models import ModelSpec
from pyro_vae.priors import ExemplarPrior, SplineFlow, StandardNormal, VampPrior


def few():
    data = Digits().load()
    return data._replace(train=data.train.first(40), valid=data.valid.first(20), test=data.test.first(20))


@pytest.mark.parametrize(
    ("parts", "estimator"),
    [
        ({}, DReG(2)),
        ({"prior": partial(VampPrior, components=5)}, ScoreFunction(2, control="running")),
        ({"prior": partial(ExemplarPrior, exemplars=10, drawn=5), "likelihood": NegativeBinomial}, DReG(2)),
        ({"prior": SplineFlow, "guide": InverseAutoregressive, "likelihood": DiscretizedLogistic}, DReG(2)),
        ({"guide": SemiAmortized}, DReG(2)),
    ],
)
@pytest.mark.parametrize("when", ["before the model is built", "before it is trained"])
def test_the_default_type_may_be_float64(parts, estimator, when, traced, tmp_path):
    before, data = torch.get_default_dtype(), few()
    try:
        if when == "before the model is built":
            torch.set_default_dtype(torch.float64)
        vae = ModelSpec(**parts, latent=2).build(data, 0)
        torch.set_default_dtype(torch.float64)
        records = list(fit(vae, data, epochs=2, batch_size=10, estimator=estimator, compile="on"))
        (
            evaluate_bound(vae, data.test, estimator),
            sample(vae, 2),
            encode(vae, data.test),
            reconstruct(vae, data.test),
        )
        found = log_px(vae, data.test, 5)
        save(vae, tmp_path / "run")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
    kind = torch.float64 if when == "before the model is built" else torch.float32
    assert {parameter.dtype for parameter in vae.parameters()} == {kind}
    assert records[-1].valid.bound > records[0].valid.bound - 50
    assert torch.allclose(log_px(load(tmp_path / "run"), data.test, 5), found, rtol=1e-3)


def test_data_with_more_digits_than_the_model_are_refused():
    vae = VAE(build(StandardNormal), build(DiagonalNormal), build(Bernoulli))
    x = DIMS.train.double()
    with pytest.raises(
        ValueError, match=r"x: the data are torch.float64 and the model is torch.float32: make them the same"
    ):
        evaluate_bound(vae, x, DReG(2))
    evaluate_bound(vae.double(), x, DReG(2))
    evaluate_bound(vae, x.half(), DReG(2))
