"""The live part of a report: single test data, with what every run says of each."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from math import ceil, isfinite, isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from pyro_vae.app.evaluation.measured import Opened
from pyro_vae.evaluate import reconstruct
from pyro_vae.figures.images import pixels, sheet
from pyro_vae.figures.look import Look
from pyro_vae.files import to_json
from pyro_vae.reports import Trained

_PIXELS = 300_000
"""How many pixels the data of a page have in all, so that its size stays bounded."""
_NUMBERS = 60_000
"""How many numbers those that are no images have in all."""
_LONGEST = 400
"""A longer signal is drawn by so many of its points, evenly spaced."""
_LONGEST_SIDE = 160
"""A larger image is shown by so many pixels."""
_KNOWN: dict[str, tuple[str, bool | None]] = {
    "pareto_k": ("k̂", True),
    "rise": ("rise with K", True),
    "ess": ("effective particles", False),
    "bound": ("bound", False),
    "ais": ("log p(x), annealing", False),
    "ais_error": ("its standard error", True),
    "elbo": ("ELBO", False),
    "elbo_best": ("ELBO of the best q", False),
    "log_px_refined": ("log p(x), refined q", False),
    "approximation": ("approximation gap", True),
    "amortization": ("amortization gap", True),
    "information": ("information on t", None),
    "marginal_kl": ("log q(t) − log p(t)", None),
    "log_px": ("log p(x)", False),
}
"""What a number of each datum is called, and whether a high one is bad; None where neither a high nor a low one is."""


def gallery(runs: Sequence[Opened], shown: int, room: int) -> dict[str, Any]:
    """Some test data, chosen by what can be trusted least, with their reconstructions by each run, as plain data.

    Args:
        runs: runs that were evaluated on the same data.
        shown: the number of data; fewer where they are large.
        room: how many bytes they have.
    """
    shown = min(shown, _most(runs[0].trained), len(runs[0].trained.data.test))
    while True:
        found = _of(runs, shown)
        size = len(to_json(found))
        if size <= room or shown == 1:
            return found
        shown = max(1, min(shown - 1, int(0.95 * shown * room / size)))


def _of(runs: Sequence[Opened], shown: int) -> dict[str, Any]:
    """So many test data."""
    trained = runs[0].trained
    look, each = trained.look, [run.joined("each") for run in runs]
    n = len(trained.data.test)
    index, chosen = _chosen(each, n, shown)
    x = trained.data.test.x[index]
    labels = trained.data.test.labels
    means = [_reconstructed(run.trained, index) for run in runs]
    names = list(dict.fromkeys(name for numbers in each for name in numbers if np.isfinite(numbers[name]).any()))
    log_px = " or ".join(dict.fromkeys(run.trained.log_px for run in runs))
    return {
        "kind": look.kind,
        "noun": look.noun,
        "told": f"{len(index)} of the {n:,} test {look.noun}{chosen}",
        "index": index.tolist(),
        "label": None if labels is None else [trained.data.view.label(k) for k in labels[index].tolist()],
        "names": [look.columns[j] if look.columns else f"x{j + 1}" for j in range(x[0].numel())]
        if look.kind == "table"
        else [],
        "measures": [
            {"name": name, "label": _label(name, log_px), "high": _KNOWN.get(name, ("", None))[1]} for name in names
        ],
        "runs": [
            {"name": run.name, "numbers": {name: _some(numbers[name], index) for name in names if name in numbers}}
            for run, numbers in zip(runs, each, strict=True)
        ],
        **_drawn(x, means, look),
    }


def _label(name: str, log_px: str) -> str:
    return _KNOWN.get(name, (name.replace("_", " "), None))[0].replace("log p(x)", log_px)


def _most(trained: Trained) -> int:
    """How many data a page has room for."""
    one = trained.data.test.x[0]
    if trained.look.kind == "image":
        height, width = pixels(one, trained.look).shape[:2]
        return max(1, _PIXELS // min(height * width, _LONGEST_SIDE**2))
    return max(1, _NUMBERS // min(one.numel(), 4 * _LONGEST))


def _chosen(each: Sequence[dict[str, Any]], n: int, shown: int) -> tuple[Tensor, str]:
    """The indices of the data that are shown, in their order, and how they were chosen, in words.

    Half of them are the worst of the runs, by k̂ or else by log p(x); the others are the first.
    """
    if shown >= n:
        return torch.arange(n), ""
    orders = []
    for numbers in each:
        k = np.array(numbers.get("pareto_k", []), dtype=float)
        bad = k if np.isfinite(k).any() else -np.array(numbers.get("log_px", numbers.get("bound", [])), dtype=float)
        orders.append([i for i in np.argsort(-bad, kind="stable").tolist() if np.isfinite(bad[i])])
    places = [i for some in zip_longest(*orders) for i in some if i is not None]
    known = list(dict.fromkeys(places))
    worst = known[: ceil(shown / 2)]
    first = [i for i in range(n) if i not in set(worst)][: shown - len(worst)]
    which = f"the {len(worst)} of the heaviest tails or the lowest log p(x)"
    if len(worst) == len(known):
        which = f"the {len(worst)} whose tails or log p(x) were measured"
    told = " and ".join([which] * bool(worst) + ["the first others" if worst else "the first"] * bool(first))
    told = f": {told}"
    return torch.tensor(sorted(worst + first)), told


def _reconstructed(trained: Trained, index: Tensor) -> Tensor | None:
    """E[x'|t] of some test data; None where a model cannot say it."""
    columns = trained.test()
    some = replace(columns, tensors=columns.take(index.to(columns.x.device)), dynamic=False)
    try:
        return reconstruct(trained.model, some)
    except (ValueError, NotImplementedError, RuntimeError):
        return None


def _some(values: Sequence[float], index: Tensor) -> list[float | None]:
    """The numbers of some data; None where one is missing."""
    found = [values[i] if i < len(values) else None for i in index.tolist()]
    return [float(f"{value:.5g}") if value is not None and isfinite(value) else None for value in found]


def _drawn(x: Tensor, means: Sequence[Tensor | None], look: Look) -> dict[str, Any]:
    """What the page draws data from: sheets of images, or numbers."""
    if look.kind == "image":
        height, width = pixels(x[0], look).shape[:2]
        columns = ceil(len(x) / max(1, isqrt(len(x))))
        lines, longest = ceil(len(x) / columns), max(height, width)
        if longest > _LONGEST_SIDE:
            height, width = (max(1, round(side * _LONGEST_SIDE / longest)) for side in (height, width))
        whole = [None if each is None else sheet(each, look, columns) for each in (x, *means)]
        if longest > _LONGEST_SIDE:
            whole = [each and each.resize((columns * width, lines * height), Image.Resampling.BOX) for each in whole]
        sheets = [None if each is None else data_url(each) for each in whole]
        return {"size": [height, width], "columns": columns, "lines": lines, "sheets": sheets}
    return {
        "low": look.low,
        "high": look.high,
        "values": [None if each is None else _values(each, look) for each in (x, *means)],
        "range": _ranges(x) if look.kind == "table" else None,
    }


def _values(x: Tensor, look: Look) -> list[Any]:
    """Data as lists: the channels of a signal, (N, C, L), or the columns of a table, (N, D)."""
    numbers = x.detach().cpu().double()
    if look.kind == "table":
        return [_rounded(row) for row in numbers.flatten(1).tolist()]
    lines = numbers.reshape(len(x), -1, x.shape[-1])
    step = ceil(lines.shape[-1] / _LONGEST)
    return [[_rounded(line) for line in datum] for datum in lines[..., ::step].tolist()]


def _ranges(x: Tensor) -> list[list[float]]:
    """The smallest and the largest value of each column of a table."""
    columns = x.detach().cpu().double().flatten(1).T
    seen = [column[column.isfinite()] for column in columns]
    return [[float(each.min()), float(each.max())] if len(each) else [0.0, 1.0] for each in seen]


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [float(f"{value:.4g}") if isfinite(value) else None for value in values]


def data_url(picture: Image.Image, side: int | None = None, quality: int | None = None) -> str:
    """The address that holds a picture: as WebP, which takes half of PNG's place, where Pillow writes it.

    Args:
        picture: the picture, which is kept without loss where nothing else is told.
        side: what the longer side has at most, in pixels.
        quality: how well it is kept, up to 100, where it may lose details.
    """
    file, web = io.BytesIO(), features.check("webp")
    shown = picture.convert("RGB")
    if side:
        shown.thumbnail((side, side))
    form = "WEBP" if web else "JPEG" if quality else "PNG"
    told: dict[str, Any] = {"quality": quality} if quality else {"lossless": True} if web else {"optimize": True}
    shown.save(file, form, **told)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
