"""Sums that identify a set of weights, up to the last bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def weight_sums(state: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Sum and sum of absolute values of every tensor, in float64."""
    return {name: [float(value.double().sum()), float(value.double().abs().sum())] for name, value in state.items()}


def machine() -> dict[str, str]:
    """What the last bits of a training on the CPU depend on."""
    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
