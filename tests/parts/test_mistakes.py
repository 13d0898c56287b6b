"""Mistakes in a class of one's own, and in the names of arguments, are told by what to do."""

from __future__ import annotations

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Dims, Estimator, Guide, Likelihood, Network, Prior, TrainingPlan, fit
from pyro_vae.data import Arrays, Digits, Split, make_splits
from pyro_vae.estimators import ELBO, Objective
from pyro_vae.evaluate import log_px
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.models import Model, ModelSpec
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal, VampPrior

DIMS = Dims(2, (5,))


class NoSuper:
    """A mixin whose constructor calls no other one."""

    def __init__(self, dims, width: int = 3):
        self.width = width


class Half:
    """A mixin that begins the module alone."""

    def __init__(self, dims):
        nn.Module.__init__(self)
        self.layer = nn.Linear(2, 2)


class Uses:
    """A mixin that uses what the base class sets."""

    def __init__(self, dims):
        self.size = self.dims.latent


def forward(self, *args):
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


@pytest.mark.parametrize("mixin", [NoSuper, Half, Uses])
@pytest.mark.parametrize(
    ("base", "needed"),
    [(Prior, "dims"), (Guide, "dims"), (Likelihood, "dims"), (Network, "in_shape, out_shape"), (Model, "dims")],
)
def test_a_part_whose_constructor_does_not_call_its_base(mixin, base, needed):
    own = type("Own", (base,), {"__init__": mixin.__init__, "forward": forward, "model": forward, "guide": forward})
    with pytest.raises(
        TypeError, match=rf"^Own: its __init__ must call that of \w+: begin it with super\(\).__init__\({needed}\)$"
    ):
        own(DIMS)


def test_an_estimator_whose_constructor_does_not_call_its_base():
    class Own(Estimator):
        def __init__(self, power: float = 1.0):
            self.power = power

        def bound(self, draws):
            return draws.log_w[0]

    with pytest.raises(TypeError, match=r"^Own: its __init__ must call that of Estimator: begin it with super"):
        Own()


def test_a_constructor_that_calls_its_base_is_left_alone():
    class Own(DiagonalNormal.__mro__[1]):  # a guide
        def __init__(self, dims, width: int = 3):
            super().__init__(dims)
            self.width = width

        def forward(self, x):
            return dist.Normal(x[..., :2], 1.0).to_event(1)

    own = Own(DIMS)
    assert "_begun" not in vars(own)
    assert own.made_with == {"width": 3}
    assert len(log_px(VAE(StandardNormal(DIMS), own, Bernoulli(DIMS)), torch.zeros(3, 5), K=2)) == 3


def parts():
    return StandardNormal(DIMS), DiagonalNormal(DIMS), Bernoulli(DIMS)


MISSPELLED = {
    "data": (lambda: Arrays("x.npy", vald=50), "Arrays: there is no argument 'vald'; did you mean 'valid'?"),
    "spec": (lambda: ModelSpec(latnt=2), "ModelSpec: there is no argument 'latnt'; did you mean 'latent'?"),
    "plan": (lambda: TrainingPlan(epoch=1), "TrainingPlan: there is no argument 'epoch'; did you mean 'epochs'?"),
    "fit": (
        lambda: fit(VAE(*parts()), Digits().load(), epoch=1),
        "fit: there is no argument 'epoch'; did you mean 'epochs'?",
    ),
    "estimator": (lambda: ELBO(k=5), "ELBO: there is no argument 'k'; did you mean 'K'?"),
    "objective": (lambda: Objective(warmup=5), "Objective: there is no argument 'warmup'; did you mean 'warm_up'?"),
    "part": (
        lambda: VampPrior(DIMS, component=5),
        "VampPrior: there is no argument 'component'; did you mean 'components'?",
    ),
    "network": (lambda: MLP((2,), (3,), hiden=[3]), "MLP: there is no argument 'hiden'; did you mean 'hidden'?"),
    "dims": (lambda: Dims(2, (5,), misssing=True), "Dims: there is no argument 'misssing'; did you mean 'missing'?"),
    "split": (
        lambda: Split(torch.zeros(2, 2), label=None),
        "Split: there is no argument 'label'; did you mean 'labels' or 'labelled'?",
    ),
    "splits": (
        lambda: make_splits(Split(torch.zeros(2, 2)), valid=1, test=1, binarise="none"),
        "make_splits: there is no argument 'binarise'; did you mean 'binarize'?",
    ),
    "function": (
        lambda: log_px(None, None, K=2, batch=3),
        "log_px: there is no argument 'batch'; did you mean 'batch_size'?",
    ),
}


@pytest.mark.parametrize("name", MISSPELLED)
def test_a_misspelled_argument_is_told_with_what_is_meant(name):
    wrong, message = MISSPELLED[name]
    with pytest.raises(TypeError) as caught:
        wrong()
    assert str(caught.value) == message


def test_factories_still_work():
    data = Digits().load()
    assert ModelSpec(prior=partial(VampPrior, components=3), latent=2).build(data, 0).prior.dims.latent == 2
