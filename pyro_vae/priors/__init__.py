"""Priors p(t). Each is a `Prior`: ``prior()`` has batch shape ``()`` and event shape ``(d,)``.

========================== =================================================== =================================================
prior                      p(t)                                                domain
========================== =================================================== =================================================
`StandardNormal`           N(0, I)                                             any
`Normal`                   N(a, diag b²), learned                              any
`Laplace`                  independent Laplace distributions                   any
`StudentT`                 independent Student's t-distributions               any
`MixtureOfNormals`         Σ_c π_c N(a_c, diag b_c²), learned                  any
`VampPrior`                1/K Σ_k q(t|u_k,φ), pseudo-inputs u_k learned       any guide of the same VAE but `SemiAmortized`
`ExemplarPrior`            1/M Σ_j N(m(x_j), σ² I) around training data x_j    guides with a mean in closed form
`MaskedAutoregressiveFlow` a flow, scored in one pass and drawn in d passes    any
`CouplingFlow`             a flow, scored and drawn in one or two passes       any
`SplineFlow`               as `MaskedAutoregressiveFlow`, but with splines     any
========================== =================================================== =================================================

All have an exact density, because a bound needs log p(t) at the guide's draws.
"""

from pyro_vae.priors.flows import CouplingFlow, MaskedAutoregressiveFlow, SplineFlow
from pyro_vae.priors.mixtures import ExemplarPrior, MixtureOfNormals, VampPrior
from pyro_vae.priors.simple import Laplace, Normal, StandardNormal, StudentT

__all__ = [
    "CouplingFlow",
    "ExemplarPrior",
    "Laplace",
    "MaskedAutoregressiveFlow",
    "MixtureOfNormals",
    "Normal",
    "SplineFlow",
    "StandardNormal",
    "StudentT",
    "VampPrior",
]
