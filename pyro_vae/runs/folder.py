"""Saving and loading: a model that was built in Python, and the model that is built again from the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pyro_vae.construction import options
from pyro_vae.description import Described, undescribed
from pyro_vae.files import digest, read_yaml
from pyro_vae.kinds import takes
from pyro_vae.models import VAE, Model
from pyro_vae.models.specification import assemble
from pyro_vae.parts import Dims
from pyro_vae.runs.run import CONFIG, ESTIMATOR, MODEL, SLOTS, Run, slots_of
from pyro_vae.runs.weights import read_weights
from pyro_vae.scopes import rebuilding, seeded
from pyro_vae.trust import Trust, UntrustedError


@takes
def save(model: Model, folder: str | os.PathLike[str]) -> None:
    """Saves a model that was built in Python, so that `load` gives it back: its parts, their options, and the weights.

    Args:
        model: a `VAE`, or another `Model`, of parts of this project or of your own.
        folder: the folder, which is made here.

    Raises:
        FileExistsError: the folder exists: nothing is ever overwritten.
        TypeError: this is no `Model`.
        ValueError: an option of a part cannot be written down, such as a lambda, or `load` could not build the model again; the
            message says why. Nothing is written then.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model of pyro_vae, such as a VAE, got {type(model).__name__}")
    config = describe_model(model)
    if places := undescribed(config):
        raise ValueError(
            f"this model cannot be saved: {'; '.join(places)} has no import path. Use a class or a function of a module, or "
            f"functools.partial of one"
        )
    try:  # what could not be loaded is not saved
        made = options(assemble, config, 1, "", Trust(tuple(_modules(config))))
        _fill(_empty(model.dims.without_values(), made), model.state_dict())
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ValueError(f"this model cannot be saved, since it could not be loaded again: {error}") from error
    Run(Path(folder), yaml.safe_dump(config, sort_keys=False)).keep_weights(model, None, {})


def describe_model(model: Model) -> dict[str, Any]:
    """The slots of a model, as config.yaml has them: its prior, guide and likelihood, and its class unless it is a `VAE`."""
    slots: dict[str, Any] = {}
    for slot, attribute in SLOTS.items():
        part = getattr(model, attribute, None)
        slots[slot] = part.described() if isinstance(part, Described) else model.made_with.get(slot)
    if not isinstance(model, VAE):
        own = {name: value for name, value in model.made_with.items() if name not in SLOTS}
        slots["model"] = {**model.described(), "init_args": own}
    return slots


@takes
def load(folder: str | os.PathLike[str], trust: str | Sequence[str] | Trust = (), weights: str = MODEL) -> Model:
    """Rebuilds the model of a run folder, on the CPU, in evaluation mode, with its trained weights.

    A run folder may come from anybody. Nothing in it is unpickled, and nothing that it names is imported or called, unless it
    is a part of this project, fits its place and is of PyTorch or Pyro, or is in a module that you trust.

    Args:
        folder: a folder that a run or `save` wrote.
        trust: the modules of your own whose classes the model is made of, by name: ``"my_parts"``, or ``"__main__"`` for those
            of the program that calls this. Trust a module that you would run. It must be importable.
        weights: which weights, by the name of their file: "model", those that the run ended with, or "best" or "last" where the
            run kept others.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: a file of it is damaged, or is not from such a run, or names what is not trusted; the message says which.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such run folder")
    file = f"{weights}.safetensors"
    if Path(file).name != file:
        raise ValueError(f"weights: expected the name of a file without its suffix, such as 'best', got {weights!r}")
    for name in (CONFIG, file):
        if not (path / name).is_file():
            kept = "" if weights == MODEL else " (weights: those that the run kept)"
            raise FileNotFoundError(f"{path}: not a complete run folder, it has no {name}{kept}")
    with _blamed(path / file):
        held = read_weights(path / file)
    config = read_yaml(path / CONFIG)
    with _blamed(path / CONFIG):
        if not isinstance(config, dict) or not config.keys() >= set(SLOTS):
            raise ValueError(f"no configuration of a run: it has not all of the keys {', '.join(SLOTS)}")
        slots = slots_of(config)
        made = options(assemble, slots, 1, "", Trust.of(trust))
        if held.slots not in (None, digest(slots)):
            raise ValueError(
                f"the description of the model ({', '.join(slots)}) is not the one that {file} was written with: it was "
                f"changed or damaged since"
            )
    state = {name: value for name, value in held.tensors.items() if not name.startswith(ESTIMATOR)}
    with _blamed(path / file):
        _check_sizes(held.dims, made, state)
    with _blamed(path / CONFIG):
        model = _empty(held.dims, made)
    with _blamed(path / file):
        _fill(model, state)
    return model.eval()


def _modules(description: Any) -> set[str]:
    """The outermost modules of all that a description names. `save` trusts them: the model's own classes are from there."""
    if isinstance(description, Mapping):
        return set().union(*map(_modules, description.values()))
    if isinstance(description, list):
        return set().union(*map(_modules, description))
    return {description.partition(".")[0]} - {""} if isinstance(description, str) and "." in description else set()


def _empty(dims: Dims, made: dict[str, Any]) -> Model:
    """A model of what fills its slots, without its weights.

    Raises:
        ValueError: it cannot be built from them.
    """
    try:
        with seeded(torch.device("cpu"), "rebuilt"), rebuilding():
            return assemble(dims, **made)
    except RuntimeError as error:
        if "meta tensor" not in str(error):
            raise
        raise ValueError(
            "a part reads values of the training data while it is built, which are not saved: it should keep what it needs of "
            "them as a parameter or a buffer"
        ) from error


def _check_sizes(dims: Dims, made: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Compares a model with its weights before there is memory for it: a file may ask for a layer of any size.

    Raises:
        RuntimeError: these are not its weights.
        ValueError: they are of another type than the model's.
    """
    try:
        with torch.device("meta"), seeded(torch.device("cpu"), "rebuilt"), rebuilding():
            model = assemble(dims, **made)
    except Exception:  # a part of one's own may need a device with values; its weights are compared when it has them
        return
    _assign(model, state)


def _assign(model: Model, state: dict[str, Tensor]) -> None:
    """Puts weights into a model.

    Raises:
        RuntimeError: these are not its weights.
        ValueError: they are of another type than the model's numbers.
    """
    types = {(value.dtype, state[name].dtype) for name, value in model.state_dict().items() if name in state}
    changed = {(built, kept) for built, kept in types if built != kept}
    wide = {torch.float32, torch.float64}
    # A whole model may have been trained in another type of floating-point numbers than the default.
    if changed and not (changed <= {(a, b) for a in wide for b in wide} and len(types) == len(dict(types))):
        raise ValueError(
            "expected weights of the model's types of numbers, got "
            + ", ".join(sorted(f"{kept} for {built}" for built, kept in changed))
        )
    model.load_state_dict(state, assign=True)
    kept = {each.dtype for each in state.values() if each.is_floating_point()}
    if len(kept) == 1:
        model.to(kept.pop())  # buffers that are not kept are made anew, in the default type


def _fill(model: Model, state: dict[str, Tensor]) -> None:
    """Gives a model its weights.

    Raises:
        RuntimeError: these are not its weights.
        ValueError: a weight is NaN or infinite, or of another type than the model's, or a tensor that was made of training data
            is not among them.
    """
    _assign(model, state)
    if bad := [name for name, value in model.named_parameters() if not value.is_meta and not value.isfinite().all()]:
        raise ValueError(f"these weights are NaN or infinite: {', '.join(bad)}")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if empty := [name for name, value in tensors.items() if value.is_meta]:
        raise ValueError(f"{', '.join(empty)} is made of training data and is not among the weights")


def build(dims: Dims, slots: dict[str, Any], trust: Trust = Trust()) -> Model:  # noqa: B008  (it cannot change)
    """A model from the descriptions of its slots (class path and options), as config.yaml has them.

    Raises:
        ValueError: a description names what is not trusted, or does not fit its slot; nothing of it was called then.
    """
    return assemble(dims, **options(assemble, slots, 1, "", trust))


@contextmanager
def _blamed(file: Path) -> Iterator[None]:
    """Turns whatever reading a file raises into one ValueError that names it."""
    try:
        yield
    except UntrustedError as error:
        raise UntrustedError(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"{file}: {error}") from error
