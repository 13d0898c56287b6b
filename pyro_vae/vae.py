"""The VAE: three parts as a Pyro model and a Pyro guide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import Any, final
from weakref import WeakKeyDictionary

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.base import Dims, Guide, Likelihood, Parts, Prior
from pyro_vae.programs import seeded

# Pyro's parameter store is global and keyed by name; a second module under a used name silently never trains. The name
# belongs to the object and not to its attributes, so that a deep copy gets a name of its own.
_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_numbers = count()


class Model(nn.Module, ABC):
    """A Pyro model and a Pyro guide of three parts, and of what a subclass puts between them.

    `model` and `guide` are ordinary Pyro programs: stock `pyro.infer.SVI`, `Predictive` and `pyro.poutine` take them as they
    are. Their sites stand in the plate ``"data"`` at dimension -1; ``"t"`` is the latent next to the data, ``"x"`` is observed.

    Args:
        dims: the sizes of the model: those of t next to the data, and of x.
        prior: p of the topmost latent.
        guide: q(t|x,φ); kept as `posterior`, since `guide` is the Pyro program.
        likelihood: p(x|t,w).

    Raises:
        TypeError: an argument is not the part that its place takes.
    """

    def __init__(self, dims: Dims, prior: Prior, guide: Guide, likelihood: Likelihood) -> None:
        super().__init__()
        self.dims = dims
        for name, part, base in (
            ("prior", prior, Prior),
            ("guide", guide, Guide),
            ("likelihood", likelihood, Likelihood),
        ):
            if not isinstance(part, base):
                raise TypeError(f"{name}: expected a {base.__name__}, got {part!r}")
        self.prior, self.posterior, self.likelihood = prior, guide, likelihood

    @abstractmethod
    def model(self, x: Tensor | None = None) -> Tensor:
        """The Pyro model of data ``(B, *x_shape)``, or of data that it draws."""

    @abstractmethod
    def guide(self, x: Tensor) -> Any:
        """The Pyro guide."""

    @final
    def register(self, role: str, part: nn.Module) -> None:
        """Shows a part's parameters to Pyro: to be called by the model for those of w, by the guide for those of φ."""
        if self not in _names:
            _names[self] = f"vae{next(_numbers)}"
        pyro.module(f"{_names[self]}.{role}", part)


@final
class VAE(Model):
    """p(x|w) = ∫ p(x|t,w) p(t) dt with the amortized posterior q(t|x,φ) (Kingma and Welling 2014, equations 1-3).

    The sites of its programs are ``"t"`` and ``"x"``.

    Args:
        prior: p(t).
        guide: q(t|x,φ); kept as `posterior`, since `guide` is the Pyro program.
        likelihood: p(x|t,w).

    Raises:
        ValueError: the parts were built for different sizes, or the prior has no density.
        TypeError: an argument is not the part that its place takes.
    """

    def __init__(self, prior: Prior, guide: Guide, likelihood: Likelihood) -> None:
        super().__init__(likelihood.dims, prior, guide, likelihood)
        if guide.dims.x_shape != likelihood.dims.x_shape:
            raise ValueError(f"guide takes x of shape {guide.dims.x_shape}, likelihood gives {likelihood.dims.x_shape}")
        latents = {"prior": prior.dims.latent, "guide": guide.dims.latent, "likelihood": likelihood.dims.latent}
        if len(set(latents.values())) > 1:
            raise ValueError(f"parts of different latent sizes: {latents}")
        parts = Parts(prior, guide, likelihood)
        for one in parts:
            one.join(parts)
        check_prior(prior)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(t) p(x|t,w): t ~ p(t), x ~ p(x|t,w).

        Args:
            x: observed data ``(B, *x_shape)``; None draws x.
            n: how many data are drawn where x is None.

        Returns:
            x, of shape ``(B, *x_shape)``, or ``(K, B, *x_shape)`` inside a plate of particles.
        """
        self.register("prior", self.prior)
        self.register("likelihood", self.likelihood)
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            t = pyro.sample("t", self.prior())
            sample: Tensor = pyro.sample("x", self.likelihood(t), obs=x)
        return sample

    def guide(self, x: Tensor) -> Tensor:
        """q(t|x,φ): one t for each datum, and K of them inside a plate of particles, with one pass of the encoder.

        Args:
            x: data ``(B, *x_shape)``.

        Returns:
            t, of shape ``(B, d)`` or ``(K, B, d)``.
        """
        self.register("guide", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            sample: Tensor = pyro.sample("t", self.posterior(x))
        return sample


def check_prior(prior: Prior) -> None:
    """Raises ValueError if p(t) cannot be had at a t that the prior did not draw itself: every bound needs it there."""
    with torch.no_grad(), seeded(torch.device("cpu"), "check"), pyro.validation_enabled(False):
        try:
            distribution = prior()
            distribution.log_prob(distribution.sample().clone())
        except (
            NotImplementedError,
            KeyError,
        ) as error:  # what PyTorch's and Pyro's transforms without an inverse raise
            raise ValueError(
                f"prior: {type(prior).__name__} cannot score the guide's draws: choose one with an exact density, such as a "
                f"flow with an inverse"
            ) from error
