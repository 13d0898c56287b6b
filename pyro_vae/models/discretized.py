"""The model of discrete latents that the parameters of a model of relaxed ones define."""

from __future__ import annotations

from copy import copy
from typing import Any

from pyro_vae.kinds import takes
from pyro_vae.models.vae import VAE
from pyro_vae.parts import Guide, Prior
from pyro_vae.relaxed import Relaxed


@takes
def discretized(vae: VAE) -> VAE:
    """Returns the VAE of discrete latents with the logits and the likelihood of one of relaxed latents.

    A relaxed model is another model than the discrete one: its bound is on another log p(x). What it is worth as a
    discrete model is the bound of this one (Maddison, Mnih and Teh 2017, section 4), which
    `pyro_vae.reports.DiscreteModel` tells.

    Args:
        vae: a VAE whose prior and guide are relaxed ones of the same kind, `RelaxedBernoulli` or `Concrete`.

    Returns:
        A VAE with the same modules: what trains or moves the one does so with the other.

    Raises:
        ValueError: the prior or the guide is not relaxed.
    """
    prior, guide = _discrete("prior", vae.prior), _discrete("guide", vae.posterior)
    return VAE(prior, guide, copy(vae.likelihood))  # a copy, since a part knows those of one VAE


def _discrete(name: str, part: Prior | Guide) -> Any:
    if not isinstance(part, Relaxed):
        raise ValueError(
            f"{name}: expected a relaxed one, RelaxedBernoulli or Concrete, of which the discrete one is known; got "
            f"{type(part).__name__}"
        )
    return part.discrete()
