"""Densities at foreign values and their gradients: for every guide, by subclass, and every flow, in float64.

What an estimator of a gradient by φ takes from a guide is log q(t) at values of t that are not the guide's own draws, its
derivatives by φ and by t there, and the derivative of the draws by φ. Each of these is tested here by itself against finite
differences, quadrature or the change of variables; test_estimators.py tests that each estimator's formula with the right
values of these has the right mean. Together that is every estimator with every guide.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers import CPU, GUIDES, N_SE, NETWORK
from torch import Tensor

from pyro_vae import VAE, Dims
from pyro_vae.flows import FlowDistribution
from pyro_vae.flows.splines import Spline
from pyro_vae.guides import NeuralAutoregressive, PerDatum, SemiAmortized
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
        options = (
            {} if is_prior or name in ("SemiAmortized", "refined neural flow", "PerDatum") else {"network": NETWORK}
        )
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
            part._refined = lambda x, _: steps.to(x.dtype)

    def __call__(self) -> Distribution:
        return self.part() if self.is_prior else self.part(X)

    def foreign(self, n: int = 4) -> Tensor:
        """Values that are not draws, near and far, of shape (n, *batch, d)."""
        with torch.no_grad(), seeded(CPU, "foreign"):
            t = self().sample((n,)).clone()
            return t + torch.linspace(0.1, 2.0, n, dtype=t.dtype).reshape(-1, *[1] * (t.dim() - 1)) * torch.randn_like(
                t
            )


FLOWS = [name for name in MAKERS if isinstance(Case(name, 2)(), FlowDistribution) and name != "SemiAmortized"]


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


@pytest.mark.parametrize(("training", "changed"), [STATES[0], STATES[-1]])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_a_density_integrates_to_one(name, d, training, changed):
    """By the trapezoidal rule in asinh of the distance from the mean, which reaches 74 standard deviations (error 0.005 for d = 2)."""
    case = Case(name, d, training, changed)
    with torch.no_grad(), seeded(CPU, "range"):
        q = case()
        drawn = q.sample((500,))
        center, spread = drawn.mean(0), drawn.std(0)
        u = torch.linspace(-5, 5, {1: 2001, 2: 121}[d], dtype=torch.float64)
        points = torch.cartesian_prod(*[u] * d).reshape(-1, *[1] * len(q.batch_shape), d)
        log_width = (points.cosh().log() + spread.log()).sum(-1) + d * (u[1] - u[0]).log()
        total = (q.log_prob(center + spread * points.sinh()) + log_width).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol={1: 1e-4, 2: 5e-3}[d])


@pytest.mark.parametrize(("training", "changed"), STATES)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", FLOWS)
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
@pytest.mark.parametrize("name", FLOWS)
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
        u = torch.linspace(-5, 5, 20_001, dtype=torch.float64)[:, None, None]
        t = center + spread * u.sinh()
        width = (u.cosh() * spread).squeeze(-1) * 0.0005
    log_q = case().log_prob(t)
    exact = torch.autograd.grad((log_q.detach().exp() * width * h(t) * log_q).sum(), case.leaves)
    means = []
    with seeded(CPU, "draws"):
        for _ in range(400):
            q = case()
            means.append(torch.autograd.grad(h(q.rsample((200,))).mean(0).sum(), case.leaves))
    for of_leaf, expected in zip(zip(*means, strict=True), exact, strict=True):
        found = torch.stack(of_leaf)
        error = found.std(0) / 20
        assert ((found.mean(0) - expected).abs() <= N_SE * error + 2e-3 * expected.abs().max() + 1e-9).all()


def enlarged(name: str, d: int, scale: float, dtype: torch.dtype) -> Case:
    """A flow whose networks behind the encoder have weights that are larger by a factor."""
    case = Case(name, d)
    case.part.to(dtype)
    with torch.no_grad():
        for key, parameter in case.part.named_parameters():
            if "flow" in key:
                parameter.mul_(scale)
    return case


def drawn_from(case: Case, n: int = 2000) -> tuple[Distribution, Tensor]:
    dtype = case.leaves[0].dtype
    with torch.no_grad(), seeded(CPU, "draws"):
        q = case.part() if case.is_prior else case.part(X.to(dtype))
        return q, q.sample((n,))


@pytest.mark.parametrize(
    ("scale", "dtype", "names"),
    [
        (1.0, torch.float32, FLOWS),
        (3.0, torch.float32, FLOWS),
        (10.0, torch.float64, FLOWS),
        (30.0, torch.float32, ["NeuralAutoregressive"]),
    ],
)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_draw_has_the_density_of_its_copy(scale, dtype, names, d):
    """Within 0.003 nats for each of 2,000 draws and three data, also where the networks' weights are large."""
    for name in names:
        q, t = drawn_from(enlarged(name, d, scale, dtype))
        with torch.no_grad():
            torch.testing.assert_close(q.log_prob(t), q.log_prob(t.clone()), rtol=1e-5, atol=3e-3, msg=name)


@pytest.mark.parametrize("name", FLOWS)
def test_the_inverse_is_one_where_a_flow_is_steep_and_flat(name):
    """f(f⁻¹(t)) = t to float32's precision with weights 30 times as large, for draws of d = 1."""
    q, t = drawn_from(enlarged(name, 1, 30.0, torch.float32))
    f = q.transform
    with torch.no_grad():
        torch.testing.assert_close(f(f.inv(t)), t, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("bins", [2, 8])
def test_a_spline_is_inverted_where_its_slopes_differ_by_a_million(bins):
    """In float32, for parameters of standard deviation 100, against bisection of the spline in float64; and never NaN."""
    generator = torch.Generator().manual_seed(0)
    widths, heights, derivatives = (
        100 * torch.randn(400, n, generator=generator, dtype=torch.float64) for n in (bins, bins, bins - 1)
    )
    y = 11 * torch.rand(400, generator=generator, dtype=torch.float64) - 5.5
    exact = Spline(widths, heights, derivatives)
    x = Spline(widths.float(), heights.float(), derivatives.float()).inv(y.float())
    assert x.isfinite().all()
    low, high = torch.full_like(y, -6.0), torch.full_like(y, 6.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = exact(middle) > y
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    torch.testing.assert_close(exact.inv(y), low, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        exact(x.double()), y, rtol=0, atol=0.02
    )  # the knots' places are rounded, the slopes 1,000
    assert (exact(x.double()) - y).abs().median() < 1e-4


@pytest.mark.parametrize("distance", [5.0, 40.0, 1e4, 1e10])
@pytest.mark.parametrize("name", ["NeuralAutoregressive", "two neural transforms"])
def test_a_neural_flow_has_a_density_far_out(name, distance):
    """f⁻¹ is the inverse there too: log q falls with the distance as the linear tails of f say, to 1e-6 of itself."""
    case = Case(name, 2, training=False)
    with torch.no_grad():
        q = case()
        for sign in (1, -1):
            t = q.transform(torch.zeros(3, 2, dtype=torch.float64)) + sign * distance
            z = q.transform.inv(t)
            torch.testing.assert_close(q.transform(z), t, rtol=1e-12, atol=1e-9)
            further = q.transform.inv(t + sign * distance)
            assert (q.log_prob(t) < -0.1 * distance**2 + 10).all()
            assert (further.abs() > 1.5 * z.abs()).any()


@pytest.mark.parametrize("transforms", [1, 2, 3])
def test_a_neural_flow_starts_near_a_diagonal_normal(transforms):
    """(t - m) / s has mean 0 ± 0.1 and standard deviation 1 ± 0.05; KL(q‖N(m, s²)) is below 0.03 nats a coordinate and transform."""
    for seed in range(5):
        torch.manual_seed(seed)
        guide = NeuralAutoregressive(Dims(3, (4,)), NETWORK, transforms=transforms)
        with torch.no_grad():
            q = guide(X.float())
            t = q.rsample((5000,))
            last = q.transform.transforms[-1]
            e = (t - last.loc) / last.scale
            near = torch.distributions.Normal(last.loc, last.scale)
            kl = (q.log_prob(t) - near.log_prob(t).sum(-1)).mean()
        assert e.mean((0, 1)).abs().max() < 0.1
        assert (e.std((0, 1)) - 1).abs().max() < 0.05
        assert kl < 0.03 * 3 * transforms


def test_a_neural_flow_keeps_its_precision_under_autocast():
    """In bfloat16 f would be a staircase: d = 1, where the networks that give the signals see the same numbers again."""
    case = enlarged("NeuralAutoregressive", 1, 3.0, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        q = case.part(X.float())
        t = q.rsample((500,))
        own, other = q.log_prob(t), q.log_prob(t.clone())
    torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-3)


def without_gradient(q: Distribution) -> Tensor:
    with torch.no_grad():
        return q.rsample((6,))


DRAWS = {
    "sample": lambda q: q.sample((6,)),
    "rsample without a gradient": without_gradient,
    "rsample, detached in place": lambda q: q.rsample((6,)).detach_(),
    "rsample, a leaf": lambda q: without_gradient(q).requires_grad_(),
}


@pytest.mark.parametrize("how", DRAWS)
@pytest.mark.parametrize("name", [name for name in MAKERS if MAKERS[name] not in FLOW_PRIORS])
def test_a_constant_draw_has_the_score(name, how):
    """∂ log q(t) by φ at a t that is no function of φ is the one at a copy of t, however t was drawn."""
    case = Case(name, 2)
    q = case()
    t = DRAWS[how](q)
    found, expected = (
        torch.autograd.grad(
            q.log_prob(at).sum(), case.leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for at in (t, t.detach().clone())
    )
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_that_is_changed_in_place_is_another_value(name):
    q, t = drawn_from(Case(name, 2), 4)
    before = q.log_prob(t)
    t += 1
    torch.testing.assert_close(q.log_prob(t), q.log_prob(t.clone()))
    assert (q.log_prob(t) - before).abs().max() > 0.01


@pytest.mark.parametrize("name", MAKERS)
def test_a_mean_is_the_mean_of_the_draws(name):
    """Of 40,000 draws, within 4.5 standard errors; flows that are not affine have none."""
    q, t = drawn_from(Case(name, 2), 40_000)
    try:
        mean = q.mean
    except NotImplementedError:
        assert name in {*FLOWS, "refined neural flow"} - {"Householder"}
        return
    assert ((t.mean(0) - mean).abs() <= N_SE * t.std(0) / 200).all()
