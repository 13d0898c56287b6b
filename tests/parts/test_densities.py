"""Densities at foreign values, their gradients, and draws: for every guide and every flow prior, by subclass, in float64.

What an estimator of a gradient by φ takes from a guide is log q(t) at values of t that are not the guide's own draws, its
derivatives by φ and by t there, and the derivative of the draws by φ. Each of these is tested here by itself against finite
differences, quadrature or the change of variables; test_estimators.py tests that each estimator's formula with the right
values of these has the right mean. Together that is every estimator with every guide. The case in most danger is tested
whole: `ScoreFunction`, which sees the density alone, against `ELBO`, which sees the draws too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from helpers import CPU, N_SE, NETWORK, REAL_GUIDES, REAL_PRIORS, vae_of
from torch import Tensor

from pyro_vae import VAE, Dims
from pyro_vae.estimators import ELBO, ScoreFunction
from pyro_vae.flows import FlowDistribution, Reflections
from pyro_vae.flows.splines import Spline
from pyro_vae.flows.transforms import directions
from pyro_vae.guides import Householder, NeuralAutoregressive, PerDatum, SemiAmortized, Sylvester
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.parts import Distribution
from pyro_vae.priors import StandardNormal
from pyro_vae.scopes import seeded
from pyro_vae.traces import library_path

X = torch.bernoulli(torch.full((3, 4), 0.5, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
MORE = {
    "two neural transforms": partial(NeuralAutoregressive, transforms=2),
    "refined neural flow": partial(SemiAmortized, guide=partial(NeuralAutoregressive, network=NETWORK)),
}
FLOW_PRIORS = [cls for cls in REAL_PRIORS if isinstance(vae_of(cls).prior(), FlowDistribution)]
MAKERS = {cls.__name__: cls for cls in (*REAL_GUIDES, *FLOW_PRIORS)} | MORE
STATES = [(True, "untouched"), (False, "untouched"), (True, "moved"), (False, "enlarged")]
"""Training or evaluation mode, and what is done to the parameters: nothing; each is moved by 3 standard deviations of its
start, and by 0.3 at least; or those of a flow are made 10 times as large, and those of an encoder, which gives log s, twice."""
SIZES = [2, *(pytest.param(d, marks=pytest.mark.slow) for d in (1, 3))]
MILD = [(False, "shifted"), pytest.param(True, "untouched", marks=pytest.mark.slow)]
"""States for quadrature and for draws, where densities must have no narrow peaks; each parameter is shifted by about 0.1."""


class Case:
    """A guide or a flow prior in a VAE, and its distribution at any values of its parameters."""

    def __init__(self, name: str, d: int, training: bool = True, change: str = "untouched") -> None:
        make = MAKERS[name]
        self.is_prior = make in FLOW_PRIORS
        dims = Dims(d, (4,), train=X)
        torch.manual_seed(0)
        options = {"network": NETWORK} if "network" in inspect.signature(make).parameters else {}
        part = make(dims, **options)
        guide = PerDatum(dims) if self.is_prior else part
        self.vae = VAE(part if self.is_prior else StandardNormal(dims), guide, Bernoulli(dims, NETWORK)).double()
        self.part, self.leaves = part.train(training), list(part.parameters())
        with torch.no_grad():
            for key, parameter in part.named_parameters():
                if change == "shifted":
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif change == "moved":
                    parameter.add_(3 * parameter.std(correction=0).clamp(min=0.1) * torch.randn_like(parameter))
                elif change == "enlarged":
                    parameter.mul_(2 if "network" in key else 10)
        if isinstance(part, SemiAmortized):  # a and b are constants for the gradient by φ
            with seeded(CPU, "steps"):
                steps = part._refined(X, part.inner(X))
            part._refined = lambda x, _: steps[:, : len(x)].to(x.dtype)

    def __call__(self) -> Distribution:
        return self.part() if self.is_prior else self.part(X)

    def range(self) -> tuple[Tensor, Tensor]:
        """The median of 500 draws, and half the distance between their 16 % and 84 % points."""
        with torch.no_grad(), seeded(CPU, "range"):
            drawn = self().sample((500,))
        low, center, high = drawn.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=drawn.dtype), dim=0)
        return center, (high - low) / 2

    def foreign(self) -> Tensor:
        """Values that are not draws: near, and 5, 40 and 1,000 widths away, of shape (n, *batch, d)."""
        center, width = self.range()
        with seeded(CPU, "foreign"):
            near = torch.randn((4, *center.shape), dtype=center.dtype)
        far = [sign * distance * torch.ones_like(center) for distance in (5.0, 40.0, 1e3) for sign in (1, -1)]
        return center + width * torch.cat([near, torch.stack(far), 40 * near[:1].sign()])


FLOWS = [name for name in MAKERS if isinstance(Case(name, 2)(), FlowDistribution) and name != "SemiAmortized"]
GUIDE_NAMES = [name for name in MAKERS if MAKERS[name] not in FLOW_PRIORS]


def soon(names: Iterable[str]) -> list:
    """Cases, of which the neural flows of more than one part are slow."""
    return [pytest.param(name, marks=pytest.mark.slow if name in MORE else ()) for name in names]


def along(case: Case, value: Callable[[], Tensor], h: float = 1e-6) -> None:
    """The gradient of a number by all parameters, against central differences along two random directions.

    They may differ by 1e-4 of its largest term, by the rounding of the differences (1e-9 of the value), and by 1e-7.
    """
    at = value()
    found = torch.autograd.grad(at, case.leaves, allow_unused=True, materialize_grads=True)
    for seed in (1, 2):
        with seeded(CPU, "direction", seed):
            directions = [torch.randn_like(leaf) / leaf.numel() ** 0.5 for leaf in case.leaves]
        kept, ends = [leaf.detach().clone() for leaf in case.leaves], []
        with torch.no_grad():
            for step in (1, -1):
                for leaf, before, direction in zip(case.leaves, kept, directions, strict=True):
                    leaf.copy_(before + step * h * direction)
                ends.append(value())
            for leaf, before in zip(case.leaves, kept, strict=True):
                leaf.copy_(before)
        difference = (ends[0] - ends[1]) / (2 * h)
        terms = torch.stack([(one * other).sum() for one, other in zip(found, directions, strict=True)])
        error = 1e-4 * terms.abs().max() + 1e-9 * at.detach().abs() + 1e-7
        assert (terms.sum() - difference).abs() <= error, (terms, difference)


@pytest.mark.parametrize(("training", "change"), [(True, "untouched"), (False, "moved")])
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", soon(MAKERS))
def test_the_gradients_of_a_density_at_a_given_t(name, d, training, change):
    """By φ and by t, near and far, against central differences."""
    case = Case(name, d, training, change)
    h = 1e-5 * case.range()[1]
    for t in case.foreign().split([4, 4, 3]):  # apart, so that what is far does not hide what is near
        along(case, lambda t=t: case().log_prob(t).sum())
        at = t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(case().log_prob(at).sum(), at)
        steepest, largest = (each.abs().amax(-1) for each in (slope, t))
        with torch.no_grad():
            for j, unit in enumerate(torch.eye(d, dtype=t.dtype)):
                up, down = (case().log_prob(t + sign * h * unit) for sign in (1, -1))
                rounding = 1e-13 * (up.abs() + steepest * largest + 1000)
                found = (up - down) / (2 * h[..., j])
                assert ((slope[..., j] - found).abs() <= 1e-3 * slope[..., j].abs() + rounding / h[..., j]).all()


@pytest.mark.parametrize(("training", "change"), MILD)
@pytest.mark.parametrize("name", soon(MAKERS))
def test_a_density_integrates_to_one_and_is_that_of_the_draws(name, training, change):
    """For one datum and d = 1 by the trapezoidal rule, whose error is below 1e-3, and 0.02 where parameters are changed.

    2,000 draws have this distribution function, by the test of Kolmogorov and Smirnov at the level 1e-4 (√n D < 2.23).
    """
    case = Case(name, 1, training, change)
    center, width = case.range()
    with torch.no_grad(), seeded(CPU, "draws"):
        q = case() if case.is_prior else case.part(X[:1])
        drawn = q.sample((2000,)).flatten()
        far = torch.linspace(-12, 12, 1001, dtype=torch.float64).sinh()
        # A flow may have narrow peaks: there are as many points in each as it has probability.
        dense = torch.linspace(-9, 9, 6001, dtype=torch.float64)
        if name in FLOWS:
            dense = q.transform(dense.reshape(-1, *[1] * len(q.batch_shape), 1)).flatten()
        else:
            dense = torch.cat([center.flatten()[0] + width.flatten()[0] * dense, q.sample((6000,)).flatten()])
        t = torch.cat([dense, center.flatten()[0] + width.flatten()[0] * far]).sort().values
        density = q.log_prob(t.reshape(-1, *[1] * len(q.batch_shape), 1)).flatten().exp()
    F = torch.cat([torch.zeros_like(t[:1]), ((density[1:] + density[:-1]) / 2 * t.diff()).cumsum(0)])
    assert abs(F[-1] - 1) < (1e-3 if change == "untouched" else 0.02)
    at = torch.searchsorted(t, drawn.sort().values).clamp(1, len(t) - 1)
    share = (drawn.sort().values - t[at - 1]) / (t[at] - t[at - 1])
    found, steps = F[at - 1] + share * (F[at] - F[at - 1]), torch.arange(2001, dtype=torch.float64) / 2000
    assert 2000**0.5 * torch.maximum((found - steps[:-1]).abs().max(), (steps[1:] - found).abs().max()) < 2.23


@pytest.mark.parametrize(("training", "change"), MILD)
@pytest.mark.parametrize("name", soon(MAKERS))
def test_a_density_of_two_integrates_to_one(name, training, change):
    """By the trapezoidal rule in asinh of the distance from the median, which reaches 74 widths (error 0.01), for one datum."""
    case = Case(name, 2, training, change)
    center, width = (each if case.is_prior else each[:1] for each in case.range())
    with torch.no_grad():
        q = case.part() if case.is_prior else case.part(X[:1])
        u = torch.linspace(-5, 5, 101, dtype=torch.float64)
        points = torch.cartesian_prod(u, u).reshape(-1, *[1] * len(q.batch_shape), 2)
        log_width = (points.cosh().log() + width.log()).sum(-1) + 2 * (u[1] - u[0]).log()
        total = (q.log_prob(center + width * points.sinh()) + log_width).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=0.01)


@pytest.mark.parametrize(("training", "change"), STATES)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", soon(FLOWS))
def test_a_flow_obeys_the_change_of_variables(name, d, training, change):
    """At foreign t: f(f⁻¹(t)) = t, and log q(t) = log p(z) - log |det ∂f/∂z| with the Jacobian of f by differentiation.

    Where parameters are changed, some t are ill-conditioned: an error may be what a change of z by 1e-9 of itself makes.
    """
    case = Case(name, d, training, change)
    q, t = case(), case.foreign()
    f, size = q.transform, case.range()[1]
    z = f.inv(t).detach().requires_grad_()
    again = f(z)
    rows = [torch.autograd.grad(again[..., j].sum(), z, retain_graph=True)[0] for j in range(d)]
    expected = q.base_dist.log_prob(z) - torch.linalg.slogdet(torch.stack(rows, -2))[1]
    other = f(z * (1 + 1e-10))
    assert ((again - t).abs() <= 1e-9 * (size + t.abs()) + 10 * (other - again).abs()).all()
    log_q = q.log_prob(t)
    noise = 10 * (q.log_prob(other) - q.log_prob(again)).abs()
    assert ((log_q - expected).abs() <= 1e-8 + 1e-9 * log_q.abs() + noise).all()


@pytest.mark.parametrize(("training", "change"), MILD)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", soon([name for name in FLOWS if name in GUIDE_NAMES]))
def test_the_gradients_of_a_flows_draw_and_of_its_density(name, d, training, change):
    """At the same noise, t and log q(t) are functions of φ alone."""
    case = Case(name, d, training, change)
    weights = torch.linspace(-1, 1, d, dtype=torch.float64) + 0.3

    def value(of: Callable[[Distribution, Tensor], Tensor]) -> Tensor:
        with seeded(CPU, "draw"):
            q = case()
            return of(q, q.rsample((3,)))

    along(case, lambda: value(lambda _, t: (t * weights).sum()))
    along(case, lambda: value(lambda q, t: q.log_prob(t).sum()))


@pytest.mark.parametrize(("training", "change"), MILD)
@pytest.mark.parametrize("name", soon(GUIDE_NAMES))
def test_the_mean_gradient_through_draws(name, training, change):
    """d/dφ E_q h(t) for h = sin(u) + u²/8, u = t in widths: 100 means of 400 draws, against the quadrature of q h ∂log q."""
    case = Case(name, 1, training, change)
    center, width = case.range()

    def h(t: Tensor) -> Tensor:
        u = (t - center) / width
        return (u.sin() + u**2 / 8).sum(-1)

    with torch.no_grad(), seeded(CPU, "draws"):
        q = case()
        u = torch.linspace(-5, 5, 2001, dtype=torch.float64)[:, None, None]
        t = torch.cat([q.sample((1000,)), center + width * u.sinh()]).sort(0).values
        gaps = t.diff(dim=0).squeeze(-1)
        weights = (torch.cat([gaps, gaps[:1] * 0]) + torch.cat([gaps[:1] * 0, gaps])) / 2  # of the trapezoidal rule
    log_q = case().log_prob(t)
    exact = torch.autograd.grad((log_q.detach().exp() * weights * h(t) * log_q).sum(), case.leaves)
    means = []
    with seeded(CPU, "draws"):
        for _ in range(100):
            means.append(torch.autograd.grad(h(case().rsample((400,))).mean(0).sum(), case.leaves))
    for of_leaf, expected in zip(zip(*means, strict=True), exact, strict=True):
        found = torch.stack(of_leaf)
        error = found.std(0) / 10
        assert ((found.mean(0) - expected).abs() <= N_SE * error + 5e-3 * expected.abs().max() + 1e-9).all()


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if (name in FLOWS and name not in MORE) or "Mixture" in name else pytest.mark.slow)
        for name in GUIDE_NAMES  # the draws of the other Gaussians are affine in their noise
    ],
)
def test_the_score_function_has_the_mean_of_the_reparameterized_gradient(name, training):
    """For d = 2, by the whole estimators: 20 means of 3 data and 100 particles each."""
    case = Case(name, 2, training, "shifted")
    means, variances = [], []
    with library_path():
        for estimator in (ScoreFunction(100, control="leave-one-out"), ELBO(100)):
            found = []
            with seeded(CPU, type(estimator).__name__):
                for _ in range(20):
                    _, gradients = estimator.gradients(case.vae.model, case.vae.guide, case.leaves, X)
                    found.append(torch.cat([gradient.flatten() for gradient in gradients]))
            means.append(torch.stack(found).mean(0))
            variances.append(torch.stack(found).var(0) / 20)
    error = (variances[0] + variances[1]).sqrt()
    assert ((means[0] - means[1]).abs() <= N_SE * error + 1e-9).all()
    assert error.norm() < 0.3 * means[1].norm(), "the test could not tell a wrong gradient"


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
@pytest.mark.parametrize("d", SIZES)
def test_a_draw_has_the_density_of_its_copy(scale, dtype, names, d):
    """Within 0.003 nats for each of 2,000 draws and three data, also where the networks' weights are large.

    Weights that are ten times as large put draws at 1e13, where the last bit of t in float64 is worth 0.005 nats.
    """
    within = 0.02 if scale == 10 else 3e-3
    for name in names:
        q, t = drawn_from(enlarged(name, d, scale, dtype))
        with torch.no_grad():
            torch.testing.assert_close(q.log_prob(t), q.log_prob(t.clone()), rtol=1e-5, atol=within, msg=name)


@pytest.mark.parametrize("name", soon(FLOWS))
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
    """(t - m) / s has mean 0 ± 0.1 and standard deviation 1 ± 0.05; KL(q‖N(m, s²)) < 0.03 nats × coordinates × transforms."""
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
"""Draws that are no functions of φ."""
VIEWS = {
    "as it is": lambda q: q,
    "expanded": lambda q: q.expand(torch.Size([5, *q.batch_shape])),
    "expanded twice": lambda q: q.expand(torch.Size([5, *q.batch_shape])).expand(torch.Size([2, 5, *q.batch_shape])),
    "independent": lambda q: q.expand(torch.Size([5, *q.batch_shape])).to_event(1),
    "an expanded independent": lambda q: q.expand(torch.Size([5, *q.batch_shape])).to_event(1).expand_by([2]),
    "masked": lambda q: q.mask(torch.ones(q.batch_shape, dtype=torch.bool)),
}
"""How Pyro gives a distribution to a site: in plates, with its batch as an event, and under a mask."""


def same_gradients(q: Distribution, t: Tensor, case: Case, others: tuple[Tensor, ...] = ()) -> None:
    """∂ log q(t) by φ is the one at a copy of t, as it is for every distribution of PyTorch."""
    found, expected = (
        torch.autograd.grad(
            q.log_prob(at).sum(), [*case.leaves, *others], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for at in (t, t.clone())
    )
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", soon(MAKERS))
def test_a_draw_has_the_gradient_of_its_copy(name):
    """A constant draw has the score; one that depends on φ has the whole gradient, remembered or computed again."""
    case = Case(name, 2)
    for which, view in VIEWS.items():
        for draw in DRAWS.values() if which == "as it is" else [DRAWS["sample"]]:
            q = view(case())
            t = draw(q)
            assert q.log_prob(t).requires_grad
            same_gradients(q, t, case, (t,) if t.requires_grad else ())
        q = view(case())
        t = q.rsample((6,))
        assert t.requires_grad
        torch.testing.assert_close(q.log_prob(t), q.log_prob(t.clone()))
        same_gradients(q, t, case)


@pytest.mark.parametrize("name", soon(FLOWS))
def test_a_draw_that_is_changed_in_place_is_another_value(name):
    q, t = drawn_from(Case(name, 2), 4)
    with torch.no_grad():  # else a draw without a gradient is not remembered
        before = q.log_prob(t)
        t += 1
        torch.testing.assert_close(q.log_prob(t), q.log_prob(t.clone()))
        assert (q.log_prob(t) - before).abs().max() > 0.01


@pytest.mark.parametrize("name", soon(MAKERS))
def test_a_mean_is_the_mean_of_the_draws(name):
    """Of 40,000 draws, within 4.5 standard errors; flows that are not affine have none."""
    q, t = drawn_from(Case(name, 2), 40_000)
    try:
        mean = q.mean
    except NotImplementedError:
        assert name in {*FLOWS, "refined neural flow"} - {"Householder"}
        return
    assert ((t.mean(0) - mean).abs() <= N_SE * t.std(0) / 200).all()


@pytest.mark.parametrize("length", [0.0, 1e-40, 1e-30, 1e-16, 1e-14, 1.0, 1e14, 1e16, 1e30, 3e38])
def test_a_reflection_by_a_vector_of_any_length(length):
    """v / |v| in float32 against float64, to 2e-7; finite gradients; and a reflection keeps lengths and volumes."""
    v = (length * torch.tensor([[0.6, -0.8, 0.0], [0.0, 1.0, 0.0], [-0.5, 0.5, 0.5**0.5]])).requires_grad_()
    z = torch.tensor([[0.3, -1.2, 2.0]])
    f = Reflections(v)
    t = f(z)
    (slope,) = torch.autograd.grad((t * torch.tensor([1.0, 2.0, -1.0])).sum(), v)
    assert slope.isfinite().all()
    torch.testing.assert_close(t.norm(), z.norm())
    torch.testing.assert_close(f.inv(t), z)
    exact = v.detach().double()
    exact = exact / exact.norm(dim=-1, keepdim=True) if length else exact
    torch.testing.assert_close(directions(v).double(), exact, rtol=0, atol=2e-7 if length > 1e-38 else 1e-3)
    if 1e-15 < length < 1e15:
        (expected,) = torch.autograd.grad(
            (Reflections(w := v.detach().double().requires_grad_())(z.double()) * torch.tensor([1.0, 2.0, -1.0])).sum(),
            w,
        )
        torch.testing.assert_close(slope.double(), expected, rtol=1e-5, atol=1e-6 / length)


@pytest.mark.parametrize("cls", [Householder, Sylvester])
def test_a_guide_whose_reflections_vanish_is_a_guide(cls):
    """All v = 0: the reflections are left out, densities are finite and integrate, and every gradient is finite."""
    guide = cls(Dims(2, (4,)), NETWORK)
    with torch.no_grad():
        guide.axes.zero_()
        guide.network.layers[-1].weight.zero_()
        guide.network.layers[-1].bias.zero_()
    q = guide(X.float())
    t = q.rsample((50,))
    log_q = q.log_prob(t)
    torch.testing.assert_close(log_q, q.log_prob(t.clone()))
    gradients = torch.autograd.grad((log_q + t.sum(-1)).sum(), list(guide.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    normal = torch.distributions.Normal(torch.zeros(2), 1.0)
    torch.testing.assert_close(log_q, normal.log_prob(t).sum(-1))
