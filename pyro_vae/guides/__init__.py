"""Guides q(t|x,φ). Each is a `Guide`: ``guide(x)`` has the batch shape of x and event shape ``(d,)``.

======================== ============================================== =====================================================
guide                    t                                              domain
======================== ============================================== =====================================================
`DiagonalNormal`         s ⊙ ε + m                                      any
`FullRankNormal`         L ε + m                                        any
`LowRankNormal`          W η + s ⊙ ε + m                                any
`MixtureOfNormals`       one of C Gaussians                             any
`Householder`            H_n ⋯ H_1 (s ⊙ ε) + m                          any
`Sylvester`              (I + Q R tanh(R̃ Qᵀ · + b)) ∘ ⋯ (s ⊙ ε + m)    any; values other than its draws need bisection
`InverseAutoregressive`  s ⊙ f(ε; h) + m, affine in each ε_j            any; values other than its draws need d passes
`SplineAutoregressive`   s ⊙ f(ε; h) + m, a spline in each ε_j          the same
`NeuralAutoregressive`   s ⊙ f(ε; h) + m, a monotonic network in ε_j    the same, and each pass is a bisection
`SemiAmortized`          a + b ⊙ t₀, a and b fitted to each datum       guides with ``rsample``; priors not made of the guide
`PerDatum`               s_i ⊙ ε + m_i, learned for each training datum data that are not binarized again at each use
`Bernoulli`              numbers 0 and 1                                priors of bits; estimators that need no ``rsample``
`OneHotCategorical`      one-hot vectors, one after another             the prior of the same name; the same estimators
`RelaxedBernoulli`       logits of relaxed bits                         priors of real numbers, such as `RelaxedBernoulli`
`Concrete`               logarithms of relaxed one-hot vectors          the prior of the same name
======================== ============================================== =====================================================

All but `Bernoulli` and `OneHotCategorical` have ``rsample``: t is a function of φ and of noise, and gradients pass through t.
"""

from pyro_vae.guides.discrete import Bernoulli, Concrete, OneHotCategorical, RelaxedBernoulli
from pyro_vae.guides.flows import (
    Householder,
    InverseAutoregressive,
    NeuralAutoregressive,
    SplineAutoregressive,
    Sylvester,
)
from pyro_vae.guides.mixtures import MixtureOfNormals
from pyro_vae.guides.normal import DiagonalNormal, FullRankNormal, LowRankNormal
from pyro_vae.guides.refined import PerDatum, SemiAmortized

__all__ = [
    "Bernoulli",
    "Concrete",
    "DiagonalNormal",
    "FullRankNormal",
    "Householder",
    "InverseAutoregressive",
    "LowRankNormal",
    "MixtureOfNormals",
    "NeuralAutoregressive",
    "OneHotCategorical",
    "PerDatum",
    "RelaxedBernoulli",
    "SemiAmortized",
    "SplineAutoregressive",
    "Sylvester",
]
