"""Weights that may differ between two equal trainings, because AdamW divides a gradient by its size.

A weight whose gradient is a rounding error moves by as much as any other, in a direction that rounding chose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-7
"""Share of the norm of all gradients below which a gradient is a rounding error."""


def norm_of(gradients: dict[str, Tensor]) -> float:
    """The norm of all gradients of a step together."""
    return float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())


def without_rounding(weights: dict[str, Any], gradients: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The weights, with zeros where a gradient was a rounding error in some step."""
    kept = dict(weights)
    for of_step in gradients:
        least = ROUNDING * norm_of(of_step)
        for name, gradient in of_step.items():
            kept[name] = torch.where(gradient.abs() < least, 0, kept[name].reshape(gradient.shape))
    return kept
