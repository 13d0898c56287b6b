"""Trackers: who else is told of a run while it goes on, beside its folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import yaml

from pyro_vae.kinds import takes
from pyro_vae.parts import overridable
from pyro_vae.training import Epoch

if TYPE_CHECKING:  # a second of import that only pictures need
    from matplotlib.figure import Figure

Status = Literal["finished", "interrupted", "failed"]
"""How a run ended: at its end; by Ctrl-C or a scheduler, to go on later; or by an error."""


class Tracker(ABC):
    """Passes on what a run tells, for example to a service. One of your own is one class: ``--trackers "[my_file.Mine]"``.

    With options, an element of the list is ``{class_path: my_file.Mine, init_args: {project: digits}}``. What a tracker raises
    costs the run nothing but a line. This is all that Weights & Biases and MLflow need::

        class WandB(Tracker):
            def begin(self, folder, config, done):
                self.run = wandb.init(id=folder.resolve().name, config=dict(config), resume="allow")
            def epoch(self, record):
                self.run.log(scalars(record.as_dict()), step=record.epoch)  # steps that it has already are left out
            def end(self, status):
                self.run.finish(exit_code=int(status == "failed"))
        class MLflow(Tracker):
            def begin(self, folder, config, done):
                kept = folder / "mlflow.txt"
                run = mlflow.start_run(run_id=kept.read_text() if kept.exists() else None)
                kept.write_text(run.info.run_id)
            def epoch(self, record):
                mlflow.log_metrics(scalars(record.as_dict()), step=record.epoch)
    """

    @overridable
    def begin(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        """Is called before training.

        Args:
            folder: the folder of the run, which is there.
            config: its options, as config.yaml has them.
            done: the number of epochs that the run has behind it, 0 at its beginning. Where a run goes on after a cut, the
                epochs after these are trained again, and told again with the same numbers.
        """
        del folder, config, done  # by default nothing is passed on

    @abstractmethod
    def epoch(self, record: Epoch) -> None:
        """Is called after each epoch, once its weights and its record are in the folder."""

    @overridable
    def result(self, values: Mapping[str, Any]) -> None:
        """Is called with the final evaluation, as result.json has it."""
        del values

    @overridable
    def figure(self, name: str, figure: Figure) -> None:
        """Is called with each figure of the run, once it is in the folder under this name."""
        del name, figure

    @overridable
    def end(self, status: Status) -> None:
        """Is called at the end, however it came."""
        del status


@final
class TensorBoard(Tracker):
    """Scalars and figures for TensorBoard, in the folder ``tensorboard`` of the run: ``tensorboard --logdir runs`` shows all.

    A run that goes on after a cut goes on in the same log. Epochs that it trains again take the place of those before.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (seconds of import that only this needs)
        except ImportError as error:
            raise ValueError(
                f"trackers: TensorBoard is not installed here ({error}): pip install tensorboard"
            ) from error
        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._epoch = 0

    def begin(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        """Opens the log. What it has of later epochs is not shown any more."""
        self._epoch = done
        self._writer = self._make(str(folder / "tensorboard"), purge_step=done + 1 if done else 0)
        if not done:
            self._writer.add_text("config", f"```yaml\n{yaml.safe_dump(dict(config), sort_keys=False)}```", 0)

    def epoch(self, record: Epoch) -> None:
        """Adds a point to each curve."""
        self._epoch = record.epoch
        for name, value in scalars(record.as_dict()).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def result(self, values: Mapping[str, Any]) -> None:
        """Adds the numbers of the final evaluation, at the last epoch."""
        single = {name: value for name, value in values.items() if not isinstance(value, list)}
        for name, value in scalars(single).items():
            self._writer.add_scalar(f"result/{name}", value, self._epoch)

    def figure(self, name: str, figure: Figure) -> None:
        """Adds a figure, at the last epoch."""
        self._writer.add_figure(name, figure, self._epoch, close=False)

    def end(self, status: Status) -> None:
        """Closes the log."""
        del status
        self._writer.close()


@takes
def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns all numbers of nested plain data, by names such as "valid/bound" and "kl_per_dimension/t/0".

    Texts and truth values are left out, and so is the number of the epoch, which is the place of the others.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping | list):
            inner = value if isinstance(value, Mapping) else {str(i): each for i, each in enumerate(value)}
            found |= {f"{name}/{below}": number for below, number in scalars(inner).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
            found[name] = float(value)
    return found
