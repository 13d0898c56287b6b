"""Networks of dense layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, final

from torch import Tensor, nn
from torch.nn.functional import glu

from pyro_vae.kinds import takes
from pyro_vae.parts import Network, Shape

NetworkFactory = Callable[[Shape, Shape], Network]
"""A function from an input and an output shape to a network. Guides and likelihoods call it with their own shapes."""


@final
class MLP(Network):
    """A multilayer perceptron, which is an affine map if it has no hidden layers.

    Args:
        in_shape: the shape of one input, without leading dimensions.
        out_shape: the shape of one output, without leading dimensions.
        hidden: the width of each hidden layer; [] makes the map affine.
        activation: the class of the nonlinearity between layers, for example torch.nn.Softplus; or torch.nn.LeakyReLU, with its
            option negative_slope.
        init: a function that fills each weight matrix in place, for example torch.nn.init.kaiming_normal_. Biases then
            start at zero; a likelihood adds the training mean to its network's output (see `pyro_vae.likelihoods`).
            None leaves weights and biases as `torch.nn.Linear` makes them, with weights about half as large as the
            default's.

    Raises:
        ValueError: a hidden width is below 1.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int] = (256, 256),
        activation: Callable[[], nn.Module] = nn.Tanh,
        init: Callable[[Tensor], Any] | None = nn.init.xavier_uniform_,
    ) -> None:
        super().__init__(in_shape, out_shape)
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden: expected widths of at least 1, got {list(hidden)}")
        widths = [prod(in_shape), *hidden, prod(out_shape)]
        self.layers = nn.Sequential()
        for fan_in, fan_out in pairwise(widths):
            if len(self.layers) > 0:
                self.layers.append(activation())
            linear = nn.Linear(fan_in, fan_out)
            if init:
                init(linear.weight)
                nn.init.zeros_(linear.bias)
            self.layers.append(linear)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(*lead, *in_shape)`` to ``(*lead, *out_shape)``."""
        lead = inputs.shape[: inputs.dim() - len(self.in_shape)]
        outputs: Tensor = self.layers(inputs.reshape(*lead, prod(self.in_shape)))
        return outputs.reshape(*lead, *self.out_shape)


@final
class GatedMLP(Network):
    """A multilayer perceptron of gated layers h = (A x + a) ⊙ sigmoid(B x + b) (Tomczak and Welling 2018, section 4.1).

    Args:
        in_shape: the shape of one input, without leading dimensions.
        out_shape: the shape of one output, without leading dimensions.
        hidden: the width of each hidden layer.

    Raises:
        ValueError: a hidden width is below 1.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, hidden: Sequence[int] = (300, 300)) -> None:
        super().__init__(in_shape, out_shape)
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden: expected widths of at least 1, got {list(hidden)}")
        widths = [prod(in_shape), *hidden]
        self.layers = nn.ModuleList(nn.Linear(fan_in, 2 * fan_out) for fan_in, fan_out in pairwise(widths))
        self.head = nn.Linear(widths[-1], prod(out_shape))
        for linear in (*self.layers, self.head):
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``(*lead, *in_shape)`` to ``(*lead, *out_shape)``."""
        lead = inputs.shape[: inputs.dim() - len(self.in_shape)]
        h = inputs.reshape(*lead, prod(self.in_shape))
        for layer in self.layers:
            h = glu(layer(h))
        outputs: Tensor = self.head(h)
        return outputs.reshape(*lead, *self.out_shape)


@takes
def count_parameters(module: nn.Module) -> int:
    """Returns how many numbers of a module are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
