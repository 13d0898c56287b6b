"""Models of discrete latents: a belief network by enumeration, and the discrete model of a relaxed one."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from helpers import BITS, NETWORK, agree, update_of
from pyro import poutine

from pyro_vae import VAE, Dims, TrainingPlan, fit, guides, load, priors, save
from pyro_vae.data import Split, make_splits
from pyro_vae.estimators import ELBO, VIMCO, ScoreFunction
from pyro_vae.evaluate import decode, export_encoder, interpolate, log_px, posterior
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.models import SigmoidBelief, discretized
from pyro_vae.relaxed import Temperature
from pyro_vae.training import LowerTemperature

DIMS = Dims(3, (1, 4, 4), train=BITS)
LIKELIHOOD = partial(Bernoulli, network=NETWORK)


def belief(between=None, kind: str = "Bernoulli", **options) -> SigmoidBelief:
    torch.manual_seed(0)
    parts = (partial(getattr(priors, kind), **options), partial(getattr(guides, kind), network=NETWORK, **options))
    own = {"between": between} if between else {}
    above = [2, 3] if kind == "Bernoulli" else [6]
    dims = DIMS if kind == "Bernoulli" else Dims(4, (1, 4, 4), train=BITS)
    return SigmoidBelief(dims, *parts, LIKELIHOOD, above=above, **own)


def bits(d: int) -> torch.Tensor:
    return torch.tensor(list(product([0.0, 1.0], repeat=d)))


def test_log_p_of_a_belief_network_is_the_sum_over_all_states():
    """Exact log p(x) by enumeration of 3 + 2 + 3 bits: within the error of 100,000 particles; a bound is below it."""
    model, x = belief(), BITS[:3]
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
        t, t2, t3 = bits(3), bits(2), bits(3)
        top = model.prior().log_prob(t3)
        middle = model.down[1](t3).log_prob(t2[:, None])  # (t2, t3)
        lower = model.down[0](t2).log_prob(t[:, None])  # (t, t2)
        p_t = (lower[:, :, None] + middle + top).flatten(1).logsumexp(1)
        exact = (model.likelihood(t).log_prob(x[:, None]) + p_t).logsumexp(1)
    torch.testing.assert_close(log_px(model, x, K=100_000), exact.double(), rtol=0, atol=0.02)
    assert model.sites == ("t", "t2", "t3")
    assert model.model(n=4).shape == (4, 1, 4, 4)
    drawn = posterior(model, x, draws=5)
    assert {name: each.mean.shape for name, each in drawn.items()} == {"t": (3, 3), "t2": (3, 2), "t3": (3, 3)}


@pytest.mark.parametrize("estimator", [ScoreFunction(2, "leave-one-out"), VIMCO(3)])
def test_every_parameter_of_a_belief_network_is_trained(estimator):
    for model in (belief(), belief(partial(guides.Bernoulli, network=NETWORK))):
        _, found = estimator.gradients(model.model, model.guide, list(model.parameters()), BITS[:6])
        assert all(each.isfinite().all() and each.abs().sum() > 0 for each in found)


def test_layers_of_one_hot_vectors_and_of_relaxed_bits():
    one_hot = belief(partial(guides.OneHotCategorical, network=NETWORK, classes=2), "OneHotCategorical", classes=2)
    assert log_px(one_hot, BITS[:3], K=5).isfinite().all()
    relaxed = SigmoidBelief(
        DIMS,
        priors.RelaxedBernoulli,
        partial(guides.RelaxedBernoulli, network=NETWORK),
        LIKELIHOOD,
        [2],
        guides.RelaxedBernoulli,
    )
    _, found = ELBO(2).gradients(relaxed.model, relaxed.guide, list(relaxed.parameters()), BITS[:6])
    assert all(each.isfinite().all() and each.abs().sum() > 0 for each in found)
    trace = poutine.trace(relaxed.model).get_trace(BITS[:6])
    seen = trace.nodes["t"]["value"].sigmoid()
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean, relaxed.likelihood(seen).mean)


def test_a_belief_network_comes_back(tmp_path):
    model = belief()
    save(model, tmp_path / "run")
    torch.testing.assert_close(
        log_px(load(tmp_path / "run"), BITS[:3], K=5), log_px(model, BITS[:3], K=5), rtol=0, atol=0
    )


@pytest.mark.parametrize("above", [[], [0], [2] * 101])
def test_wrong_layers_are_refused(above):
    with pytest.raises(ValueError, match=r"^above: expected"):
        SigmoidBelief(DIMS, priors.Bernoulli, guides.Bernoulli, LIKELIHOOD, above=above)


def relaxed(kind: str = "RelaxedBernoulli", learn: bool = True, **options) -> VAE:
    torch.manual_seed(0)
    dims = Dims(4, (1, 4, 4), train=BITS)
    prior = getattr(priors, kind)(dims, learn=learn, **options)
    return VAE(prior, getattr(guides, kind)(dims, NETWORK, **options), Bernoulli(dims, NETWORK))


@pytest.mark.parametrize(("kind", "options"), [("RelaxedBernoulli", {}), ("Concrete", {"classes": 2})])
def test_the_discrete_model_of_a_relaxed_one(kind, options, tmp_path):
    """Its log p(x) by enumeration of the same logits and the same likelihood; it holds the same parameters."""
    vae = relaxed(kind, **options)
    with torch.no_grad():
        for value in vae.parameters():
            value.add_(0.3 * torch.randn_like(value))
    own = discretized(vae)
    assert {id(each) for each in own.parameters()} == {id(each) for each in vae.parameters()}
    assert vae.likelihood.parts.prior is vae.prior
    assert own.likelihood.parts.prior is own.prior
    with torch.no_grad():
        if kind == "Concrete":
            t = torch.stack([torch.cat([torch.eye(2)[i], torch.eye(2)[j]]) for i, j in product(range(2), repeat=2)])
            p_t = torch.stack(
                [vae.prior.logits.log_softmax(-1)[[0, 1], [i, j]].sum() for i, j in product(range(2), repeat=2)]
            )
        else:
            t = bits(4)
            p_t = (t * vae.prior.logits - torch.nn.functional.softplus(vae.prior.logits)).sum(-1)
        exact = (vae.likelihood(t).log_prob(BITS[:3, None]) + p_t).logsumexp(1)
    torch.testing.assert_close(log_px(own, BITS[:3], K=20_000), exact.double(), rtol=0, atol=0.03)
    save(own, tmp_path / "run")
    again = load(tmp_path / "run")
    assert type(again.posterior).__name__ == ("OneHotCategorical" if kind == "Concrete" else "Bernoulli")
    torch.testing.assert_close(log_px(again, BITS[:3], K=5), log_px(own, BITS[:3], K=5), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^prior: expected a relaxed one"):
        discretized(own)


@pytest.mark.parametrize("kind", ["RelaxedBernoulli", "Concrete"])
def test_a_relaxed_model_becomes_its_discrete_one_at_low_temperature(kind):
    options = {"classes": 2} if kind == "Concrete" else {}
    vae = relaxed(kind, **options)
    cold = relaxed(kind, temperature=0.001, **options)
    cold.load_state_dict({**vae.state_dict(), **{k: v for k, v in cold.state_dict().items() if "temperature" in k}})
    with torch.no_grad():
        bounds = [
            estimator.estimate(each.model, each.guide, BITS).bound
            for estimator, each in ((ELBO(20_000), cold), (ScoreFunction(20_000), discretized(vae)))
        ]
    torch.testing.assert_close(*bounds, rtol=0, atol=0.15)


def test_temperatures_are_kept_lowered_and_learned(tmp_path):
    splits = make_splits(Split(BITS.repeat(2, 1, 1, 1)), valid=5, test=5)
    vae = relaxed()
    epochs = list(
        fit(vae, splits, TrainingPlan(epochs=3, batch_size=10, callbacks=[LowerTemperature(rate=0.5, least=0.2)]))
    )
    found = [each().item() for each in vae.modules() if isinstance(each, Temperature)]
    assert found == pytest.approx([0.2, 0.2])  # 0.5 exp(-1.5) and 2/3 exp(-1.5) are below the least one
    save(vae, tmp_path / "run")
    again = load(tmp_path / "run")
    assert [each().item() for each in again.modules() if isinstance(each, Temperature)] == found
    dims = Dims(4, (1, 4, 4), train=BITS)
    learned = guides.RelaxedBernoulli(dims, NETWORK, learn_temperature=True)
    vae = VAE(priors.RelaxedBernoulli(dims), learned, Bernoulli(dims, NETWORK))
    _, gradients = ELBO(2).gradients(vae.model, vae.guide, [learned.temperature.log_value], BITS)
    assert gradients[0].abs() > 0
    with pytest.raises(ValueError, match="LowerTemperature: the model has no temperature"):
        LowerTemperature().on_epoch(epochs[-1], discretized(relaxed()))
    with pytest.raises(ValueError, match="rate: expected at least 0"):
        LowerTemperature(rate=-1.0)
    with pytest.raises(ValueError, match="least: expected a temperature"):
        LowerTemperature(least=0.0)


@pytest.mark.slow
def test_discrete_models_are_compiled():
    """Compiled and eager steps agree."""
    agree(update_of(belief(), BITS, ScoreFunction(2, "leave-one-out")))
    agree(update_of(relaxed(), BITS, ELBO(2)))
    one_hot = belief(partial(guides.OneHotCategorical, network=NETWORK, classes=2), "OneHotCategorical", classes=2)
    agree(update_of(one_hot, BITS, VIMCO(3)))
    dims = Dims(4, (1, 4, 4), train=BITS)
    prior = priors.AutoregressiveBernoulli(dims, hidden=[8])
    agree(update_of(VAE(prior, guides.Bernoulli(dims, NETWORK), Bernoulli(dims, NETWORK)), BITS, VIMCO(3)))
    agree(update_of(relaxed("Concrete", classes=2), BITS, ELBO(2)))


def test_an_encoder_of_bits_is_exported_with_its_draws():
    found = export_encoder(belief()).module()(BITS[:5])
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "t": (5, 3), "t_mean": (5, 3), "t_scale": (5, 3), "t2": (5, 2), "t3": (5, 3)
    }  # fmt: skip
    assert all(((found[name] == 0) | (found[name] == 1)).all() for name in ("t", "t2", "t3"))


def test_a_way_between_relaxed_one_hot_vectors_and_none_between_bits():
    vae = relaxed("Concrete", classes=2)
    way = interpolate(vae, BITS[:2], BITS[2:4], steps=3)
    ends = [posterior(vae, x)["t"].mean for x in (BITS[:2], BITS[2:4])]
    middle = torch.lerp(*ends, 0.5).unflatten(-1, (2, 2)).log_softmax(-1).flatten(-2)
    torch.testing.assert_close(way[1], decode(vae, {"t": middle}))
    with pytest.raises(ValueError, match="no way between values of 't', which is discrete"):
        interpolate(discretized(vae), BITS[:2], BITS[2:4])
