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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pyro_vae._version import version as own_version
from pyro_vae.base import Dims, Guide, Likelihood, Prior
from pyro_vae.training import Epoch
from pyro_vae.vae import VAE, Model

PriorFactory = Callable[[Dims], Prior]
GuideFactory = Callable[[Dims], Guide]
LikelihoodFactory = Callable[[Dims], Likelihood]
ModelFactory = Callable[[Dims, PriorFactory, GuideFactory, LikelihoodFactory], Model]

_PARTS = ("prior", "guide", "likelihood")
_CONFIG, _WEIGHTS, _METRICS = "config.yaml", "model.safetensors", "metrics.jsonl"


class Run:
    """The folder of one run, written as the run goes on.

    Args:
        folder: its path; it is made here.
        config: the resolved options, in YAML.

    Raises:
        FileExistsError: the folder exists: nothing is ever overwritten.
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

    def record(self, epoch: Epoch, vae: Model) -> None:
        """Keeps an epoch: its weights, replaced in one move so that a cut leaves the old ones, then its line."""
        data = None if vae.dims.train is None else len(vae.dims.train)
        dims = vae.dims
        sizes = {"latent": dims.latent, "x_shape": dims.x_shape, "classes": dims.classes, "x_scale": dims.x_scale}
        unfinished = self.folder / f".{_WEIGHTS}"
        state = {name: value.detach().cpu().contiguous() for name, value in vae.state_dict().items()}
        unfinished.write_bytes(
            save(state, metadata={"pyro_vae": json.dumps(sizes | {"data": data, "epoch": epoch.epoch})})
        )
        unfinished.replace(self.folder / _WEIGHTS)
        row = asdict(epoch)
        for part in ("train", "valid"):
            row[part] = getattr(epoch, part)._asdict()
        with (self.folder / _METRICS).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def result(self, values: dict[str, Any]) -> None:
        """Keeps the final evaluation."""
        (self.folder / "result.json").write_text(json.dumps(values, indent=2) + "\n")

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a figure as ``figures/<name>.png``."""
        figure.savefig(self.folder / "figures" / f"{name}.png")


def load(folder: str | os.PathLike[str]) -> Model:
    """Rebuilds the VAE of a run folder, on the CPU, in evaluation mode, with its trained weights.

    Args:
        folder: a folder that a run wrote. Classes from a user's own file must be importable, as they were for the run.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
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
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no dict)
    with _blamed(path / _CONFIG):
        config = yaml.safe_load((path / _CONFIG).read_text())
        if not isinstance(config, dict) or not config.keys() >= set(_PARTS):
            raise ValueError(f"no configuration of a run: it has not all of the keys {', '.join(_PARTS)}")
        vae = build(dims, {name: config[name] for name in (*_PARTS, "model") if name in config})
    with _blamed(path / _WEIGHTS):
        vae.load_state_dict(state)
    return vae.eval()


def _dims(
    latent: int,
    x_shape: list[int],
    data: int | None = None,
    classes: int | None = None,
    x_scale: float = 1.0,
    **_: Any,
) -> Dims:
    """The sizes of a saved VAE. Zeros stand for the training data: what parts took from these is among the weights."""
    train = None if data is None else torch.zeros(1).expand(data, *x_shape)
    return Dims(latent, tuple(x_shape), train=train, classes=classes, x_scale=x_scale)


def build(dims: Dims, parts: dict[str, Any]) -> Model:
    """A VAE from its parts' descriptions (class path and arguments), as the command line and config.yaml give them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(assemble, skip={"dims"}, fail_untyped=False)
    return assemble(dims, **vars(parser.instantiate(parser.parse_object(parts))))


def assemble(
    dims: Dims,
    prior: PriorFactory,
    guide: GuideFactory,
    likelihood: LikelihoodFactory,
    model: ModelFactory | None = None,
) -> Model:
    """The model of three parts that are still to be told its sizes: a `VAE`, or another class."""
    if model is None:
        return VAE(prior(dims), guide(dims), likelihood(dims))
    return model(dims, prior, guide, likelihood)


@contextmanager
def _blamed(file: Path) -> Iterator[None]:
    """Turns whatever reading a file raises into one ValueError that names it."""
    try:
        yield
    except (SafetensorError, yaml.YAMLError, ArgumentError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: damaged, or not from such a run ({error})") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{file}: {error}") from error
