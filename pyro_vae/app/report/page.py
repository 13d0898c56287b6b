"""The page of a report, as text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from PIL import Image

from pyro_vae._version import version
from pyro_vae.app.evaluation.measured import Comparison, Evaluation, Opened
from pyro_vae.app.report.gallery import data_url, gallery
from pyro_vae.figures import bounds
from pyro_vae.files import from_json, read_text, read_yaml, to_json
from pyro_vae.networks import count_parameters

_COLORS = ("#1f77b4", "#d95f02", "#2a8a4a", "#b3262b", "#7c5bb0")
"""The colors of runs, ``--c0`` to ``--c4`` in ``page.css``, which has others for a dark page."""
_NOT_COMPARED = frozenset({"out", "device", "config", "print_config"})
"""Options that do not tell what was trained."""


def page(evaluation: Evaluation, shown: int, command: str, others: Sequence[str]) -> str:
    """The report of runs that were measured, as one HTML page.

    Args:
        evaluation: the runs.
        shown: how many test data its live part has.
        command: what made it, for its last line.
        others: the names of metrics that can be measured.
    """
    runs = [run for run in evaluation.runs if run.cells]
    configs = [_flat(from_json(to_json(_config(run)))) for run in runs]
    return (
        _environment()
        .from_string(_file("page.html"))
        .render(
            title=", ".join(run.name for run in runs),
            made=f"By pyro_vae {version}, {datetime.now():%Y-%m-%d %H:%M}. All log quantities are in nats per datum.",
            css=Markup(_file("page.css")),
            js=Markup(_file("page.js")),
            left_out=evaluation.skipped,
            runs=[_told(run, evaluation, others) for run in runs],
            comparison=_comparison(evaluation) if len(runs) > 1 else None,
            curves=[_curves(of_data) for of_data in _by_data(runs) if any(run.trained.records for run in of_data)],
            galleries=[gallery(of_data, shown) for of_data in _by_data(runs)] if shown else [],
            differences=_differences(configs),
            command=command,
        )
    )


def _told(run: Opened, evaluation: Evaluation, others: Sequence[str]) -> dict[str, Any]:
    """What the page tells of one run."""
    trained, measured = run.trained, {name.partition("(")[0] for name in run.cells}
    data = trained.data
    sizes = f"{len(data.train):,} training, {len(data.valid):,} validation and {len(data.test):,} test {trained.noun}"
    return {
        "name": run.name,
        "noun": trained.noun,
        "notices": [*_unfinished(run), *run.notices],
        "metrics": list(run.cells),
        "others": [name for name in others if name not in measured],
        "rows": run.rows,
        "about": f"{type(run.model).__name__}, d = {run.model.dims.latent}, {count_parameters(run.model):,} "
        f"parameters; {sizes} of {'×'.join(map(str, data.x_shape))} numbers; in {run.folder}",
        "figures": _figures(run, evaluation.cells.folder),
        "config": read_text(run.folder / "config.yaml"),
        "versions": _versions(run.folder),
    }


def _unfinished(run: Opened) -> list[str]:
    """A sentence where fewer epochs were trained than the run was told."""
    asked, done = _config(run).get("epochs"), len(run.trained.records)
    if isinstance(asked, int) and 0 < done < asked:
        return [f"The training was ended after {done} of {asked} epochs."]
    return []


def _config(run: Opened) -> dict[str, Any]:
    found = read_yaml(run.folder / "config.yaml")
    return found if isinstance(found, dict) else {}


def _versions(folder: Path) -> dict[str, str]:
    """The versions that a run was made with; none where they are not there or damaged."""
    try:
        found = from_json(read_text(folder / "versions.json"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _figures(run: Opened, folder: Path) -> dict[str, str]:
    """The pictures of a run, and those of its metrics, as addresses that hold them, by what they show."""
    paths = {path.stem: path for path in sorted((run.folder / "figures").glob("*.png"))}
    for cell in run.cells.values():
        for name in cell.get("figures", []):
            paths[name.removeprefix(f"{run.stem}-")] = folder / "figures" / f"{name}.png"
    found = {}
    for name, path in paths.items():
        unreadable = OSError, ValueError, SyntaxError, Image.DecompressionBombError  # a folder may hold anything
        with suppress(*unreadable), Image.open(path, formats=["PNG"]) as picture:
            found[name.replace("_", " ")] = data_url(picture)
    return found


def _comparison(evaluation: Evaluation) -> Comparison:
    found = evaluation.compared()
    return Comparison("", [], [], [found]) if isinstance(found, str) else found


def _by_data(runs: Sequence[Opened]) -> list[list[Opened]]:
    """The runs that were evaluated on the same data together."""
    return [[run for run in runs if run.digests[1] == each] for each in dict.fromkeys(run.digests[1] for run in runs)]


def _curves(runs: Sequence[Opened]) -> Markup:
    """The bounds of runs over their epochs, as SVG in the colors of the page."""
    records = {run.name: run.trained.records for run in runs if run.trained.records}
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyro_vae"}):
        figure = bounds(records, colors=_COLORS)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for number, color in enumerate(_COLORS):
        text = text.replace(color, f"var(--c{number})")
    return Markup(text.replace("#000000", "currentColor").replace("#ffffff", "var(--card)"))


def _differences(configs: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The options that are not the same in all runs, with the value of each run."""
    names = dict.fromkeys(name for config in configs for name in config)
    values = {name: [config.get(name, "–") for config in configs] for name in names}
    return {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}


def _flat(value: Any, place: str = "") -> dict[str, str]:
    """Options by their place in a configuration; classes without their modules."""
    if isinstance(value, dict) and "class_path" in value:
        inner = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        return {place: str(value["class_path"]).rpartition(".")[2], **_flat(inner, place)}
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for name, each in value.items():
            if place or name not in _NOT_COMPARED:
                found |= _flat(each, f"{place}.{name}" if place else name)
        return found
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return {name: text for i, each in enumerate(value) for name, text in _flat(each, f"{place}[{i}]").items()}
    return {place: "none" if value is None else value if isinstance(value, str) else to_json(value)}


@cache
def _file(name: str) -> str:
    return (resources.files("pyro_vae.app.report") / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["minus"] = lambda text: re.sub(r"(?<![\w.-])-(?=\d)", "−", str(text))
    return environment
