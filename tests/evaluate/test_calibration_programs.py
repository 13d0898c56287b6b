"""Calibration of every kind of model: exact posteriors have uniform ranks, and what cannot be simulated is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import BITS, DIMS, GUIDES, LIKELIHOODS, NETWORK, PRIORS, data_for, vae_of, with_gaps
from oracles import LinearGaussian, PosteriorOfObserved, affine
from pyro.distributions.transforms import planar
from scipy import stats

from pyro_vae import VAE, Dims
from pyro_vae.data import Split, columns_for
from pyro_vae.evaluate import calibrate
from pyro_vae.evaluate.calibration.collection import collect
from pyro_vae.evaluate.calibration.simulation import drawn_from, rows
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.models import Conditional, Ladder, TwoLayer
from pyro_vae.priors import StandardNormal

MAKERS = (StandardNormal, partial(DiagonalNormal, network=NETWORK), partial(Bernoulli, network=NETWORK))
X = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))


class Pair:
    """A model and a guide of a user's own."""

    def __init__(self, model, guide, *inputs):
        self.model, self.guide = model, guide
        if inputs:
            self.inputs = inputs


def uniform(found) -> bool:
    """All ranks occur equally often, up to chance, for every quantity."""
    tests = [stats.chisquare(np.bincount(ranks, minlength=found.L + 1)).pvalue for ranks in found.ranks.T]
    return found.calibrated and min(tests) > 1e-4


@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_every_part(cls):
    vae = vae_of(cls)
    found = calibrate(vae, data_for(cls, vae, 12), 20, 4, M=8 if cls in GUIDES else None, seed=0)
    assert found.names[:2] == ("t[1]", "t[2]")
    assert ((found.ranks >= 0) & (found.ranks <= 4)).all()
    assert np.isfinite(found.share_of_x).all()


@pytest.mark.parametrize(
    ("programs", "like", "names"),
    [
        (lambda: TwoLayer(DIMS, *MAKERS, top=3), BITS, ("t[1]", "t[2]", "t2[1]", "t2[2]", "t2[3]")),
        (lambda: Ladder(DIMS, *MAKERS, top=3), BITS, ("t2[1]", "t2[2]", "t2[3]", "t[1]", "t[2]")),
        (
            lambda: Conditional(Dims(2, (1, 4, 4), train=BITS, classes=3), *MAKERS),
            Split(BITS, torch.arange(20) % 3),
            ("t[1]", "t[2]"),
        ),
        (lambda: vae_of(Bernoulli), Split(torch.rand(5, 1, 4, 4), dynamic=True), ("t[1]", "t[2]")),
        (lambda: vae_of(Bernoulli), BITS[:1].numpy().astype(np.uint8), ("t[1]", "t[2]")),
    ],
)
def test_models(programs, like, names):
    torch.manual_seed(0)
    found = calibrate(programs(), like, 20, 4, M=9)
    assert found.latents == names
    assert found.notices() is not None


def discrete(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(2.0 * k[..., None], 1.0).expand([*k.shape, 3]).to_event(1), obs=x)


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        loc = 2.0 * torch.arange(3.0)[:, None]
        logits = dist.Normal(loc, 1.0).log_prob(x[:, None]).sum(-1) + torch.tensor([0.2, 0.3, 0.5]).log()
        pyro.sample("k", dist.Categorical(logits=logits))


def chain(x):
    """a ~ N(0, 1), b ~ N(a, 1), x ~ N(b, 1)."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def coverage(x):
    """A latent whose name is that of a joint quantity."""
    with pyro.plate("data", len(x)):
        t = pyro.sample("coverage", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(t, 1.0), obs=x)


def coverage_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("coverage", dist.Normal(x / 2, 0.5**0.5))


def chain_guide(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Normal(2 * x / 3, (2 / 3) ** 0.5))
        pyro.sample("a", dist.Normal(b / 2, 0.5**0.5))


def labeled(x, y):
    """t ~ N(0, 1), x ~ N(t + 3 y, 1): a model given y."""
    with pyro.plate("data", len(x)):
        t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(t + 3.0 * y, 1.0), obs=x)


def labeled_guide(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("t", dist.Normal((x - 3.0 * y) / 2, 0.5**0.5))


def of_both(x, y):
    """t ~ N(0, 1), y ~ Bernoulli(1/2), x ~ N(t + 3 y, 1), with y observed: other labels are drawn than those that are given."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2), obs=y)
        t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(t + 3.0 * y, 1.0), obs=x)


def parts_of_x(x):
    """t ~ N(0, 1); the first two numbers of x are observed at two sites, in another order, and the third is given."""
    with pyro.plate("data", len(x), dim=-1):
        t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("second", dist.Normal(t + x[:, 2], 1.0), obs=x[:, 1])
        pyro.sample("first", dist.Normal(t - x[:, 2], 1.0), obs=x[:, 0])


def parts_of_x_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("t", dist.Normal(x[:, :2].sum(1) / 3, 3**-0.5))


def series(x):
    """s_k ~ N(0, 1), x_k ~ N(s_k, 1) at each of three times, with the data as the last dimension."""
    with pyro.plate("data", len(x), dim=-1), pyro.plate("time", 3, dim=-2):
        s = pyro.sample("s", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(s, 1.0), obs=x.T)


def series_guide(x):
    with pyro.plate("data", len(x), dim=-1), pyro.plate("time", 3, dim=-2):
        pyro.sample("s", dist.Normal(x.T / 2, 0.5**0.5))


PAIRS = {
    "discrete": (Pair(discrete, discrete_guide), X, ("k",), 1),
    "latents in another order": (Pair(chain, chain_guide), X[:, 0], ("b", "a"), 1),
    "a latent named coverage": (Pair(coverage, coverage_guide), X[:, 0], ("coverage (latent)",), 1),
    "labels": (Pair(labeled, labeled_guide, "x", "y"), Split(X[:, 0], torch.arange(9) % 2), ("t",), 1),
    "observed labels": (Pair(of_both, labeled_guide, "x", "y"), Split(X[:, 0], torch.arange(9) % 2), ("t",), 1),
    "parts of x": (Pair(parts_of_x, parts_of_x_guide), X, ("t",), 1),
    "plates": (Pair(series, series_guide), X, ("s[1]", "s[2]", "s[3]"), 2),
}


@pytest.mark.parametrize("name", PAIRS)
def test_exact_posteriors_of_own_programs_have_uniform_ranks(name):
    """In float32. What belongs to a datum is found, and so are its labels and what it is given."""
    programs, like, names, nesting = PAIRS[name]
    found = calibrate(programs, like, 1500, 7, max_plate_nesting=nesting, seed=2)
    assert found.latents == names
    assert uniform(found)


def test_missing_values_are_missing_in_simulated_data():
    """The exact p(t|x_obs) of a model with W of correlated columns, where a third of the values is missing."""
    x = with_gaps(torch.randn(40, 5), 0.3)
    dims = Dims(2, (5,), train=x, missing=True)
    vae = VAE(StandardNormal(dims), PosteriorOfObserved(dims), Normal(dims, affine, scale=0.7)).double()
    columns = columns_for(vae, x.double())
    like = rows(columns, 100)
    (drawn,), _ = drawn_from(vae.model, like, (0,))
    assert torch.equal(drawn.isnan(), like.x.isnan())
    assert uniform(calibrate(vae, x.double(), 1500, 7, seed=2))
    whole = x.nan_to_num().double()
    assert calibrate(vae, whole, 100, 7, seed=2).calibrated  # of data without a missing value, too
    with pytest.raises(ValueError, match="missing ones"):
        calibrate(vae_of(Bernoulli), with_gaps(BITS), 20, 4)


def test_rows_have_every_datum_equally_often():
    columns = Split(torch.arange(7.0)[:, None], torch.arange(7)).columns(("x", "y"))
    taken = rows(columns, 16)
    assert sorted(torch.bincount(taken.y).tolist()) == [2] * 5 + [3] * 2
    assert torch.equal(taken.x[:, 0].long(), taken.y)


def test_a_wrong_posterior_of_discrete_latents_is_seen():
    """q = p: the marginals are right, and log p(x|t) sees it."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))

    found = calibrate(Pair(discrete, guide), X, 200, 20)
    assert not found.flagged[0]
    assert found.flagged[found.names.index("log p(x|t)")]
    assert "ignores x" in " ".join(found.notices())
    assert calibrate(Pair(discrete, guide), X, 200, 20, M=2000).calibrated


def test_draws_outside_of_the_prior_and_truths_outside_of_the_guide():
    def model(x):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Uniform(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(t, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Uniform(x - 0.1, x + 0.1))

    for M in (None, 60):
        found = calibrate(Pair(model, guide), X[:, 0], 100, 20, M=M)
        assert not found.calibrated
        assert found.notices()


def test_the_whole_path_on_the_meta_device():
    vae = LinearGaussian.random().vae.to("meta")
    columns = columns_for(vae, torch.empty(6, 5, device="meta", dtype=torch.float64))
    for M in (None, 20):
        names, found = collect(vae, columns, 30, 8, M, 1, 0)
        assert (names, found.ranks.shape, found.ranks.device.type) == (["t[1]", "t[2]"], (30, 7), "meta")
    with pytest.raises(ValueError, match="like: it is on the meta device"):
        calibrate(vae, columns)


def observing(what):
    """A model that observes this of x."""

    def model(x):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(t, 1.0).to_event(1), obs=what(x))

    return model


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("t", dist.Normal(x / 2, 0.7).to_event(1))


def autoregressive(x):
    with pyro.plate("data", len(x)):
        t = pyro.sample("t", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(t + x.cumsum(1), 1.0).to_event(1), obs=x)


def twice(x):
    observing(lambda x: x)(x)
    with pyro.plate("data again", len(x)):
        pyro.sample("again", dist.Normal(x, 1.0).to_event(1), obs=x)


def with_factor(x):
    observing(lambda x: x)(x)
    with pyro.plate("data again", len(x)):
        pyro.factor("f", x.new_zeros(len(x)))


def without_x(x):
    with pyro.plate("data", len(x)):
        t = pyro.sample("t", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(t, 1.0).to_event(1), obs=torch.zeros(len(x), 3) - 1)


def in_parts(program):
    """A program that takes a part of its data at each call."""

    def taking(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            t = pyro.sample("t", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            if program == "model":
                pyro.sample("x", dist.Normal(t, 1.0).to_event(1), obs=x[index])

    return taking


def without_density(x):
    with pyro.plate("data", len(x)):
        flow = dist.TransformedDistribution(dist.Normal(x, 1.0).to_event(1), [planar(3)])
        pyro.sample("t", flow)


def labels_as_given(x, y):
    """Observes y, and makes x of the y that it is called with and not of the one that it draws."""
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(torch.full((), 0.5)), obs=y)
        t = pyro.sample("t", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(t + 3.0 * y, 1.0), obs=x)


WHOLE = observing(lambda x: x)
REFUSED = {
    "a function of x": (observing(lambda x: x**2), guide, "site 'x' observes something else than the numbers of x"),
    "p(x|t) that reads x": (autoregressive, guide, "changes with what it is called with"),
    "a number twice": (twice, guide, "a number of x at two places"),
    "a factor": (with_factor, guide, "site 'f' observes something else"),
    "no x": (without_x, guide, "site 'y' observes something else"),
    "a part of the data": (in_parts("model"), in_parts("guide"), "subsample_size does not match"),
    "a guide without a density": (
        WHOLE,
        without_density,
        "guide: it cannot score a latent that it did not draw itself",
    ),
    "another latent": (WHOLE, lambda x: chain_guide(x[:, 0]), "the guide does not sample the model's latent sites"),
}


def test_a_model_that_reads_what_it_observes_is_refused():
    with pytest.raises(ValueError, match="changes with what it is called with"):
        calibrate(Pair(labels_as_given, labeled_guide, "x", "y"), PAIRS["labels"][1], 20, 4)


@pytest.mark.parametrize("name", REFUSED)
def test_programs_that_cannot_be_calibrated_are_refused(name):
    model, of, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        calibrate(Pair(model, of), X, 20, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 19}, "n: expected at least 20"),
        ({"draws": 1}, "draws: expected at least 2"),
        ({"M": 199}, "M: expected at least 2 × draws = 200"),
        ({"like": BITS[:0]}, "expected at least one datum"),
        ({"programs": Conditional(Dims(2, (1, 4, 4), train=BITS, classes=3), *MAKERS)}, "labels"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(**{"programs": vae_of(Bernoulli), "like": BITS} | options)


def test_a_model_of_nan_is_refused():
    vae = vae_of(Bernoulli)
    with torch.no_grad():
        next(vae.likelihood.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="parameters are NaN"):
        calibrate(vae, BITS)
    with pytest.raises(ValueError, match="is NaN for simulated data"):
        calibrate(Pair(WHOLE, lambda x: guide(x * torch.nan)), X, 20, 4)
