"""A run is a folder: what was asked, what happened, the weights, the versions, the figures.

===================== =====================================================
config.yaml           the resolved command line: ``--config`` takes it back
metrics.jsonl         one `Epoch` a line
result.json           the final evaluation
model.safetensors     weights of the last epoch, with the sizes of the VAE
versions.json         of this project and of what it stands on
figures/*.png         pictures
===================== =====================================================

Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from pyro_vae._version import version as own_version
from pyro_vae.description import Described, undescribed
from pyro_vae.models import VAE, Model
from pyro_vae.models.specification import assemble
from pyro_vae.parts import Dims
from pyro_vae.scopes import seeded
from pyro_vae.training import Epoch

if TYPE_CHECKING:  # a second of import that only figures need
    from matplotlib.figure import Figure

_SLOTS = {"prior": "prior", "guide": "posterior", "likelihood": "likelihood"}
"""The slots of a configuration, and the attributes of a model that fill them."""
_CONFIG, _WEIGHTS, _METRICS = "config.yaml", "model.safetensors", "metrics.jsonl"
_ESTIMATOR = "training/estimator/"
"""What the names of an estimator's state begin with, beside those of the weights."""


class Run:
    """The folder of one run, written as the run goes on.

    Args:
        folder: its path; it is made here.
        config: the resolved options, in YAML.

    Raises:
        FileExistsError: the folder exists: nothing is ever overwritten.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True)
            (folder / "figures").mkdir()
        except FileExistsError:
            raise FileExistsError(f"out: {folder} exists and is left as it is; choose another folder") from None
        except OSError as error:
            raise OSError(f"out: {folder} cannot be made ({error.strerror})") from error
        (folder / _CONFIG).write_text(config)
        names = ["torch", "pyro-ppl", "numpy", "safetensors"]
        versions = {"pyro_vae": own_version, "python": platform.python_version()} | {n: version(n) for n in names}
        (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")

    def record(self, epoch: Epoch, model: Model, estimator: Mapping[str, Tensor] | None = None) -> None:
        """Keeps an epoch: its weights, replaced in one move so that a cut leaves the old ones, and then its line.

        Args:
            epoch: the record.
            model: the model with the weights of that epoch.
            estimator: the state of the estimator, if it has one.
        """
        self._keep_weights(model, epoch.epoch, estimator or {})
        row = asdict(epoch)
        for split in ("train", "valid"):
            row[split] = getattr(epoch, split)._asdict()
        with (self.folder / _METRICS).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def result(self, values: dict[str, Any]) -> None:
        """Keeps the final evaluation."""
        (self.folder / "result.json").write_text(json.dumps(values, indent=2) + "\n")

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a figure as ``figures/<name>.png``."""
        figure.savefig(self.folder / "figures" / f"{name}.png")

    def _keep_weights(self, model: Model, epoch: int | None, estimator: Mapping[str, Tensor]) -> None:
        dims = model.dims
        sizes = {"latent": dims.latent, "x_shape": dims.x_shape, "classes": dims.classes, "x_scale": dims.x_scale}
        sizes["standardized"] = dims.standardized
        state = model.state_dict() | {_ESTIMATOR + name: value for name, value in estimator.items()}
        state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        metadata = {"pyro_vae": json.dumps(sizes | {"data": dims.train_size, "epoch": epoch})}
        unfinished = self.folder / f".{_WEIGHTS}"
        unfinished.write_bytes(to_bytes(state, metadata=metadata))
        unfinished.replace(self.folder / _WEIGHTS)


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
        sizes = model.dims.without_data()
        _fill(_empty(_dims(**vars(sizes) | {"data": sizes.train_size}), config), model.state_dict())
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise ValueError(f"this model cannot be saved, since it could not be loaded again: {error}") from error
    Run(Path(folder), yaml.safe_dump(config, sort_keys=False))._keep_weights(model, None, {})


def describe_model(model: Model) -> dict[str, Any]:
    """The slots of a model, as config.yaml has them: its prior, guide and likelihood, and its class unless it is a `VAE`."""
    slots: dict[str, Any] = {}
    for slot, attribute in _SLOTS.items():
        part = getattr(model, attribute, None)
        slots[slot] = part.described() if isinstance(part, Described) else model.made_with.get(slot)
    if not isinstance(model, VAE):
        own = {name: value for name, value in model.made_with.items() if name not in _SLOTS}
        slots["model"] = {**model.described(), "init_args": own}
    return slots


def load(folder: str | os.PathLike[str]) -> Model:
    """Rebuilds the model of a run folder, on the CPU, in evaluation mode, with its trained weights.

    Args:
        folder: a folder that a run or `save` wrote. Classes from a user's own file must be importable, as they were then.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: a file of it is damaged, or is not from such a run; the message names the file.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such run folder")
    for name in (_CONFIG, _WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path}: not a complete run folder, it has no {name}")
    with _blamed(path / _WEIGHTS), safe_open(path / _WEIGHTS, framework="pt") as file:
        sizes = (file.metadata() or {}).get("pyro_vae")
        if sizes is None:
            raise ValueError("these are weights, but not of a run of pyro_vae")
        dims = _dims(**json.loads(sizes))
        state = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(_ESTIMATOR)}  # noqa: SIM118
    with _blamed(path / _CONFIG):
        config = yaml.safe_load((path / _CONFIG).read_text())
        if not isinstance(config, dict) or not config.keys() >= set(_SLOTS):
            raise ValueError(f"no configuration of a run: it has not all of the keys {', '.join(_SLOTS)}")
        slots = {name: config[name] for name in (*_SLOTS, "model") if name in config}
        model = _empty(dims, slots)
    with _blamed(path / _WEIGHTS):
        _fill(model, state)
    return model.eval()


def _empty(dims: Dims, slots: dict[str, Any]) -> Model:
    """A model from the descriptions of its slots, without its weights.

    Raises:
        ValueError: it cannot be built from them.
    """
    try:
        with seeded(torch.device("cpu"), "rebuilt"):
            return build(dims, slots)
    except RuntimeError as error:
        if "meta tensor" not in str(error):
            raise
        raise ValueError(
            "a part reads values of the training data while it is built, which are not saved: it should keep what it needs of "
            "them as a parameter or a buffer"
        ) from error


def _fill(model: Model, state: dict[str, Tensor]) -> None:
    """Gives a model its weights.

    Raises:
        RuntimeError: these are not its weights.
        ValueError: a tensor that was made of training data is not among them.
    """
    model.load_state_dict(state, assign=True)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if empty := [name for name, value in tensors.items() if value.is_meta]:
        raise ValueError(f"{', '.join(empty)} is made of training data and is not among the weights")


def _dims(
    latent: int,
    x_shape: Sequence[int],
    data: int | None = None,
    classes: int | None = None,
    x_scale: float = 1.0,
    standardized: bool = False,
    **_: Any,
) -> Dims:
    """The sizes of a saved model. Its training data have a shape and no values: what parts took from them are weights."""
    train = None if data is None else torch.empty((data, *x_shape), device="meta")
    return Dims(latent, tuple(x_shape), train=train, classes=classes, x_scale=x_scale, standardized=standardized)


def build(dims: Dims, slots: dict[str, Any]) -> Model:
    """A model from the descriptions of its slots (class path and arguments), as the command line and config.yaml give them."""
    from jsonargparse import ArgumentError, ArgumentParser  # noqa: PLC0415  (half a second of import that only this needs)

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(assemble, skip={"dims"}, fail_untyped=False)
    try:
        made = parser.instantiate(parser.parse_object(slots))
    except ArgumentError as error:
        raise ValueError(f"damaged, or not from such a run ({error})") from error
    return assemble(dims, **vars(made))


@contextmanager
def _blamed(file: Path) -> Iterator[None]:
    """Turns whatever reading a file raises into one ValueError that names it."""
    try:
        yield
    except (SafetensorError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: damaged, or not from such a run ({error})") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{file}: {error}") from error
