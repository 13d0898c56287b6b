"""What every model of this project is: a Pyro model and a Pyro guide in one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import Any, ClassVar, final
from weakref import WeakKeyDictionary

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.description import Described
from pyro_vae.parts import Dims, Guide, Likelihood, Prior
from pyro_vae.scopes import seeded

# Pyro's parameter store is global and keyed by name; a second module under a used name silently never trains. The name
# belongs to the object and not to its attributes, so that a deep copy gets a name of its own.
_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_numbers = count()


class Model(Described, nn.Module, ABC):
    """A Pyro model and a Pyro guide, which hold their parameters in one module.

    `model` and `guide` are ordinary Pyro programs: stock `pyro.infer.SVI`, `Predictive` and `pyro.poutine` take them as they
    are. Their sites stand in the plate ``"data"`` at dimension -1. The names of the latent sites are free, and there may be
    several of them.

    A model of your own is told ``(dims, prior, guide, likelihood)``, of which the last three make parts from sizes, and then its
    own options: then it can be named on the command line, ``--model my_models.Mine``.

    Args:
        dims: the sizes of the model: those of the latent next to the data, and of x.

    Attributes:
        dims: the sizes without the training data.
        inputs: names of what both programs are called with: ``("x",)``, or ``("x", "y")`` for data and their labels.
    """

    inputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims.without_data()

    @abstractmethod
    def model(self, x: Tensor | None = None) -> Tensor:
        """The Pyro model of data ``(B, *x_shape)``, or of data that it draws."""

    @abstractmethod
    def guide(self, x: Tensor) -> Any:
        """The Pyro guide."""

    @final
    def register(self, role: str, module: nn.Module) -> None:
        """Shows a module's parameters to Pyro. The model calls this for those of w, the guide for those of φ."""
        if self not in _names:
            _names[self] = f"vae{next(_numbers)}"
        pyro.module(f"{_names[self]}.{role}", module)

    @final
    def __getstate__(self) -> dict[str, Any]:
        """The state for `pickle` and `copy`, without the weak references that Pyro's store hangs on parameters."""
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)  # Pyro makes it anew whenever it reads the parameter
        return vars(self)


class ThreePartModel(Model):
    """A model of a prior, a guide and a likelihood, and of what a subclass puts between them.

    Args:
        dims: the sizes of the model: those of the latent next to the data, and of x.
        prior: p of the topmost latent.
        guide: q(t|x,φ). It is kept as `posterior`, since `guide` is the Pyro program.
        likelihood: p(x|t,w).

    Raises:
        TypeError: an argument is not the part that its place takes.
    """

    def __init__(self, dims: Dims, prior: Prior, guide: Guide, likelihood: Likelihood) -> None:
        super().__init__(dims)
        for name, part, base in (
            ("prior", prior, Prior),
            ("guide", guide, Guide),
            ("likelihood", likelihood, Likelihood),
        ):
            if not isinstance(part, base):
                raise TypeError(f"{name}: expected a {base.__name__}, got {part!r}")
        self.prior, self.posterior, self.likelihood = prior, guide, likelihood


def check_prior(prior: Prior) -> None:
    """Checks that p(t) can be had at a t that the prior did not draw itself: every bound needs it there.

    Raises:
        ValueError: the prior cannot score.
    """
    if any(tensor.is_meta for tensor in (*prior.parameters(), *prior.buffers())):
        return  # it has no values yet
    with torch.no_grad(), seeded(torch.device("cpu"), "check"), pyro.validation_enabled(False):
        try:
            distribution = prior()
            distribution.log_prob(distribution.sample().clone())
        except (NotImplementedError, KeyError) as error:  # from transforms of PyTorch and Pyro that have no inverse
            raise ValueError(
                f"prior: {type(prior).__name__} cannot score the guide's draws: choose one with an exact density, such as a "
                f"flow with an inverse"
            ) from error
