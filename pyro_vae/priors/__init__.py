"""Priors p(t). Each is a `Prior`: ``prior()`` has batch shape ``()`` and event shape ``(d,)``.

========================== =================================================== =================================================
prior                      p(t)                                                domain
========================== =================================================== =================================================
`StandardNormal`           N(0, I)                                             any guide of real numbers
`Normal`                   N(a, diag b²), learned                              the same
`Laplace`                  independent Laplace distributions                   the same
`StudentT`                 independent Student's t-distributions               the same
`MixtureOfNormals`         Σ_c π_c N(a_c, diag b_c²), learned                  the same
`VampPrior`                1/K Σ_k q(t|u_k,φ), pseudo-inputs u_k learned       any guide of the same VAE but `SemiAmortized`
`ExemplarPrior`            1/M Σ_j N(m(x_j), σ² I) around training data x_j    guides with a mean in closed form
`MaskedAutoregressiveFlow` a flow, scored in one pass and drawn in d passes    the same
`CouplingFlow`             a flow, scored and drawn in one or two passes       the same
`SplineFlow`               as `MaskedAutoregressiveFlow`, but with splines     the same
`Bernoulli`                independent numbers 0 and 1                         guides of bits
`OneHotCategorical`        independent one-hot vectors                         the guide of the same name
`AutoregressiveBernoulli`  numbers 0 and 1, each given those before it         guides of bits
`RelaxedBernoulli`         logits of relaxed bits                              guides of real numbers
`Concrete`                 logarithms of relaxed one-hot vectors               the guide of the same name
========================== =================================================== =================================================

All have an exact density, or mass, because a bound needs log p(t) at the guide's draws.
"""

from pyro_vae.priors.discrete import AutoregressiveBernoulli, Bernoulli, OneHotCategorical
from pyro_vae.priors.flows import CouplingFlow, MaskedAutoregressiveFlow, SplineFlow
from pyro_vae.priors.mixtures import ExemplarPrior, MixtureOfNormals, VampPrior
from pyro_vae.priors.relaxed import Concrete, RelaxedBernoulli
from pyro_vae.priors.simple import Laplace, Normal, StandardNormal, StudentT

__all__ = [
    "AutoregressiveBernoulli",
    "Bernoulli",
    "Concrete",
    "CouplingFlow",
    "ExemplarPrior",
    "Laplace",
    "MaskedAutoregressiveFlow",
    "MixtureOfNormals",
    "Normal",
    "OneHotCategorical",
    "RelaxedBernoulli",
    "SplineFlow",
    "StandardNormal",
    "StudentT",
    "VampPrior",
]
