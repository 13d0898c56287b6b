"""The encoder and the decoder of a model as `torch.export` programs, which need neither this library nor Pyro.

A Pyro program is told the number of its data by ``len(x)``, which is one number for ever in an exported program. So the program
is exported for a single datum, and made one for any number of data by `torch.vmap`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from pyro_vae.data import DataLike
from pyro_vae.evaluate.latents import closed_form
from pyro_vae.evaluate.predictions import example_of
from pyro_vae.files import write_whole
from pyro_vae.kinds import shortened, takes
from pyro_vae.scopes import evaluating
from pyro_vae.traces import Programs, described, inputs_of, library_path, run_guide

_EXAMPLES = 3
"""The number of data that are exported with, and the number + 2 that the exported program is tried with."""


@takes
def export(programs: Programs, folder: Path, like: DataLike | None = None) -> tuple[Path, Path]:
    """Writes ``encoder.pt2`` and ``decoder.pt2`` into a folder, which is made. Returns their paths.

    ``torch.export.load(path).module()`` reads them. They take any number of data.

    Args:
        programs: a model and a guide in one ``nn.Module``.
        folder: the folder.
        like: data, of which only the shape of a datum, the type and the device are used. The models of this project know them.

    Raises:
        ValueError: one of them cannot be exported (see `export_encoder` and `export_decoder`); nothing is written then.
    """
    made = {"encoder": export_encoder(programs, like), "decoder": export_decoder(programs, like)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.pt2" for name in made}
    for name, program in made.items():
        file = io.BytesIO()
        torch.export.save(program, file)
        write_whole(paths[name], file.getvalue())
    return paths["encoder"], paths["decoder"]


@takes
def export_encoder(programs: Programs, like: DataLike | None = None) -> ExportedProgram:
    """Returns the guide as an exported program: ``encoder(x)``, or ``encoder(x, y)`` for programs that take labels.

    It returns a dictionary of tensors with N leading. For a site ``t``: ``"t"`` is one draw from q(t|x,φ), by the global
    random numbers; ``"t_mean"`` and ``"t_scale"`` are there where they have a closed form given x alone. Where a guide's
    draws cannot be exported and all of its means can, as with `MixtureOfNormals`, there are no draws.

    Args:
        programs: a model and a guide in one ``nn.Module``.
        like: data, of which only the shape of a datum, the type and the device are used. The models of this project know them.

    Raises:
        ValueError: the programs are no ``nn.Module``, or the guide does what PyTorch cannot export for any number of data.
    """
    module, batch = _module(programs), _examples(programs, like, _EXAMPLES)
    with evaluating(programs, batch[0].device, "export"):
        sites = run_guide(programs.guide, *batch, K=2)
        moments = {name: closed_form(q) for name, (_, q) in sites.items()}
    known = [
        name for name, each in moments.items() if each is not None and all(bool((m[0] == m[1]).all()) for m in each)
    ]

    def encode(draws: bool, *batch: Tensor) -> dict[str, Tensor]:
        found = {}
        guide = programs.guide if draws else _AtMeans(known)(programs.guide)
        for name, (value, q) in run_guide(guide, *batch).items():
            if draws:
                found[name] = value.reshape(q.event_shape)
            if name in known:
                found[f"{name}_mean"] = q.mean.reshape(q.event_shape)
                found[f"{name}_scale"] = q.variance.sqrt().reshape(q.event_shape)
        return found

    def exported(draws: bool) -> ExportedProgram:
        return _exported("guide", module, partial(encode, draws), batch, _examples(programs, like, _EXAMPLES + 2))

    try:
        return exported(draws=True)
    except ValueError:
        if len(known) < len(sites):
            raise
        return exported(draws=False)


@takes
def export_decoder(programs: Programs, like: DataLike | None = None) -> ExportedProgram:
    """Returns the model's E[x|t] as an exported program: ``decoder(t)``, or ``decoder(t, y)`` for programs that take labels.

    With several latent sites it takes those that E[x|t] depends on, in the order in which the guide draws them: t alone for
    `TwoLayer` and `Ladder`. It returns a tensor ``(N, *x_shape)``, the mean of the model's first observed site.

    Args:
        programs: a model and a guide in one ``nn.Module``.
        like: data, of which only the shape of a datum, the type and the device are used. The models of this project know them.

    Raises:
        ValueError: the programs are no ``nn.Module``, or the model does what PyTorch cannot export for any number of data.
    """
    module, batch = _module(programs), _examples(programs, like, _EXAMPLES)
    sites, others = _needed(programs, batch)
    x_at = inputs_of(programs).index("x")
    shape = batch[x_at].shape[1:]

    def decode(*given: Tensor) -> Tensor:
        """The mean for one datum: its latents, and then its label, if there is one."""
        latents, rest = dict(zip(sites, given, strict=False)), list(given[len(sites) :])
        rest.insert(x_at, batch[x_at].new_zeros((1, *shape)))
        mean: Tensor = next(iter(described(programs.model, latents | others, *rest).values())).mean
        return mean[0]

    def inputs(n: int) -> tuple[Tensor, ...]:
        columns = _examples(programs, like, n)
        with evaluating(programs, columns[0].device, "export"):
            drawn = run_guide(programs.guide, *columns)
        rest = [column for i, column in enumerate(columns) if i != x_at]
        return *(drawn[name][0][0] for name in sites), *rest

    return _exported("model", module, decode, inputs(_EXAMPLES), inputs(_EXAMPLES + 2))


def _module(programs: Any) -> nn.Module:
    if not isinstance(programs, nn.Module):
        raise ValueError(
            f"programs: export takes a model and a guide in one nn.Module, whose weights it writes, and got a "
            f"{type(programs).__name__}"
        )
    return programs


def _examples(programs: Programs, like: DataLike | None, n: int) -> tuple[Tensor, ...]:
    """What the programs are called with, for n data whose values have no meaning."""
    x = example_of(programs, like)
    columns = {"x": x.expand(n, *x.shape[1:]).clone(), "y": torch.zeros(n, dtype=torch.long, device=x.device)}
    return tuple(columns[name] for name in inputs_of(programs))


def _needed(programs: Programs, batch: tuple[Tensor, ...]) -> tuple[list[str], dict[str, Tensor]]:
    """Returns the latent sites that the mean of x depends on, and a value of each of the others, for one datum.

    A latent without a gradient, such as a discrete one, counts among those that are needed.
    """
    with evaluating(programs, batch[0].device, "export"):
        drawn = {name: value[0].clone() for name, (value, _) in run_guide(programs.guide, *batch).items()}
        smooth = [name for name, value in drawn.items() if value.is_floating_point()]
        with torch.enable_grad():
            for name in smooth:
                drawn[name].requires_grad_()
            mean = next(iter(described(programs.model, drawn, *batch).values())).mean
            leaves = [drawn[name] for name in smooth] if mean.requires_grad else []
            slopes = torch.autograd.grad(mean.sum(), leaves, allow_unused=True) if leaves else ()
    without = set(smooth) - {name for name, slope in zip(smooth, slopes, strict=False) if slope is not None}
    sites = [name for name in drawn if name not in without] or list(drawn)[:1]  # of a decoder that ignores t
    return sites, {name: value[:1].detach().clone() for name, value in drawn.items() if name not in sites}


def _exported(
    what: str,
    module: nn.Module,
    one: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    others: tuple[Tensor, ...],
) -> ExportedProgram:
    """Exports a function of single data, for any number of data, and tries it with another number.

    Raises:
        ValueError: it cannot be exported, or gives something else for another number of data.
    """
    program = _Batched(module, one)
    program.training = False  # of this module alone: those inside are put back to their own modes
    device = inputs[0].device
    sizes = tuple({0: Dim("n")} for _ in inputs)
    try:
        with evaluating(module, device, "export"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.export.export(program, inputs, dynamic_shapes=(sizes,), strict=False)
            again = found.module()(*others)
    except Exception as error:  # PyTorch raises errors of many kinds
        raise ValueError(
            f"{what}: it cannot be exported, since PyTorch cannot trace it for any number of data: "
            f"{shortened(str(error).strip().partition(chr(10))[0], 200)}"
        ) from error
    sizes_found = {len(each) for each in (again.values() if isinstance(again, dict) else [again])}
    if sizes_found != {len(others[0])}:
        raise ValueError(
            f"{what}: it cannot be exported, since it gives {sizes_found} results for {len(others[0])} data"
        )
    return found


class _Batched(nn.Module):
    """A function of single data, for any number of data.

    Args:
        module: what holds the weights.
        one: the function, which is given each input with a leading 1.
    """

    def __init__(self, module: nn.Module, one: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.one = module, one

    def forward(self, *inputs: Tensor) -> Any:
        """Returns the results of all data, with N leading."""

        def single(*each: Tensor) -> Any:
            with library_path(), _WithAnyNumber():
                return self.one(*(value.unsqueeze(0) for value in each))

        return torch.vmap(single, randomness="different")(*inputs)


class _WithAnyNumber(TorchFunctionMode):
    """Replaces three functions by ones that `torch.vmap` takes for any number of data (as of PyTorch 2.14).

    It has no rule for a ``normal_`` in place of numbers that are the same for all data, and its rules for ``bernoulli`` and for
    ``cat`` fix their number.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of PyTorch, or the one in its place."""
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_ and len(args) == 1 and not kwargs:
            return torch.randn(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        if func is torch.bernoulli and len(args) == 1 and not kwargs:
            p = args[0]
            return (torch.rand(p.shape, dtype=p.dtype, device=p.device) < p).to(p.dtype)
        if func in (torch.cat, torch.concat, torch.concatenate) and set(kwargs) <= {"dim", "tensors"}:
            return _joined(*args, **kwargs)
        return func(*args, **kwargs)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, as a sum of tensors that are padded with zeros."""
    kind = reduce(torch.promote_types, [each.dtype for each in tensors])
    after = -1 - dim if dim < 0 else tensors[0].dim() - 1 - dim
    whole, at, parts = sum(each.shape[-1 - after] for each in tensors), 0, []
    for each in tensors:
        end = at + each.shape[-1 - after]
        parts.append(pad(each.to(kind), [0, 0] * after + [at, whole - end]))
        at = end
    return reduce(torch.add, parts)


class _AtMeans(Messenger):
    """Gives latents their means in place of draws.

    Args:
        names: the sites whose means are known.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["value"], msg["done"] = msg["fn"].mean, True
