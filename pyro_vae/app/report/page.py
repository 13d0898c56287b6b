"""The page of a report, as text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from PIL import Image

from pyro_vae._version import version
from pyro_vae.app.evaluation.measured import Comparison, Evaluation, Opened
from pyro_vae.app.report.gallery import data_url, gallery
from pyro_vae.evaluate.pareto import LEAST
from pyro_vae.figures import bounds
from pyro_vae.files import from_json, read_text, to_json
from pyro_vae.networks import count_parameters
from pyro_vae.runs.records import METRICS

_COLORS = ("#1f77b4", "#d95f02", "#2a8a4a", "#b3262b", "#7c5bb0")
"""The colors of runs, ``--c0`` to ``--c4`` in ``page.css``, which has others for a dark page."""
_FIGURES, _DATA = 1_700_000, 900_000
"""How many bytes the figures of a page have, and its single data, so that it stays below 3 MB."""
_NOT_COMPARED = frozenset({"out", "device", "config", "print_config"})
"""Options that do not tell what was trained."""


def page(
    evaluation: Evaluation,
    comparison: Comparison | str | None,
    shown: int,
    command: str,
    others: Sequence[str],
    given: Any = None,
) -> str:
    """The report of runs that were measured, as one HTML page.

    Args:
        evaluation: the runs.
        comparison: the table that compares them, or why there is none; None for a single run.
        shown: how many test data its live part has.
        command: what made it, for its last line.
        others: the names of metrics that can be measured.
        given: what stands in place of each run's own data, as plain data; None where they are its own.
    """
    runs = [run for run in evaluation.runs if run.cells]
    by_data = _by_data(runs)
    configs = [_flat(run.config) for run in runs]
    return (
        _environment()
        .from_string(_file("page.html"))
        .render(
            title=", ".join(run.name for run in runs),
            made=f"By pyro_vae {version}, {datetime.now():%Y-%m-%d %H:%M}. All log quantities are in nats per datum.",
            css=Markup(_file("page.css")),
            js=Markup(_file("page.js")),
            given=_given(given) if given else "",
            left_out=evaluation.skipped,
            runs=[_told(run, evaluation, others, _FIGURES // len(runs)) for run in runs],
            comparison=Comparison("", [], [], [comparison]) if isinstance(comparison, str) else comparison,
            curves=[_curves(of_data) for of_data in by_data if any(run.trained.records for run in of_data)],
            galleries=[gallery(of_data, shown, _DATA // len(by_data)) for of_data in by_data] if shown else [],
            differences=_differences(configs),
            command=command,
        )
    )


def _told(run: Opened, evaluation: Evaluation, others: Sequence[str], room: int) -> dict[str, Any]:
    """What the page tells of one run, with so many bytes of room for its figures."""
    trained, measured = run.trained, {name.partition("(")[0] for name in run.cells}
    data = trained.data
    figures, unread = _figures(run, evaluation.cells.folder, room)
    sizes = f"{len(data.test):,} test {trained.noun}"
    if evaluation.asked.data is None:
        sizes = f"{len(data.train):,} training, {len(data.valid):,} validation and {sizes}"
    return {
        "name": run.name,
        "noun": trained.noun,
        "notices": [*_unfinished(run), *_without_k(run), *run.notices],
        "metrics": list(run.cells),
        "others": [name for name in others if name not in measured],
        "rows": run.rows,
        "about": f"{type(run.model).__name__}, d = {run.model.dims.latent}, {count_parameters(run.model):,} "
        f"parameters; {sizes} of {'×'.join(map(str, data.x_shape))} numbers; in {run.folder}",
        "figures": figures,
        "unread": unread,
        "config": read_text(run.folder / "config.yaml"),
        "versions": _versions(run.folder),
    }


def _unfinished(run: Opened) -> list[str]:
    """A sentence where fewer epochs were trained than the run was told, or where nothing says how many."""
    asked, done = run.config.get("epochs"), len(run.trained.records)
    if isinstance(asked, int) and done == 0 < asked:
        return [f"How the training went is not known: {METRICS} holds no epoch, or is not there."]
    if isinstance(asked, int) and 0 < done < asked:
        return [f"The training was ended after {done} of {asked} epochs."]
    return []


def _without_k(run: Opened) -> list[str]:
    """A sentence where log p(x) was measured with too few particles for k̂."""
    k = run.joined("each").get("pareto_k")
    if k is None or np.isfinite(np.array(k, dtype=float)).any():
        return []
    K = run.trained.test_particles
    if K < LEAST:
        return [f"k̂ is not known, since that takes K of at least {LEAST} particles, and K is {K} (--test_particles)."]
    return ["k̂ is not known for any datum."]


def _versions(folder: Path) -> dict[str, str]:
    """The versions that a run was made with; none where they are not there or damaged."""
    try:
        found = from_json(read_text(folder / "versions.json"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _figures(run: Opened, folder: Path, room: int) -> tuple[dict[str, str], list[str]]:
    """The pictures of a run, and those of its metrics, as addresses that hold them, by what they show; and what is amiss.

    Args:
        run: the run.
        folder: where the pictures of metrics are.
        room: about how many bytes they have in all. Where they need more, the larger ones lose details.
    """
    paths = {path.stem: path for path in sorted((run.folder / "figures").glob("*.png"))}
    for cell in run.cells.values():
        for name in cell.get("figures", []):
            paths[name.removeprefix(f"{run.stem}-")] = folder / "figures" / f"{name}.png"
    pictures, amiss = {}, []
    for stem, path in paths.items():
        name = stem.replace("_", " ")
        try:
            pictures[name] = _opened(path)
        except _UNREADABLE as error:
            amiss.append(f"Left out: {path}: no PNG that can be shown ({type(error).__name__}).")
    found = {name: data_url(picture) for name, picture in pictures.items()}
    coarser = set()
    for side, quality in _COARSER:
        if sum(map(len, found.values())) <= room:
            break
        for name in [name for name, source in found.items() if len(source) > room / len(found)]:
            found[name] = data_url(pictures[name], side, quality)
            coarser.add(name)
    if coarser:
        amiss.append(
            f"Smaller or coarser here than in the folder, for the size of this page: {', '.join(sorted(coarser))}."
        )
    return found, amiss


_UNREADABLE = OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning
"""What Pillow raises for files that are no pictures, since a folder may hold anything."""
_LONGEST_SIDE = 4000
"""A longer picture is made smaller at once; no browser and no WebP shows one of more than 16,383 pixels."""
_COARSER = ((2000, 90), (1400, 75), (900, 60), (500, 40), (200, 20))
"""The longest side in pixels and the quality of pictures for which there is not enough room, in the order they are tried."""


def _opened(path: Path) -> Image.Image:
    """A picture on white, of at most `_LONGEST_SIDE` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG"]) as picture:
            picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
            if not picture.has_transparency_data:
                return picture.convert("RGB")
            clear = picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


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
    """The options that are not the same in all runs, with the value of each run; options of one slot stand together."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    slots = list(dict.fromkeys(re.split(r"[.[]", name)[0] for name in names))
    names.sort(key=lambda name: slots.index(re.split(r"[.[]", name)[0]))
    values = {name: [config.get(name, "–") for config in configs] for name in names}
    return {name: _short(of_runs) for name, of_runs in values.items() if len(set(of_runs)) > 1}


def _short(values: Sequence[str]) -> list[str]:
    """Names of classes without their modules, unless two classes of one name are then told apart no more."""
    short = [re.sub(r"^<class> (?:[\w.]*\.)?", "", value) for value in values]
    return short if len(set(short)) == len(set(values)) else [value.removeprefix(_CLASS) for value in values]


_CLASS = "<class> "
"""What the path of a class begins with, among options that were made flat."""


def _given(described: Any) -> str:
    """Data that were described as plain data, in words."""
    flat = _flat(described, "data")
    return ", ".join(f"--{name} {_short([value])[0]}" for name, value in flat.items() if value not in {"none", "[]"})


def _flat(value: Any, place: str = "") -> dict[str, str]:
    """Options by their place in a configuration. The paths of classes are marked by `_CLASS`."""
    if isinstance(value, dict) and "class_path" in value:
        inner = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        return {place: f"{_CLASS}{value['class_path']}", **_flat(inner, place)}
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
