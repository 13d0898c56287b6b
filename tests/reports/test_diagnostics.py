"""The metrics that diagnose: each takes every kind of model, or refuses it in a sentence."""

from __future__ import annotations

from math import isfinite

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_vae import TrainingPlan
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ScoreFunction
from pyro_vae.models import Conditional, Ladder, ModelSpec, TwoLayer
from pyro_vae.reports import AIS, Bracket, Calibration, Gaps, LogLikelihood, Surgery, TestBound, Trained

FEW = {
    "AIS": AIS(images=3, chains=2, temperatures=4),
    "Bracket": Bracket(images=3, chains=2, temperatures=4),
    "Gaps": Gaps(images=3, steps=2, rounds=2, copies=3),
    "Surgery": Surgery(images=12, draws=2),
    "Calibration": Calibration(images=25, draws=9),
    "TestBound": TestBound(),
    "LogLikelihood": LogLikelihood(),
}


class Discrete:
    """A program of one's own with a discrete latent alone."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(z[..., None].float().expand(*z.shape, 4), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(len(x), 3)))


def trained(kind):
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 3
    split = Split(x, labels)
    splits = Splits(split, split, split, constraints.real)
    if kind == "discrete":
        return Trained(Discrete(), splits, TrainingPlan(estimator=ScoreFunction(K=2)), [], 30, 12)
    model = {"VAE": None, "TwoLayer": TwoLayer, "Ladder": Ladder, "Conditional": Conditional}[kind]
    spec = ModelSpec(latent=2) if model is None else ModelSpec(latent=2, model=model)
    return Trained(spec.build(splits, 0), splits, TrainingPlan(), [], 30, 12)


REFUSED = {
    ("discrete", "AIS"): "is discrete",
    ("discrete", "Bracket"): "is discrete",
}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("kind", ["VAE", "TwoLayer", "Ladder", "Conditional", "discrete"])
def test_every_metric_takes_every_model_or_refuses_it_in_a_sentence(kind, name):
    given = trained(kind)
    try:
        found = FEW[name].measure(given)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message
        assert REFUSED.get((kind, name), "family") in message
        return
    assert (kind, name) not in REFUSED
    assert found.rows
    assert all(row.value and "nan" not in row.value for row in found.rows)
    assert all(isfinite(value) for each in found.each.values() for value in each.flatten().tolist() if value == value)
    if kind == "Conditional" and name in ("AIS", "LogLikelihood", "Bracket"):
        assert "log p(x|y)" in found.rows[0].quantity
