"""Missing values (NaN) that a model of one's own masks: trained as if any other number stood there, and never in silence."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import fit
from pyro_vae.data import Split, make_splits
from pyro_vae.estimators import ELBO, IWAE, STL, ScoreFunction, Stock
from pyro_vae.traces import library_path, particles


class Programs(nn.Module):
    """A Gaussian latent for each datum, and one of several ways to observe three numbers, some of them masked."""

    def __init__(self, observe):
        super().__init__()
        self.loc, self.observe = nn.Parameter(torch.zeros(1)), observe

    def model(self, x):
        pyro.module("w", self)
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Normal(self.loc.new_zeros(1), 1.0).to_event(1))
            self.observe((t + self.loc).expand(*t.shape[:-1], 3), x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.Normal(self.loc, 1.0).to_event(1))


def there(x):
    return x.isfinite() & (x > -90)


def inside(a, x):
    pyro.sample("x", dist.Normal(a, 1.0).mask(there(x)).to_event(1), obs=x)


def site(a, x):
    with pyro.poutine.mask(mask=there(x).all(-1)):
        pyro.sample("x", dist.Normal(a, 1.0).to_event(1), obs=x)


def columns(a, x):
    for j in range(3):
        with pyro.poutine.mask(mask=there(x[:, j])):
            pyro.sample(f"x{j}", dist.Normal(a[..., j], 1.0), obs=x[:, j])


def together(a, x):
    with pyro.poutine.mask(mask=there(x).all(-1)):
        pyro.sample("x", dist.MultivariateNormal(a, torch.eye(3)), obs=x)


def without_mean(a, x):
    pyro.sample("x", dist.Cauchy(a, 1.0).mask(there(x)).to_event(1), obs=x)


def counts(a, x):
    pyro.sample("x", dist.Poisson(a.exp()).mask(there(x)).to_event(1), obs=torch.where(there(x), x.abs().round(), x))


def positive(a, x):
    value = torch.where(there(x), x.abs() + 0.1, x)
    pyro.sample("x", dist.Gamma(a.exp(), 1.0).mask(there(x)).to_event(1), obs=value)


OBSERVED = [inside, site, columns, together, without_mean, counts, positive]


def with_gaps(code):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    x[::7, 1] = code
    x[::5, 0] = code
    return x


def estimate(observe, x):
    """The log weights and the gradient of their sum, from the same draws each time."""
    programs = Programs(observe)
    torch.manual_seed(0)
    with library_path():
        log_w = particles(programs.model, programs.guide, x, K=2).log_w
    return log_w.detach(), torch.autograd.grad(log_w.sum(), programs.loc)[0]


@pytest.mark.parametrize("code", [torch.nan, torch.inf, -99.0])
@pytest.mark.parametrize("observe", OBSERVED)
def test_the_gradient_is_that_of_what_is_there(observe, code, monkeypatch):
    """With numbers in the gaps that have a finite density, the same masks give terms of exactly 0."""
    x, exists = with_gaps(code), ~with_gaps(torch.nan).isnan()
    found = estimate(observe, x)
    harmless = torch.where(exists, x, 1.0)
    by_column = {harmless[:, j].sum().item(): exists[:, j] for j in range(3)}
    monkeypatch.setitem(globals(), "there", lambda part: exists if part.dim() > 1 else by_column[part.sum().item()])
    for one, other in zip(found, estimate(observe, harmless), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "estimator", [ELBO(), IWAE(2), STL(2), ScoreFunction(2), Stock(2)], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("observe", [inside, columns])
def test_it_trains_with_every_kind_of_estimator(observe, estimator):
    splits = make_splits(Split(with_gaps(torch.nan)), valid=10, test=10)
    records = list(fit(Programs(observe), splits, epochs=2, batch_size=20, estimator=estimator))
    assert torch.tensor([records[-1].train.bound, records[-1].valid.bound]).isfinite().all()


def test_it_compiles(traced):
    splits = make_splits(Split(with_gaps(torch.nan)), valid=10, test=10)
    ends = [list(fit(Programs(inside), splits, epochs=2, batch_size=20, compile=how))[-1] for how in ("on", "off")]
    assert ends[0].valid.bound == pytest.approx(ends[1].valid.bound, rel=1e-5)


def test_what_is_not_masked_stays_nan():
    def observe(a, x):
        pyro.sample("x", dist.Normal(a, 1.0).mask(there(x) | (torch.arange(3) == 1)).to_event(1), obs=x)

    x = with_gaps(torch.nan)
    log_w, _ = estimate(observe, x)
    assert torch.equal(log_w.isnan().all(0), x[:, 1].isnan())
    with pytest.raises(ValueError, match="missing ones"):
        fit(Programs(observe), make_splits(Split(x), valid=10, test=10), epochs=1, batch_size=20)
