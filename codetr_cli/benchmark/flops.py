"""Counts the parameters of a network and its operations for one image, without running it.

The network is built on PyTorch's meta device, which stores shapes only. The count holds the multiply-adds of matrix
products, convolutions and attention, one multiply-add as one operation, as the papers' tables of GFLOPs do, and those
of sampling in deformable attention. Norms, activations, post-processing and masks are not counted: the cost of masks
grows with the number of detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codetr_cli.config.schema import Settings
from codetr_cli.models.attention import MultiScaleDeformableAttention
from codetr_cli.models.build import build_model

MULTIPLY_ADDS_PER_SAMPLE = 5
"""Of one channel of one sampling point: four corners weighted and summed, and the point's attention weight."""


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Size and cost of a network.

    Attributes:
        parameters: number of all parameters, auxiliary heads included.
        detection_parameters: number of those that inference with the decoder needs.
        gflops: billions of multiply-adds from one image to the decoder's boxes and scores.
        size: (height, width) of that image in pixels.
    """

    parameters: int
    detection_parameters: int
    gflops: float
    size: tuple[int, int]


def measure(settings: Settings) -> Complexity:
    """Counts a preset's network at its test size."""
    size = detection_size(settings)
    with torch.device("meta"):
        whole = build_model(settings.model)
        model = build_model(settings.model, aux_heads=False)
        images = torch.zeros(1, 3, *size)
        padding_mask = torch.zeros(1, *size, dtype=torch.bool)
    return Complexity(
        parameters=_count_parameters(whole),
        detection_parameters=_count_parameters(model),
        gflops=_count_multiply_adds(model, images, padding_mask) / 1e9,
        size=size,
    )


def detection_size(settings: Settings) -> tuple[int, int]:
    """(height, width) of the largest landscape image that the test settings give, padding included."""
    test, divisor = settings.test, settings.data.pad_divisor
    if test.canvas is not None:
        return test.canvas, test.canvas
    return -(-test.short_side // divisor) * divisor, -(-test.long_side // divisor) * divisor


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def _count_multiply_adds(model: nn.Module, images: Tensor, padding_mask: Tensor) -> int:
    sampled = 0

    def count_sampling(module: MultiScaleDeformableAttention, _inputs: Any, output: Tensor) -> None:
        nonlocal sampled
        points = output.shape[1] * module.num_levels * module.num_points  # each in all channels, split over the heads
        sampled += points * output.shape[2] * MULTIPLY_ADDS_PER_SAMPLE

    # With gradients the counter would hook into backward passes too.
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.register_forward_hook(count_sampling)
    with FlopCounterMode(display=False) as counter:
        model(images, padding_mask)
    return counter.get_total_flops() // 2 + sampled
