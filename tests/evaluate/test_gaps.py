"""The approximation, amortization and generalization gap against closed forms, and notices where they are not to be trusted."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import BITS, KINDS_OF_MODEL, N_SE, vae_of, with_gaps
from oracles import LinearGaussian
from scipy import stats

import pyro_vae.evaluate as ev
from pyro_vae import VAE
from pyro_vae.data import Split
from pyro_vae.evaluate.families import NoFamilyError
from pyro_vae.evaluate.inference_gaps import _Search
from pyro_vae.guides import (
    DiagonalNormal,
    FullRankNormal,
)

RESIDUE = 2e-3
"""What a refinement may leave, in nats. Its draws have errors beside it."""
ENOUGH = {"copies": 20, "steps": 60, "rounds": 6}
FEW = {"copies": 10, "steps": 15, "rounds": 2, "draws": 200, "K": 200}
BAD = ["random", "prior", "narrow", "wide", "shifted", "correlations dropped"]


def oracle_of(how: str, d: int, n: int) -> LinearGaussian:
    """An oracle whose posterior is correlated, with this guide."""
    oracle = LinearGaussian.random(d, n)
    oracle.correlate()
    if how != "random":
        oracle.spoil(how)
    return oracle


def near(found: torch.Tensor, exact: torch.Tensor, error: torch.Tensor) -> bool:
    return bool(((found - exact.detach()).abs() <= N_SE * error + RESIDUE).all())


@pytest.mark.parametrize(("d", "n"), [(1, 2), (3, 6)])
@pytest.mark.parametrize("how", BAD)
def test_each_gap_is_its_closed_form(how, d, n):
    oracle = oracle_of(how, d, n)
    x = oracle.data(5)
    found = ev.gaps(oracle.vae, x, **ENOUGH)
    log_px, gap = oracle.log_px(x), oracle.approximation_gap()
    assert near(found.log_px, log_px, found.log_px_error)
    assert near(found.approximation, gap.expand(5), found.approximation_error)
    assert near(found.amortization, log_px - oracle.elbo(x) - gap, found.amortization_error)
    assert near(found.bound, oracle.elbo(x), found.bound_error)
    assert near(found.best, log_px - gap, found.best_error)
    assert found.best_error.max() < 0.1  # the test can see something
    assert found.converged.all()
    assert not any("converged" in each for each in found.notices())


@pytest.mark.parametrize(("d", "n"), [(1, 2), (3, 6)])
def test_gaps_are_zero_where_q_is_the_posterior(d, n):
    oracle = LinearGaussian.random(d, n)
    oracle.set_guide_to_posterior()
    found = ev.gaps(oracle.vae, oracle.data(4), **FEW)
    for each in (found.approximation, found.amortization, found.bound - found.log_px):
        assert each.abs().max() < 1e-4
    assert found.notices() == []


def test_a_full_rank_family_has_no_gap_and_a_diagonal_one_has_that_of_the_closed_form():
    oracle = oracle_of("shifted", 3, 6)
    x, gap = oracle.data(4), oracle.approximation_gap()
    full = ev.gaps(oracle.vae, x, family="full_rank", **ENOUGH)
    assert full.approximation.abs().max() < RESIDUE
    assert near(full.amortization, oracle.log_px(x) - oracle.elbo(x), full.amortization_error)
    diagonal = ev.gaps(oracle.vae, x, family="diagonal", **ENOUGH)
    assert near(diagonal.approximation, gap.expand(4), diagonal.approximation_error)


def test_the_own_family_of_a_full_rank_guide_has_no_gap():
    oracle = oracle_of("random", 2, 5)
    vae = VAE(oracle.vae.prior, FullRankNormal(oracle.vae.likelihood.dims).double(), oracle.vae.likelihood)
    x = oracle.data(4)
    found = ev.gaps(vae, x, **ENOUGH)
    assert found.approximation.abs().max() < RESIDUE
    assert near(found.log_px, oracle.log_px(x), found.log_px_error)
    diagonal = ev.gaps(vae, x, family="diagonal", **ENOUGH)
    assert near(
        diagonal.approximation[diagonal.replaced],
        oracle.approximation_gap(),
        diagonal.approximation_error[diagonal.replaced],
    )


def test_a_worse_member_never_replaces_the_amortized_q(monkeypatch):
    oracle = oracle_of("random", 2, 5)

    def stumble(self, found, batch):
        with torch.no_grad():
            for leaf in found.leaves:
                leaf.add_(20.0)

    monkeypatch.setattr(_Search, "_climb", stumble)
    for family in ("own", "diagonal", "full_rank"):
        found = ev.gaps(oracle.vae, oracle.data(4), family=family, **FEW)
        assert not found.replaced.any()
        assert (found.amortization == 0).all()


def test_what_was_gained_before_is_kept(monkeypatch):
    """The second round leads far away."""
    oracle, climb, rounds = oracle_of("shifted", 2, 5), _Search._climb, []

    def stumble(self, found, batch):
        rounds.append(len(rounds))
        climb(self, found, batch)
        if len(rounds) == 2:
            with torch.no_grad():
                for leaf in found.leaves:
                    leaf.add_(20.0)

    monkeypatch.setattr(_Search, "_climb", stumble)
    x = oracle.data(3)
    found = ev.gaps(oracle.vae, x, **ENOUGH)
    assert len(rounds) == 2
    assert found.replaced.all()
    exact = oracle.log_px(x) - oracle.elbo(x) - oracle.approximation_gap()
    assert near(found.amortization, exact, found.amortization_error)


def test_it_is_told_where_a_refinement_has_not_converged():
    oracle = oracle_of("random", 4, 8)
    found = ev.gaps(oracle.vae, oracle.data(4), copies=10, steps=5, rounds=2)
    assert not found.converged.all()
    assert "has not converged" in found.notices()[0]


def test_few_effective_weights_are_told():
    """Where the posterior is far from diagonal, the variance of a diagonal q's weights is infinite."""
    oracle = LinearGaussian.random(4, 8)
    oracle.correlate(by=0.6)
    found = ev.gaps(oracle.vae, oracle.data(4), copies=10, steps=60, rounds=2)
    assert (found.effective < 0.1).any()
    assert any("of the weights that log p(x) is computed from are effective" in each for each in found.notices())


def test_a_given_log_px_is_taken_with_its_error():
    oracle = oracle_of("random", 2, 5)
    x = oracle.data(4)
    log_px = oracle.log_px(x).detach()
    found = ev.gaps(oracle.vae, x, log_px=log_px, log_px_error=torch.full((4,), 0.5), **FEW)
    assert torch.equal(found.log_px, log_px)
    assert (found.approximation_error >= 0.5).all()
    without = ev.gaps(oracle.vae, x, log_px=log_px, **FEW)
    assert without.approximation_error.isnan().all()
    assert not [each for each in without.notices() + found.notices() if "log p(x)" in each]
    low = ev.gaps(oracle.vae, x, log_px=log_px - 9, log_px_error=torch.full((4,), 0.01), **FEW)
    assert any("below a lower bound" in each for each in low.notices())


def test_means_and_the_part_of_their_errors_that_is_from_draws():
    oracle = oracle_of("wide", 2, 5)
    x = oracle.data(30)
    found = ev.gaps(oracle.vae, x, **FEW)
    summary, noise = found.summary(), found.monte_carlo()
    assert summary["whole"].mean == pytest.approx(summary["approximation"].mean + summary["amortization"].mean)
    assert summary["log_px"] == ev.mean(found.log_px)
    assert noise["amortization"] == pytest.approx(found.amortization_error.square().mean().sqrt().item() / 30**0.5)
    assert noise["bound"] < summary["bound"].error


def test_the_generalization_gap_is_that_of_welchs_test():
    oracle = oracle_of("random", 2, 5)
    train, test = (ev.gaps(oracle.vae, oracle.data(n, seed), **FEW) for n, seed in ((12, 1), (7, 2)))
    found = ev.generalization_gap(train, test)
    one, other = train.amortization.numpy(), test.amortization.numpy()
    expected = stats.ttest_ind(one, other, equal_var=False)
    assert found["amortization"].mean == pytest.approx(one.mean() - other.mean())
    assert found["amortization"].mean / found["amortization"].error == pytest.approx(expected.statistic)
    assert found["amortization"].n - 1 == int(expected.df)
    assert set(found) == set(train.summary())


class Chosen(torch.nn.Module):
    """One of three means, a program of a user's own with a discrete latent, and the exact log p(x) and q."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(2, 3).double()
        self.means = torch.nn.Parameter(torch.tensor([[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]).double())

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.3, 0.2]).double()))
            pyro.sample("x", dist.Normal(self.means[z], 0.8).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=self.encoder(x)))

    def exact(self, x):
        joint = dist.Normal(self.means, 0.8).to_event(1).log_prob(x[:, None]) + torch.tensor([0.5, 0.3, 0.2]).log()
        q = self.encoder(x).log_softmax(-1)
        return joint.logsumexp(-1).detach(), (q.exp() * (joint - q)).sum(-1).detach()


def test_a_discrete_latent_is_refined_by_the_score_function():
    """A categorical q can be the posterior: the whole gap is one of amortization."""
    torch.manual_seed(0)
    programs, x = Chosen(), torch.randn(6, 2, dtype=torch.float64)
    log_px, elbo = programs.exact(x)
    found = ev.gaps(programs, x, **ENOUGH)
    assert near(found.log_px, log_px, found.log_px_error)
    assert near(found.bound, elbo, found.bound_error)
    assert near(found.approximation, torch.zeros(6), found.approximation_error)
    assert near(found.amortization, log_px - elbo, found.amortization_error)
    with pytest.raises(NoFamilyError, match=r"'z' is .*: choose family='own'"):
        ev.gaps(programs, x, family="diagonal")


def test_programs_without_modules_and_frozen_ones():
    """Plain functions with pyro.param, and a user's own Gamma latent, whose parameters do not require a gradient."""

    class Functions:
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
                pyro.sample("x", dist.Poisson(rate), obs=x)

        def guide(self, x):
            a = pyro.param("a", torch.tensor(1.0))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("rate", dist.Gamma((a * x + 3.0), torch.full_like(x, 2.0) * a))

    x = torch.tensor([0.0, 2.0, 5.0])
    found = ev.gaps(Functions(), x, **ENOUGH)
    exact = torch.tensor(stats.nbinom.logpmf(x.numpy(), 2, 0.5))  # the posterior is a Gamma too
    assert near(found.log_px, exact, found.log_px_error)
    assert near(found.approximation, torch.zeros(3), found.approximation_error)
    assert (found.amortization > 0.05).all()

    vae = vae_of(DiagonalNormal)
    free = ev.gaps(vae, BITS[:3], **FEW)
    frozen = ev.gaps(vae.requires_grad_(False), BITS[:3], **FEW)
    assert torch.equal(free.best, frozen.best)
    assert not any(parameter.requires_grad for parameter in vae.parameters())


MODELS = KINDS_OF_MODEL


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_has_gaps(name):
    model, x = MODELS[name](), with_gaps(BITS[:6]) if name == "missing" else BITS[:6]
    data = Split(x, torch.arange(6) % 3) if name == "labels" else x
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = FEW | ({"copies": 5, "steps": 5} if name == "refined" else {})
    for family in ("own", "diagonal", "full_rank") if name in ("two layers", "labels") else ("own",):
        found = ev.gaps(model, data, family=family, **options)
        assert found.log_px.isfinite().all()
        assert (found.amortization >= -N_SE * found.amortization_error).all()
        assert found.replaced.any()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_dynamic_pixels_are_drawn_once_and_have_no_given_log_px():
    vae, data = vae_of(DiagonalNormal), Split(torch.rand(5, 1, 4, 4), dynamic=True)
    one, other = (ev.gaps(vae, data, **FEW) for _ in range(2))
    assert torch.equal(one.best, other.best)
    with pytest.raises(ValueError, match="log_px: the pixels of these data are drawn anew"):
        ev.gaps(vae, data, log_px=torch.zeros(5))


def test_refusals():
    vae, x = vae_of(DiagonalNormal), BITS[:3]
    for options, message in (
        ({"draws": 1}, "draws: expected at least 2"),
        ({"rounds": 1}, "rounds, batch_size and rate"),
        ({"log_px": torch.zeros(4)}, "log_px: expected one number for each of 3 data"),
        ({"log_px_error": torch.zeros(3)}, "log_px_error: it is the error of log_px"),
        ({"family": "best"}, "family: expected one of 'own'"),
    ):
        with pytest.raises(ValueError, match=message):
            ev.gaps(vae, x, **options)
    with pytest.raises(ValueError, match="build the model for such data"):
        ev.gaps(vae, with_gaps(x), **FEW)

    class Opaque(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Linear(16, 2)

        model = vae.model

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x), dim=-1):
                at = self.encoder(x.flatten(1))
                pyro.sample(
                    "t",
                    dist.MixtureSameFamily(dist.Categorical(torch.ones(1)), dist.Normal(at[:, None], 1.0).to_event(1)),
                )

    with pytest.raises(
        NoFamilyError, match=r"'t', MixtureSameFamily has no plain parameters .*choose family='diagonal'"
    ):
        ev.gaps(Opaque(), x, **FEW)
    assert ev.gaps(Opaque(), x, family="diagonal", **FEW).replaced.any()
