"""Estimators: each computes a bound on log p(x), in nats per datum, and a gradient of its own.

=================== ================================== ============================== ================================
estimator           bound                              gradient by φ                  domain
=================== ================================== ============================== ================================
`ELBO`              E_q log w                          path and score                 guides with ``rsample``
`AnalyticKL`        E_q log p(x|t) - KL(q‖p)           path; KL in closed form        ``rsample``, and a known KL
`ScoreFunction`     E_q log w                          score, with a control variate  any guide
`STL`               E_q log w                          path alone                     ``rsample``
`IWAE`              E log mean w                       path and score (or path alone) ``rsample``
`DReG`              E log mean w                       path, twice reparameterized    ``rsample``
`VIMCO`             E log mean w                       score, leave-one-out           any guide, K ≥ 2
`Renyi`             E log mean w^(1-α) / (1-α)         path and score                 ``rsample``, α ≠ 1
`MIWAE`             mean of M IWAE bounds              path and score                 ``rsample``
`PIWAE`             IWAE for w, MIWAE for φ            path and score                 ``rsample``
`CIWAE`             β ELBO + (1-β) IWAE                path and score                 ``rsample``
`RWS`               IWAE for w, wake-phase for φ       score, or DReG's form          any guide (``rsample`` for DReG)
`TVO`               left Riemann sum over β            score (covariances)            any guide, K ≥ 2
`NVIL`              E_q log w                          score, with a learned baseline any guide
`DisARM`            E_q log w, or E log mean w         antithetic pairs               Bernoulli sites given x
`ARMS`              E_q log w, or E log mean w         K antithetic draws             Bernoulli sites given x
`DoubleCV`          E_q log w                          leave-one-out, and linear      Bernoulli sites given x, K ≥ 2
`REBAR`             E_q log w                          score, and relaxed             Bernoulli sites given x
`RELAX`             E_q log w                          the same, and a network        Bernoulli sites given x
`StraightThrough`   E_q log p(x|t) - KL(q‖p)           that of the mean (biased)      discrete sites
`GumbelSoftmax`     E_q log p(x|t) - KL(q‖p)           relaxed draws (biased)         discrete sites
`ReinMax`           E_q log p(x|t) - KL(q‖p)           second order (biased)          discrete sites
`Enumerate`         another one's, E_q(z) log w         also through q(z), exactly     discrete sites z of few values
`Exact`             E log mean w, as a sum         exactly                        discrete sites alone, few values
`Stock`             that of a class of ``pyro.infer``  that class's                   that class's
=================== ================================== ============================== ================================

The word "path" means that φ acts through the draws t, and "score" that φ acts through log q(t|x,φ) at fixed t.

A parameter that p and q share (the guide's under `VampPrior` or `ExemplarPrior`, p(t|t2) in `Ladder`) is one of w in its
place in p(x,t), and one of φ in its place in q: every estimator's gradient by it is the sum of the two, as if p and q had
copies of it. For estimators that climb one bound with both, this is the gradient of that bound. For `PIWAE` and `RWS`,
whose w and φ climb different objectives, it is the gradient of neither.
"""

from pyro_vae.estimators.base import Estimate, Estimator
from pyro_vae.estimators.discrete.antithetic import ARMS, DisARM
from pyro_vae.estimators.discrete.baselines import NVIL, DoubleCV
from pyro_vae.estimators.discrete.relaxed import REBAR, RELAX
from pyro_vae.estimators.discrete.through import GumbelSoftmax, ReinMax, StraightThrough
from pyro_vae.estimators.enumerated import Enumerate, Exact, number_of_sets
from pyro_vae.estimators.evidence import ELBO, STL, AnalyticKL, ScoreFunction
from pyro_vae.estimators.importance import CIWAE, IWAE, MIWAE, PIWAE, RWS, TVO, VIMCO, DReG, Renyi
from pyro_vae.estimators.objective import Objective
from pyro_vae.estimators.stock import Stock

__all__ = [
    "ARMS",
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "NVIL",
    "PIWAE",
    "REBAR",
    "RELAX",
    "RWS",
    "STL",
    "TVO",
    "VIMCO",
    "AnalyticKL",
    "DReG",
    "DisARM",
    "DoubleCV",
    "Enumerate",
    "Estimate",
    "Estimator",
    "Exact",
    "GumbelSoftmax",
    "Objective",
    "ReinMax",
    "Renyi",
    "ScoreFunction",
    "Stock",
    "StraightThrough",
    "number_of_sets",
]
