"""Precision: networks may compute their matrix products in bfloat16, while all else stays in float32."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.traces import Program

Precision = Literal["fp32", "bf16"]
"""bf16: matrix products in bfloat16. Weights, sums and log-probabilities are float32 in any case."""

_WITHOUT_BF16 = "DEFAULT", "NO AVX", "AVX2"


def in_precision(program: Program, precision: Precision) -> Program:
    """A Pyro program whose networks compute their matrix products in this precision."""
    if precision == "fp32":
        return program

    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(each.device for each in args if isinstance(each, Tensor))
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return program(*args, **kwargs)

    return run


def has_products(precision: Precision, device: torch.device) -> bool:
    """Whether the processor has matrix products in this precision. Without them they can take hundreds of times as long."""
    return precision == "fp32" or device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in _WITHOUT_BF16
