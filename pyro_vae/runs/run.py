"""The folder of a run as it is written: what was asked, what happened, the weights; and how a run goes on in it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import Tensor

from pyro_vae._version import version as own_version
from pyro_vae.files import (
    UNFINISHED,
    append_line,
    digest,
    from_json,
    read_text,
    read_yaml,
    to_json,
    write_figure,
    write_whole,
)
from pyro_vae.kinds import shortened
from pyro_vae.models import Model
from pyro_vae.runs.records import METRICS, read_records
from pyro_vae.runs.weights import write_weights
from pyro_vae.training import Epoch, Training

if TYPE_CHECKING:  # a second of import that only figures need
    from matplotlib.figure import Figure

SLOTS = {"prior": "prior", "guide": "posterior", "likelihood": "likelihood"}
"""The slots of a configuration, and the attributes of a model that fill them."""
CONFIG, RESULT = "config.yaml", "result.json"
CHECKPOINT = "checkpoint.safetensors"
MODEL = "model"
"""The file of the weights that a run ends with, without its suffix."""
ESTIMATOR = "training/estimator/"
"""What the names of an estimator's state begin with, beside those of the weights."""


class Run:
    """The folder of one run, written as the run goes on.

    Args:
        folder: its path; it is made here.
        config: the resolved options, in YAML.
        again: the folder may be that of a run that was cut, with the same options, which goes on in it.

    Raises:
        FileExistsError: the folder exists: nothing is ever overwritten.
        ValueError: the run in it has other options; the message says which.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, config: str, *, again: bool = False) -> None:
        self.folder = folder
        self._slots = digest(slots_of(yaml.safe_load(config)))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not again or not folder.is_dir():
                raise FileExistsError(
                    f"out: {folder} exists and is left as it is; choose another folder, or go on with that run (--resume true)"
                ) from None
            if (folder / CONFIG).is_file():
                _check_same(folder / CONFIG, yaml.safe_load(config))
            elif any(each.name != "figures" and not each.name.endswith(UNFINISHED) for each in folder.iterdir()):
                raise FileExistsError(
                    f"out: {folder} exists and holds no run ({CONFIG} is missing); choose another folder"
                ) from None
        except OSError as error:
            raise OSError(f"out: {folder} cannot be made ({error.strerror})") from error
        (folder / "figures").mkdir(exist_ok=True)
        if not (folder / CONFIG).is_file():
            write_whole(folder / CONFIG, config.encode())
        names = ["torch", "pyro-ppl", "numpy", "safetensors"]
        versions = {"pyro_vae": own_version, "python": platform.python_version()} | {n: version(n) for n in names}
        write_whole(folder / "versions.json", (json.dumps(versions, indent=2) + "\n").encode())

    def follow(self, record: Epoch, model: Model, training: Training) -> None:
        """Keeps an epoch of a training, in the files of the weights that are of interest: the kept, the best, the last ones."""
        keep, best = training.plan.keep, training.kept.wants_best and training.kept.epoch == record.epoch
        names = {
            "last": [MODEL, *(["best"] if best else [])],
            "best": ["last", *([MODEL] if best else [])],
            "average": [MODEL, "last", *(["best"] if best else [])],
        }
        self.record(record, model, training.estimator.state, names[keep])

    def conclude(self, model: Model, training: Training) -> None:
        """Keeps the averaged weights of a training that ended, if there are some."""
        if training.ends_with == "average":
            self.keep_weights(model, None, training.estimator.state)
        elif training.kept.averaged:
            with training.kept.average_in_place():
                self.keep_weights(model, None, training.estimator.state, "average")

    @property
    def checkpoint(self) -> Path:
        """The file from which training goes on where it was cut."""
        return self.folder / CHECKPOINT

    def finished(self) -> bool:
        """Whether the run came to its end, with a final evaluation.

        Raises:
            ValueError: its file is damaged.
        """
        path = self.folder / RESULT
        if not path.is_file():
            return False
        try:
            found = from_json(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}): delete it, and the run is evaluated again") from error
        return isinstance(found, dict) and found.get("finished") is True

    def before(self, epochs: int) -> list[Epoch]:
        """The records of the epochs that a checkpoint has behind it. Those of later ones, which come again, are removed.

        Raises:
            ValueError: there are fewer.
        """
        records, path = read_records(self.folder), self.folder / METRICS
        if len(records) < epochs:
            raise ValueError(
                f"{path}: it has {len(records)} epochs, and the checkpoint beside it {epochs}: without its records a run does "
                f"not go on. Begin a new one in another folder (--out)"
            )
        if path.is_file():
            lines = read_text(path).split("\n")[:epochs]
            write_whole(path, "".join(f"{line}\n" for line in lines).encode())
        return records[:epochs]

    def record(
        self,
        epoch: Epoch,
        model: Model,
        estimator: Mapping[str, Tensor] | None = None,
        names: Sequence[str] = (MODEL,),
    ) -> None:
        """Keeps an epoch: its weights, replaced in one move so that a cut leaves the old ones, and then its line.

        Args:
            epoch: the record.
            model: the model with the weights of that epoch.
            estimator: the state of the estimator, if it has one.
            names: the names of the files of weights that these are kept in, without their suffix.
        """
        for name in names:
            self.keep_weights(model, epoch.epoch, estimator or {}, name)
        append_line(self.folder / METRICS, to_json(epoch.as_dict()))

    def result(self, values: dict[str, Any]) -> None:
        """Keeps the final evaluation."""
        write_whole(self.folder / RESULT, (to_json(values, indent=2) + "\n").encode())

    def figure(self, name: str, figure: Figure) -> None:
        """Keeps a figure as ``figures/<name>.png``."""
        write_figure(self.folder / "figures" / f"{name}.png", figure)

    def keep_weights(self, model: Model, epoch: int | None, estimator: Mapping[str, Tensor], name: str = MODEL) -> None:
        """Keeps weights, of an epoch if they are of one, and the state of the estimator beside them."""
        state = model.state_dict() | {ESTIMATOR + name: value for name, value in estimator.items()}
        write_weights(self.folder / f"{name}.safetensors", state, model.dims, epoch, self._slots)


_MAY_DIFFER = frozenset(
    {
        "out", "device", "resume", "checkpoint_every", "config", "print_config", "metrics", "figures", "trackers", "watch",
    }
)  # fmt: skip
"""Options that do not change how a model is trained: a run goes on with others."""


def _check_same(kept: Path, config: Mapping[str, Any]) -> None:
    """Checks that a run was begun with these options.

    Raises:
        ValueError: its file is damaged, or it has others; the message names them.
    """
    before = read_yaml(kept)
    if not isinstance(before, dict):
        raise ValueError(f"{kept}: damaged: it holds no options")
    names = [name for name in {**before, **config} if name not in _MAY_DIFFER]
    if changed := [name for name in names if before.get(name) != config.get(name)]:
        there, here = (shortened(to_json(each.get(changed[0]))) for each in (before, config))
        raise ValueError(
            f"resume: {kept.parent} holds a run with other options ({changed[0]}: there {there}, here {here}). To go on with "
            f"it as it was begun: --config {kept} --out {kept.parent} --resume true"
        )


def slots_of(config: Any) -> dict[str, Any]:
    """The part of a configuration that describes the model. A ``model`` of null, the `VAE`, is the same as none."""
    if not isinstance(config, dict):
        return {}
    names = [*SLOTS, "model"] if config.get("model") is not None else SLOTS
    return {name: config[name] for name in names if name in config}
