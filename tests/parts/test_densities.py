"""Densities at foreign values and their gradients: for every guide, by subclass, and every flow, in float64.

What an estimator of a gradient by φ takes from a guide is log q(t) at values of t that are not the guide's own draws, its
derivatives by φ and by t there, and the derivative of the draws by φ. Each of these is tested here by itself against finite
differences, quadrature or the change of variables; test_estimators.py tests that each estimator's formula with the right
values of these has the right mean. Together that is every estimator with every guide.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import pytest
import torch
from helpers import CPU, GUIDES, N_SE, NETWORK, OPTIONS
from torch import Tensor, nn

from pyro_vae import VAE, Dims
from pyro_vae.flows import FlowDistribution
from pyro_vae.guides import (
    InverseAutoregressive,
    NeuralAutoregressive,
    PerDatum,
    SemiAmortized,
    SplineAutoregressive,
    Sylvester,
)
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.parts import Distribution
from pyro_vae.priors import CouplingFlow, MaskedAutoregressiveFlow, SplineFlow, StandardNormal
from pyro_vae.scopes import seeded

X = torch.bernoulli(torch.full((3, 4), 0.5, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
FLOW_PRIORS = [MaskedAutoregressiveFlow, CouplingFlow, SplineFlow]
MORE = {
    "two neural transforms": partial(NeuralAutoregressive, transforms=2),
    "refined neural flow": partial(SemiAmortized, guide=partial(NeuralAutoregressive, network=NETWORK)),
}
MAKERS = {cls.__name__: cls for cls in (*GUIDES, *FLOW_PRIORS)} | MORE
STATES = [(training, changed) for training in (True, False) for changed in (0.0, 0.1)]
"""Training or evaluation mode, and the standard deviation of what is added to each parameter."""


class Case:
    """A guide or a flow prior in a VAE, and its distribution at any values of its parameters."""

    def __init__(self, name: str, d: int, training: bool = True, changed: float = 0.0) -> None:
        make = MAKERS[name]
        dims = Dims(d, (4,), train=X)
        torch.manual_seed(0)
        is_prior = make in FLOW_PRIORS
        options = {} if is_prior or name in ("SemiAmortized", "refined neural flow", "PerDatum") else {"network": NETWORK}
        part = make(dims, **options)
        guide = PerDatum(dims) if is_prior else part
        vae = VAE(part if is_prior else StandardNormal(dims), guide, Bernoulli(dims, NETWORK)).double()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(changed * torch.randn_like(parameter))
        self.part, self.is_prior = part.train(training), is_prior
        self.leaves = list(part.parameters())
        if isinstance(part, SemiAmortized):  # a and b are constants for the gradient by φ
            with seeded(CPU, "steps"):
                steps = part._refined(X, part.inner(X))
            part._refined = lambda *_: steps

    def __call__(self) -> Distribution:
        return self.part() if self.is_prior else self.part(X)

    def foreign(self, n: int = 4) -> Tensor:
        """Values that are not draws, near and far, of shape (n, *batch, d)."""
        with torch.no_grad(), seeded(CPU, "foreign"):
            t = self().sample((n,)).clone()
            return t + torch.linspace(0.1, 2.0, n, dtype=t.dtype).reshape(-1, *[1] * (t.dim() - 1)) * torch.randn_like(t)


def along(case: Case, value: Callable[[], Tensor], h: float = 1e-6) -> None:
    """The gradient of a number by φ is its central difference, along a random direction of each parameter."""
    found = torch.autograd.grad(value(), case.leaves, allow_unused=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(3)
    for leaf, gradient in zip(case.leaves, found, strict=True):
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) / leaf.numel() ** 0.5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * h * direction)
                ends.append(value())
                leaf.sub_(sign * h * direction)
        difference = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("training", "changed"), STATES)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_the_gradients_of_a_density_at_a_given_t(name, d, training, changed):
    """By φ and by t, against central differences with h = 1e-6 (error below 1e-6)."""
    case = Case(name, d, training, changed)
    t = case.foreign()
    along(case, lambda: case().log_prob(t).sum())
    at = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(case().log_prob(at).sum(), at)
    h = 1e-6
    with torch.no_grad():
        for j, unit in enumerate(torch.eye(d, dtype=t.dtype)):
            difference = (case().log_prob(t + h * unit) - case().log_prob(t - h * unit)) / (2 * h)
            torch.testing.assert_close(slope[..., j], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("training", "changed"), STATES)
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_a_density_integrates_to_one(name, d, training, changed):
    """By the trapezoidal rule in asinh of the distance from the mean, which reaches 74 standard deviations."""
    case = Case(name, d, training, changed)
    with torch.no_grad(), seeded(CPU, "range"):
        q = case()
        drawn = q.sample((500,))
        center, spread = drawn.mean(0), drawn.std(0)
        u = torch.linspace(-5, 5, {1: 2001, 2: 141}[d], dtype=torch.float64)
        points = torch.cartesian_prod(*[u] * d).reshape(-1, *[1] * len(q.batch_shape), d)
        log_width = (points.cosh().log() + spread.log()).sum(-1) + d * (u[1] - u[0]).log()
        total = (q.log_prob(center + spread * points.sinh()) + log_width).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("training", "changed"), STATES)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in MAKERS if isinstance(Case(name, 2)(), FlowDistribution)])
def test_a_flow_obeys_the_change_of_variables(name, d, training, changed):
    """At foreign z: log q(f(z)) = log p(z) - log |det ∂f/∂z|, the Jacobian by central differences; and f⁻¹(f(z)) = z."""
    case = Case(name, d, training, changed)
    with torch.no_grad():
        q = case()
        base = q.base_dist
        z = 0.3 + 1.5 * torch.randn(*base.batch_shape, d, dtype=torch.float64)
        h, f = 1e-5, q.transform
        columns = [(f(z + h * unit) - f(z - h * unit)) / (2 * h) for unit in torch.eye(d, dtype=z.dtype)]
        log_det = torch.linalg.slogdet(torch.stack(columns, -1))[1]
        torch.testing.assert_close(q.log_prob(f(z)), base.log_prob(z) - log_det, rtol=0, atol=1e-6)
        torch.testing.assert_close(f.inv(f(z)), z, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("training", "changed"), STATES)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in MAKERS if isinstance(Case(name, 2)(), FlowDistribution)])
def test_the_gradients_of_a_flows_draw_and_of_its_density(name, d, training, changed):
    """At the same noise: t and log q(t) are functions of φ alone."""
    case = Case(name, d, training, changed)
    weights = torch.linspace(-1, 1, d, dtype=torch.float64) + 0.3

    def value(of: Callable[[Distribution, Tensor], Tensor]) -> Tensor:
        with seeded(CPU, "draw"):
            q = case()
            t = q.rsample((5,)) if not case.is_prior else q.sample((5,))
        return of(q, t)

    if not case.is_prior:  # a prior's draws are not differentiated in training
        along(case, lambda: value(lambda _, t: (t * weights).sum()))
        along(case, lambda: value(lambda q, t: q.log_prob(t).sum()))
        along(case, lambda: value(lambda q, t: q.log_prob(t.clone()).sum()))


@pytest.mark.parametrize("changed", [0.0, 0.1])
@pytest.mark.parametrize("name", [name for name in MAKERS if MAKERS[name] not in FLOW_PRIORS])
def test_the_mean_gradient_through_draws(name, changed):
    """d/dφ E_q h(t) for h = sin(t) + t²/8 and d = 1: 400 means of 200 draws, against ∫ q h ∂log q by quadrature."""
    case = Case(name, 1, True, changed)

    def h(t: Tensor) -> Tensor:
        return (t.sin() + t**2 / 8).sum(-1)

    with torch.no_grad(), seeded(CPU, "range"):
        drawn = case().sample((500,))
        center, spread = drawn.mean(0), drawn.std(0)
        u = torch.linspace(-5, 5, 2001, dtype=torch.float64)[:, None, None]
        t = center + spread * u.sinh()
        width = (u.cosh() * spread).squeeze(-1) * 0.005
    log_q = case().log_prob(t)
    exact = torch.autograd.grad((log_q.detach().exp() * width * h(t) * log_q).sum(), case.leaves)
    means = []
    with seeded(CPU, "draws"):
        for _ in range(400):
            q = case()
            means.append(torch.autograd.grad(h(q.rsample((200,))).mean(0).sum(), case.leaves))
    for found, expected in zip(zip(*means, strict=True), exact, strict=True):
        found = torch.stack(found)
        error = found.std(0) / 20
        assert ((found.mean(0) - expected).abs() <= N_SE * error + 2e-3 * expected.abs().max() + 1e-9).all()


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["InverseAutoregressive", "SplineAutoregressive", "NeuralAutoregressive", "two neural transforms", "Sylvester",
             *(cls.__name__ for cls in FLOW_PRIORS)]
)
def test_a_draw_has_the_density_of_its_copy(name, d, scale):
    """In float32, also where the networks' weights are large: within 1 % of a nat in the median, and 99 % within 0.1 + 1 %."""
    case = Case(name, d)
    part = case.part.float()
    with torch.no_grad():
        for key, parameter in part.named_parameters():
            if "network" in key and "flow" not in key:
                continue
            parameter.mul_(scale)
        q = part() if case.is_prior else part(X.float())
        t = q.sample((2000,))
        own, other = q.log_prob(t), q.log_prob(t.clone())
    assert own.isfinite().all()
    assert other.isfinite().all()
    gap = (own - other).abs()
    print(name, d, scale, gap.max().item(), gap.quantile(0.99).item(), gap.median().item())
