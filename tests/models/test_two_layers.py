"""Two stochastic layers: exact on linear-Gaussian models, with every estimator, compiled, stored, from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pyro
import pytest
import torch
from helpers import BITS, DIMS, ESTIMATORS, NETWORK, agree, update_of
from oracles import affine
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae import Dims, load
from pyro_vae.data import Split
from pyro_vae.estimators import ELBO, IWAE, STL, AnalyticKL, DReG, Objective, ScoreFunction, Stock
from pyro_vae.evaluate import encode, log_px, variance_of_means
from pyro_vae.guides import DiagonalNormal, FullRankNormal
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.models import Ladder, TwoLayer
from pyro_vae.priors import StandardNormal, VampPrior
from pyro_vae.traces import library_path, particles
from pyro_vae.training.step import Update


@dataclass
class TwoLinearLayers:
    """t2 ~ N(0, 1), t ~ N(A t2 + a, diag r²), x ~ N(W t + b, σ² I), in float64: p(t), p(t2|t), p(t|x) and p(x) are exact."""

    model: TwoLayer

    @classmethod
    def random(cls) -> TwoLinearLayers:
        torch.manual_seed(0)
        dims = Dims(2, (4,))
        model = TwoLayer(
            dims,
            StandardNormal,
            partial(FullRankNormal, network=affine),
            partial(Normal, network=affine, scale=0.6),
            top=1,
            between=partial(DiagonalNormal, network=affine),
        ).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
            for layer, d in _covariance_rows(model):
                layer.weight[d:] = 0  # covariances do not depend on what is conditioned on
        return cls(model)

    def down(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, a and r²."""
        layer = self.model.down.network.layers[0]
        return layer.weight[:2], layer.bias[:2], (2 * layer.bias[2:]).exp()

    @property
    def marginal(self) -> MultivariateNormal:
        """p(t)."""
        A, a, r2 = self.down()
        return MultivariateNormal(a, A @ A.T + r2.diag())

    def top(self) -> tuple[Tensor, Tensor, Tensor]:
        """g, h and v of p(t2|t) = N(g·t + h, v)."""
        A, a, r2 = self.down()
        v = 1 / (1 + (A[:, 0] ** 2 / r2).sum())
        g = v * A[:, 0] / r2
        return g, -g @ a, v

    def joint(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, b and σ²."""
        layer, likelihood = self.model.likelihood.network.layers[0], self.model.likelihood
        return layer.weight, layer.bias + likelihood.offset, (2 * likelihood.log_scale).exp()

    def log_px(self, x: Tensor) -> Tensor:
        W, b, s2 = self.joint()
        p = self.marginal
        covariance = W @ p.covariance_matrix @ W.T + s2 * torch.eye(4, dtype=torch.float64)
        return MultivariateNormal(p.loc @ W.T + b, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        W, b, s2 = self.joint()
        p = self.marginal
        covariance = torch.linalg.inv(p.precision_matrix + W.T @ W / s2)
        loc = ((x - b) @ W / s2 + p.precision_matrix @ p.loc) @ covariance
        return MultivariateNormal(loc, covariance)

    def elbo(self, x: Tensor) -> Tensor:
        """log p(x) - KL(q(t|x)‖p(t|x)) - E_q KL(q(t2|t)‖p(t2|t)), the last of two Gaussians with means linear in t."""
        layer = self.model.up.network.layers[0]
        (g, h, v), q = self.top(), self.model.posterior(x)
        u, c, e = (2 * layer.bias[1]).exp(), layer.weight[0] - g, layer.bias[0] - h
        square = (q.loc @ c + e) ** 2 + (q.covariance_matrix @ c) @ c
        above = (v.log() - u.log() + (u + square) / v - 1) / 2
        return self.log_px(x) - kl_divergence(q, self.posterior(x)) - above

    def set_guide_to_posterior(self, x: Tensor) -> None:
        g, h, v = self.top()
        one, two = self.model.up.network.layers[0], self.model.posterior.network.layers[0]
        q, origin = self.posterior(x[:1]), self.posterior(torch.zeros(1, 4).double())
        W, _, s2 = self.joint()
        with torch.no_grad():
            one.weight[0], one.bias[0], one.bias[1] = g, h, v.log() / 2
            L = q.scale_tril[0]
            two.weight[:2], two.bias[:2] = q.covariance_matrix[0] @ W.T / s2, origin.loc[0]
            two.bias[2:4], two.bias[4] = L.diagonal().log(), L[1, 0]

    def data(self, size: int) -> Tensor:
        with torch.no_grad():
            return self.model.model(n=size)


@dataclass
class LinearLadder:
    """The same model, with orthogonal columns of W, and the ladder's guide: p and q of (t2, t) given x are Gaussians."""

    model: Ladder

    @classmethod
    def random(cls) -> LinearLadder:
        torch.manual_seed(0)
        model = Ladder(
            Dims(2, (4,)),
            StandardNormal,
            partial(DiagonalNormal, network=affine),
            partial(Normal, network=affine, scale=0.6),
            top=1,
            network=affine,
        ).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.5)
            for layer, d in _covariance_rows(model):
                layer.weight[d:] = 0  # covariances do not depend on what is conditioned on
            W = model.likelihood.network.layers[0].weight
            W.copy_(torch.linalg.qr(W)[0] * torch.tensor([1.2, 0.7]))
        return cls(model)

    def parts(self) -> tuple[Tensor, ...]:
        """A, a and r² of p(t|t2); W, b and σ² of p(x|t)."""
        down, likelihood = self.model.down.network.layers[0], self.model.likelihood
        out = likelihood.network.layers[0]
        s2 = (2 * likelihood.log_scale).exp()
        return down.weight[:2], down.bias[:2], (2 * down.bias[2:]).exp(), out.weight, out.bias + likelihood.offset, s2

    @property
    def joint(self) -> MultivariateNormal:
        """p(t2, t)."""
        A, a, r2, *_ = self.parts()
        return _chained(torch.zeros(1).double(), torch.eye(1).double(), A, a, r2.diag())

    def log_px(self, x: Tensor) -> Tensor:
        *_, W, b, s2 = self.parts()
        p = self.joint
        covariance = W @ p.covariance_matrix[1:, 1:] @ W.T + s2 * torch.eye(4, dtype=torch.float64)
        return MultivariateNormal(p.loc[1:] @ W.T + b, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        *_, W, b, s2 = self.parts()
        p, W = self.joint, torch.cat([torch.zeros(4, 1).double(), W], 1)
        covariance = torch.linalg.inv(p.precision_matrix + W.T @ W / s2)
        return MultivariateNormal(((x - b) @ W / s2 + p.precision_matrix @ p.loc) @ covariance, covariance)

    def q(self, x: Tensor) -> MultivariateNormal:
        A, a, r2, *_ = self.parts()
        up, s_hat2 = self.model.up.network.layers[0], (2 * self.model.posterior.network.layers[0].bias[2:]).exp()
        m_hat = self.model.posterior.network(x)[:, :2]
        precision = 1 / r2 + 1 / s_hat2
        inputs = torch.cat([m_hat, (s_hat2.log() / 2).expand_as(m_hat)], 1)
        loc2, e2 = inputs @ up.weight[:1].T + up.bias[:1], (2 * up.bias[1:]).exp()
        slope, rest = A / r2[:, None] / precision[:, None], (m_hat / s_hat2 + a / r2) / precision
        return _chained(loc2, e2.diag(), slope, rest, (1 / precision).diag())

    def elbo(self, x: Tensor) -> Tensor:
        return self.log_px(x) - kl_divergence(self.q(x), self.posterior(x))

    def set_guide_to_posterior(self, x: Tensor) -> None:
        *_, W, b, s2 = self.parts()
        hat, up = self.model.posterior.network.layers[0], self.model.up.network.layers[0]
        squares = (W**2).sum(0)
        with torch.no_grad():
            hat.weight[:2], hat.bias[:2] = W.T / squares[:, None], -(W.T @ b) / squares
            hat.bias[2:] = (s2 / squares).log() / 2
            p = self.posterior(x)
            # p(t2|x) is linear in m̂: by its values at three data.
            m_hat = hat(x)[:, :2]
            inputs = torch.cat([m_hat, torch.ones(len(x), 1).double()], 1)
            found = torch.linalg.lstsq(inputs, p.loc[:, :1]).solution[:, 0]
            up.weight[0, :2], up.weight[0, 2:], up.bias[0] = found[:2], 0.0, found[2]
            up.bias[1] = p.covariance_matrix.reshape(-1, 3, 3)[0, 0, 0].log() / 2

    def data(self, size: int) -> Tensor:
        with torch.no_grad():
            return self.model.model(n=size)


def _chained(loc: Tensor, covariance: Tensor, slope: Tensor, rest: Tensor, noise: Tensor) -> MultivariateNormal:
    """The joint Gaussian of u ~ N(loc, covariance) and v = slope u + rest + N(0, noise)."""
    cross = slope @ covariance
    whole = torch.cat([torch.cat([covariance, cross.T], 1), torch.cat([cross, cross @ slope.T + noise], 1)])
    return MultivariateNormal(torch.cat([loc, loc @ slope.T + rest], -1), whole)


ORACLES = [TwoLinearLayers, LinearLadder]


@pytest.mark.parametrize("kind", ORACLES)
def test_log_weights_are_log_px_where_the_guide_is_the_posterior(kind):
    oracle = kind.random()
    x = oracle.data(7)
    oracle.set_guide_to_posterior(x)
    log_w = particles(oracle.model.model, oracle.model.guide, x, K=5).log_w
    torch.testing.assert_close(log_w, oracle.log_px(x).expand(5, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_px(oracle.model, Split(x), K=3), oracle.log_px(x).detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ORACLES)
@pytest.mark.parametrize("estimator", [ELBO(), STL(), DReG(K=1), ScoreFunction()])
def test_bound_and_mean_gradient_are_the_closed_forms(kind, estimator):
    """By 60 × 2,000 draws of one datum, within 4.5 standard errors: log p(x) - KL, and its derivatives by w and φ."""
    oracle = kind.random()
    x, leaves = oracle.data(1), list(oracle.model.parameters())
    exact = oracle.elbo(x).mean()
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(exact, leaves)])
    bounds, means = [], []
    for _ in range(60):
        found = estimator.estimate(oracle.model.model, oracle.model.guide, x.expand(2000, -1))
        bounds.append(found.bound.mean())
        means.append(torch.cat([g.flatten() for g in torch.autograd.grad(found.surrogate.mean(), leaves)]))
    bounds, means = torch.stack(bounds), torch.stack(means)
    fixed = _constant_rows(oracle.model, leaves)
    assert abs(bounds.mean() - exact) < 4.5 * bounds.std() / 60**0.5
    gap, error = (means.mean(0) - slopes)[~fixed].abs(), means.std(0)[~fixed] / 60**0.5
    assert (gap <= 4.5 * error + 1e-9).all()
    assert error.max() < 0.1 * slopes.abs().max()


def _covariance_rows(model: TwoLayer | Ladder) -> list[tuple[torch.nn.Linear, int]]:
    """The affine layers inside guides, and from which row on they give a covariance."""
    return [(m.network.layers[0], n) for m, n in ((model.down, 2), (model.up, 1), (model.posterior, 2))]


def _constant_rows(model: TwoLayer | Ladder, leaves: list[Tensor]) -> Tensor:
    """Weights by which covariances would depend on what they are given: the closed form has them at zero."""
    still = {id(layer.weight): n for layer, n in _covariance_rows(model)}
    rows = [torch.zeros_like(leaf, dtype=torch.bool) for leaf in leaves]
    for leaf, row in zip(leaves, rows, strict=True):
        if id(leaf) in still:
            row[still[id(leaf)] :] = True
    return torch.cat([row.flatten() for row in rows])


MODELS = [partial(TwoLayer, between=partial(DiagonalNormal, network=NETWORK)), partial(Ladder, network=NETWORK)]
both = pytest.mark.parametrize("make", MODELS, ids=["TwoLayer", "Ladder"])


def small(make) -> TwoLayer | Ladder:
    torch.manual_seed(0)
    parts = StandardNormal, partial(DiagonalNormal, network=NETWORK), partial(Bernoulli, network=NETWORK)
    return make(DIMS, *parts, top=3)


@both
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_every_estimator(cls, make):
    model = small(make)
    if cls is AnalyticKL and isinstance(model, TwoLayer):  # the ladder's latents are in one order, and its KL is known
        with pytest.raises(ValueError, match="expected one order"):
            cls(K=4).estimate(model.model, model.guide, BITS[:6])
        return
    _, found = cls(K=4).gradients(model.model, model.guide, list(model.parameters()), BITS[:6])
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found)


@both
def test_the_compiled_step_is_the_eager_one(make, traced):
    agree(update_of(small(make), BITS[:6], IWAE(3)), tolerance=1e-3)


@both
@pytest.mark.parametrize("cls", [cls for cls in ESTIMATORS if cls not in (Stock, AnalyticKL)])
def test_a_step_on_the_meta_device(cls, make):
    model = small(make).to("meta")
    leaves = list(model.parameters())
    x = torch.empty(6, 1, 4, 4, device="meta")
    step = Update(model, cls(K=3), Objective(), Split(x).columns(), torch.optim.Adam(leaves), {"both": leaves})
    with library_path():
        assert step(torch.arange(6, device="meta"), 1.0, "both").bound.device.type == "meta"


@both
def test_stock_pyro_trains_all_of_it(make):
    model = small(make)
    before = [p.detach().clone() for p in model.parameters()]
    svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    svi.step(BITS)
    assert all((p != was).any() for p, was in zip(model.parameters(), before, strict=True))


@both
def test_the_use_of_all_latents_is_that_of_each_in_the_guides_order(make):
    model = small(make)
    each = [variance_of_means(model, BITS, site) for site in encode(model, BITS)]
    assert sorted(map(len, each)) == [2, 3]
    torch.testing.assert_close(variance_of_means(model, BITS), torch.cat(each), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cls", [TwoLayer, Ladder])
def test_from_the_command_line(cls, script, tmp_path):
    options = ["--epochs", "1", "--latent", "4", "--test_images", "20", "--test_particles", "5", "--out", "run"]
    code, out, _ = script("train", "--model", cls.__name__, "--model.top", "2", *options)
    assert code == 0
    assert f"{cls.__name__}: StandardNormal, DiagonalNormal, Binomial; d = 4" in out
    model = load(tmp_path / "run")
    assert isinstance(model, cls)
    assert (model.dims.latent, model.prior.dims.latent) == (4, 2)
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} >= {"samples.png", "latents.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TwoLayer", "--model.top", "0"], "top: expected a dimension of at least 1, got 0"),
        (["TwoLayer", "--prior", "VampPrior"], "VampPrior uses the other parts of a VAE"),
        (["Ladder", "--guide", "FullRankNormal"], "Ladder multiplies the guide's Gaussian with the model's"),
    ],
)
def test_wrong_commands(script, options, message):
    code, _, errors = script("train", "--model", *options)
    assert code == 1
    assert message in " ".join(errors.split())


def test_a_prior_of_the_guide_is_refused():
    with pytest.raises(ValueError, match="VampPrior uses the other parts"):
        TwoLayer(DIMS, VampPrior, DiagonalNormal, Bernoulli)
