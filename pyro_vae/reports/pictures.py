"""The pictures of a run: learning curves, and what the trained model makes of the test data."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from pyro_vae.evaluate import decode, encode, reconstruct, sample
from pyro_vae.missing import has_missing
from pyro_vae.reports.base import Picture, Trained

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
        if first.y is not None or others or t.shape[1:] != (2,):
            return {}
        ticks = torch.linspace(-2.5, 2.5, 21, device=first.x.device)
        plane = torch.stack([ticks.repeat(21), ticks.flip(0).repeat_interleave(21)], dim=1)
        means, title = decode(trained.model, {site: plane}, first.x), "the latent plane: means of p(x|t)"
        return {"plane": figures.plane(means, ticks.tolist(), trained.look, title)}


@final
class Traversals(Picture):
    """The most central test datum, with one of the most used latent coordinates moved at a time, and all others kept.

    It shows nothing for one latent of two dimensions, which `Plane` shows, and for models that are given labels.
    """

    def draw(self, trained: Trained) -> dict[str, Figure]:
        """One figure, or none."""
        from pyro_vae import figures  # noqa: PLC0415

        first = trained.test(_SHOWN)
        draws = [encode(trained.model, first, seed=seed) for seed in range(10)]
        means = {site: torch.stack([draw[site] for draw in draws]).mean(0) for site in _moving(draws[0])}
        sizes = [t[0].numel() for t in means.values()]
        if first.y is not None or sizes in ([], [2]):
            return {}
        flat = torch.cat([t.reshape(len(t), -1) for t in means.values()], 1)
        places = [(site, j) for site, t in means.items() for j in range(t[0].numel())]
        ticks = torch.linspace(-3, 3, 11, device=first.x.device)
        central = flat.norm(dim=1).argmin()  # from there both ways lead through the data
        others = {site: t[central] for site, t in draws[0].items()} | {site: t[central] for site, t in means.items()}
        lines: list[Tensor] = []
        names: list[str] = []
        for at in flat.var(0, correction=0).argsort(descending=True).tolist():  # one datum has a variance too: 0
            site, j = places[at]
            latents = {name: t.expand(len(ticks), *t.shape).clone() for name, t in others.items()}
            latents[site].view(len(ticks), -1)[:, j] = ticks
            line = decode(trained.model, latents, first.x)
            if len(means) == 1 or not torch.equal(line[0], line[-1]):  # a latent above another does not move x itself
                lines.append(line)
                names.append(figures.coordinate(site, j, others[site].shape))
            if len(lines) == 10:
                break
        if not lines:
            return {}
        title = "means of p(x|t): one latent moves, the others stay"
        return {"traversals": figures.traversals(torch.cat(lines), names, ticks.tolist(), trained.look, title)}


def _moving(latents: dict[str, Tensor]) -> list[str]:
    """The sites whose values are real numbers, which a picture can move."""
    return [site for site, t in latents.items() if t.is_floating_point()]
