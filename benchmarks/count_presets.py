"""Counts parameters and GFLOPs of every preset and writes them to presets/figures.json, for `codetr presets`.

    python benchmarks/count_presets.py

Takes a minute on a CPU. No network runs: it is built on PyTorch's meta device, which stores shapes only. The count
holds the multiply-adds of matrix products, convolutions and attention, one multiply-add as one operation, as the
papers' tables of GFLOPs do, and those of sampling in deformable attention. Norms, activations, post-processing and
masks are not counted: the cost of masks grows with the number of detections. A test counts some presets again.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codetr_cli.config.presets import load_preset, preset_names, presets_dir
from codetr_cli.config.schema import Settings
from codetr_cli.models.attention import MultiScaleDeformableAttention
from codetr_cli.models.build import build_model

MULTIPLY_ADDS_PER_SAMPLE = 5
"""Of one channel of one sampling point: four corners weighted and summed, and the point's attention weight."""


def main() -> int:
    """Writes the file, one line per preset."""
    lines = [f" {json.dumps(name)}: {json.dumps(figures_of(name))}" for name in preset_names()]
    (presets_dir() / "figures.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


def figures_of(name: str) -> dict[str, Any]:
    """The entry of one preset."""
    figures = count(load_preset(name))
    return figures | {"gflops": round(figures["gflops"], 1 if figures["gflops"] > 10 else 3)}


def count(settings: Settings) -> dict[str, Any]:
    """Counts a preset's network at its test size.

    Returns:
        parameters: number of all parameters, auxiliary heads included; detection_parameters: of those that inference
        with the decoder needs; gflops: billions of multiply-adds from one image to the decoder's boxes and scores;
        size: (height, width) of that image in pixels.
    """
    size = detection_size(settings)
    with torch.device("meta"):
        whole = build_model(settings.model)
        model = build_model(settings.model, aux_heads=False)
        images = torch.zeros(1, 3, *size)
        padding_mask = torch.zeros(1, *size, dtype=torch.bool)
    return {
        "parameters": _count_parameters(whole),
        "detection_parameters": _count_parameters(model),
        "gflops": _count_multiply_adds(model, images, padding_mask) / 1e9,
        "size": list(size),
    }


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


if __name__ == "__main__":
    sys.exit(main())
