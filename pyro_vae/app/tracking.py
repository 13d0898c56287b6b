"""How a command tells trackers of its run: what they raise costs the run nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.console import Console

from pyro_vae.reports import Tracker
from pyro_vae.reports.trackers import Status


class Told:
    """The trackers of a run. Use it as a context, inside which is the run: at its end they are told how it ended.

    A tracker that raises is told of the rest all the same, since a network may be back later; a line says what it raised, the
    first time. One that cannot begin is left out.

    Args:
        trackers: the trackers.
        console: the screen.
    """

    def __init__(self, trackers: Sequence[Tracker], console: Console) -> None:
        self.trackers, self.console = trackers, console
        self._begun: list[Tracker] = []
        self._failed: list[Tracker] = []

    def begin(self, folder: Path, config: Mapping[str, Any], done: int) -> None:
        """Tells the trackers of the run before it trains (see `Tracker.begin`)."""
        self._begun = [each for each in self.trackers if self._took(each, "begin", folder, config, done)]

    def __call__(self, what: Literal["epoch", "result", "figure", "end"], *told: Any) -> None:
        """Tells each tracker something, by the method of this name."""
        for tracker in self._begun:
            self._took(tracker, what, *told)

    def __enter__(self) -> Told:
        """Nothing is told before `begin`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tells the trackers how the run ended, if they were told that it began."""
        status: Status = "finished"
        if kind is not None:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt | SystemExit) else "failed"
        self("end", status)

    def _took(self, tracker: Tracker, what: str, *told: Any) -> bool:
        """Tells a tracker something, and returns whether it took it."""
        try:
            getattr(tracker, what)(*told)
        except Exception as error:  # a tracker may be a user's own, which raises anything
            if not any(tracker is each for each in self._failed):
                self._failed.append(tracker)
                name = f"{type(tracker).__name__}.{what}"
                self.console.print(f"Left out: tracker {name}: {type(error).__name__}: {error}", markup=False)
            return False
        return True
