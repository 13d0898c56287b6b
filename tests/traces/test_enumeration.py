"""Discrete sites that are summed out: against Pyro's own enumeration, against sums written here, and what is refused."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete import Discrete, X
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from pyro_vae.estimators import ELBO, IWAE, RWS, VIMCO, AnalyticKL, DReG, Enumerate, ScoreFunction, Stock
from pyro_vae.traces import library_path, particles, states_of


def numbers(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


W, M, D, E, Q, T, C = (
    numbers(*shape, seed=i) for i, shape in enumerate([(3, 4), (3, 2), (2, 4), (4, 2), (4, 3), (3, 2), (3, 2)])
)
LEAVES = [W, M, D, E, Q, T, C]
DATA = (torch.rand(5, 4, generator=torch.Generator().manual_seed(9)) > 0.5).double()
MARKED = {"enumerate": "parallel"}


def model(x, infer=MARKED):
    """y, t given y, and x given both."""
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.OneHotCategorical(logits=torch.tensor([0.1, 0.5, -0.3]).double()), infer=infer)
        t = pyro.sample("t", dist.Normal(y @ M, 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=torch.tanh(t) @ D + y @ W).to_event(1), obs=x)


def unmarked(x):
    model(x, {})


def with_another(x):
    """A second discrete latent c, given y, which x does not depend on but through t."""
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3).double()), infer=MARKED)
        c = pyro.sample("c", dist.Bernoulli(logits=(y @ C)[..., 0]), infer=MARKED)
        t = pyro.sample("t", dist.Normal(y @ M + c.unsqueeze(-1), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=torch.tanh(t) @ D).to_event(1), obs=x)


def of_t(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("t", dist.Normal(x @ E, 0.7).to_event(1))


def of_y_and_t(x):
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.OneHotCategorical(logits=x @ Q), infer=MARKED)
        pyro.sample("t", dist.Normal(x @ E + y @ T, 0.7).to_event(1))


CASES = {
    "summed out of p": (model, of_t, ELBO(30)),
    "two sites": (with_another, of_t, ELBO(30)),
    "by config_enumerate": (config_enumerate(unmarked), of_t, ELBO(30)),
    "in the guide": (model, of_y_and_t, Enumerate(ELBO(30))),
    "one in each": (with_another, of_y_and_t, Enumerate(ELBO(30))),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_pyro(name):
    p, q, estimator = CASES[name]
    torch.manual_seed(1)
    with library_path():
        estimate, found = estimator.gradients(p, q, LEAVES, DATA)
    torch.manual_seed(1)
    stock = TraceEnum_ELBO(max_plate_nesting=1, num_particles=30, vectorize_particles=True)
    loss = stock.differentiable_loss(p, q, DATA) / len(DATA)
    expected = torch.autograd.grad(-loss, LEAVES, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(estimate.bound.mean(), -loss.detach())
    torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("estimator", [IWAE(5), DReG(5), VIMCO(5), RWS(5), ScoreFunction(5)])
def test_every_estimator_takes_a_site_of_the_model_alone(estimator):
    """The same as a model whose p(t) is an explicit mixture."""

    def mixed(x):
        with pyro.plate("data", len(x), dim=-1):
            weights = dist.Categorical(logits=torch.tensor([0.1, 0.5, -0.3]).double())
            t = pyro.sample("t", dist.MixtureSameFamily(weights, dist.Normal(M, 1.0).to_event(1)))
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(t) @ D).to_event(1), obs=x)

    def summed(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.tensor([0.1, 0.5, -0.3]).double()), infer=MARKED)
            t = pyro.sample("t", dist.Normal(y @ M, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=torch.tanh(t) @ D).to_event(1), obs=x)

    found = []
    for program in (summed, mixed):
        torch.manual_seed(2)
        with library_path():
            estimate, gradients = estimator.gradients(program, of_t, [M, D, E], DATA)
        found.append([estimate.bound, estimate.particles.log_prior, estimate.particles.log_lik, *gradients])
    torch.testing.assert_close(*found)


def test_the_states_have_their_posterior():
    with library_path():
        draws = particles(model, of_t, DATA, K=4)
        t = draws.values["t"]
        log_prior = torch.tensor([0.1, 0.5, -0.3]).double().log_softmax(0)
        joint = torch.stack(
            [
                log_prior[i]
                + dist.Normal(M[i], 1.0).log_prob(t).sum(-1)
                + dist.Bernoulli(logits=torch.tanh(t) @ D + W[i]).log_prob(DATA).sum(-1)
                for i in range(3)
            ]
        )
        torch.testing.assert_close(draws.log_states("y"), joint.log_softmax(0))
        torch.testing.assert_close(draws.log_lik + draws.log_prior, joint.logsumexp(0))
        assert (draws.enumerated, draws.expected) == ({"y"}, frozenset())
        draws = particles(model, of_y_and_t, DATA, K=4, enumerate="all")
    torch.testing.assert_close(draws.log_states("y")[:, 2], (DATA @ Q).log_softmax(-1).T)
    assert (draws.expected, draws.dependent) == ({"y"}, ("t",))


def test_the_latents_and_the_pixels_in_plates_of_their_own():
    """The data are not the last plate, and a latent has one for its numbers."""

    def p(x):
        with pyro.plate("data", len(x), dim=-2):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3).double()), infer=MARKED)
            with pyro.plate("pixels", 4, dim=-1):
                t = pyro.sample("t", dist.Normal(y, 1.0))
                pyro.sample("x", dist.Normal(t, 0.5), obs=x)

    def q(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 4, dim=-1):
            pyro.sample("t", dist.Normal(x, 0.6))

    with library_path():
        draws = particles(p, q, DATA, K=3, max_plate_nesting=2)
    t, normal = draws.values["t"], torch.distributions.Normal
    each = [normal(i, 1.0).log_prob(t).sum(-1) + torch.tensor([0.7, 0.3]).double().log()[i] for i in (0, 1)]
    torch.testing.assert_close(draws.log_prior, torch.stack(each).logsumexp(0))
    torch.testing.assert_close(draws.log_lik, normal(t, 0.5).log_prob(DATA).sum(-1))


def in_plate(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("words", 4, dim=-1):
        y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)), infer=MARKED)
        pyro.sample("x", dist.Normal(y, 0.5), obs=x)


def without_latents(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("words", 4, dim=-1):
        pass


def one(q, infer=MARKED):
    def program(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", q, infer=infer)
            total = z.sum(-1) if q.event_dim else z
            pyro.sample("x", dist.Normal(total, 1.0), obs=x[:, 0])

    return program


def nothing(x):
    with pyro.plate("data", len(x), dim=-1):
        pass


WIDE = dist.Bernoulli(torch.full((30,), 0.5)).to_event(1)
REFUSED = {
    "'z' cannot be enumerated: Poisson is continuous, or has infinitely many": one(dist.Poisson(3.0)),
    "'z' cannot be enumerated: Normal is continuous": one(dist.Normal(0.0, 1.0)),
    r"'z' cannot be enumerated: 2\^30 values of Bernoulli are 1,073,741,824 states": one(WIDE),
    r"10\^60 states": one(dist.Bernoulli(torch.full((200,), 0.5)).to_event(1)),
    "num_samples": one(dist.Bernoulli(0.5), {"enumerate": "parallel", "num_samples": 10}),
    r"does not sample the model's latent sites \['z'\].*to sum out a discrete one, mark it": one(
        dist.Bernoulli(0.5), {}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_enumerated_is_told(message):
    with pytest.raises(ValueError, match=message), library_path():
        particles(REFUSED[message], nothing, DATA)


def test_a_site_in_another_plate_is_told():
    with pytest.raises(ValueError, match="'y' stands in the plate 'words' inside that of the data"), library_path():
        particles(in_plate, without_latents, DATA, max_plate_nesting=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Enumerate(IWAE(2)), "the bound of IWAE is no mean of log w"),
        (lambda: Enumerate(VIMCO(2)), "the bound of VIMCO is no mean of log w"),
        (lambda: Enumerate(sites=[]), "sites is empty"),
    ],
)
def test_what_enumerate_does_not_take(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("estimator", "q", "message"),
    [
        (Enumerate(sites=["z"]), of_y_and_t, "the guide draws no site 'z' that could be enumerated; it draws"),
        (Enumerate(), of_t, "no site of the guide is discrete"),
        (
            Enumerate(ScoreFunction(2)),
            of_y_and_t,
            r"draws \['t'\] given \['y'\], which ScoreFunction cannot differentiate",
        ),
        (AnalyticKL(), of_t, r"is a sum over the values of \['y'\]"),
    ],
)
def test_guides_that_do_not_fit(estimator, q, message):
    with pytest.raises(ValueError, match=message), library_path():
        estimator.estimate(model, q, DATA)


def test_pyros_own_enumeration_is_an_estimator_too():
    """`Stock` reports the exact ELBO, and its gradient, of a guide whose sites are marked."""
    programs = Discrete("binary")

    def marked(x):
        with pyro.plate("data", len(x), dim=-1):
            programs.register("phi", programs.phi)
            logits = x @ programs.phi["Q"] + programs.phi["c"]
            for i in range(4):  # Pyro enumerates no vectors of bits
                pyro.sample(f"t{i}", dist.Bernoulli(logits=logits[..., i]), infer=MARKED)

    def p(x):
        with pyro.plate("data", len(x), dim=-1):
            programs.register("w", programs.w)
            bits = [pyro.sample(f"t{i}", dist.Bernoulli(logits=programs.w["prior"][i])) for i in range(4)]
            t = torch.stack(torch.broadcast_tensors(*bits), -1)
            pyro.sample("x", dist.Bernoulli(logits=programs.decoded(t)).to_event(1), obs=x)

    leaves, found = list(programs.parameters()), []
    for estimator, of in ((Stock(1, TraceEnum_ELBO), (p, marked)), (Enumerate(), (programs.model, programs.guide))):
        with library_path():
            estimate, gradients = estimator.gradients(*of, leaves, X)
        found.append([estimate.bound.mean().detach(), *gradients])
    torch.testing.assert_close(*found)


def test_states_are_all_values():
    values = states_of("z", dist.Categorical(torch.ones(3)).expand([2]).to_event(1))
    assert values.tolist() == [[i, j] for i in range(3) for j in range(3)]
    assert states_of("z", dist.Bernoulli(torch.tensor(0.5))).tolist() == [0, 1]
    assert len(states_of("z", dist.OneHotCategorical(torch.ones(4)).expand([3]).to_event(1))) == 64


KINDS = {
    r"'t' has a density \(LogNormal\) in the guide, and is discrete \(Bernoulli\)": (
        dist.LogNormal(0.0, 1.0),
        dist.Bernoulli(0.5),
    ),
    r"'t' is discrete \(Bernoulli\) in the guide, and has a density \(Normal\)": (
        dist.Bernoulli(0.5),
        dist.Normal(0.0, 1.0),
    ),
    r"'t' has a density \(RelaxedBernoulli.*is discrete \(Bernoulli\)": (
        dist.RelaxedBernoulli(torch.tensor(0.5), torch.tensor(0.5)),
        dist.Bernoulli(0.5),
    ),
    r"'t' is a point mass \(Delta\) in the guide, and has a density \(Normal\)": (
        dist.Delta(torch.tensor(0.1)),
        dist.Normal(0.0, 1.0),
    ),
    "the guide's LogNormal draws from 0.0 to inf, and the model's Normal from all real numbers": (
        dist.LogNormal(0.0, 1.0),
        dist.Normal(0.0, 1.0),
    ),
    "the guide's Normal draws from all real numbers, and the model's Beta from 0": (
        dist.Normal(0.0, 1.0),
        dist.Beta(1.0, 1.0),
    ),
    "the guide's Poisson draws from 0 to inf, and the model's Bernoulli from 0 to 1": (
        dist.Poisson(2.0),
        dist.Bernoulli(0.5),
    ),
    r"shape \(4,\) in the guide \(OneHotCategorical\), and \(3,\) in the model": (
        dist.OneHotCategorical(torch.ones(4)),
        dist.OneHotCategorical(torch.ones(3)),
    ),
    "the guide's Dirichlet draws from Simplex.*all real numbers": (
        dist.Dirichlet(torch.ones(3)),
        dist.Normal(torch.zeros(3), 1.0).to_event(1),
    ),
    "OneHotCategorical draws from OneHot.*0 to 1": (
        dist.OneHotCategorical(torch.ones(3)),
        dist.Bernoulli(torch.full((3,), 0.5)).to_event(1),
    ),
}


@pytest.mark.parametrize("message", KINDS)
@pytest.mark.parametrize("name", ["t", "another"])
def test_kinds_of_p_and_q_must_be_the_same(message, name):
    q, p = KINDS[message]

    def programs(of):
        def program(x, observed=of is p):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample(name, of)
                if observed:
                    pyro.sample("x", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1), obs=x)

        return program

    with pytest.raises(ValueError, match=message.replace("'t'", f"'{name}'")), library_path():
        particles(programs(p), programs(q), DATA)


def test_the_same_kinds_in_other_words():
    """A flow on the real numbers, a gamma and a log-normal distribution, and a mixture."""
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.affine_coupling(2)]
    )
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 2), 1.0).to_event(1))
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    for q, p in (
        (flow, normal),
        (normal, mixture),
        (dist.Gamma(1.0, 1.0), dist.LogNormal(0.0, 1.0)),
        (dist.Geometric(0.5), dist.Poisson(1.0)),
    ):

        def model(x, p=p):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("t", p)
                pyro.sample("x", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1), obs=x)

        def guide(x, q=q):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("t", q)

        with library_path():
            assert particles(model, guide, DATA).log_w.shape == (1, 5)
