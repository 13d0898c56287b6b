"""Every likelihood, prior and guide in float32, over all that a network can give and all data that a part scores.

Each subclass is found by itself, so that a new one is tested without an edit here: it is compared with the same part in
float64, and a likelihood is summed or integrated over its support. Closed forms of single likelihoods, in 70 digits, follow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from math import log

import mpmath as mp
import numpy as np
import pytest
import torch
from helpers import BITS, CPU, LIKELIHOODS, REAL_GUIDES, REAL_PRIORS, SMALL, vae_of
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_vae import Dims, Network
from pyro_vae.compilation import compiled
from pyro_vae.flows import FlowDistribution
from pyro_vae.guides import FullRankNormal, LowRankNormal, PerDatum, SemiAmortized
from pyro_vae.likelihoods.binary import _ContinuousBernoulli
from pyro_vae.likelihoods.counts import _Binomial, _NegativeBinomial, _Poisson
from pyro_vae.likelihoods.real import _OpenBeta
from pyro_vae.priors import StudentT
from pyro_vae.scopes import seeded
from pyro_vae.special import bounded, stirling_remainder

NUMBERS = [-100.0, -50.0, -20.0, -7.0, -1.0, 0.0, 1.0, 7.0, 20.0, 50.0, 100.0]
DIMS2 = Dims(2, (1, 2, 2), train=BITS[:, :, :2, :2])


class Constant(Network):
    """A network that gives learned numbers, whatever its input: a constant, or random ones."""

    def __init__(self, like: Network, fill: float | int) -> None:
        super().__init__(like.in_shape, like.out_shape)
        generator = torch.Generator().manual_seed(int(fill)) if isinstance(fill, int) else None
        value = torch.full(like.out_shape, float(fill))
        if generator:
            value = 200 * torch.rand(like.out_shape, generator=generator) - 100
        self.value = nn.Parameter(value)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.value.to(inputs.dtype).expand(*inputs.shape[: inputs.dim() - len(self.in_shape)], *self.out_shape)


def at_extremes(vae: nn.Module, part: nn.Module, fill: float | int) -> None:
    """Makes the networks of a part constant; its own parameters that are logarithms get the number too."""
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Network):
                setattr(module, name, Constant(child, fill))
    with torch.no_grad():
        for name, value in part.named_parameters():
            if "log_" in name or name.endswith("logits"):
                value.fill_(float(fill))


def data_of(distribution) -> Tensor:
    """Numbers of the support, its ends included, each as a whole datum: (n, 1, ...)."""
    support = distribution.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.nonnegative_integer:
        values = [0.0, 1.0, 3.0, 200.0, 1e6, 1e9]
    elif support is constraints.boolean:
        values = [0.0, 1.0]
    elif support.is_discrete:
        upper = float(torch.as_tensor(support.upper_bound).max())
        values = [0.0, 1.0, float(int(upper / 2)), upper - 1, upper]
    elif not support.check(torch.tensor([-1.0])).all():
        tiny = [1e-30, 1e-6] if not bool(support.check(torch.tensor([0.0])).all()) else [0.0, 1e-30, 1.0]
        values = [*tiny, 0.1, 0.5, 0.9, 1 - 2.0**-24]
    else:
        values = [-1e3, -1.0, 0.0, 0.3, 1e3]
    return torch.tensor(values)


def agrees(single: Tensor, double: Tensor, rtol: float, atol: float) -> None:
    assert single.isfinite().all(), "not finite in float32"
    assert double.isfinite().all(), "not finite in float64"
    torch.testing.assert_close(single.detach().double(), double.detach(), rtol=rtol, atol=atol)


def evaluated(vae: nn.Module, part_of: Callable, call: Callable, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The log-probability of values, and the gradient of its sum by each parameter that it depends on."""
    log_prob = call(part_of(vae), x.dtype).log_prob(x)
    leaves = [p for p in part_of(vae).parameters() if p.requires_grad]
    total = log_prob.sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else []
    return log_prob.detach(), [g for g in gradients if g is not None]


def compared(
    vae: nn.Module, part_of: Callable, call: Callable, x: Tensor, rtol: float = 2e-6, conditioned: bool = False
) -> None:
    """Log-probability and gradient in float32 and float64 at the same values.

    float32 has a relative precision of 6e-8, and a log-probability is a sum of some dozens of terms: 2e-6 of it may be
    lost. A gradient is a sum over values of terms that may cancel, each of which is good to 15 times that, and what is
    lost in the largest gradient of all may be lost in each; above 1e20, gradients need only be finite. Flows and matrices
    multiply what is rounded in parameters, in values and on the way: there, an error may also be 300 times what relative
    changes of parameters and values by 1e-7 make (``conditioned``).
    """
    double = copy.deepcopy(vae).double()
    one, gradients = evaluated(vae, part_of, call, x)
    other, exact = evaluated(double, part_of, call, x.double())
    noise = [torch.zeros_like(each) for each in (other, *exact)]
    if conditioned:
        for seed in range(4):
            generator, near, at = torch.Generator().manual_seed(seed), copy.deepcopy(double), x.double()
            with torch.no_grad():
                for each in (*part_of(near).parameters(), at):
                    each.mul_(1 + 1e-7 * torch.randn(each.shape, generator=generator, dtype=each.dtype).sign())
            moved, changed = evaluated(near, part_of, call, at)
            differences = [300 * (a - b).abs() for a, b in zip((moved, *changed), (other, *exact), strict=True)]
            noise = [torch.maximum(a, b) for a, b in zip(noise, differences, strict=True)]
    largest = max((float(g.abs().max()) for g in exact), default=0.0)
    for i, (a, b) in enumerate(zip((one, *gradients), (other, *exact), strict=True)):
        assert a.isfinite().all(), "not finite in float32"
        assert b.isfinite().all(), "not finite in float64"
        allowed = 15 * rtol * (1 + b.abs()) + rtol * largest + noise[i].max() if i else rtol * (1 + b.abs()) + noise[0]
        error = (a.double() - b).abs() if not i or largest < 1e20 else torch.zeros_like(b)
        assert (error <= allowed).all(), (
            f"{'gradient' if i else 'log-probability'}: {(error / allowed).max():.3g} × the error"
        )


FILLS = [*NUMBERS, 1, 2, 3]
"""Constant numbers, and seeds (whole numbers) of random ones between -100 and 100."""


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("cls", LIKELIHOODS)
def test_likelihood_in_float32_and_float64(cls, fill):
    vae = vae_of(cls, dims=DIMS2)
    part, t = vae.likelihood, torch.zeros(2)
    at_extremes(vae, part, fill)
    distribution = part(t)
    x = data_of(distribution).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    compared(vae, lambda each: each.likelihood, lambda part, dtype: part(t.to(dtype)), x)
    drawn = distribution.sample((50,))
    assert distribution.support.check(drawn).all()
    assert distribution.log_prob(drawn).isfinite().all()
    agrees(distribution.mean, copy.deepcopy(part).double()(t.double()).mean, 1e-4, 1e-4)


def foreign(drawn: Tensor) -> Tensor:
    """Values that are not draws: 0, and 5 and 40 standard deviations and 1,000 away from the mean draw, in float32."""
    mean, spread = drawn.mean(0), drawn.std(0)
    signs = torch.ones_like(mean)
    signs[..., 1::2] = -1
    return torch.stack([0 * mean, mean + 5 * spread, mean - 5 * spread, mean + 40 * signs * spread, mean + 1e3 * signs])


SIZES = [(cls, 2, fill) for cls in REAL_GUIDES for fill in FILLS] + [
    (cls, d, fill)
    for cls in (FullRankNormal, LowRankNormal)
    for d in (1, 3, 8)
    for fill in (-100.0, -7.0, 1.0, 100.0, 1, 2)
]
"""Guides, d and the numbers that the network gives; matrices of other sizes too."""


@pytest.mark.parametrize(("cls", "d", "fill"), SIZES)
def test_guide_in_float32_and_float64(cls, d, fill):
    """Draws have a finite density and gradient; densities and gradients at draws and far away agree with float64."""
    vae, x = vae_of(cls, dims=replace(DIMS2, latent=d)), BITS[:3, :, :2, :2]
    part = vae.posterior
    at_extremes(vae, part, fill)
    if cls is SemiAmortized:  # its steps have another rounding in float64, and are no part of the density
        with seeded(CPU, "steps"):
            steps = part._refined(x, part.inner(x))
        part._refined = Steps(steps)
    distribution = part(x)
    drawn = distribution.rsample((20,))
    log_q = distribution.log_prob(drawn)
    assert drawn.isfinite().all()
    assert log_q.isfinite().all()
    leaves = list(part.parameters())
    gradients = torch.autograd.grad((log_q + drawn.sum(-1)).sum(), leaves, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    conditioned = cls in (FullRankNormal, LowRankNormal, PerDatum) or isinstance(distribution, FlowDistribution)
    for values in (drawn.detach(), foreign(drawn.detach())):
        compared(
            vae,
            lambda each: each.posterior,
            lambda part, dtype: part(x.to(dtype)),
            values.clone(),
            conditioned=conditioned,
        )


class Steps:
    """The shifts and scales of `SemiAmortized`, as constants of the type of the data."""

    def __init__(self, steps: Tensor) -> None:
        self.steps = steps

    def __call__(self, x: Tensor, _inner: object) -> Tensor:
        return self.steps.to(x.dtype)


@pytest.mark.parametrize("fill", NUMBERS)
@pytest.mark.parametrize("cls", REAL_PRIORS)
def test_prior_in_float32_and_float64(cls, fill):
    vae = vae_of(cls, dims=DIMS2)
    for part in (vae.prior, vae.posterior):  # some priors are made of the guide
        at_extremes(vae, part, fill)
    vae.eval()
    drawn = vae.prior().sample((20,))
    assert drawn.isfinite().all()
    values = torch.cat([drawn, torch.tensor([[0.0, 0.0], [0.3, -2.0], [30.0, 1.0]])])
    flow = isinstance(vae.prior(), FlowDistribution)
    compared(vae, lambda each: each.prior, lambda part, dtype: part(), values, conditioned=flow)


def mass_on(distribution) -> Tensor:
    """The total probability of a distribution of one number, in float64: a sum or an integral over its support."""
    support = distribution.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    log_width = torch.zeros(())
    if support is constraints.boolean:
        points = torch.arange(2.0, dtype=torch.float64)
    elif support.is_discrete:
        upper = (
            50_000 if support is constraints.nonnegative_integer else int(torch.as_tensor(support.upper_bound).max())
        )
        points = torch.arange(upper + 1.0, dtype=torch.float64)
    elif not bool(support.check(torch.tensor([-1.0])).all()):  # in (0, 1), by the trapezoidal rule in the logit
        logit = torch.linspace(-36.0, 36.0, 40_001, dtype=torch.float64)
        points, log_width = logit.sigmoid(), (logit - 2 * softplus(logit)) + log(72 / 40_000)
    else:  # on the real line, in asinh of the distance from the mean draw
        drawn = distribution.sample((1000,))
        u = torch.linspace(-9.0, 9.0, 40_001, dtype=torch.float64)
        points = drawn.mean() + drawn.std() * u.sinh()
        log_width = u.cosh().log() + drawn.std().log() + log(18 / 40_000)
    log_p = distribution.log_prob(points.reshape(-1, *[1] * len(distribution.event_shape)))
    return (log_p.flatten() + log_width).exp().sum()


@pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0, 7.0])
@pytest.mark.parametrize("cls", LIKELIHOODS)
def test_a_likelihood_sums_to_one(cls, fill):
    """To 1e-6 in float64. With the comparison of float32 and float64 above, float32 is normalized too.

    At smaller numbers, a Beta distribution is nearer to 0 and 1 than float64 can tell: see the closed form below.
    """
    vae = vae_of(cls, dims=SMALL)
    at_extremes(vae, vae.likelihood, fill)
    with torch.no_grad(), seeded(CPU, "draws"):
        assert mass_on(vae.likelihood.double()(torch.zeros(1, dtype=torch.float64))).item() == pytest.approx(
            1, abs=1e-6
        )


def exact_continuous_bernoulli(logit: float, x: float) -> float:
    a = mp.mpf(logit)
    return float(mp.mpf(x) * a - (mp.log(mp.expm1(a) / a) if a else 0))


def exact_poisson(log_rate: float, k: float) -> float:
    a = mp.mpf(log_rate)
    return float(k * a - mp.exp(a) - mp.loggamma(mp.mpf(k) + 1))


def exact_negative_binomial(log_mean: float, log_shape: float, k: float) -> float:
    mu, r = mp.exp(mp.mpf(log_mean)), mp.exp(mp.mpf(log_shape))
    choose = mp.loggamma(k + r) - mp.loggamma(r) - mp.loggamma(mp.mpf(k) + 1)
    return float(choose - r * mp.log1p(mu / r) + k * mp.log(mu / (r + mu)))


def exact_binomial(n: int, logit: float, k: float) -> float:
    a, k = mp.mpf(logit), mp.mpf(k)
    choose = mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1)
    return float(choose + k * a - n * mp.log1p(mp.exp(a)))


def exact_beta(logit: float, log_nu: float, x: float) -> float:
    nu, m = mp.exp(mp.mpf(log_nu)), 1 / (1 + mp.exp(-mp.mpf(logit)))
    a, b, x = nu * m, nu / (1 + mp.exp(mp.mpf(logit))), mp.mpf(x)
    return float((a - 1) * mp.log(x) + (b - 1) * mp.log(1 - x) + mp.loggamma(nu) - mp.loggamma(a) - mp.loggamma(b))


def f32(number: float) -> float:
    return float(np.float32(number))


def is_exact(found: Tensor, exact: float, rtol: float = 1e-6, atol: float = 2e-6) -> None:
    assert found.item() == pytest.approx(exact, rel=rtol, abs=atol)


@pytest.fixture(autouse=True)
def digits50():
    with mp.workdps(70):
        yield


LOGITS = [-1e4, -100.0, -30.0, -2.0, -0.25, -0.2, -1e-3, 0.0, 1e-6, 0.25, 1.99, 2.0, 8.0, 30.0, 100.0]


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_is_exact(logit):
    """Value, mean, both derivatives, distribution function and its inverse; the integral is one."""
    logit = f32(logit)
    a = torch.tensor(logit, requires_grad=True)
    for x in (0.0, f32(1e-6), f32(0.3), 0.5, 1.0):
        is_exact(_ContinuousBernoulli(a).log_prob(torch.tensor(x)), exact_continuous_bernoulli(logit, x))
    each, ml = _ContinuousBernoulli(a), mp.mpf(logit)
    mean = 1 / (1 - mp.exp(-ml)) - 1 / ml if logit else mp.mpf(0.5)
    variance = 1 / ml**2 - 1 / (4 * mp.sinh(ml / 2) ** 2) if logit else mp.mpf(1) / 12
    (slope,) = torch.autograd.grad(each.log_prob(torch.tensor(0.5)), a, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, a)
    is_exact(each.mean, float(mean), atol=1e-7)
    is_exact(slope, float(mp.mpf(0.5) - mean), atol=1e-7)
    is_exact(curvature, -float(variance), rtol=3e-6, atol=1e-7)
    u = torch.linspace(0.05, 0.95, 7)
    torch.testing.assert_close(each.cdf(each.icdf(u)), u, rtol=1e-4, atol=1e-4 + 1e-7 * abs(logit))
    edges = np.unique(np.clip(np.arange(0, 41) / max(abs(logit), 40), 0, 1).tolist() + [1.0])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    half = np.diff(edges)[:, None] / 2
    points = torch.as_tensor((edges[:-1, None] + half * (nodes + 1)).ravel()).float()
    log_p = each.log_prob(1 - points if logit > 0 else points).detach().double().exp()
    total = (log_p * torch.as_tensor((half * weights).ravel())).sum()
    assert total.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("n", [16, 255, 65_535, 10**6, 10**9])
def test_binomial_is_exact(n):
    for logit in (-100.0, -7.0, 0.0, f32(0.3), 30.0):
        p, a = 1 / (1 + np.exp(-logit)), torch.tensor(logit, requires_grad=True)
        for z in (-3, 0, 2):
            k = f32(np.clip(np.round(n * p + z * np.sqrt(n * p * (1 - p))), 0, n))
            value = _Binomial(n, a).log_prob(torch.tensor(k))
            is_exact(value, exact_binomial(n, logit, k), atol=3e-5)
            (slope,) = torch.autograd.grad(value, a)
            is_exact(slope, float(k - n / (1 + mp.exp(-mp.mpf(logit)))), rtol=1e-5, atol=1e-5)


def test_binomial_sums_to_one_and_draws_within_its_support():
    for n in (255, 65_535):
        log_p = _Binomial(n, torch.tensor(0.4)).log_prob(torch.arange(n + 1.0))
        assert log_p.double().exp().sum().item() == pytest.approx(1.0, abs=2e-6)
    for n in (16_777_219, 10**9):
        drawn = _Binomial(n, torch.tensor([-17.0, 0.0, 17.0, 40.0])).sample((1000,)).double()
        assert ((drawn >= 0) & (drawn <= n) & (drawn == drawn.round())).all()
        p = torch.tensor([-17.0, 0.0, 17.0]).double().sigmoid()
        error = (n * p * (1 - p) / 1000).sqrt()
        # 4.5 standard errors, and a count's own rounding to float32
        assert ((drawn[:, :3].mean(0) - n * p).abs() < 4.5 * error + n * 2.0**-24).all()


@pytest.mark.parametrize("rate", [1e-30, 1.0, 1e5, 1e8, 1e12, 1e20])
def test_poisson_is_exact(rate):
    log_rate = f32(np.log(rate))
    a = torch.tensor(log_rate, requires_grad=True)
    for z in (-3, 0, 3):
        k = f32(max(np.round(rate + z * rate**0.5), 0))
        value = _Poisson(a).log_prob(torch.tensor(k))
        is_exact(value, exact_poisson(log_rate, k), atol=5e-5)
        (slope,) = torch.autograd.grad(value, a)
        is_exact(slope, float(mp.mpf(k) - mp.exp(mp.mpf(log_rate))), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("log_rate", [-1000.0, -300.0, -100.0, -90.0, -80.0, -79.0])
def test_the_smallest_rates_are_exact(log_rate):
    """A pixel that was never lit and is lit once: nothing is clamped, and the gradient k leads back."""
    for k in (0.0, 1.0, 10.0, 255.0):
        for exact, made in (
            (exact_poisson(log_rate, k), _Poisson),
            (exact_negative_binomial(log_rate, 0.0, k), lambda a: _NegativeBinomial(a, torch.zeros(()))),
            (exact_negative_binomial(log_rate, -3.0, k), lambda a: _NegativeBinomial(a, torch.full((), -3.0))),
        ):
            a = torch.tensor(log_rate, requires_grad=True)
            value = made(a).log_prob(torch.tensor(k))
            is_exact(value, exact)
            (slope,) = torch.autograd.grad(value, a)
            is_exact(slope, k)
            assert made(a).sample((9,)).isfinite().all()


@pytest.mark.parametrize(
    "log_shape", [-250.0, -100.0, -60.0, -5.0, 0.0, f32(np.log(1e5)), f32(np.log(1e7)), f32(np.log(1e10)), 60.0]
)
def test_negative_binomial_is_exact(log_shape):
    rho = torch.tensor(log_shape, requires_grad=True)
    for log_mean in (-60.0, f32(np.log(50)), f32(np.log(1e6))):
        for k in (0.0, 1.0, 50.0, 1e6):
            value = _NegativeBinomial(torch.tensor(log_mean), rho).log_prob(torch.tensor(k))
            is_exact(value, exact_negative_binomial(log_mean, log_shape, k))
            (slope,) = torch.autograd.grad(value, rho)
            exact = mp.diff(lambda at, m=log_mean, k=k: mp.mpf(_nb(m, at, k)), log_shape)
            is_exact(slope, float(exact), rtol=1e-5, atol=1e-5)
    if log_shape < 0:  # the tail is long
        return
    log_p = _NegativeBinomial(torch.tensor(f32(np.log(50))), rho.detach()).log_prob(torch.arange(3000.0))
    assert log_p.double().exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def _nb(log_mean, log_shape, k):
    mu, r, k = mp.exp(mp.mpf(log_mean)), mp.exp(log_shape), mp.mpf(k)
    return mp.loggamma(k + r) - mp.loggamma(r) - mp.loggamma(k + 1) - r * mp.log1p(mu / r) + k * mp.log(mu / (r + mu))


@pytest.mark.parametrize("log_nu", [-40.0, -5.0, 0.0, 3.0, 20.0, 35.0])
def test_beta_is_exact(log_nu):
    for logit in (-100.0, -17.0, 0.0, 1.0, 17.0, 100.0):
        for x in (f32(1e-30), 0.5, f32(0.9), 1 - 2.0**-24):
            found = _OpenBeta(torch.tensor(logit), torch.tensor(log_nu)).log_prob(torch.tensor(x))
            is_exact(found, exact_beta(logit, log_nu, x), rtol=1e-6, atol=1e-5)


def test_student_t_is_exact_for_large_and_small_df():
    for df in (0.5, 5.0, 1e4, 1e8, 1e15):
        prior = StudentT(Dims(1, (1,)), df=df, scale=2.0)
        for t in (0.0, 1.0, 1e3, 1e25):
            exact = mp.mpf(df)
            exact = mp.loggamma((exact + 1) / 2) - mp.loggamma(exact / 2) - mp.log(exact * mp.pi) / 2 - mp.log(2)
            y = mp.mpf(f32(t)) / 2
            exact -= (mp.mpf(f32(df)) + 1) / 2 * mp.log1p(y * y / mp.mpf(f32(df)))
            is_exact(prior().log_prob(torch.tensor([t])), float(exact), atol=1e-5)


def test_stirlings_remainder():
    for z in (1e-60, 1e-3, 1.0, 9.999, 10.0, 1e3, 1e12):
        a = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        exact = mp.loggamma(z) - (mp.mpf(z) - 0.5) * mp.log(z) + z - mp.log(2 * mp.pi) / 2
        assert stirling_remainder(a).item() == pytest.approx(float(exact), rel=1e-11, abs=1e-12)


def test_bounded_numbers_are_unchanged_inside_and_lead_back_outside():
    x = torch.tensor([-1e30, -100.0, -15.0, 0.3, 15.0, 100.0, 1e30], requires_grad=True)
    y = bounded(x, -15, 15)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y[2:5], x[2:5], rtol=0, atol=0)
    assert (y.abs() <= 16).all()
    torch.testing.assert_close(slope[1:6], torch.tensor([1 / 86**2, 1, 1, 1, 1 / 86**2]))


@pytest.mark.slow
def test_compiled_at_extremes():
    """The compiled graph has its own forms of log1p and softplus: every likelihood, in one graph."""
    parts, inputs = nn.ModuleList(), []
    for cls in LIKELIHOODS:
        vae = vae_of(cls, dims=DIMS2)
        at_extremes(vae, vae.likelihood, 1)
        parts.append(vae.likelihood)
        x = data_of(vae.likelihood(torch.zeros(2))).reshape(-1, 1, 1, 1)
        inputs.append(x.expand(-1, 1, 2, 2).contiguous())

    def all_of(swapped, held, *inputs):
        found = [part(x.new_zeros(len(x), 2)).log_prob(x) for part, x in zip(parts, inputs, strict=True)]
        gradients = torch.autograd.grad(sum(log_prob.sum() for log_prob in found), swapped)
        return [log_prob.detach() for log_prob in found] + list(gradients)

    leaves = list(parts.parameters())
    found = compiled(parts, all_of, leaves, inputs, {})(*inputs)
    for one, other in zip(found, all_of(leaves, leaves, *inputs), strict=True):
        agrees(one, other.double(), 1e-4, 1e-4)
