"""Networks: the deterministic maps inside guides and likelihoods. Each takes any leading dimensions.

=============== ====================================================== ======================================
network         layers                                                 maps
=============== ====================================================== ======================================
`MLP`           affine, with a nonlinearity between                    any shape to any
`GatedMLP`      affine ⊙ sigmoid(affine)                               any shape to any
`Convolutional` strided convolutions, with residual blocks if wanted   an image to any shape, or back
`Backbone`      a classifier of torchvision                            an image to any shape
=============== ====================================================== ======================================
"""

from pyro_vae.networks.convolutional import Backbone, Convolutional
from pyro_vae.networks.dense import MLP, GatedMLP, NetworkFactory, count_parameters

__all__ = ["MLP", "Backbone", "Convolutional", "GatedMLP", "NetworkFactory", "count_parameters"]
