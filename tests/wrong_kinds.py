"""Calls everything public with wrong kinds of arguments, without the type checker of the tests; prints what is wrong.

Run as a program, since the tests' own type checker would answer first. Each argument in turn is replaced by wrong kinds.
A call must either work, or end in a TypeError, a ValueError or an OSError whose short message names the argument.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae
from pyro_vae import (
    data,
    estimators,
    figures,
    guides,
    likelihoods,
    models,
    networks,
    priors,
    training,
)
from pyro_vae.evaluate import Annealing, Terms

ROOMS = (
    "data", "estimators", "evaluate", "figures", "guides", "likelihoods", "models", "networks", "priors", "reports", "training",
)  # fmt: skip
DATA = torch.bernoulli(torch.full((80, 1, 4, 4), 0.5), generator=torch.Generator().manual_seed(0))
SPLITS = data.make_splits(data.Split(DATA, torch.arange(80) % 3), valid=8, test=8)
DIMS = SPLITS.dims(2)


class Frame:
    """Is like a table of pandas."""

    shape = (40, 16)

    def to_numpy(self) -> np.ndarray:
        return np.zeros(self.shape)


WRONG = {
    "array": np.ones((5, 1, 4, 4)),
    "text array": np.array(["a", "b"]),
    "list": [[1.0, 2.0], [3.0, 4.0]],
    "whole number": 3,
    "number": 2.5,
    "not a number": float("nan"),
    "text": "x",
    "none": None,
    "true": True,
    "dict": {"epochs": 3},
    "frame": Frame(),
    "tensor": torch.ones(5, 1, 4, 4),
    "whole tensor": torch.ones(5, 1, 4, 4, dtype=torch.int64),
    "loader": DataLoader(TensorDataset(DATA)),
    "dataset": TensorDataset(DATA),
    "class": pyro_vae.VAE,
    "object": object(),
    "split": SPLITS.train,
    "data": data.Digits(),
    "module": nn.Linear(2, 2),
}


def vae() -> pyro_vae.VAE:
    torch.manual_seed(0)
    make = partial(networks.MLP, hidden=[4])
    return pyro_vae.VAE(
        priors.StandardNormal(DIMS), guides.DiagonalNormal(DIMS, make), likelihoods.Bernoulli(DIMS, make)
    )


def right() -> dict[str, object]:
    """Right values of arguments, by their names."""
    split = SPLITS.test
    return {
        "programs": vae(), "model": vae(), "data": split, "like": split, "batch": split,
        "plan": training.TrainingPlan(epochs=1),
        "estimator": estimators.ELBO(), "K": 2, "N": 20, "n": 2, "latents": {"t": torch.zeros(2, 2)}, "dims": DIMS,
        "prior": priors.StandardNormal(DIMS), "guide": guides.DiagonalNormal(DIMS), "likelihood": likelihoods.Bernoulli(DIMS),
        "latent": 2, "x_shape": (1, 4, 4), "x": DATA[:5], "t": torch.zeros(5, 2), "inputs": DATA[:5], "in_shape": (1, 4, 4),
        "out_shape": (3,), "valid": 8, "test": 8, "values": torch.ones(3), "log_px": torch.ones(3), "support": SPLITS.support,
        "path": "none.npy", "exemplars": 5, "drawn": 3,
        "means": DATA[:5], "look": figures.Look(), "names": ["a", "b"], "train": SPLITS.train, "tensors": (DATA,), "epochs": 1,
    }  # fmt: skip


PARTS = {
    "prior": priors.StandardNormal,
    "guide": guides.DiagonalNormal,
    "likelihood": likelihoods.Bernoulli,
    "model": None,
}
EPOCHS = [training.Epoch(k, Terms(-2.0, -1.0, 1.0), Terms(-3.0, -2.0, 1.0), 1e-3, 1.0) for k in (1, 2)]
BRIEF = {"annealing": Annealing(temperatures=2), "chains": 2}
OWN: dict[str, dict[str, object]] = {
    "ais": BRIEF,
    "bracket": BRIEF,
    "Dataset": {"of": partial(TensorDataset, DATA)},
    "bounds": {"records": {"a": EPOCHS}},
    "fit": {"data": SPLITS},
    "interpolate": {"x_a": DATA, "x_b": DATA},
    "crossed": {"values": np.ones((2, 3))},
    "needed": {"differences": np.ones((2, 3))},
    "probability_first": {"values": np.ones((2, 2, 3))},
    "make_splits": {"data": SPLITS.train},
    "columns_for": {"data": DATA},
    "Dims": {"train": DATA},
    **dict.fromkeys(("TwoLayer", "Ladder", "SigmoidBelief", "Conditional", "MixtureVAE"), PARTS),
    "SemiSupervised": {**PARTS, "dims": replace(DIMS, classes=3)},
    "class_probabilities": {"programs": models.MixtureVAE(DIMS, *list(PARTS.values())[:3])},
    "classified": {"probabilities": torch.eye(3), "labels": torch.arange(3)},
    "ModelSpec": PARTS,
    "Trained": {"data": SPLITS, "records": []},
    "look_of": {"data": SPLITS},
    "samples": {"drawn": DATA[:36]},
    "latents": {"t": torch.randn(20, 2), "labels": None},
    "coordinate": {"site": "t", "j": 0, "shape": (2,)},
    "plane": {"means": torch.rand(441, 1, 4, 4), "ticks": [0.0] * 21},
    "traversals": {"means": DATA[:4], "ticks": [0.0, 1.0]},
    "side_by_side": {"pictures": {"a": DATA[:36]}},
    "SemiAmortized": {"guide": guides.DiagonalNormal},
    "OneHotCategorical": {"classes": 2},
    "Concrete": {"classes": 2},
    "number_of_sets": {"states": 3, "together": 2},
    "exact_gradient": {
        "programs": pyro_vae.VAE(priors.Bernoulli(DIMS), guides.Bernoulli(DIMS), likelihoods.Bernoulli(DIMS))
    },
    "calibrate": {"n": 20},
    "default_likelihood": {"x": DATA, "support": SPLITS.support},
}
"""Values of arguments that mean something else in other functions."""
HARMLESS = {
    ("on_step", "module"), ("init", "module"), ("activation", "class"), ("activation", "module"), ("values", "text array"),
    ("like", "text array"), ("batch", "text array"), ("input", "whole tensor"),
}  # fmt: skip
"""What only what is called can tell: a module that is called with something else, and the like."""
SKIPPED = {
    "Case",
    "Cloud",
    "Curve",
    "Calibration",
    "RankCurve",
    "Annealed",
    "Bracket",
    "RateDistortion",
    "Gaps",
    "Surgery",
    "Posterior",
    "generalization_gap",
    "calibration",
    "SNRLine",
    "against_prior",
    "cases",
    "convergence",
    "cost",
    "gaps",
    "learning_curves",
    "snr",
    "Look",
    "Measured",
    "Row",
    "draws",
    "reference",
    "Columns",
    "Splits",
    "Terms",
    "DivergedError",
    "Moments",
    "Draws",
    "Line",
    "Mean",
    "Evidence",
    "Crossed",
    "Classified",
    "Interval",
    "fit_line",
    "check_support",
    "check",
    "on_draw",
    "Estimate",
    "Data",
    "Choice",
    "Epoch",
    "Progress",
    "Training",
    "Callback",
    "Model",
    "Prior",
    "Guide",
    "Likelihood",
    "Network",
    "Estimator",
    "BurdaSchedule",
}
"""Results and records, which users do not make; abstract classes; and models, which are made of functions."""


def main() -> None:
    torch.set_num_threads(1)
    found: list[str] = []
    counts: Counter[str] = Counter()
    os_folder = Path(tempfile.mkdtemp())

    def attempt(what: str, argument: str, kind: str, call) -> None:
        try:
            call()
            counts["worked"] += 1
        except (TypeError, ValueError, OSError) as error:
            told = str(error)
            counts["told"] += 1
            if argument not in told or len(told) > 600:
                found.append(f"{what}({argument}={kind}): {type(error).__name__}: {told[:200]}")
        except Exception as error:  # anything else is a fault
            found.append(f"{what}({argument}={kind}): {type(error).__name__}: {str(error)[:200]}")

    def call(function, given) -> None:
        made = function(**given)
        if isinstance(made, training.Training):
            next(made)

    seen = set()
    for module in (pyro_vae, *(import_module(f"pyro_vae.{room}") for room in ROOMS)):
        for name in module.__all__:
            function = getattr(module, name)
            if (
                not isinstance(function, type | FunctionType)
                or name in SKIPPED
                or id(function) in seen
                or inspect.isabstract(function)
                or (isinstance(function, type) and issubclass(function, Exception))
            ):
                continue
            seen.add(id(function))
            parameters = inspect.signature(function).parameters
            known = right() | OWN.get(name, {})
            known["folder"] = str(os_folder / f"run{len(seen)}")
            if name == "load":
                pyro_vae.save(vae(), known["folder"])
            usual = {key: known[key] for key in parameters if key in known}
            for argument, parameter in parameters.items():
                if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or argument in SKIPPED:
                    continue
                for kind, value in WRONG.items():
                    if (argument, kind) in HARMLESS:
                        continue
                    given = usual | {argument: value}
                    if name == "save":
                        given["folder"] = str(os_folder / f"{argument}{kind}") if argument != "folder" else value
                    attempt(name, argument, kind, lambda f=function, g=given: call(f, g))
    model = vae()
    calls = {
        "VAE.model": (model.model, "x"), "VAE.guide": (model.guide, "x"), "guide": (model.posterior, "x"),
        "likelihood": (model.likelihood, "t"), "network": (model.posterior.network, "input"),
    }  # fmt: skip
    for what, (function, argument) in calls.items():
        for kind, value in WRONG.items():
            if (argument, kind) in HARMLESS:
                continue
            attempt(what, argument, kind, lambda f=function, v=value: f(v))
    json.dump({"found": found, "counts": counts}, sys.stdout)


if __name__ == "__main__":
    main()
