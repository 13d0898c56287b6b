"""Models: each puts a prior, a guide, a likelihood and networks together as a Pyro model and a Pyro guide.

================ =============================== ============================== ===================================
model            p                               q                              latent sites
================ =============================== ============================== ===================================
`VAE`            p(t) p(x|t)                     q(t|x)                         ``t``
`TwoLayer`       p(t2) p(t|t2) p(x|t)            q(t|x) q(t2|t)                 ``t`` next to the data, ``t2`` above
`Ladder`         p(t2) p(t|t2) p(x|t)            q(t2|x) q(t|t2,x)              ``t`` next to the data, ``t2`` above
`SigmoidBelief`  p(t_L) ∏ p(t_l|t_(l+1)) p(x|t)  q(t|x) ∏ q(t_(l+1)|t_l)        ``t``, and ``t2``, ``t3``, ... above
`Conditional`    p(t) p(x|t,y)                   q(t|x,y)                       ``t``
`MixtureVAE`     Σ_y p(y) p(t|y) p(x|t)          q(t|x)                         ``t``
`SemiSupervised` p(y) p(t) p(x|t,y)              q(y|x) q(t|x,y)                ``y``, known for some data, and ``t``
================ =============================== ============================== ===================================

`discretized` is the VAE of discrete latents that a VAE of relaxed ones defines.

`ModelSpec` names one of these models and its parts before the sizes are known.
"""

from pyro_vae.models.base import Model, ThreePartModel
from pyro_vae.models.belief import SigmoidBelief, affine_bits
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.discretized import discretized
from pyro_vae.models.mixture import MixtureVAE
from pyro_vae.models.semi_supervised import SemiSupervised
from pyro_vae.models.specification import ModelSpec
from pyro_vae.models.two_layers import Ladder, TwoLayer
from pyro_vae.models.vae import VAE

__all__ = [
    "VAE",
    "Conditional",
    "Ladder",
    "MixtureVAE",
    "Model",
    "ModelSpec",
    "SemiSupervised",
    "SigmoidBelief",
    "ThreePartModel",
    "TwoLayer",
    "affine_bits",
    "discretized",
]
