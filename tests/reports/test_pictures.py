"""Pictures of a trained model show what they say, for one latent and for several, of any name and shape."""

from __future__ import annotations

import json
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from torch import nn
from torch.distributions import constraints

from pyro_vae import TrainingPlan, figures, fit, guides, priors
from pyro_vae.data import Split, Splits
from pyro_vae.evaluate import decode, sample, variance_of_means
from pyro_vae.models import ModelSpec, discretized
from pyro_vae.reports import (
    DiscreteModel,
    Latents,
    LearningCurves,
    LogLikelihood,
    Plane,
    Reconstructions,
    Samples,
    TestBound,
    Trained,
    Traversals,
    pictures,
)
from pyro_vae.runs import Run


def test_a_traversal_moves_the_coordinate_that_it_names(monkeypatch):
    """By one unit of t_j the mean of x moves along column j of W; the most used coordinate comes first."""
    drawn = {}

    def traversals(means, names, ticks, *_):
        drawn.update(means=means, names=names, ticks=torch.tensor(ticks, dtype=means.dtype))

    monkeypatch.setattr(figures, "traversals", traversals)
    oracle = LinearGaussian.random(d=3)
    split = Split(oracle.data(200))
    Traversals().draw(Trained(oracle.vae, Splits(split, split, split, constraints.real), TrainingPlan(), []))
    used = variance_of_means(oracle.vae, split).argsort(descending=True).tolist()
    assert drawn["names"] == [figures.coordinate("t", j, (3,)) for j in used]
    for j, line in zip(used, drawn["means"].split(len(drawn["ticks"])), strict=True):
        moved = drawn["ticks"] - drawn["ticks"][0]
        torch.testing.assert_close(line - line[0], torch.outer(moved, oracle.W[:, j]).detach())


class OneNumber(nn.Module):
    """A program of one's own: its latent is a number, its sites are named z and pixels."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 2), nn.Linear(1, 64)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            logits = self.decoder(z.unsqueeze(-1)).unflatten(-1, (1, 8, 8))
            pyro.sample("pixels", dist.Binomial(16, logits=logits).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x.flatten(1) / 16).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


@pytest.mark.parametrize("size", [2, 5, 60])
def test_every_picture_and_metric_of_a_program_of_ones_own(size, digits):
    torch.manual_seed(0)
    model, data = OneNumber(), digits._replace(test=digits.test.first(size))
    plan = TrainingPlan(epochs=1)
    trained = Trained(model, data, plan, list(fit(model, data, plan)), test_particles=5, test_images=size)
    names = [name for picture in (LearningCurves, Reconstructions, Samples, Latents, Plane, Traversals)
             for name in picture().draw(trained)]  # fmt: skip
    assert names == ["learning_curves", "reconstructions", "samples", "latents", "traversals"]
    assert [row.quantity.split()[0] for row in TestBound().measure(trained).rows] == ["ELBO", "reconstruction", "KL"]
    assert LogLikelihood().measure(trained).values["log_px"]["n"] == size


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("shape", [(3,), (2, 12), (1, 4, 4)])
def test_pictures_of_data_of_every_kind_and_of_one_test_datum(shape, size):
    torch.manual_seed(0)
    x = torch.randn(60, *shape)
    data = Splits(Split(x), Split(x), Split(x[:size]), constraints.real)
    trained = Trained(ModelSpec(latent=3).build(data, 0), data, TrainingPlan(), [])
    drawn = {name: figure for picture in (Reconstructions, Samples, Latents, Plane, Traversals)
             for name, figure in picture().draw(trained).items()}  # fmt: skip
    assert list(drawn) == ["reconstructions", "samples", "latents", "traversals"]
    words = " ".join(figure.get_suptitle() for figure in drawn.values())
    assert ("test images" in words) == (trained.look.kind == "image")


def test_samples_of_a_table_have_the_noise_of_the_data():
    """Means of p(x|t) vary by W Wᵀ alone, data and samples by W Wᵀ + s²: 2,000 draws, 5 standard errors."""
    oracle = LinearGaussian.random(d=2)
    drawn, means = (sample(oracle.vae, 2000, noise=noise) for noise in (True, False))
    inner = (oracle.W @ oracle.W.T).diagonal().detach()
    whole = inner + oracle.vae.likelihood(oracle.W.new_zeros(2)).variance.detach()
    error = 5 * (2 / 2000) ** 0.5
    torch.testing.assert_close(drawn.var(0), whole, rtol=error, atol=0)
    torch.testing.assert_close(means.var(0), inner, rtol=error, atol=0)


def strict(text: str):
    """JSON as the standard has it, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("size", [1, 2])
def test_one_test_datum_has_no_error_and_the_file_and_the_screen_say_so(digits, size, tmp_path):
    data = digits._replace(test=digits.test.first(size))
    trained = Trained(ModelSpec(latent=2).build(data, 0), data, TrainingPlan(), [], test_particles=3)
    run = Run(tmp_path / "run", "prior: 1\n")
    found = [metric().measure(trained) for metric in (TestBound, LogLikelihood)]
    run.result(found[0].values | found[1].values)
    kept = strict((tmp_path / "run" / "result.json").read_text())
    shown = [row.value for each in found for row in each.rows if "(" in row.value or "±" in row.value]
    assert len(shown) == 3
    for name in ("test_bound", "log_px", "bits_per_dim"):
        error, reason = kept[name]["standard_error"], kept[name].get("standard_error_missing")
        assert (error, reason) == ((None, "no ±: a single value") if size == 1 else (pytest.approx(error), None))
    assert all(("(no ±: a single value)" in each) == (size == 1) and "nan" not in each for each in shown)


@pytest.mark.parametrize(
    ("kind", "options", "ticks", "parts"),
    [
        ("Bernoulli", {}, [0, 1], {"$t_{1}$", "$t_{2}$", "$t_{3}$", "$t_{4}$"}),
        ("OneHotCategorical", {"classes": 2}, [1, 2], {"t, block 1", "t, block 2"}),
        ("Concrete", {"classes": 2}, [1, 2], {"t, block 1", "t, block 2"}),
        ("RelaxedBernoulli", {}, torch.linspace(-3, 3, 11).tolist(), {"$t_{1}$", "$t_{2}$", "$t_{3}$", "$t_{4}$"}),
    ],
)
def test_a_traversal_shows_values_that_a_latent_has(kind, options, ticks, parts, digits, monkeypatch):
    """Bits are 0 and 1, and a one-hot vector, relaxed or not, has each of its classes, while the others stay."""
    decoded, shown = [], {}
    monkeypatch.setattr(pictures, "decode", lambda model, t, x: decoded.append(t["t"]) or decode(model, t, x))
    monkeypatch.setattr(
        figures, "traversals", lambda means, *given: shown.update(zip(("names", "ticks"), given, strict=False))
    )
    spec = ModelSpec(partial(getattr(priors, kind), **options), partial(getattr(guides, kind), **options), latent=4)
    model = spec.build(digits, 0)
    Traversals().draw(Trained(model, digits, TrainingPlan(), []))
    assert set(shown["names"]) == parts
    assert list(shown["ticks"]) == pytest.approx(ticks)
    support = model.posterior(digits.test.x[:1]).support
    for t in decoded:
        assert support.check(t).all()
        assert len(t) == len(ticks)
        assert ((t != t[0]).sum(-1) > 0).sum() == len(ticks) - 1
        assert (t != t[:1]).any(0).sum() == options.get("classes", 1)


def test_the_discrete_model_is_measured_and_others_are_refused(digits):
    model = ModelSpec(priors.RelaxedBernoulli, guides.RelaxedBernoulli, latent=4).build(digits, 0)
    trained = Trained(model, digits, TrainingPlan(), [], test_particles=5, test_images=7)
    found = DiscreteModel().measure(trained)
    assert all("of the discrete model" in row.quantity for row in found.rows)
    assert found.values["discrete_log_px"]["n"] == 7
    plain = Trained(ModelSpec(latent=2).build(digits, 0), digits, TrainingPlan(), [])
    with pytest.raises(ValueError, match="expected a relaxed one"):
        DiscreteModel().measure(plain)
    bits = Trained(discretized(model), digits, TrainingPlan(), [], test_particles=20, test_images=7)
    assert "annealed" not in " ".join(LogLikelihood().measure(bits).notices)
