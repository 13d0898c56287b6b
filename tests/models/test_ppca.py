"""A trained linear VAE is probabilistic PCA (Lucas et al. 2019, 1911.02469): scikit-learn is the judge."""

from __future__ import annotations

from functools import partial

import pytest
from oracles import LinearGaussian, affine
from sklearn.decomposition import PCA
from torch.distributions import constraints
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae import VAE, fit
from pyro_vae.data import Split, Splits
from pyro_vae.evaluate import log_px
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Normal
from pyro_vae.priors import StandardNormal


@pytest.mark.parametrize("learn_scale", [True, "optimal"])
@pytest.mark.slow
def test_linear_vae_reaches_the_maximum_likelihood_of_ppca(learn_scale, digits):
    x = digits.train.x.flatten(1).double() / 16
    best = PCA(5).fit(x.numpy()).score(x.numpy())
    data = Splits(Split(x), Split(x[:10]), Split(x[:10]), constraints.real)
    dims = data.dims(5)
    vae = VAE(
        StandardNormal(dims), DiagonalNormal(dims, affine), Normal(dims, affine, scale=0.3, learn_scale=learn_scale)
    ).double()
    schedule = partial(CosineAnnealingLR, T_max=60)
    for _ in fit(vae, data, epochs=60, batch_size=130, optimizer=partial(Adam, lr=3e-2), schedule=schedule):
        pass
    reached = LinearGaussian(vae).log_px(x).mean().item()  # exact for the trained w
    assert best - 0.1 < reached <= best + 1e-9
    # The guide has become the posterior: a few particles give log p(x).
    assert abs(log_px(vae, Split(x), K=20).mean().item() - reached) < 0.05
