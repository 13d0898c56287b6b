"""Networks: the deterministic maps inside guides and likelihoods. Each takes any leading dimensions."""

from pyro_vae.networks.dense import MLP, NetworkFactory, count_parameters

__all__ = ["MLP", "NetworkFactory", "count_parameters"]
