"""Priors against what they are by hand, and the gradients of a prior that is made of the guide."""

from __future__ import annotations

from functools import partial

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import BITS, DIMS, NETWORK, build
from torch.distributions import Independent, Normal

from pyro_vae import VAE, Dims, Prior
from pyro_vae.estimators import ELBO, STL, DReG, ScoreFunction
from pyro_vae.guides import DiagonalNormal, InverseAutoregressive, SemiAmortized
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import MLP
from pyro_vae.priors import (
    CouplingFlow,
    ExemplarPrior,
    Laplace,
    MaskedAutoregressiveFlow,
    MixtureOfNormals,
    SplineFlow,
    StudentT,
    VampPrior,
)

T = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))


def vae_with(prior: Prior, guide=DiagonalNormal) -> VAE:
    return VAE(prior, guide(prior.dims, network=NETWORK), Bernoulli(prior.dims, NETWORK))


def test_independent_priors():
    student = scipy.stats.t(4.0, scale=0.7).logpdf(T.numpy()).sum(-1)
    torch.testing.assert_close(StudentT(DIMS, df=4.0, scale=0.7)().log_prob(T), torch.tensor(student).float())
    laplace = scipy.stats.laplace(scale=0.3).logpdf(T.numpy()).sum(-1)
    torch.testing.assert_close(Laplace(DIMS, scale=0.3)().log_prob(T), torch.tensor(laplace).float())


def test_mixture_by_hand():
    prior = MixtureOfNormals(DIMS, components=3)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.3, -1.0, 0.5]))
        prior.log_scale.normal_()
    each = Independent(Normal(prior.loc, prior.log_scale.exp()), 1).log_prob(T[:, None])
    torch.testing.assert_close(prior().log_prob(T), (each + prior.logits.log_softmax(0)).logsumexp(-1))


@pytest.mark.parametrize("guide", [DiagonalNormal, InverseAutoregressive])
def test_a_vamp_prior_of_all_training_data_is_the_aggregate_posterior(guide):
    vae = vae_with(VampPrior(DIMS, components=len(BITS), init="data"), guide)
    by_hand = torch.stack([vae.posterior(x[None]).log_prob(T) for x in BITS]).logsumexp(0) - torch.tensor(20.0).log()
    torch.testing.assert_close(vae.prior().log_prob(T), by_hand)


def test_a_vamp_priors_parameters_are_held_once():
    vae = vae_with(VampPrior(DIMS, components=5))
    assert [name for name, _ in vae.prior.named_parameters()] == ["inputs"]
    assert len(list(vae.parameters())) == 1 + len(list(vae.posterior.parameters())) + len(
        list(vae.likelihood.parameters())
    )


def test_pseudo_inputs_start_by_the_papers_protocol_in_the_range_of_the_data():
    dims = Dims(2, (1, 4, 4), train=10 + 40 * torch.rand(50, 1, 4, 4))
    low, high = dims.train.aminmax()
    inputs = VampPrior(dims, components=2000).inputs
    assert inputs.mean().item() == pytest.approx((low + 0.05 * (high - low)).item(), abs=0.01)
    assert inputs.std().item() == pytest.approx(0.01 * (high - low).item(), rel=0.02)


def test_exemplars_by_hand():
    vae = vae_with(ExemplarPrior(DIMS, exemplars=12, drawn=6)).eval()
    with torch.no_grad():
        vae.prior.log_scale.fill_(-0.4)
    loc = vae.posterior.network(vae.prior.inputs)[:, :2]
    by_hand = (
        Normal(loc, torch.tensor(-0.4).exp()).log_prob(T[:, None]).sum(-1).logsumexp(-1) - torch.tensor(12.0).log()
    )
    torch.testing.assert_close(vae.prior().log_prob(T), by_hand)
    assert {tuple(x.flatten().tolist()) for x in vae.prior.inputs} <= {tuple(x.flatten().tolist()) for x in BITS}
    assert len(vae.train().prior().mixture_distribution.probs) == 6


@pytest.mark.parametrize("cls", [MaskedAutoregressiveFlow, CouplingFlow, SplineFlow])
def test_flow_priors_obey_the_change_of_variables(cls):
    torch.manual_seed(0)
    prior = cls(Dims(3, (1,)), hidden=[8])
    with torch.no_grad():
        for transform in prior.flow.transforms:
            transform.hyper[-1].weight.mul_(30)  # it starts near the identity
    distribution = prior().expand([5])
    t = distribution.sample()
    z = distribution.transform.inv(t).detach()
    jacobian = torch.autograd.functional.jacobian(lambda z: distribution.transform(z).sum(0), z).transpose(0, 1)
    expected = Normal(0.0, 1.0).log_prob(z).sum(-1) - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(distribution.log_prob(t), expected, rtol=1e-4, atol=1e-4)  # as remembered
    torch.testing.assert_close(distribution.log_prob(t.clone()), expected, rtol=1e-4, atol=1e-4)  # by the inverse
    assert not torch.allclose(expected, Normal(0.0, 1.0).log_prob(t).sum(-1), atol=0.1)  # the flow is no identity


def test_scoring_a_masked_autoregressive_flow_is_one_pass():
    prior = MaskedAutoregressiveFlow(Dims(5, (1,)), transforms=3)
    passes = []
    for transform in prior.flow.transforms:
        transform.hyper.register_forward_hook(lambda *_: passes.append(1))
    prior().log_prob(torch.randn(4, 5))
    assert len(passes) == 3


def exact_elbo(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """E_q [log p(x|t) + log p(t) - log q(t|x)] for d = 1, by quadrature."""
    t = torch.linspace(-12, 12, 6001, dtype=x.dtype)[:, None]
    q = vae.posterior(x[None])
    log_w = vae.likelihood(t).log_prob(x) + vae.prior().log_prob(t) - q.log_prob(t)
    return (q.log_prob(t).exp() * log_w).sum() * 24 / 6000


@pytest.mark.parametrize("estimator", [ELBO(), STL(), DReG(K=1), ScoreFunction()])
def test_mean_gradients_with_a_prior_made_of_the_guide(estimator):
    """By 50 × 2,000 draws against quadrature, within 4.5 standard errors: φ acts in p(t) too, and is not left out."""
    torch.manual_seed(3)
    dims = Dims(1, (3,), train=BITS[:, 0, 0, :3])
    network = partial(MLP, hidden=[4])
    vae = VAE(
        VampPrior(dims, components=2, init="data"), DiagonalNormal(dims, network), Bernoulli(dims, network)
    ).double()
    with torch.no_grad():
        vae.posterior.network.layers[-1].bias.add_(torch.tensor([0.5, -0.7]))
        vae.prior.inputs.mul_(0.8).add_(0.1)  # off the ends of the range
    x, leaves = torch.tensor([1.0, 0.0, 1.0]).double(), list(vae.parameters())
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact_elbo(vae, x), leaves)])
    batch, means = x.expand(2000, 3), []
    for _ in range(50):
        surrogate = estimator.estimate(vae.model, vae.guide, batch).surrogate.mean()
        means.append(torch.cat([g.flatten() for g in torch.autograd.grad(surrogate, leaves)]))
    means = torch.stack(means)
    error = means.std(0) / 50**0.5
    assert ((means.mean(0) - exact).abs() <= 4.5 * error + 1e-9).all()
    assert error.max() < 0.1 * exact.abs().max()


class Planar(Prior):
    """A flow without an inverse."""

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.planar = dist.transforms.Planar(dims.latent)

    def forward(self):
        base = dist.Normal(torch.zeros(self.dims.latent), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.planar])


def test_a_prior_that_cannot_score_is_refused():
    with pytest.raises(ValueError, match=r"prior: Planar cannot score .* choose one with an exact density"):
        vae_with(Planar(DIMS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixtureOfNormals(DIMS, components=0), "components: expected at least 1, got 0"),
        (lambda: VampPrior(DIMS, components=0), "components: expected at least 1, got 0"),
        (lambda: VampPrior(DIMS, components=21, init="data"), "expected at most the 20 training data, got 21"),
        (lambda: VampPrior(Dims(2, (1,)), init="data"), "needs the training data"),
        (lambda: ExemplarPrior(DIMS, exemplars=10, drawn=11), "drawn: expected between 1 and the 10 exemplars"),
        (lambda: StudentT(DIMS, df=0.0), "df and scale: expected positive"),
        (lambda: Laplace(DIMS, scale=-1.0), "scale: expected a positive"),
        (lambda: SplineFlow(DIMS, bins=1), "bins: expected at least 2"),
        (lambda: CouplingFlow(DIMS, transforms=0), "transforms: expected at least 1"),
        (lambda: MaskedAutoregressiveFlow(DIMS, hidden=[]), "hidden: expected widths"),
        (lambda: vae_with(ExemplarPrior(DIMS, 5, 5), InverseAutoregressive), "has no mean in closed form"),
        (VampPrior(DIMS), "put it into one first"),
        (
            lambda: VAE(VampPrior(DIMS), SemiAmortized(DIMS), build(Bernoulli)),
            "SemiAmortized: the prior is made of this guide",
        ),
    ],
)
def test_wrong_use_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("n", [1, 2, 20, 200, 1200])
def test_the_default_exemplars_fit_small_data(n):
    """1,000 of them, of which a step uses 500; all there are, where there are fewer."""
    x = torch.rand(n, 3)
    dims = Dims(2, (3,), train=x)
    vae = VAE(ExemplarPrior(dims), DiagonalNormal(dims, NETWORK), Bernoulli(dims, NETWORK))
    assert len(vae.prior.inputs) == min(n, 1000)
    assert vae.prior.drawn == min(n, 500)
    assert vae.prior().log_prob(torch.zeros(2)).isfinite()
