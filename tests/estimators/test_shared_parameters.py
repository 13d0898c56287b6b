"""Parameters that p and q share: the guide's under `VampPrior`, and p(t|t2) in `Ladder`, against quadrature.

An estimator whose objective for w is the one for φ has the gradient of that bound. One with two objectives, such as
`PIWAE`, has the sum of the gradient of the first by p's copy of a parameter, and of the second by q's copy. The references
have such copies: p is a deep copy of the model that q belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import CPU, within
from oracles import affine, log_mean
from torch import Tensor

from pyro_vae import VAE, Dims, Model
from pyro_vae.estimators import ELBO, IWAE, MIWAE, PIWAE, RWS, STL, VIMCO, DReG, ScoreFunction
from pyro_vae.guides import DiagonalNormal
from pyro_vae.likelihoods import Normal
from pyro_vae.models import Ladder
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path

X = torch.tensor([[0.9, -0.4], [-0.6, 0.3]], dtype=torch.float64)
Terms = tuple[Tensor, Tensor, Tensor]
"""log p(x,t), log q(t|x), and log q at fixed t, for particles, nodes and data."""


def moved(model: Model) -> Model:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def vamp() -> Model:
    torch.manual_seed(0)
    dims = Dims(1, (2,), train=2 * X.float())
    prior = VampPrior(dims, components=2, init="data")
    return moved(VAE(prior, DiagonalNormal(dims, affine), Normal(dims, affine, scale=0.7)))


def vamp_terms(q: Model, p: Model, eps: Tensor) -> Terms:
    q_t = q.posterior(X)
    t = (q_t.base_dist.loc + q_t.base_dist.scale * eps[0].unsqueeze(-1)).squeeze(-1).unsqueeze(-1)
    log_p = p.likelihood(t).log_prob(X) + p.prior().log_prob(t)
    return log_p, q_t.log_prob(t), q_t.log_prob(t.detach())


def ladder() -> Model:
    torch.manual_seed(0)
    dims = Dims(1, (2,))
    make = (lambda dims: DiagonalNormal(dims, affine)), (lambda dims: Normal(dims, affine, scale=0.7))
    return moved(Ladder(dims, StandardNormal, *make, top=1, network=affine))


def ladder_terms(q: Model, p: Model, eps: Tensor) -> Terms:
    of_x = q.posterior(X).base_dist
    q_t2 = q.up(torch.cat([of_x.loc, of_x.scale.log()], -1))
    t2 = q_t2.base_dist.loc + q_t2.base_dist.scale * eps[0].unsqueeze(-1)

    def q_t(t2: Tensor) -> torch.distributions.Normal:
        down = q.down(t2).base_dist
        precision = of_x.scale**-2 + down.scale**-2
        return torch.distributions.Normal(
            (of_x.loc * of_x.scale**-2 + down.loc * down.scale**-2) / precision, precision**-0.5
        )

    t = q_t(t2).loc + q_t(t2).scale * eps[1].unsqueeze(-1)
    log_p = p.prior().log_prob(t2) + p.down(t2).log_prob(t) + p.likelihood(t).log_prob(X)
    log_q, fixed = (
        q_t2.log_prob(one) + q_t(one).log_prob(other).squeeze(-1) for one, other in ((t2, t), (t2.detach(), t.detach()))
    )
    return log_p, log_q, fixed


MODELS: dict[str, tuple[Callable[[], Model], Callable[[Model, Model, Tensor], Terms], int]] = {
    "VampPrior": (vamp, vamp_terms, 1),
    "Ladder": (ladder, ladder_terms, 2),
}


def objective(which: str, name: str, q: Model, p: Model) -> Tensor:
    """The objective of this name: L_1, L_2, its wake phase for q, or L_2 without the score of q."""
    _, terms, latents = MODELS[which]
    K = 1 if name == "L1" else 2
    points, weights = (
        torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss({1: 60, 2: 40, 4: 16}[K * latents])
    )
    eps = torch.cartesian_prod(*[points] * K * latents).reshape(-1, latents, K).permute(1, 2, 0).unsqueeze(-1)
    weights = torch.cartesian_prod(*[weights / weights.sum()] * K * latents).reshape(-1, K * latents).prod(-1)
    log_p, log_q, fixed = terms(q, p, eps)
    log_w = log_p - log_q
    tilde = log_w.detach().softmax(0)
    value = {
        "L1": lambda: log_w[0],
        "L2": lambda: log_mean(log_w),
        "wake": lambda: (tilde * fixed).sum(0),
        "L2 without score": lambda: (tilde * (log_w + fixed)).sum(0),
    }[name]()
    return (weights @ value).mean()


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize(
    ("estimator", "of_p", "of_q"),
    [
        (PIWAE(M=2, K=1), "L2", "L1"),
        (DReG(2), "L2", "L2"),
        (RWS(2, dreg=True), "L2", "wake"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (ELBO(2), "L1", "L1"),
                (STL(2), "L1", "L1"),
                (ScoreFunction(2, control="leave-one-out"), "L1", "L1"),
                (IWAE(2), "L2", "L2"),
                (IWAE(2, stl=True), "L2", "L2 without score"),
                (MIWAE(K=1, M=2), "L1", "L1"),
                (VIMCO(2), "L2", "L2"),
                (RWS(2), "L2", "wake"),
            )
        ),
    ],
)
def test_the_gradient_by_shared_parameters(which, estimator, of_p, of_q):
    q = MODELS[which][0]()
    p = deepcopy(q)
    leaves = dict(q.named_parameters())
    gradients = [
        torch.autograd.grad(
            objective(which, name, q, p), list(of.parameters()), allow_unused=True, materialize_grads=True
        )
        for name, of in ((of_p, p), (of_q, q))
    ]
    expected = [one + other for one, other in zip(*gradients, strict=True)]
    shared = [name for name, one, other in zip(leaves, *gradients, strict=True) if one.any() and other.any()]
    assert shared, "p and q share no parameter"
    found = []
    with library_path(), seeded(CPU, "draws"):
        for _ in range(40):
            _, each = estimator.gradients(q.model, q.guide, list(leaves.values()), X.repeat(300, 1))
            found.append(each)
    for estimates, exact in zip(zip(*found, strict=True), expected, strict=True):
        within(torch.stack(estimates), exact)
