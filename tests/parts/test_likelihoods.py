"""Likelihoods against their densities by hand, in float64 and by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers import DIMS, NETWORK, agree, update_of
from torch import Tensor
from torch.optim import Adam

from pyro_vae import VAE, Dims, fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO, AnalyticKL, Objective
from pyro_vae.guides import DiagonalNormal, SemiAmortized
from pyro_vae.likelihoods import (
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    NegativeBinomial,
    Normal,
    Poisson,
)
from pyro_vae.likelihoods.decoder_outputs import stacked, unstacked
from pyro_vae.likelihoods.levels import _Discretized
from pyro_vae.priors import StandardNormal
from pyro_vae.traces import library_path
from pyro_vae.training.step import Update

T = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
PIXELS = torch.randint(0, 256, (5, 1, 4, 4), generator=torch.Generator().manual_seed(1)).float()


def per_pixel(likelihood, x: Tensor) -> Tensor:
    return likelihood(T).base_dist.log_prob(x)


def close(found: Tensor, expected, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [0.001, 0.05, 1.0, 20.0])
def test_discretized_logistic_is_the_difference_of_distribution_functions(scale):
    """In float64, levels 0 and 255 with their tails: 256 probabilities of sum one, also of bins far out in a tail."""
    for loc in (-1.5, -0.3, 0.0, 1.0):
        each = _Discretized(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64), 256)
        k = torch.arange(256.0).double()
        log_p = each.log_prob(k)
        close(log_p.exp().sum(), 1.0, 1e-10)
        F = scipy.special.expit((2 * (k.numpy() + 0.5) / 255 - 1 - loc) / scale)
        expected = [F[0], *(F[1:255] - F[:254]), 1 - F[254]]
        close(log_p.exp(), expected, 1e-12)
        single = _Discretized(torch.tensor(loc), torch.tensor(scale), 256).log_prob(k.float())
        assert ((single.double() - log_p).abs() < 1e-3 * log_p.abs() + 1e-3).all()
        close(each.mean, (k * log_p.exp()).sum(), 1e-8)


def test_discretized_logistic_draws_by_its_probabilities():
    torch.manual_seed(0)
    each = _Discretized(torch.tensor(0.8), torch.tensor(0.2), 8)
    p = each.log_prob(torch.arange(8.0)).exp()
    found = torch.bincount(each.sample((100_000,)).long(), minlength=8) / 100_000
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / 100_000).sqrt()).all()


def test_mixture_of_discretized_logistics_by_hand():
    likelihood = DiscretizedLogistic(DIMS, NETWORK, components=3)
    loc, log_scale, logits = unstacked(likelihood.network(T), DIMS, 9).chunk(3)
    loc = loc + torch.tensor([-1 / 3, 0.0, 1 / 3]).reshape(3, 1, 1, 1, 1)
    each = [_Discretized(loc[c], (log_scale[c] - 1.6094379).exp(), 256).log_prob(PIXELS) for c in range(3)]
    close(per_pixel(likelihood, PIXELS), (torch.stack(each) + logits.log_softmax(0)).logsumexp(0))


def test_categorical_is_the_cross_entropy():
    likelihood = Categorical(Dims(2, (1, 4, 4), torch.full((1, 4, 4), 60.0)), NETWORK, levels=256)
    q = likelihood(T).base_dist
    expected = -torch.nn.functional.cross_entropy(q.logits.movedim(-1, 1), PIXELS.long(), reduction="none")
    close(q.log_prob(PIXELS), expected)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.zero_()
    binomial = scipy.stats.binom(255, 60 / 255).logpmf(PIXELS.numpy())
    close(likelihood(T).base_dist.log_prob(PIXELS), binomial, 1e-3)


def test_continuous_bernoulli_has_its_constant_and_a_smooth_gradient():
    """∫ is one in conformance; here value and derivative by the logit against float64, through the middle λ = 1/2."""
    for logit in (-8.0, -0.5, -1e-2, -1e-3, 0.0, 2e-3, 0.3, 8.0):
        a = torch.tensor(logit, requires_grad=True)
        x = torch.tensor(0.8)
        value = ContinuousBernoulli(DIMS, NETWORK)(T).base_dist.__class__(logits=a).log_prob(x)
        (slope,) = torch.autograd.grad(value, a)

        def exact(b: float) -> float:
            # log of x^... without cancellation: b x - log ∫ e^(b u) du, over [0, 1].
            return b * 0.8 - float(scipy.special.logsumexp(b * POINTS) - scipy.special.logsumexp(0 * POINTS))

        assert value.item() == pytest.approx(exact(logit), abs=2e-3)
        assert slope.item() == pytest.approx((exact(logit + 1e-4) - exact(logit - 1e-4)) / 2e-4, abs=2e-3)


POINTS = ((torch.arange(200_000) + 0.5) / 200_000).double().numpy()


def test_against_scipy():
    mean = torch.full((1, 4, 4), 3.0)
    dims = Dims(2, (1, 4, 4), mean)
    counts = torch.poisson(mean.expand(5, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    poisson = Poisson(dims, NETWORK)
    close(per_pixel(poisson, counts), scipy.stats.poisson(poisson(T).mean.detach().numpy()).logpmf(counts.numpy()))
    negative, r = NegativeBinomial(dims, NETWORK, shape=4.0), 4.0
    mu = negative(T).mean.detach().numpy()
    close(per_pixel(negative, counts), scipy.stats.nbinom(r, r / (r + mu)).logpmf(counts.numpy()))
    beta, x = Beta(Dims(2, (1, 4, 4)), NETWORK), 0.02 + 0.96 * PIXELS / 255
    logit, log_ratio = unstacked(beta.network(T), DIMS, 2).detach().double().numpy()
    m, nu = scipy.special.expit(logit), 10 * np.exp(log_ratio)
    close(per_pixel(beta, x), scipy.stats.beta(m * nu, (1 - m) * nu).logpdf(x.numpy()))


def test_a_scale_for_each_pixel():
    likelihood = Normal(DIMS, NETWORK, learn_scale="pixel")
    with torch.no_grad():
        likelihood.log_scale.copy_(torch.linspace(-1, 1, 16).reshape(1, 4, 4))
    x, sigma = PIXELS / 255, torch.linspace(-1, 1, 16).reshape(1, 4, 4).exp()
    expected = scipy.stats.norm(likelihood(T).mean.detach().numpy(), sigma.numpy()).logpdf(x.numpy())
    close(per_pixel(likelihood, x), expected)


def test_the_optimal_scale_is_the_mean_squared_error_of_the_training_data():
    """At a fixed mean, σ² is the mean of (x - m)² over all batches seen, and each was scored by σ before it."""
    likelihood = Normal(DIMS, NETWORK, scale=0.5, learn_scale="optimal").double()
    x, t = torch.rand(30, 1, 4, 4, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    loc, sigma = likelihood(t).mean.detach(), likelihood.log_scale.exp().item()
    for i in range(3):
        part, seen = slice(10 * i, 10 * i + 10), slice(0, 10 * i + 10)
        found = likelihood(t[part]).log_prob(x[part])
        expected = scipy.stats.norm(loc[part].numpy(), sigma).logpdf(x[part].numpy()).sum((1, 2, 3))
        close(found, expected, 1e-9)
        sigma = ((x[seen] - loc[seen]) ** 2).mean().sqrt().item()
        assert likelihood.log_scale.exp().item() == pytest.approx(sigma, rel=1e-9)
    likelihood.eval()(t).log_prob(x)
    with torch.no_grad():
        likelihood.train()(t).log_prob(x)
    assert likelihood.log_scale.exp().item() == pytest.approx(sigma, rel=1e-9)  # evaluation moves nothing


def optimal() -> VAE:
    torch.manual_seed(0)
    return VAE(StandardNormal(DIMS), DiagonalNormal(DIMS, NETWORK), Normal(DIMS, NETWORK, learn_scale="optimal"))


def test_the_optimal_scale_moves_once_a_step():
    """Also where a step scores x more than once: in the steps of a refined guide, and for a bound that is only reported."""
    refined = VAE(StandardNormal(DIMS), SemiAmortized(DIMS), Normal(DIMS, NETWORK, learn_scale="optimal"))
    cases = [(optimal(), ELBO(), {}), (refined, ELBO(), {})]
    cases += [(optimal(), AnalyticKL(), {"objective": Objective(noise=False)})]
    for vae, estimator, options in cases:
        vae.likelihood.batches.zero_()
        columns, leaves = Split(torch.rand(6, 1, 4, 4)).columns(), list(vae.parameters())
        update = Update(vae, estimator, options.get("objective", Objective()), columns, Adam(leaves), {"both": leaves})
        with library_path():
            update(torch.arange(6), 1.0, "both")
        assert vae.likelihood.batches == 1


def test_the_optimal_scale_in_a_traced_step(traced):
    agree(update_of(optimal(), torch.rand(6, 1, 4, 4), ELBO(2)))


def test_stacked_numbers_keep_channels_together():
    dims = Dims(2, (3, 4, 5))
    assert stacked(dims, 2) == (6, 4, 5)
    outputs = torch.arange(7 * 6 * 20.0).reshape(7, 6, 4, 5)
    torch.testing.assert_close(unstacked(outputs, dims, 2), torch.stack([outputs[:, :3], outputs[:, 3:]]))


@pytest.mark.parametrize(
    ("cls", "mean"),
    [(ContinuousBernoulli, 0.3), (Beta, 0.3), (Poisson, 3.0), (NegativeBinomial, 3.0), (Categorical, 100.0)],
)
def test_the_output_starts_at_the_training_mean(cls, mean):
    dims = Dims(2, (1, 4, 4), torch.full((1, 4, 4), mean))
    likelihood = cls(dims, NETWORK)
    with torch.no_grad():
        for parameter in likelihood.network.parameters():
            parameter.zero_()
    close(likelihood(torch.zeros(2)).mean, dims.x_mean, 1e-3)


def test_beta_says_what_to_do_with_zeros():
    dims, x = Dims(2, (1, 4, 4)), (PIXELS > 100).float()
    vae = VAE(StandardNormal(dims), DiagonalNormal(dims, NETWORK), Beta(dims, NETWORK))
    data = Splits(Split(x), Split(x), Split(x), torch.distributions.constraints.unit_interval)
    with pytest.raises(ValueError, match=r"from 0 to 1 that _OpenBeta|choose ContinuousBernoulli, which scores them"):
        fit(vae, data, epochs=1, batch_size=5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical(DIMS, levels=1), "levels: expected at least 2"),
        (lambda: DiscretizedLogistic(DIMS, levels=1), "levels: expected at least 2"),
        (lambda: DiscretizedLogistic(DIMS, components=0), "components: expected at least 1"),
        (lambda: NegativeBinomial(DIMS, shape=0.0), "shape: expected a positive"),
        (lambda: Beta(DIMS, concentration=-1.0), "concentration: expected a positive"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-20, 1e30, float("nan"), float("inf")])
def test_a_scale_that_float32_cannot_square_is_refused(scale):
    with pytest.raises(ValueError, match=r"scale: expected a (finite )?number"):
        Normal(DIMS, NETWORK, scale=scale)
