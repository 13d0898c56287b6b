"""The programs on a CUDA device that need not be there: a tensor on another device, and a number that is read, are errors.

PyTorch runs operations on fake tensors, which have a shape and a device, and no values. So this finds what the `meta` device
cannot: a number that is read from a tensor, which makes a real device wait, and a tensor that stays on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from discrete import Discrete, X
from helpers import (
    BITS,
    DIMS,
    DISCRETE,
    ESTIMATORS,
    GUIDES,
    KINDS_OF_MODEL,
    LIKELIHOODS,
    NETWORK,
    OF_DISCRETE,
    PRIORS,
    build,
    refusing_unknown_kl,
    vae_of,
)
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call

from pyro_vae import VAE
from pyro_vae.estimators import ELBO, IWAE, VIMCO, Stock
from pyro_vae.guides import DiagonalNormal, SemiAmortized
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import StandardNormal
from pyro_vae.traces import library_path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*was not registered in the param store"
)  # Pyro's word, without a gradient


class Estimate(torch.nn.Module):
    """An estimate as a function of a model's weights."""

    def __init__(self, vae, estimator):
        super().__init__()
        self.vae, self.estimator = vae, estimator

    def forward(self, *data):
        return self.estimator.estimate(self.vae.model, self.vae.guide, *data).surrogate


def on_cuda(vae, estimator, *data: torch.Tensor) -> torch.Tensor:
    """The estimator's surrogate for data on CUDA."""
    whole, fake = Estimate(vae, estimator), FakeTensorMode()
    estimator.prepare(vae.model, vae.guide, *data)  # which forks random numbers of a device that is there
    with fake, torch.no_grad(), library_path():
        there = lambda value: torch.empty_like(fake.from_tensor(value), device="cuda")  # noqa: E731
        own = [*whole.named_parameters(), *whole.named_buffers()]
        estimator.state = {name: there(value) for name, value in estimator.state.items()}
        state = {name: there(value) for name, value in own}
        return functional_call(whole, state, tuple(map(there, data)))


# The steps of SemiAmortized need a gradient, which PyTorch does not give on devices that are not there.
@pytest.mark.parametrize("cls", [each for each in PRIORS + GUIDES + LIKELIHOODS if each is not SemiAmortized])
def test_parts(cls):
    vae = vae_of(cls)
    estimator = VIMCO(3) if type(vae.posterior) in DISCRETE else IWAE(3)
    assert on_cuda(vae, estimator, BITS[:5]).device.type == "cuda"


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_estimators(cls):
    with refusing_unknown_kl(cls):
        if cls is Stock:  # Pyro's own loss is a number of Python
            with pytest.raises(DataDependentOutputException):
                on_cuda(vae_of(DiagonalNormal), cls(K=4), BITS[:5])
        else:
            on_cuda(vae_of(DiagonalNormal), cls(K=4), BITS[:5])


@pytest.mark.parametrize("cls", OF_DISCRETE)
def test_estimators_of_discrete_latents(cls):
    on_cuda(Discrete("binary"), cls(), X)


@pytest.mark.parametrize("kind", [kind for kind in KINDS_OF_MODEL if kind != "refined"])  # see above
def test_models(kind):
    y = [torch.arange(5) % 3] if kind == "labels" else []
    on_cuda(KINDS_OF_MODEL[kind](), IWAE(3), BITS[:5], *y)


class OnCPU(Bernoulli):
    def forward(self, t):
        return super().forward(t + torch.ones(2, device="cpu"))


class Read(Bernoulli):
    def forward(self, t):
        return super().forward(t * t.mean().item())


def test_mistakes_are_found():
    """Pyro raises what a program raises anew, with its trace, which this error of PyTorch's cannot be."""
    for likelihood, error, told in (
        (OnCPU, TypeError, "FakeTensorDeviceMismatchError"),
        (Read, DataDependentOutputException, "_local_scalar_dense"),
    ):
        vae = VAE(build(StandardNormal), build(DiagonalNormal), likelihood(DIMS, NETWORK))
        with pytest.raises(error, match=told):
            on_cuda(vae, ELBO(), BITS[:5])
