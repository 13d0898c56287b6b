"""Discrete latents and their relaxations: masses and densities against SciPy, enumeration and quadrature; draws; mistakes."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import scipy.special
import scipy.stats
import torch
from helpers import BITS, DISCRETE, NETWORK, part_of
from torch import Tensor
from torch.distributions import biject_to, kl_divergence

from pyro_vae import VAE, Dims, guides, priors
from pyro_vae.discrete import Bits, Blocks, OneHotBlocks
from pyro_vae.evaluate import decode
from pyro_vae.guides import DiagonalNormal, SemiAmortized
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import AutoregressiveBernoulli
from pyro_vae.relaxed import LogBlocks, LogConcrete, RelaxedBits

LOGITS = torch.tensor([-1e4, -100.0, -88.0, -17.0, -1.0, 0.0, 0.3, 17.0, 88.0, 100.0, 1e4])
X = BITS[:1]


def random_logits(*shape: int, seed: int = 0, scale: float = 100.0) -> Tensor:
    return scale * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1)


def states(distribution) -> Tensor:
    """All values of a small discrete latent."""
    inner = getattr(distribution.support, "base_constraint", distribution.support)
    if isinstance(inner, Blocks):
        rows = [torch.eye(inner.classes)] * inner.groups
        return torch.stack([torch.cat(each) for each in product(*rows)])
    return torch.tensor(list(product([0.0, 1.0], repeat=distribution.event_shape[0])))


def small(cls: type, d: int = 4):
    """A distribution of this part, of random logits, for one datum."""
    part = part_of(cls, Dims(d, (1, 4, 4), train=BITS))
    with torch.no_grad():
        for value in part.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    return part() if cls.__module__.startswith("pyro_vae.priors") else part(X[0])


def test_log_probabilities_are_exact_for_all_logits():
    for value in (0.0, 1.0):
        exact = scipy.special.log_expit((2 * value - 1) * LOGITS.double().numpy())
        found = Bits(logits=LOGITS).log_prob(torch.full_like(LOGITS, value))
        torch.testing.assert_close(found.double(), torch.as_tensor(exact), rtol=1e-6, atol=1e-7)
    for scale in (1.0, 100.0, 1e4):
        logits = random_logits(50, 3, 5, scale=scale)
        exact = torch.as_tensor(scipy.special.log_softmax(logits.double().numpy(), -1))
        for k in range(5):
            t = torch.eye(5)[[k, (k + 1) % 5, 0]].flatten()
            expected = exact[:, 0, k] + exact[:, 1, (k + 1) % 5] + exact[:, 2, 0]
            torch.testing.assert_close(OneHotBlocks(logits).log_prob(t).double(), expected, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("cls", DISCRETE)
def test_masses_sum_to_one_and_draws_have_them(cls):
    """20,000 draws against the masses of all states: chi-square, at a level of 1e-4."""
    distribution = small(cls)
    with torch.no_grad():
        t = states(distribution)
        p = distribution.log_prob(t).double().exp()
        torch.manual_seed(2)
        drawn = distribution.sample((20_000,))
        assert p.sum().item() == pytest.approx(1.0, abs=1e-6)
        assert distribution.support.check(drawn).all()
        counts = torch.stack([(drawn == each).all(-1).sum() for each in t])
        assert scipy.stats.chisquare(counts.numpy(), (20_000 * p / p.sum()).numpy()).pvalue > 1e-4
        if not isinstance(part_of(cls), AutoregressiveBernoulli):
            torch.testing.assert_close(distribution.mean.double(), p @ t.double())
            torch.testing.assert_close(distribution.variance.double(), p @ t.double() - (p @ t.double()) ** 2)


def test_an_autoregressive_prior_draws_in_order_and_scores_in_one_pass():
    """Logit j depends on the numbers before it alone."""
    prior = AutoregressiveBernoulli(Dims(6, (1,)), hidden=[60, 90])
    t = torch.randn(6)
    slopes = torch.autograd.functional.jacobian(prior.network, t)
    assert not slopes.triu().any()
    assert slopes.tril(-1)[1:].abs().sum(-1).gt(0).all()
    assert AutoregressiveBernoulli(Dims(1, (1,)))().log_prob(torch.ones(5, 1)).exp().mean().item() == 0.5


def test_divergences_are_those_by_enumeration():
    """In float32 against float64, with gradients, for logits at which probabilities round to 0 and 1."""
    a, b = (each.requires_grad_() for each in torch.meshgrid(LOGITS.clone(), LOGITS.clone(), indexing="ij"))
    found = kl_divergence(Bits(logits=a), Bits(logits=b))
    one, other = a.detach().double(), b.detach().double()
    log_p, log_q = (
        torch.stack([torch.nn.functional.logsigmoid(each), torch.nn.functional.logsigmoid(-each)])
        for each in (one, other)
    )
    exact = (log_p.exp() * (log_p - log_q)).sum(0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    assert all(each.isfinite().all() for each in torch.autograd.grad(found.sum(), (a, b)))
    p, q = (OneHotBlocks(random_logits(20, 2, 3, seed=seed, scale=scale)) for seed, scale in ((1, 100.0), (2, 30.0)))
    exact = torch.zeros(20, dtype=torch.float64)
    for t in states(p):
        lp, lq = (each.log_prob(t).double() for each in (p, q))
        exact += lp.exp() * (lp - lq)
    torch.testing.assert_close(kl_divergence(p, q).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.entropy(), (-(p.probs * p.logits)).sum((-2, -1)))
    with pytest.raises(ValueError, match="equal blocks"):
        kl_divergence(p, OneHotBlocks(torch.zeros(3, 2)))


def test_supports():
    inside = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.5, 0.5, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert Blocks(2, 2).check(inside).tolist() == [True, False, False, False]
    assert not Blocks(2, 2).check(torch.ones(3, 5)).any()
    assert Blocks(2, 3) == Blocks(2, 3) != Blocks(3, 2)
    assert Blocks(2, 3) != LogBlocks(2, 3)
    y = LogConcrete(torch.zeros(5, 2, 3), torch.tensor(0.3)).sample()
    assert LogBlocks(2, 3).check(y).all()
    assert not LogBlocks(2, 3).check(y + 0.1).any()
    assert OneHotBlocks(torch.zeros(2, 3)).expand([4]).mode.tolist() == [[1.0, 0, 0, 1, 0, 0]] * 4
    with pytest.raises(ValueError, match=r"support|value"):
        OneHotBlocks(torch.zeros(2, 3), validate_args=True).log_prob(torch.full((6,), 0.5))


@pytest.mark.parametrize("temperature", [0.01, 0.5, 2 / 3, 5.0])
def test_relaxed_bits_are_logistic(temperature):
    """Against SciPy in float64, far out too; draws against the distribution function (Kolmogorov and Smirnov)."""
    logits = LOGITS[1:-1, None]
    y = torch.tensor([-1e5, -300.0, -20.0, 0.0, 0.1, 33.0, 1e5])
    found = RelaxedBits(logits, torch.tensor(temperature)).log_prob(y).double()
    own = torch.tensor(temperature).double().numpy()
    exact = scipy.stats.logistic.logpdf(y.double().numpy(), loc=logits.double().numpy() / own, scale=1 / own)
    torch.testing.assert_close(found, torch.as_tensor(exact), rtol=2e-6, atol=3e-5)
    leaves = (logits.clone().requires_grad_(), torch.tensor(temperature, requires_grad=True))
    distribution = RelaxedBits(*leaves)
    torch.manual_seed(0)
    drawn = distribution.rsample((4000, 1)).squeeze(1)
    slopes = torch.autograd.grad((distribution.log_prob(drawn) + drawn).sum(), leaves)
    assert drawn.isfinite().all()
    assert all(each.isfinite().all() for each in slopes)
    for row, logit in zip(drawn.detach().squeeze(-1).T.double(), logits.flatten().double(), strict=True):
        assert scipy.stats.kstest(row.numpy(), "logistic", (logit.item() / own, 1 / own)).pvalue > 1e-4
        assert abs((row > 0).double().mean() - logit.sigmoid()) < 5 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("temperature", [0.2, 0.7, 3.0])
def test_log_concrete(temperature):
    """With two classes it is the logistic distribution; with three it integrates to one; its largest entry is categorical."""
    value, logits = torch.tensor(temperature, dtype=torch.float64), random_logits(4, 2, scale=3.0).double()
    two = LogConcrete(logits.unsqueeze(1), value)
    u = torch.linspace(-30, 30, 13, dtype=torch.float64)[:, None, None]
    y = biject_to(two.support)(u.expand(-1, 4, 1))
    one = RelaxedBits(logits[:, 0] - logits[:, 1], value)
    torch.testing.assert_close(two.log_prob(y), one.log_prob(u.squeeze(-1)))
    torch.testing.assert_close(biject_to(two.support).inv(y), u.expand(-1, 4, 1))

    three = LogConcrete(torch.tensor([[0.5, -1.0, 0.2]]).double(), value)
    u = torch.linspace(-80, 80, 1601, dtype=torch.float64)
    y = biject_to(three.support)(torch.cartesian_prod(u, u))
    assert (three.log_prob(y).exp().sum() * 0.1**2).item() == pytest.approx(1.0, abs=2e-3)
    torch.manual_seed(0)
    drawn = three.rsample((30_000,))
    counts = torch.bincount(drawn.argmax(-1), minlength=3)
    assert scipy.stats.chisquare(counts.numpy(), 30_000 * three.logits.exp()[0].numpy()).pvalue > 1e-4

    wide = random_logits(20, 2, 3).requires_grad_()
    narrow = LogConcrete(wide, torch.tensor(temperature))
    drawn = narrow.rsample((50,))
    density = narrow.log_prob(drawn)
    (slope,) = torch.autograd.grad((density + drawn.sum(-1)).sum(), wide)
    assert slope.isfinite().all()
    exact = LogConcrete(wide.double(), torch.tensor(temperature).double()).log_prob(drawn.double())
    torch.testing.assert_close(density.double(), exact, rtol=2e-6, atol=5e-4)


def vae_of_kind(name: str, d: int = 4, **options) -> VAE:
    dims = Dims(d, (1, 4, 4), train=BITS)
    prior = partial(getattr(priors, name), **options) if name != "RelaxedBernoulli" else getattr(priors, name)
    return VAE(prior(dims), getattr(guides, name)(dims, NETWORK, **options), Bernoulli(dims, NETWORK))


@pytest.mark.parametrize(
    ("name", "seen", "options"), [("RelaxedBernoulli", torch.sigmoid, {}), ("Concrete", torch.exp, {"classes": 2})]
)
def test_the_likelihood_is_given_relaxed_numbers(name, seen, options):
    vae = vae_of_kind(name, **options)
    y = vae.posterior(BITS[:5]).sample()
    with torch.no_grad():
        torch.testing.assert_close(decode(vae, {"t": y}), vae.likelihood(seen(y)).mean)
        assert (decode(vae, {"t": y}) - vae.likelihood(y).mean).abs().max() > 1e-3
    other = vae.prior.discrete()
    assert type(other).__name__ in ("Bernoulli", "OneHotCategorical")


def test_a_guide_of_real_numbers_with_a_relaxed_prior():
    dims = Dims(4, (1, 4, 4), train=BITS)
    vae = VAE(
        priors.RelaxedBernoulli(dims),
        SemiAmortized(dims, partial(DiagonalNormal, network=NETWORK)),
        Bernoulli(dims, NETWORK),
    )
    assert vae.model(n=3).shape == (3, 1, 4, 4)
    assert vae.posterior(BITS[:3]).log_prob(torch.zeros(3, 4)).isfinite().all()


DIMS4 = Dims(4, (1, 4, 4), train=BITS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.Bernoulli(DIMS4, probability=0.0), "^probability: expected a number between 0 and 1"),
        (lambda: priors.Bernoulli(DIMS4, probability=1.0), "^probability: expected a number between 0 and 1"),
        (lambda: priors.RelaxedBernoulli(DIMS4, probability=-1.0), "^probability: expected a number between 0 and 1"),
        (lambda: priors.OneHotCategorical(DIMS4), "^classes: expected a divisor of .*4 is no multiple of 10$"),
        (
            lambda: guides.OneHotCategorical(DIMS4, classes=3),
            "^classes: expected a divisor of .*4 is no multiple of 3$",
        ),
        (lambda: guides.Concrete(DIMS4, classes=1), "^classes: expected at least 2, got 1$"),
        (lambda: priors.Concrete(DIMS4, classes=0), "^classes: expected at least 2, got 0$"),
        (
            lambda: priors.Concrete(DIMS4, classes=2, temperature=0.0),
            "^temperature: expected a number from 0.001 to 1000, got 0.0$",
        ),
        (
            lambda: guides.RelaxedBernoulli(DIMS4, temperature=-1.0),
            "^temperature: expected a number from 0.001 to 1000, got -1.0$",
        ),
        (lambda: AutoregressiveBernoulli(DIMS4, hidden=[]), "^hidden: expected widths of at least 1"),
        (lambda: AutoregressiveBernoulli(Dims(1, (1,)), hidden=[0]), "^hidden: expected widths of at least 1"),
        (lambda: OneHotBlocks(torch.zeros(3)), "^logits: expected the shape"),
        (
            lambda: VAE(
                priors.Concrete(DIMS4, classes=2),
                SemiAmortized(DIMS4, partial(guides.Concrete, classes=2)),
                Bernoulli(DIMS4),
            ).guide(BITS),
            "^SemiAmortized: it moves latents along all real numbers, and those of Concrete are LogBlocks",
        ),
    ],
)
def test_wrong_use_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
