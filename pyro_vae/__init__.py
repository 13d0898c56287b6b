"""Variational autoencoders as probabilistic programs in Pyro.

What stands here is imported when it is first used. So a program of the package can take Ctrl-C over before PyTorch and Pyro are
imported, which takes seconds.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pyro_vae._version import version as __version__

__all__ = [
    "VAE",
    "Dims",
    "Estimator",
    "Guide",
    "Likelihood",
    "Model",
    "ModelSpec",
    "Network",
    "Prior",
    "TrainingPlan",
    "__version__",
    "fit",
    "load",
    "pit_to_arviz",
    "save",
    "to_arviz",
    "to_elpd",
]

if TYPE_CHECKING:
    from pyro_vae.arviz import pit_to_arviz, to_arviz, to_elpd
    from pyro_vae.estimators import Estimator
    from pyro_vae.models import VAE, Model, ModelSpec
    from pyro_vae.parts import Dims, Guide, Likelihood, Network, Prior
    from pyro_vae.runs import load, save
    from pyro_vae.training import TrainingPlan, fit
else:
    _ROOMS = {
        "arviz": ("pit_to_arviz", "to_arviz", "to_elpd"),
        "estimators": ("Estimator",),
        "models": ("VAE", "Model", "ModelSpec"),
        "parts": ("Dims", "Guide", "Likelihood", "Network", "Prior"),
        "runs": ("load", "save"),
        "training": ("TrainingPlan", "fit"),
    }

    def __getattr__(name: str) -> Any:
        """Imports what is used for the first time: a name of a room, or a room."""
        for room, names in _ROOMS.items():
            if name in names:
                return globals().setdefault(name, getattr(import_module(f"{__name__}.{room}"), name))
        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
