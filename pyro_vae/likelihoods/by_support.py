"""The likelihood that is used if none was chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.likelihoods.binary import Bernoulli
from pyro_vae.likelihoods.counts import Binomial
from pyro_vae.likelihoods.real import Normal
from pyro_vae.parts import Dims, Likelihood


def default_likelihood(support: Constraint) -> Callable[[Dims], Likelihood]:
    """Returns a likelihood for a support: Bernoulli for {0, 1}, Binomial for counts, else Normal with learned σ."""
    if support is constraints.boolean:
        return Bernoulli
    if isinstance(support, constraints.integer_interval):
        return partial(Binomial, total_count=int(support.upper_bound))
    return partial(Normal, learn_scale=True)
