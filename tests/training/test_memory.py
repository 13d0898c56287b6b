"""Memory that runs out: one message, which says what to lower."""

from __future__ import annotations

import pytest
import torch
from oracles import LinearGaussian
from torch import nn
from torch.distributions import constraints

from pyro_vae import fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, IWAE
from pyro_vae.evaluate import draw_gradients, evaluate_bound, log_px
from pyro_vae.scopes import NotEnoughMemoryError, telling_memory

TOO_MANY = 10**14
"""Particles, in more bytes than a processor can address."""


class Large(nn.Module):
    """Takes more memory than there is, as CUDA tells it, after some runs."""

    def __init__(self, runs):
        super().__init__()
        self.vae, self.runs = LinearGaussian.random().vae, runs

    def model(self, x):
        return self.vae.model(x)

    def guide(self, x):
        self.runs -= 1
        if self.runs < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.vae.guide(x)


def splits(oracle):
    split = Split(oracle.data(20))
    return Splits(split, split, split, constraints.real)


@pytest.mark.parametrize("compile", ["on", "off"])
@pytest.mark.parametrize("runs", [0, 5, 8])
def test_in_training(runs, compile):
    """At set-up, in a step, and in the validation after it."""
    programs, data = Large(runs), splits(LinearGaussian.random())
    with pytest.raises(NotEnoughMemoryError, match=r"^out of memory: lower batch_size \(it is 10\) or K \(it is 3\)$"):
        list(fit(programs, data, epochs=5, batch_size=10, estimator=IWAE(3), compile=compile))


def test_in_evaluation():
    oracle = LinearGaussian.random()
    x = oracle.data(20)
    for call, message in (
        (lambda: evaluate_bound(Large(0), x, IWAE(3)), r"batch_size \(it is 100\) or K \(it is 3\)"),
        (lambda: log_px(Large(0), x, 50), r"batch_size \(it is 100\) or K \(it is 50\)"),
        (lambda: draw_gradients(Large(2), x, ELBO(), 20), r"the batch \(it is 20\)"),
    ):
        with pytest.raises(NotEnoughMemoryError, match=message):
            call()


def test_the_processors_own_message_is_understood():
    oracle = LinearGaussian.random()
    with pytest.raises(NotEnoughMemoryError, match=r"K \(it is 100,000,000,000,000\)"):
        fit(oracle.vae, splits(oracle), batch_size=10, estimator=IWAE(TOO_MANY))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), telling_memory(K=3):
        torch.zeros(3).reshape(2)
