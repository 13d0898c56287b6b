"""The base classes of all models of this project: a Pyro model and a Pyro guide in one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from typing import Any, ClassVar, final
from weakref import WeakKeyDictionary

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.description import Described
from pyro_vae.parts import Dims, Guide, Likelihood, Prior, Shape, check_batch, floating
from pyro_vae.scopes import evaluating

# Pyro's parameter store is global and finds modules by name. A second module under a used name silently never trains.
# The name is not an attribute of the object, so that a deep copy gets a name of its own.
_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_numbers = count()


class Model(Described, nn.Module, ABC):
    """A Pyro model and a Pyro guide, which hold their parameters in one module.

    `model` and `guide` are ordinary Pyro programs, which stock `pyro.infer.SVI`, `Predictive` and `pyro.poutine` accept
    unchanged. Their sites are in the plate ``"data"`` at dimension -1. There may be several latent sites, with any
    names.

    A model of your own can be named on the command line, ``--model my_models.Mine``, if its constructor takes the
    arguments ``(dims, prior, guide, likelihood)`` and then its own options. The arguments ``prior``, ``guide`` and
    ``likelihood`` are functions that make these parts from sizes.

    Args:
        dims: the sizes of the model, which are those of x and of the latent next to the data.

    Attributes:
        dims: the sizes without the training data.
        inputs: the names of the arguments of both programs: ``("x",)``, or ``("x", "y")`` for data and their labels.
    """

    inputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims.without_data()

    @abstractmethod
    def model(self, x: Tensor | None = None) -> Tensor:
        """Runs the Pyro model, which observes data ``(B, *x_shape)`` or draws them."""

    @abstractmethod
    def guide(self, x: Tensor) -> Any:
        """Runs the Pyro guide."""

    @final
    def register(self, role: str, module: nn.Module) -> None:
        """Registers a module's parameters with Pyro.

        The model calls this for the modules of w, and the guide for the modules of φ.
        """
        if self not in _names:
            _names[self] = f"vae{next(_numbers)}"
        pyro.module(f"{_names[self]}.{role}", module)

    @final
    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for `pickle` and `copy`, without the weak references that Pyro adds to parameters."""
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)  # Pyro makes it again whenever it reads the parameter
        return vars(self)


class ThreePartModel(Model):
    """A model that consists of a prior, a guide and a likelihood, and of what a subclass puts between them.

    Args:
        dims: the sizes of the model, which are those of x and of the latent next to the data.
        prior: the distribution p of the topmost latent.
        guide: q(t|x,φ). It is kept as `posterior`, since `guide` is the Pyro program.
        likelihood: p(x|t,w).

    Raises:
        TypeError: an argument is not the kind of part that it must be.
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


def scored(x: Tensor | None, x_shape: Shape) -> Tensor | None:
    """Returns data as a likelihood scores them, and None where they are to be drawn.

    Raises:
        ValueError: they are no batch of this shape.
    """
    if x is None:
        return None
    check_batch(x, x_shape)
    return floating(x)


def check_prior(model: ThreePartModel) -> None:
    """Checks that p(t) can be computed at a t that the prior did not draw itself, which every bound needs.

    Raises:
        ValueError: the prior cannot compute it.
    """
    prior = model.prior
    if any(tensor.is_meta for tensor in (*prior.parameters(), *prior.buffers())):
        return  # a prior without values cannot be checked
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    with evaluating(model, device, "check"), pyro.validation_enabled(False):
        try:
            distribution = prior()
            distribution.log_prob(distribution.sample().clone())
        except (NotImplementedError, KeyError) as error:  # transforms without an inverse raise these
            raise ValueError(
                f"prior: {type(prior).__name__} cannot score the guide's draws: choose one with an exact density, such as a "
                f"flow with an inverse"
            ) from error
