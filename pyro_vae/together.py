"""Several processes train one model, each on its share of every batch.

They begin with the same weights, see the data in the same order, and draw the same random numbers as one process would: each
draws those of the whole batch and takes those of its own data. The sum of their gradients is the gradient of one process, so
that the weights are the same for any number of processes, within rounding. Random numbers whose count depends on their
parameters, as those of a gamma distribution do, have the right distribution and are others than one process draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.files import digest


class LostError(ConnectionError):
    """Raised if another process of a training is gone, or does something else."""


class Together:
    """The processes that train together.

    Args:
        rank: the number of this one.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @staticmethod
    def now() -> Together | None:
        """Those that `torch.distributed` connects at the moment, if there are several."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return None
        return Together(dist.get_rank(), dist.get_world_size())

    @contextmanager
    def share(self, index: Tensor, K: int) -> Iterator[tuple[Tensor, slice, float]]:
        """This process's share of a batch. Inside, random numbers are those that one process would draw for these data.

        Args:
            index: the indices of the batch.
            K: the number of particles of each datum.

        Yields:
            The indices of its own data, where they stand in the batch, and their share of the batch. A process for which
            nothing is left is given the first datum, with a share of zero.
        """
        parts = index.tensor_split(self.size)
        start = sum(len(part) for part in parts[: self.rank])
        own, share = parts[self.rank], len(parts[self.rank]) / len(index)
        if not len(own):
            own, start = index[:1], 0
        with _SharedNoise(_SharedDraws(len(index), start, len(own), K)):
            yield own, slice(start, start + len(own)), share

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of tensors over all processes. Those of one dtype travel together.

        Raises:
            LostError: another process is gone.
        """
        found = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order everywhere
            of_dtype = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[i].detach().reshape(-1) for i in of_dtype])
            try:
                dist.all_reduce(flat)
            except RuntimeError as error:
                told = str(error).partition("\n")[0]
                raise LostError(f"another process of this training is gone, or cannot be reached: {told}") from error
            for i, part in zip(of_dtype, flat.split([tensors[i].numel() for i in of_dtype]), strict=True):
                found[i] = part.reshape(tensors[i].shape)
        return found

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Gives tensors the values that they have in the first process."""
        with torch.no_grad():
            for tensor, value in zip(tensors, self.sum([each * (self.rank == 0) for each in tensors]), strict=True):
                tensor.copy_(value)

    def agree(self, yes: bool) -> bool:
        """Whether any of the processes says yes, each of which asks this at the same moment."""
        return bool(self.sum([torch.tensor(float(yes))])[0])

    def check_same(self, what: Any, told: str) -> None:
        """Raises LostError, with what is told, if plain data are not the same in all processes."""
        found = digest(what)
        mine = torch.tensor([int(found[i : i + 8], 16) for i in range(0, len(found), 8)], dtype=torch.float64)
        if not torch.equal(self.sum([mine])[0], mine * self.size):
            raise LostError(told)


_CHOOSING = {torch.ops.aten.randint, torch.ops.aten.randperm}
"""Random numbers that choose among a model's own things, and belong to no datum."""
_DRAWING = frozenset(
    {
        *("rand", "randn", "rand_like", "randn_like", "normal", "bernoulli", "binomial", "poisson", "multinomial"),
        *("_standard_gamma", "_sample_dirichlet", "rrelu", "rrelu_", "gumbel_softmax", "scaled_dot_product_attention"),
        *("multi_head_attention_forward", "native_dropout", "fractional_max_pool2d", "fractional_max_pool3d"),
        *(f"{each}dropout{end}" for each in ("", "alpha_", "feature_", "feature_alpha_") for end in ("", "_")),
        *("dropout1d", "dropout2d", "dropout3d", "lstm", "gru", "rnn_tanh", "rnn_relu"),
        *(
            f"{each}_"
            for each in ("normal", "uniform", "bernoulli", "exponential", "cauchy", "geometric", "log_normal")
        ),
    }
)
"""The names of PyTorch's functions that draw random numbers, or call what does."""


class _SharedNoise(TorchFunctionMode):
    """Has PyTorch's functions draw the random numbers of a whole batch, and take those of some of its data.

    Only those that draw are looked into: to look at every operation would take longer than small networks do.

    Args:
        draws: what looks into them.
    """

    def __init__(self, draws: _SharedDraws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of PyTorch."""
        if getattr(func, "__name__", "") not in _DRAWING:
            return func(*args, **(kwargs or {}))
        with self.draws:
            return func(*args, **(kwargs or {}))


class _SharedDraws(TorchDispatchMode):
    """Draws the random numbers of a whole batch, and takes those of some of its data.

    Args:
        whole: the number of data in the batch.
        start: the first datum that is taken.
        size: how many are taken.
        K: the number of particles of each datum.
    """

    def __init__(self, whole: int, start: int, size: int, K: int) -> None:
        super().__init__()
        self.whole, self.start, self.size, self.K = whole, start, size, K

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation of PyTorch; one that draws random numbers with whole batches in place of shares."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or func.overloadpacket in _CHOOSING:
            return func(*args, **kwargs)
        given = [self._whole(each) for each in args]
        named = {name: self._whole(each) for name, each in kwargs.items()}
        if all(one is other for one, other in zip((*given, *named.values()), (*args, *kwargs.values()), strict=True)):
            return func(*args, **kwargs)  # numbers that belong to no datum
        drawn = func(*given, **named)
        if func._schema.name.endswith("_") and isinstance(args[0], Tensor):
            return args[0].copy_(self._own(given[0]))
        if isinstance(drawn, tuple | list):
            return type(drawn)(self._own(each) for each in drawn)
        return self._own(drawn)

    def _place(self, shape: Sequence[int], of: int) -> tuple[int, bool] | None:
        """The dimension of the data, and whether the particles are in it too. None where there are no data.

        Args:
            shape: a shape.
            of: the number of data that it is of.
        """
        if len(shape) > 1 and shape[0] == self.K and shape[1] == of and (len(shape) > 2 or of != self.K):
            return 1, False
        if shape and shape[0] == of:
            return 0, False
        if len(shape) > 1 and shape[0] == self.K * of:
            return 0, True
        # What belongs to one datum comes behind the dimension of the data.
        return next(((i, False) for i, length in enumerate(shape) if length == of), None)

    def _whole(self, value: Any) -> Any:
        """A tensor, or the shape of one, of the whole batch in place of one of the share: other data are copies of its own."""
        is_shape = isinstance(value, list | tuple) and all(isinstance(each, int) for each in value)
        if not (is_shape or isinstance(value, Tensor)):
            return value
        found = self._place(value if is_shape else value.shape, self.size)
        if found is None:
            return value
        dim, joined = found
        if is_shape:
            return [*value[:dim], self.whole * (self.K if joined else 1), *value[dim + 1 :]]
        apart = value.reshape(self.K, self.size, *value.shape[1:]) if joined else value
        row = torch.arange(self.whole, device=value.device).sub(self.start).clamp(0, self.size - 1)
        filled = apart.index_select(dim + joined, row)
        return filled.reshape(-1, *value.shape[1:]) if joined else filled

    def _own(self, value: Any) -> Any:
        """Of what was drawn for the whole batch, that of the share."""
        if not isinstance(value, Tensor) or (found := self._place(value.shape, self.whole)) is None:
            return value
        dim, joined = found
        apart = value.reshape(self.K, self.whole, *value.shape[1:]) if joined else value
        own = apart.narrow(dim + joined, self.start, self.size)
        return own.reshape(-1, *value.shape[1:]) if joined else own
