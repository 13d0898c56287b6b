"""Networks: the deterministic maps inside guides and likelihoods. Each accepts any leading dimensions.

=============== ====================================================== =========================================
network         layers                                                 maps
=============== ====================================================== =========================================
`MLP`           affine layers, with a nonlinearity between them        any shape to any shape
`GatedMLP`      affine ⊙ sigmoid(affine)                               any shape to any shape
`Convolutional` strided convolutions, with residual blocks if wanted   a signal, an image or a volume to any
                                                                       shape, or the reverse
`Backbone`      a classifier of torchvision                            an image to any shape
=============== ====================================================== =========================================
"""

from pyro_vae.networks.convolutional import Backbone, Convolutional
from pyro_vae.networks.dense import MLP, GatedMLP, NetworkFactory, count_parameters

__all__ = ["MLP", "Backbone", "Convolutional", "GatedMLP", "NetworkFactory", "count_parameters"]
