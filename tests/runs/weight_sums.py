"""What identifies a set of weights: a digest of all bytes, and sums for machines that compute other last bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, in order, and raw bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def weight_sums(state: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Sum and sum of absolute values of every tensor, in float64."""
    return {name: [float(value.double().sum()), float(value.double().abs().sum())] for name, value in state.items()}


def machine() -> dict[str, str]:
    """What the last bits of a training on the CPU depend on."""
    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
