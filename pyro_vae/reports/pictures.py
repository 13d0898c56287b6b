"""The pictures of a run: learning curves, and what the trained model makes of the test data."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vae.discrete import BlockConstraint
from pyro_vae.evaluate import decode, encode, reconstruct, sample
from pyro_vae.evaluate.latents import supports
from pyro_vae.missing import has_missing
from pyro_vae.reports.base import Picture, Trained
from pyro_vae.reports.moves import Moves, moves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 1000
"""How many test data are shown in the latent space."""


@final
class LearningCurves(Picture):
    """The bound and its terms on training and validation data, against the epoch."""

    def draw(self, trained: Trained) -> dict[str, Figure]:
        """One figure."""
        from pyro_vae import figures  # noqa: PLC0415  (matplotlib)

        return {"learning_curves": figures.learning_curves(trained.records, given=trained.given)}


@final
class Reconstructions(Picture):
    """The first test data and their reconstructions."""

    def draw(self, trained: Trained) -> dict[str, Figure]:
        """One figure."""
        from pyro_vae import figures  # noqa: PLC0415

        first, look = trained.test(_SHOWN if trained.look.kind == "table" else 24), trained.look
        means, title = reconstruct(trained.model, first), f"test {look.noun} and their reconstructions"
        if has_missing(first.x):
            how = {"image": "pink in x", "signal": "pink points", "table": "pink marks"}[look.kind]
            title += f", which impute missing values ({how})"
        return {"reconstructions": figures.reconstructions(first.x, means, look, title)}


@final
class Samples(Picture):
    """Means of p(x|t) at t ~ p(t); for a model that is given labels, a line for each class.

    Columns of a table are shown by histograms, and there x itself is drawn, since means vary less than data do.
    """

    def draw(self, trained: Trained) -> dict[str, Figure]:
        """One figure."""
        from pyro_vae import figures  # noqa: PLC0415

        first, look = trained.test(_SHOWN), trained.look
        if look.kind == "table":
            given, y = ("t", None) if first.y is None else ("t,y", first.y)
            drawn = sample(trained.model, _SHOWN if y is None else len(y), like=first, y=y, noise=True)
            title = f"test data, and samples x ~ p(x|{given}) at t ~ p(t)"
            return {"samples": figures.samples(drawn, look, title, x=first.x)}
        if first.y is None:
            means = sample(trained.model, 100, like=first)
            return {"samples": figures.samples(means, look, "means of p(x|t) at t ~ p(t)")}
        each = first.y.unique()[:20]
        means = sample(trained.model, 10 * len(each), like=first, y=each.repeat_interleave(10))
        names, where = [trained.data.view.label(k) for k in each.tolist()], "line" if look.kind == "image" else "panel"
        title = f"means of p(x|t,y) at t ~ p(t), a {where} for each class y"
        return {"samples": figures.samples(means, look, title, names=names)}


@final
class Latents(Picture):
    """Test data in the latent space, a panel for each latent."""

    def draw(self, trained: Trained) -> dict[str, Figure]:
        """One figure."""
        from pyro_vae import figures  # noqa: PLC0415

        t = encode(trained.model, trained.test(_SHOWN))
        sites = ", ".join(t)
        title = f"test data in the latent space, {sites} ~ q({sites}|x,φ)"
        return {"latents": figures.latents(t, trained.labels(_SHOWN), title, trained.data.view.label)}


@final
class Plane(Picture):
    """The plane of a latent of two dimensions, as means of p(x|t), where it is the only latent and no label is given."""

    def draw(self, trained: Trained) -> dict[str, Figure]:
        """One figure, or none."""
        from pyro_vae import figures  # noqa: PLC0415

        first = trained.test(_SHOWN)
        (site, t), *others = encode(trained.model, first.first(1)).items()
        if first.y is not None or others or not _is_plane(t, supports(trained.model, first)[site]):
            return {}
        ticks = torch.linspace(-2.5, 2.5, 21, device=first.x.device)
        plane = torch.stack([ticks.repeat(21), ticks.flip(0).repeat_interleave(21)], dim=1)
        means, title = decode(trained.model, {site: plane}, first.x), "the latent plane: means of p(x|t)"
        return {"plane": figures.plane(means, ticks.tolist(), trained.look, title)}


@final
class Traversals(Picture):
    """The most central test datum, with one of the most used parts of its latent moved at a time, and all others kept.

    A part is a real number, a bit, or a one-hot vector, which takes each of its classes. The picture shows nothing for one
    latent of two real numbers, which `Plane` shows, and for models that are given labels.
    """

    def draw(self, trained: Trained) -> dict[str, Figure]:
        """One figure, or none."""
        from pyro_vae import figures  # noqa: PLC0415

        first = trained.test(_SHOWN)
        draws = [encode(trained.model, first, seed=seed) for seed in range(10)]
        known = supports(trained.model, first)
        ways = {site: way for site, t in draws[0].items() if (way := moves(known[site], t))}
        if first.y is not None or not ways:
            return {}
        way = next(iter(ways.values()))  # all lines of a picture have the same columns
        means = {
            site: torch.stack([draw[site].double() for draw in draws]).mean(0) for site in ways if ways[site] == way
        }
        (site, t), *others = means.items()
        if not others and len(draws[0]) == 1 and _is_plane(t, known[site]):
            return {}
        central = _central(torch.cat([t.reshape(len(t), -1) for t in means.values()], 1), way)
        numbers = means if way.kind == "number" else {}
        fixed = {site: numbers.get(site, t)[central].to(t.dtype) for site, t in draws[0].items()}
        places = [(site, part) for site, t in means.items() for part in range(way.parts(t))]
        used = torch.cat([way.spread(t) for t in means.values()])
        lines: list[Tensor] = []
        names: list[str] = []
        for at in used.argsort(descending=True).tolist():  # one datum has a variance too: 0
            site, part = places[at]
            latents = {name: t.expand(len(way.ticks), *t.shape) for name, t in fixed.items()}
            line = decode(trained.model, latents | {site: way.line(fixed[site], part)}, first.x)
            if len(means) == 1 or not torch.equal(line[0], line[-1]):  # a latent above another does not move x itself
                lines.append(line)
                block = f"{site}, block {part + 1}"
                names.append(block if way.kind == "block" else figures.coordinate(site, part, fixed[site].shape))
            if len(lines) == 10:
                break
        if not lines:
            return {}
        return {"traversals": figures.traversals(torch.cat(lines), names, way.ticks, trained.look, way.title)}


def _is_plane(t: Tensor, support: Constraint) -> bool:
    """Whether a latent ``(N, *event)`` is a vector of two numbers that are not discrete, and may be any pair."""
    return t.shape[1:] == (2,) and not support.is_discrete and not isinstance(support, BlockConstraint)


def _central(means: Tensor, way: Moves) -> Tensor:
    """Returns which of the data, of mean latents ``(N, d)``, is most central: from there all ways lead through the data."""
    center = means.new_zeros(()) if way.kind == "number" else means.mean(0)
    return (means - center).norm(dim=1).argmin()
