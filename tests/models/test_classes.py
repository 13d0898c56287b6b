"""Models with a class y: one that is summed out, and one of which some are known; labels that are told, and the metric."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import BITS, DIMS, NETWORK, build, update_of
from torch import nn

from pyro_vae import VAE, Prior, fit, load
from pyro_vae.data import Digits, Split, make_splits
from pyro_vae.data.labels import choose_labelled
from pyro_vae.estimators import ELBO, IWAE, Enumerate, Objective, ScoreFunction
from pyro_vae.evaluate import class_probabilities, classified, log_px, sample
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.models import MixtureVAE, SemiSupervised
from pyro_vae.priors import Laplace, StandardNormal
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path, particles

CPU = torch.device("cpu")
LABELS = torch.arange(20) % 3


def made(kind, prior=StandardNormal, dims=DIMS, **options):
    parts = (partial(build, cls) for cls in (prior, DiagonalNormal, Bernoulli))
    torch.manual_seed(0)
    return kind(dims, *parts, **options)


@pytest.mark.parametrize("prior", [StandardNormal, Laplace])
def test_a_mixture_is_a_vae_whose_prior_is_the_mixture(prior):
    model = made(MixtureVAE, prior, clusters=4)

    class Explicit(Prior):
        def forward(self):
            of = model.clusters
            each = dist.TransformedDistribution(
                model.prior().expand([4]), [dist.transforms.AffineTransform(of.loc, of.log_scale.exp(), event_dim=1)]
            )
            return dist.MixtureSameFamily(dist.Categorical(logits=of.weights), each)

    with torch.no_grad():
        model.clusters.weights.normal_()
        model.clusters.log_scale.normal_().mul_(0.3)
    vae, found = VAE(Explicit(DIMS), model.posterior, model.likelihood), []
    for programs in (model, vae):
        with seeded(CPU, "draws"), library_path():
            draws = particles(programs.model, programs.guide, BITS, K=3)
        found.append((draws.log_prior, draws.log_lik, draws.log_q))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def some_known(x=BITS, known=7):
    labelled = torch.where(torch.arange(len(x)) < known, LABELS[: len(x)], -1)
    return x, labelled


def test_a_known_class_is_observed_and_another_is_summed_out():
    """The bound of a datum whose class is known is one on log p(x,y), and of the others the expectation over q(y|x)."""
    model = made(SemiSupervised, dims=replace(DIMS, classes=3), classifier=NETWORK)
    x, labelled = some_known()
    t = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(1))  # for each class

    def given(y: int):
        one_hot = torch.eye(3)[y].expand(20, 3)
        channels = model.embedding(one_hot).unflatten(-1, (-1, 4, 4))
        q = model.posterior(torch.cat([x, channels], 1))
        values = q.base_dist.loc + q.base_dist.scale * t[y]
        log_p = model.prior().log_prob(values) + model.likelihood(torch.cat([values, one_hot], -1)).log_prob(x)
        return log_p - torch.tensor(3.0).log() - q.log_prob(values)

    each = torch.stack([given(y) for y in range(3)])
    q_y = model.classifier(x).log_softmax(-1).T
    unknown = (q_y.exp() * (each - q_y)).sum(0)
    expected = torch.where(labelled >= 0, each.gather(0, labelled.clamp(min=0)[None])[0], unknown)

    class Drawn(ELBO.__mro__[1]):  # an estimator that draws t as above
        averages = True

        def bound(self, draws):
            return draws.log_w.mean(0)

        def draw(self, site, q, alike):
            return q.base_dist.loc + q.base_dist.scale * t.unsqueeze(1)

    estimator = Enumerate(ELBO())
    estimator.draws_itself, estimator.inner.draw = True, Drawn().draw
    with library_path():
        estimate = estimator.estimate(model.model, model.guide, x, labelled)
    torch.testing.assert_close(estimate.bound, expected, rtol=1e-5, atol=1e-4)


def test_known_classes_teach_the_classifier_by_alpha_alone():
    model = made(SemiSupervised, dims=replace(DIMS, classes=3), classifier=NETWORK)
    x, labelled = some_known(known=20)
    leaves, found = list(model.classifier.parameters()), []
    for alpha in (0.0, 2.5):
        with seeded(CPU, "t"), library_path():
            estimate, gradients = Enumerate().gradients(
                model.model, model.guide, leaves, x, labelled, objective=Objective(alpha=alpha)
            )
        found.append((estimate.bound, gradients))
    log_q = model.classifier(x).log_softmax(-1)[torch.arange(20), LABELS]
    expected = torch.autograd.grad(2.5 * log_q.mean(), leaves)
    torch.testing.assert_close(found[0][0], found[1][0])
    assert all(bool((gradient.abs() < 1e-7).all()) for gradient in found[0][1])
    torch.testing.assert_close(found[1][1], list(expected))


def test_labels_that_are_not_known_weigh_nothing():
    model = made(SemiSupervised, dims=replace(DIMS, classes=3), classifier=NETWORK)
    with library_path():
        draws = particles(model.model, model.guide, *some_known(), enumerate="all")
    assert bool((draws.auxiliary["label"][0, :7] < 0).all())
    assert bool((draws.auxiliary["label"][0, 7:] == 0).all())


def test_alpha_without_auxiliary_terms_is_refused():
    model = made(MixtureVAE)
    with (
        pytest.raises(ValueError, match="alpha weighs the guide's auxiliary log-probabilities, and it has none"),
        library_path(),
    ):
        ELBO().estimate(model.model, model.guide, BITS, objective=Objective(alpha=1.0))


@pytest.mark.parametrize("estimator", [Enumerate(), ScoreFunction(2, control="leave-one-out"), Enumerate(ELBO(3))])
def test_semi_supervised_trains_and_says_what_it_is_given(estimator):
    data = make_splits(Split(BITS.repeat(5, 1, 1, 1), LABELS.repeat(5)), valid=20, test=20, labelled=9)
    model = made(SemiSupervised, dims=replace(data.dims(2), classes=3), classifier=NETWORK)
    if isinstance(estimator, ScoreFunction):
        with pytest.raises(ValueError, match="rsample"):
            list(fit(model, data, epochs=1, batch_size=10, estimator=ELBO()))
    records = list(fit(model, data, epochs=2, batch_size=10, estimator=estimator, objective=Objective(alpha=5.0)))
    assert len(records) == 2
    assert log_px(model, data.test, K=10).shape == (20,)
    assert sample(model, 3).shape == (3, 1, 4, 4)
    probabilities = class_probabilities(model, data.test)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(20))
    torch.testing.assert_close(probabilities, model.classifier(data.test.x).softmax(-1))


def test_choosing_labels():
    labels = torch.arange(1000) % 10
    for count in (10, 100, 105):
        chosen = choose_labelled(labels, count, seed=0)
        per_class = torch.bincount(labels[chosen], minlength=10)
        assert chosen.sum() == count
        assert per_class.max() - per_class.min() <= (0 if count % 10 == 0 else 1)
    assert torch.equal(choose_labelled(labels, 100, 0), choose_labelled(labels, 100, 0))
    assert not torch.equal(choose_labelled(labels, 100, 0), choose_labelled(labels, 100, 1))


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        (None, 10, "these data have no labels"),
        (torch.rand(20), 10, "labels are classes, whole numbers"),
        (torch.tensor([-1, 0, 1]), 2, "labels are classes, whole numbers"),
        (torch.arange(20) % 4, 3, "at least one for each of 4 classes, and at most all 20 training data, got 3"),
        (torch.arange(20) % 4, 21, "at most all 20 training data"),
        (torch.tensor([0, 1, 1, 1, 1]), 4, "4 in all are 2 of class 0, which has 1 training data"),
    ],
)
def test_labels_that_cannot_be_chosen(labels, count, message):
    with pytest.raises(ValueError, match=message):
        choose_labelled(labels, count, seed=0)


def test_a_model_must_be_told_which_labels_it_knows():
    data = make_splits(Split(BITS, LABELS), valid=5, test=5)
    model = made(SemiSupervised, dims=replace(data.dims(2), classes=3), classifier=NETWORK)
    with pytest.raises(ValueError, match=r"--data\.labelled 100"):
        fit(model, data, epochs=1)
    with pytest.raises(ValueError, match="needs data with a label for each datum"):
        made(SemiSupervised)
    wrong = Split(BITS, torch.full((20,), 7), labelled=torch.ones(20, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected labels 0\.\.2, and -1 where there is none"):
        log_px(model, wrong, K=2)


def test_clusters_are_matched_with_labels():
    """The values of a latent have no names: a permutation of the classes is as good as the classes."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    probabilities = torch.eye(3)[torch.tensor([1, 1, 2, 2, 0, 2])]
    assert classified(probabilities, labels).accuracy.mean == pytest.approx(1 / 6)
    found = classified(probabilities, labels, matched=True)
    assert found.matching == (2, 0, 1)
    assert found.accuracy.mean == pytest.approx(5 / 6)
    assert found.counts.tolist() == [[0, 0, 1], [2, 0, 0], [0, 2, 1]]
    more = classified(torch.eye(5)[torch.tensor([1, 1, 2, 2, 0, 4])], labels, matched=True)
    assert (more.accuracy.mean, more.matching[3]) == (pytest.approx(5 / 6), -1)
    with pytest.raises(ValueError, match=r"expected classes 0\.\.1"):
        classified(torch.eye(2)[torch.zeros(6, dtype=torch.int64)], labels)


def test_the_probability_of_a_cluster_is_that_of_bayes():
    """p(y|x) by quadrature over the two dimensions of t."""
    model = made(MixtureVAE, clusters=3)
    with torch.no_grad():  # a guide that is wider than the posterior, so that few particles say enough
        list(model.posterior.network.parameters())[-1].copy_(torch.tensor([0.0, 0.0, 0.7, 0.7]))
    probabilities = class_probabilities(model, BITS[:3], K=20_000)
    line = torch.linspace(-9, 9, 121)
    t = torch.cartesian_prod(line, line)
    with torch.no_grad():
        of = model.clusters
        log_lik = model.likelihood(t).log_prob(BITS[:3, None])
        each = [dist.Normal(of.loc[y], of.log_scale[y].exp()).to_event(1).log_prob(t) for y in range(3)]
        log_p = torch.stack([(log_lik + log_t).logsumexp(1) for log_t in each])
    expected = (log_p + of.weights.log_softmax(0)[:, None]).softmax(0).T
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=0.02)
    with pytest.raises(ValueError, match="expected a latent of the guide, which draws"):
        class_probabilities(model, BITS, site="z")


SMALL = ["--epochs", "2", "--test_images", "20", "--test_particles", "5", "--latent", "3"]


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "MixtureVAE", "--model.clusters", "5"],
        ["--model", "SemiSupervised", "--data.labelled", "100", "--estimator", "Enumerate", "--objective.alpha", "5"],
    ],
    ids=["MixtureVAE", "SemiSupervised"],
)
def test_the_command_line(options, script, tmp_path):
    metrics = ["--metrics", "[TestBound, LogLikelihood, Classes]"]
    code, out, err = script("train", *options, *SMALL, *metrics, "--out", "run")
    assert (code, err) == (0, "")
    assert "accuracy of" in out
    assert "Left out" not in out.replace("Left out: the errors", "")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["classes"]["accuracy"]["mean"] <= 1
    model = load(tmp_path / "run")
    data = Digits(labelled=100).load()
    torch.testing.assert_close(
        log_px(model, data.test.first(5), K=3), log_px(load(tmp_path / "run"), data.test.first(5), K=3)
    )


OWN = '''
import pyro
import pyro.distributions as dist
import torch
from pyro_vae import Model


class Typed(Model):
    """p(y) p(t) p(x|t,y), with a class y that the guide does not have."""

    def __init__(self, dims, prior, guide, likelihood):
        super().__init__(dims)
        from dataclasses import replace

        self.prior, self.posterior = prior(dims), guide(dims)
        self.likelihood = likelihood(replace(dims, latent=dims.latent + 4))

    def model(self, x=None):
        self.register("prior", self.prior)
        self.register("likelihood", self.likelihood)
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(4) / 4), infer={"enumerate": "parallel"})
            t = pyro.sample("t", self.prior())
            lead = torch.broadcast_shapes(y.shape[:-1], t.shape[:-1])
            both = torch.cat([y.expand(*lead, -1), t.expand(*lead, -1)], -1)
            return pyro.sample("x", self.likelihood(both), obs=x)

    def guide(self, x):
        self.register("guide", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("t", self.posterior(x))
'''


def test_a_program_of_ones_own_with_a_class_that_is_summed_out(script, tmp_path):
    (tmp_path / "my_typed.py").write_text(OWN)
    code, _, err = script("train", "--model", "my_typed.Typed", *SMALL, "--estimator", "IWAE", "--out", "run")
    assert (code, err) == (0, "")
    model = load(tmp_path / "run", trust="my_typed")
    data = Digits().load()
    assert class_probabilities(model, data.test.first(6)).shape == (6, 4)


def test_programs_in_python_that_are_no_model():
    """Two functions with parameters in Pyro's store, of which one sums a class out."""
    pyro.clear_param_store()
    decoder, encoder = nn.Linear(5, 16), nn.Linear(16, 4)

    class Programs(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = decoder, encoder

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x), dim=-1):
                y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3)), infer={"enumerate": "parallel"})
                t = pyro.sample("t", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                lead = torch.broadcast_shapes(y.shape[:-1], t.shape[:-1])
                both = torch.cat([y.expand(*lead, 3), t.expand(*lead, 2)], -1)
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            loc, log_scale = self.encoder(x).chunk(2, -1)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("t", dist.Normal(loc, log_scale.exp()).to_event(1))

    data = make_splits(Split(BITS.flatten(1).repeat(4, 1)), valid=10, test=10)
    records = list(fit(Programs(), data, epochs=3, batch_size=10, estimator=IWAE(3)))
    assert records[-1].train.bound > records[0].train.bound


def test_a_compiled_step(traced):
    from helpers import agree

    agree(update_of(made(MixtureVAE), BITS))
