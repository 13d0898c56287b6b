"""Likelihoods p(x|t,w). Each is a `Likelihood`.

``likelihood(t)`` has batch shape ``t.shape[:-1]`` and event shape ``x_shape``.

====================== ============================================== ===================================
likelihood             distribution of each pixel                     data
====================== ============================================== ===================================
`Bernoulli`            Bernoulli(p)                                   binary
`ContinuousBernoulli`  density on [0, 1], with normalizing constant   gray in [0, 1]
`Beta`                 Beta(m ν, (1 - m) ν)                           gray in (0, 1), without the ends
`Normal`               N(m, σ²), σ fixed, learned or optimal          any numbers
`Binomial`             Binomial(n, p)                                 counts 0..n
`Poisson`              Poisson(exp a)                                 counts
`NegativeBinomial`     mean μ, variance μ + μ²/r                      counts
`Categorical`          a probability for each level                   levels 0..L-1
`DiscretizedLogistic`  a logistic distribution or mixture, in bins    levels 0..L-1
====================== ============================================== ===================================

Each gives log p(x|t,w) in nats, with the full normalizing constant. The decoder's output starts at the training mean,
because the link of ``dims.x_mean`` is added to the output of the network. This is the initial output bias of Burda et
al. 2016 (section 5), here for any network, with or without a bias for each pixel.
"""

from pyro_vae.likelihoods.binary import Bernoulli, ContinuousBernoulli
from pyro_vae.likelihoods.by_support import default_likelihood
from pyro_vae.likelihoods.counts import Binomial, NegativeBinomial, Poisson
from pyro_vae.likelihoods.levels import Categorical, DiscretizedLogistic
from pyro_vae.likelihoods.real import Beta, Normal

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "default_likelihood",
]
