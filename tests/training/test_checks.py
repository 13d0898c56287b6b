"""What fit checks of the data: each site's own observed value, where a mask says that it exists."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyro_vae import fit
from pyro_vae.data import Split, Splits


class Programs(nn.Module):
    """A Gaussian latent for each datum, and one of several ways to observe x (and y)."""

    def __init__(self, observe, inputs=("x",)):
        super().__init__()
        self.loc, self.observe, self.inputs = nn.Parameter(torch.zeros(1)), observe, inputs

    def model(self, x, *y):
        pyro.module("w", self)
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Normal(self.loc.new_zeros(1), 1.0).to_event(1))
            self.observe(t + self.loc, x, *y)

    def guide(self, x, *y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.Normal(self.loc, 1.0).to_event(1))


def two_kinds(t, x):
    pyro.sample("real", dist.Normal(t.expand(*t.shape[:-1], 2), 1.0).to_event(1), obs=x[:, :2])
    pyro.sample("binary", dist.Bernoulli(logits=t).to_event(1), obs=x[:, 2:])


def flattened(t, x):
    pyro.sample("x", dist.Normal(t, 1.0).expand((*t.shape[:-1], 3)).to_event(1), obs=x.flatten(1))


def masked_inside(t, x):
    there = x.isfinite()
    each = dist.Normal(t.expand(*t.shape[:-1], 3), 1.0).mask(there)
    pyro.sample("x", each.to_event(1), obs=x.nan_to_num())


def masked_positive(t, x):
    """A site that cannot score what is not positive, and a mask that leaves it out."""
    each = dist.Exponential(t.exp().expand(*t.shape[:-1], 3)).mask(x > 0)
    pyro.sample("x", each.to_event(1), obs=x)


def masked_site(t, x):
    with pyro.poutine.mask(mask=(x > 0).all(-1)):
        pyro.sample("x", dist.Exponential(t.exp()).expand((*t.shape[:-1], 3)).to_event(1), obs=x)


def with_label(t, x, y):
    pyro.sample("x", dist.Normal(t.expand(*t.shape[:-1], 3), 1.0).to_event(1), obs=x)
    pyro.sample("y", dist.Categorical(logits=torch.cat([t, -t, 0 * t], -1)), obs=y)


def splits(x, labels=None):
    def part(where):
        return Split(x[where], None if labels is None else labels[where])

    return Splits(part(slice(0, 40)), part(slice(40, 50)), part(slice(50, 60)), constraints.real)


def real():
    return torch.randn(60, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("observe", [two_kinds, flattened, masked_inside, masked_positive, masked_site])
def test_each_site_is_checked_by_its_own_value(observe):
    x = real()
    if observe is two_kinds:
        x[:, 2] = (x[:, 2] > 0).float()
    if observe is masked_inside:
        x[::7, 1] = torch.nan
    records = list(fit(Programs(observe), splits(x), epochs=1, batch_size=20))
    assert torch.isfinite(torch.tensor(records[-1].valid.bound))


def test_a_label_beside_the_data_is_checked_by_itself():
    labels = torch.arange(60) % 3
    assert list(fit(Programs(with_label, ("x", "y")), splits(real(), labels), epochs=1, batch_size=20))
    labels[45] = 3
    with pytest.raises(ValueError, match="validation data hold values from 0 to 3 that Categorical at site 'y'"):
        fit(Programs(with_label, ("x", "y")), splits(real(), labels), epochs=1, batch_size=20)


@pytest.mark.parametrize(
    ("observe", "site", "change"),
    [
        (two_kinds, "binary", lambda x: x.index_fill_(1, torch.tensor([2]), 0.5)),
        (flattened, "x", lambda x: x[55].fill_(torch.nan)),
        (masked_positive, "x", None),
    ],
)
def test_what_no_site_can_score_is_still_refused(observe, site, change):
    x = real()
    if observe is two_kinds:
        x[:, 2] = 1
    if change is None:  # the mask says that these exist, and they are negative

        def observe(t, x):
            each = dist.Exponential(t.exp().expand(*t.shape[:-1], 3)).mask(x > -100)
            pyro.sample("x", each.to_event(1), obs=x)

    else:
        change(x)
    with pytest.raises(ValueError, match=f"data hold values from .* at site '{site}' cannot score"):
        fit(Programs(observe), splits(x), epochs=1, batch_size=20)
