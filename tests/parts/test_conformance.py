"""What every part promises, for every subclass there is: a new part is tested by existing."""

from __future__ import annotations

import inspect

import pyro.distributions as dist
import pytest
import torch
from helpers import (
    BITS,
    DATA,
    DIMS,
    DISCRETE,
    ESTIMATORS,
    GUIDES,
    LIKELIHOODS,
    NETWORKS,
    PRIORS,
    REAL_GUIDES,
    REAL_PRIORS,
    SMALL,
    build,
    data_for,
    elbo_of,
    part_of,
    refusing_unknown_kl,
    subclasses,
    vae_of,
)
from safetensors.torch import load, save
from torch.distributions import constraints

from pyro_vae import VAE, Dims, Estimator, Guide, Likelihood, Network, Prior
from pyro_vae.data import Split
from pyro_vae.estimators import ELBO, IWAE, VIMCO, DReG, Objective, Stock
from pyro_vae.guides import InverseAutoregressive
from pyro_vae.likelihoods import Bernoulli, Binomial, Normal
from pyro_vae.networks import MLP
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.traces import library_path
from pyro_vae.training.step import Update


def test_subclasses_are_found():
    assert {StandardNormal} <= set(PRIORS)
    assert {Bernoulli, Binomial, Normal} <= set(LIKELIHOODS)
    assert all((GUIDES, NETWORKS, ESTIMATORS, DATA))


@pytest.mark.parametrize("cls", PRIORS)
def test_prior(cls):
    distribution = part_of(cls)()
    assert (distribution.batch_shape, distribution.event_shape) == ((), (2,))
    assert distribution.log_prob(distribution.sample((7,))).isfinite().all()


@pytest.mark.parametrize("cls", GUIDES)
@pytest.mark.parametrize("lead", [(), (3,), (5, 3)])
def test_guide(cls, lead):
    distribution = part_of(cls)(torch.rand(*lead, 1, 4, 4).round())
    assert (distribution.batch_shape, distribution.event_shape) == (lead, (2,))
    assert distribution.log_prob(distribution.sample((7,))).isfinite().all()


@pytest.mark.parametrize("cls", LIKELIHOODS)
@pytest.mark.parametrize("lead", [(), (3,), (5, 3)])
def test_likelihood(cls, lead):
    distribution = build(cls)(torch.randn(*lead, 2))
    assert (distribution.batch_shape, distribution.event_shape) == (lead, (1, 4, 4))
    assert distribution.log_prob(distribution.sample((7,))).isfinite().all()
    assert distribution.mean.shape == (*lead, 1, 4, 4)


def total(distribution) -> float:
    """The integral, or sum, of a density over one dimension."""
    support = getattr(distribution.support, "base_constraint", distribution.support)
    if support is constraints.nonnegative_integer:
        points, width = torch.arange(2000.0), 1.0
    elif support.is_discrete:
        upper = 1 if support is constraints.boolean else int(torch.as_tensor(support.upper_bound).max())
        points, width = torch.arange(upper + 1.0), 1.0
    elif not support.check(torch.tensor([-1.0])).all():  # the unit interval, at the middles of small pieces
        points, width = (torch.arange(200_000) + 0.5) / 200_000, 1 / 200_000
    else:
        points, width = torch.linspace(-60, 60, 200_001), 120 / 200_000
    return float(distribution.log_prob(points[:, None]).detach().double().exp().sum()) * width


@pytest.mark.parametrize("cls", REAL_PRIORS + REAL_GUIDES + LIKELIHOODS)
def test_density_integrates_to_one(cls):
    part, x = part_of(cls, SMALL), torch.ones(SMALL.x_shape)
    distribution = part() if cls in PRIORS else part(x if cls in GUIDES else 0.7 * x)
    assert total(distribution) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("lead", [(), (3,), (5, 3)])
def test_network(cls, lead):
    network = cls((1, 4, 4), (2, 3))
    assert network(torch.rand(*lead, 1, 4, 4)).shape == (*lead, 2, 3)
    with pytest.raises(ValueError, match=rf"input of {cls.__name__}: expected shape \(..., 1, 4, 4\)"):
        network(torch.rand(4, 5))


ALL_PARTS = PRIORS + GUIDES + LIKELIHOODS
PAIRS = [(cls, estimator) for cls in ALL_PARTS for estimator in (ELBO, DReG, VIMCO)]
PAIRS += [(cls, estimator) for estimator in ESTIMATORS for cls in (VampPrior, InverseAutoregressive, Normal)]
"""Every part with an estimator of each kind (through the draws, at leaves, at fixed draws), and every estimator with a few
parts: an estimator sees only (K, B) numbers, and a part only its own values."""


@pytest.mark.parametrize(("cls", "estimator"), list(dict.fromkeys(PAIRS)))
def test_gradient_reaches_every_parameter(cls, estimator):
    vae = vae_of(cls)
    with refusing_unknown_kl(estimator):
        estimate, found = estimator(K=4).gradients(vae.model, vae.guide, list(vae.parameters()), data_for(cls, vae, 6))
    assert estimate.bound.shape == estimate.surrogate.shape == (6,)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found)


@pytest.mark.parametrize("cls", DISCRETE)
@pytest.mark.parametrize("estimator", [ELBO, DReG])
def test_estimators_that_need_rsample_refuse_discrete_latents(cls, estimator):
    vae = vae_of(cls)
    with pytest.raises(ValueError, match=r"'t'.*rsample"):
        estimator(K=4).estimate(vae.model, vae.guide, BITS[:6])


@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_weights_survive_a_round_trip(cls):
    vae, other = vae_of(cls), vae_of(cls)
    with torch.no_grad():
        for value in vae.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1)
    other.load_state_dict(load(save(vae.state_dict())))
    x = data_for(cls, vae, 3)
    values = []
    for one in (vae, other):
        torch.manual_seed(1)
        values.append(elbo_of(one).estimate(one.model, one.guide, x).bound)
    torch.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.parametrize(("cls", "estimator"), [pair for pair in dict.fromkeys(PAIRS) if pair[1] is not Stock])
def test_a_training_step_on_the_meta_device(cls, estimator):
    """A tensor made on the wrong device raises here. Pyro's own estimators read numbers, which meta tensors have not."""
    vae = vae_of(cls, device="meta")
    x = torch.empty(6, 1, 4, 4, device="meta")
    optimizer = torch.optim.Adam(vae.parameters())
    phases = {"both": list(vae.parameters())}
    step = Update(vae, estimator(K=3), Objective(), Split(x).columns(), optimizer, phases)
    with library_path(), refusing_unknown_kl(estimator):
        assert step(torch.arange(6, device="meta"), 1.0, "both").bound.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("cls", PRIORS + GUIDES + LIKELIHOODS)
def test_a_training_step_on_cuda(cls):
    vae = vae_of(cls).cuda()
    optimizer = torch.optim.Adam(vae.parameters())
    step = Update(
        vae,
        elbo_of(vae, K=3),
        Objective(),
        Split(data_for(cls, vae, 6)).columns(),
        optimizer,
        {"both": list(vae.parameters())},
    )
    with library_path():
        assert step(torch.arange(6, device="cuda"), 1.0, "both").bound.isfinite().all()


@pytest.mark.parametrize("base", [Prior, Guide, Likelihood, Network, Estimator])
def test_no_concrete_method_is_overridden(base):
    """But for those that are marked as overridable."""

    def concrete(cls):
        return {
            name
            for name, value in vars(cls).items()
            if inspect.isfunction(value)
            and name != "__init__"
            and not getattr(value, "__isabstractmethod__", False)
            and not (cls is base and getattr(value, "__overridable__", False))
        }

    for cls in subclasses(base):
        assert not concrete(cls) & concrete(base), cls
        assert getattr(cls, "__final__", False), f"{cls.__name__} is concrete and should be marked @final"


def test_wrong_shapes_name_the_part():
    class WrongEvent(Prior):
        def forward(self):
            return dist.Normal(torch.zeros(3), 1.0).to_event(1)

    class WrongBatch(Guide):
        def forward(self, x):
            return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    class NotPyro(Prior):
        def forward(self):
            return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)

    class WrongNetwork(Network):
        def forward(self, inputs):
            return inputs

    with pytest.raises(ValueError, match=r"WrongEvent \(Prior\): expected event shape \(2,\), got \(3,\)"):
        WrongEvent(DIMS)()
    with pytest.raises(ValueError, match=r"WrongBatch \(Guide\): expected batch shape \(5,\), got \(\)"):
        WrongBatch(DIMS)(torch.rand(5, 1, 4, 4))
    with pytest.raises(TypeError, match="expected a distribution of pyro"):
        NotPyro(DIMS)()
    with pytest.raises(ValueError, match=r"output of WrongNetwork: expected shape \(5, 3\), got \(5, 2\)"):
        WrongNetwork((2,), (3,))(torch.rand(5, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dims(0, (3,)), "latent"),
        (lambda: Dims(2, ()), "x_shape"),
        (lambda: Dims(2, (3,), torch.zeros(4)), "x_mean"),
        (lambda: MLP((2,), (3,), hidden=[0]), "hidden"),
        (lambda: Binomial(DIMS, total_count=0), "total_count"),
        (lambda: Normal(DIMS, scale=0.0), "scale"),
        (lambda: ELBO(K=0), "K: expected at least 1"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("cls", "options", "mean"), [(Bernoulli, {}, 0.3), (Binomial, {"total_count": 16}, 5.0), (Normal, {}, -2.0)]
)
def test_the_output_starts_at_the_training_mean(cls, options, mean):
    dims = Dims(2, (1, 4, 4), torch.full((1, 4, 4), mean))
    torch.testing.assert_close(cls(dims, **options)(torch.zeros(2)).mean, dims.x_mean)


@pytest.mark.parametrize("prior", REAL_PRIORS)
def test_every_prior_with_every_guide(prior):
    """A finite bound and a finite gradient, or a refusal that names one of the two."""
    refused = {}
    for guide in REAL_GUIDES:
        try:
            vae = VAE(build(prior), build(guide), build(Bernoulli))
            estimate = IWAE(2).estimate(vae.model, vae.guide, BITS[:4])
        except ValueError as reason:
            refused[guide.__name__] = str(reason)
            continue
        assert estimate.bound.isfinite().all()
        gradients = torch.autograd.grad(estimate.surrogate.sum(), list(vae.parameters()), allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert len(refused) < len(REAL_GUIDES)
    assert all(prior.__name__ in reason or name in reason for name, reason in refused.items())
