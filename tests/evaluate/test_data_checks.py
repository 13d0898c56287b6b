"""What every evaluation checks of its data: the shape of a batch, labels, and values that the model can score."""

from __future__ import annotations

from math import log
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae.evaluate as ev
from pyro_vae import VAE, Dims, fit
from pyro_vae.data import Split, Splits
from pyro_vae.estimators import ELBO
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli, DiscretizedLogistic, NegativeBinomial, Normal
from pyro_vae.models import Conditional, Ladder, TwoLayer
from pyro_vae.priors import StandardNormal
from pyro_vae.traces import particles

EVALUATIONS = {
    "log_px": lambda m, x: ev.log_px(m, x, K=2),
    "evidence": lambda m, x: ev.evidence(m, x, K=2),
    "evaluate_bound": lambda m, x: ev.evaluate_bound(m, x, ELBO()),
    "encode": ev.encode,
    "reconstruct": ev.reconstruct,
    "active_units": ev.active_units,
    "draw_gradients": lambda m, x: ev.draw_gradients(m, x, ELBO(), 20),
}
LIKE = {
    "sample": lambda m, x: ev.sample(m, 2, like=x),
    "decode": lambda m, x: ev.decode(m, {"t": torch.zeros(1, 2)}, x),
}


def vae(likelihood=Bernoulli, shape=(5,), **options):
    dims = Dims(2, shape)
    return VAE(StandardNormal(dims), DiagonalNormal(dims), likelihood(dims, **options))


@pytest.mark.parametrize("name", [*EVALUATIONS, *LIKE])
@pytest.mark.parametrize("shape", [(5,), (3, 16, 16)])
def test_one_datum_is_no_batch(name, shape):
    """It would be broadcast, and give as many numbers as it has rows."""
    x = torch.zeros(shape)
    sizes = ", ".join(map(str, shape))
    expected = (
        rf"^x: a batch of shape \(N, {sizes}\) is expected, got shape \({sizes},?\) of one datum: give x\[None\]$"
    )
    with pytest.raises(ValueError, match=expected):
        (EVALUATIONS | LIKE)[name](vae(shape=shape), x)
    (EVALUATIONS | LIKE)[name](vae(shape=shape), x[None].expand(2, *shape))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_another_shape_is_told_without_a_trace(name):
    with pytest.raises(ValueError, match=r"^x: a batch of shape \(N, 5\) is expected, got shape \(4, 3\)$"):
        EVALUATIONS[name](vae(), torch.zeros(4, 3))


def test_fit_tells_another_shape():
    split = Split(torch.zeros(10, 3))
    with pytest.raises(ValueError, match=r"^x: a batch of shape \(N, 5\) is expected, got shape \(10, 3\)$"):
        fit(vae(), Splits(split, split, split, dist.constraints.boolean), batch_size=5)


@pytest.mark.parametrize("kind", ["VAE", TwoLayer, Ladder, Conditional])
def test_programs_that_stock_pyro_runs_take_no_single_datum(kind):
    dims = Dims(2, (5,), classes=3)
    model = vae() if kind == "VAE" else kind(dims, StandardNormal, DiagonalNormal, Bernoulli)
    labels = [torch.zeros(5, dtype=torch.int64)] if kind is Conditional else []
    for program in (model.model, model.guide):
        with pytest.raises(ValueError, match=r"a batch of shape \(N, 5\) is expected, got shape \(5,\) of one datum"):
            program(torch.zeros(5), *labels)


BAD = {
    "negative count": (NegativeBinomial, {}, -1.0),
    "half a count": (NegativeBinomial, {}, 0.5),
    "levels over 255": (DiscretizedLogistic, {"levels": 256}, 0.2),
    "level 300": (DiscretizedLogistic, {"levels": 256}, 300.0),
    "level -5": (DiscretizedLogistic, {"levels": 256}, -5.0),
    "gray": (Bernoulli, {}, 0.5),
    "level under Bernoulli": (Bernoulli, {}, 200.0),
    "infinite": (Normal, {}, torch.inf),
    "missing": (Normal, {}, torch.nan),
}


@pytest.mark.parametrize(
    ("bad", "name"), [*((bad, "log_px") for bad in BAD), *(("negative count", name) for name in EVALUATIONS)]
)
def test_what_the_model_cannot_score_is_refused_by_site_and_value(bad, name):
    likelihood, options, value = BAD[bad]
    model, x = vae(likelihood, **options), torch.ones(1200, 5)
    EVALUATIONS[name](model, x[:20])
    x[1100, 3] = value  # beyond the first thousand, too
    shown = r"1 to 1 and missing ones \(NaN\)" if value != value else rf"{min(value, 1.0):g} to {max(value, 1.0):g}"
    with pytest.raises(
        ValueError, match=rf"^the data hold values from {shown} that {likelihood.__name__[:11]}\w* at site 'x'"
    ):
        EVALUATIONS[name](model, x)


def test_columns_are_checked_as_well():
    with pytest.raises(ValueError, match=r"the data hold values from 0.5 to 0.5 that Bernoulli at site 'x'"):
        ev.evaluate_bound(vae(), Split(torch.full((4, 5), 0.5)).columns(), ELBO())


def test_probabilities_of_pixels_that_are_drawn_at_each_use_are_no_gray_pixels():
    assert len(ev.log_px(vae(), Split(torch.full((4, 5), 0.5), dynamic=True), K=2)) == 4


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_unknown_label_is_told(name):
    model = Conditional(Dims(2, (5,), classes=3), StandardNormal, DiagonalNormal, Bernoulli)
    with pytest.raises(ValueError, match=r"^y: expected labels 0..2, got 0 to 7$"):
        EVALUATIONS[name](model, Split(torch.zeros(2, 5), torch.tensor([0, 7])))


class Own(torch.nn.Module):
    """A model and a guide of one's own, with a mask; it says nothing of sizes."""

    def __init__(self, masked=False):
        super().__init__()
        self.masked, self.loc = masked, torch.nn.Parameter(torch.zeros(()))

    def model(self, x):
        pyro.module("own", self)
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Normal(self.loc.new_zeros(1), 1.0).to_event(1))
            each = dist.Poisson((t + self.loc).exp().expand(*t.shape[:-1], 5))
            pyro.sample("counts", (each.mask(x.isfinite()) if self.masked else each).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.Normal(self.loc.new_zeros(1), 1.0).to_event(1))


def test_programs_of_ones_own():
    expected = (
        r"^a batch of data is expected, \(N, 5\) as site 'counts' observes them, got shape \(5,\): of one datum give x"
    )
    with pytest.raises(ValueError, match=expected):
        ev.log_px(Own(), torch.ones(5), K=2)
    with pytest.raises(
        ValueError, match=r"^the data hold values from -1 to 1 that Poisson at site 'counts' cannot score"
    ):
        ev.log_px(Own(), torch.tensor([[1.0, 1, 1, 1, -1]]), K=2)
    x = torch.tensor([[1.0, 1, 1, 1, torch.inf]])
    assert ev.log_px(Own(masked=True), x.nan_to_num(posinf=torch.inf), K=2).shape == (1,)
    with pytest.raises(ValueError, match="1 values are infinite"):
        ev.log_px(Own(), x, K=2)


def test_functions_without_a_module():
    own = Own()
    assert len(ev.encode(SimpleNamespace(model=own.model, guide=own.guide), torch.ones(3, 5))["t"]) == 3


def test_the_check_moves_nothing_and_the_draws_are_those_without_it():
    model, x = vae(), torch.bernoulli(torch.full((6, 5), 0.5))
    state = torch.get_rng_state()
    found = ev.evaluate_bound(model, x, ELBO(), seed=3).per_datum()
    assert torch.equal(torch.get_rng_state(), state)
    with ev.bound.evaluating(model, x.device, 3, "bound"), torch.no_grad():
        draws = particles(model.model, model.guide, x)
    torch.testing.assert_close(found, draws.log_w[0])
    assert found.mean() < 5 * log(2)
