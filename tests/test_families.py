"""Two steps of training of every family, with and without masks, with an image without objects, in both precisions."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.config.schema import Settings
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model
from codetr_cli.training.optim import build_optimizer, clip_gradients

HEIGHT, WIDTH = 96, 128
DEFORMABLE = ["model.family=co_deformable", "model.finest_stride=8", "train.loss.class_weight=2.0"]
SWIN = [
    *("model.backbone.kind=swin", "model.backbone.embed_dim=16", "model.backbone.num_heads=[1, 2, 2, 4]"),
    *("model.backbone.layers=[2, 1, 1, 1]", "model.backbone.window_size=4", "model.backbone.drop_path=0"),
]
VIT = [
    *("model.backbone.kind=vit", "model.backbone.embed_dim=32", "model.backbone.depth=3", "model.backbone.num_heads=2"),
    *("model.backbone.hidden_dim=48", "model.backbone.global_blocks=[2]", "model.backbone.window_size=3"),
    *("model.backbone.drop_path=0", "model.backbone.pretrain_size=64", "model.num_levels=5"),
    *("model.roi.num_convs=2", "model.roi.num_fcs=1", "model.roi.class_agnostic=true", "train.layer_decay=0.8"),
]
FCN = ["model.mask.kind=fcn", "model.mask.dim=16", "model.mask.num_convs=1"]
REFINE = ["model.mask.kind=refine", "model.mask.dim=16", "model.mask.iou_fc_dim=16"]
NETWORKS = {
    "co_dino-resnet": [],
    "co_dino-swin": SWIN,
    "co_dino-vit": VIT,
    "co_dino-vit-refine": [*VIT, *REFINE],
    "co_deformable-resnet": DEFORMABLE,
    "co_deformable-swin": [*DEFORMABLE, *SWIN],
    "co_deformable-resnet-fcn": [*DEFORMABLE, *FCN],
}
# Levels at which no object is found have no box to scale.
MAY_STAY = re.compile(r"aux_heads\.atss\.scales\.\d+")


def make_batch(counts: tuple[int, ...], masks: bool) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """Noise with so many objects an image, which are ellipses in their boxes where masks are wanted."""
    generator = torch.Generator().manual_seed(sum(counts))
    rows, columns = torch.arange(HEIGHT)[:, None] + 0.5, torch.arange(WIDTH)[None, :] + 0.5
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40 + 12], 1)
        target = {
            "boxes": boxes,
            "labels": torch.randint(3, (count,), generator=generator),
            "norm_size": (HEIGHT, WIDTH),
            "pad_size": (HEIGHT, WIDTH),
        }
        if masks:
            centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
            x, y = (
                (columns - centre[:, :1, None]) / radius[:, :1, None],
                (rows - centre[:, 1:, None]) / radius[:, 1:, None],
            )
            target["masks"] = (x**2 + y**2 <= 1).to(torch.uint8)
        targets.append(target)
    images = torch.randn(len(counts), 3, HEIGHT, WIDTH, generator=generator)
    return images, torch.zeros(len(counts), HEIGHT, WIDTH, dtype=torch.bool), targets


def train_two_steps(settings: Settings, dtype: torch.dtype | None) -> tuple[list[dict[str, Tensor]], list[str]]:
    """The losses of both steps, and the names of trainable parameters that are still where they started."""
    torch.manual_seed(0)
    model = build_model(settings.model)
    objective = build_objective(model, settings.train.loss).train()
    optimizer = build_optimizer(model, settings.train)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    steps = []
    for counts in ((3, 0), (2, 4)):
        batch = make_batch(counts, settings.learns_masks)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            losses = objective(*batch)
        torch.stack(list(losses.values())).sum().backward()
        norm = clip_gradients(model.parameters(), settings.train.clip_norm)
        assert bool(norm.isfinite())
        optimizer.step()
        steps.append({name: value.detach() for name, value in losses.items()})
    parameters = dict(model.named_parameters())
    return steps, [name for name, before in start.items() if torch.equal(parameters[name], before)]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_two_steps_of_every_family(network: str, dtype: torch.dtype | None, tiny_settings: Settings):
    # Without decay, only gradients move parameters.
    recipe = ["train.weight_decay=0", "train.lr=1e-3", "train.backbone_lr_scale=1.0"]
    settings = apply_overrides(tiny_settings, [*NETWORKS[network], *recipe])
    steps, unmoved = train_two_steps(settings, dtype)
    for losses in steps:
        assert {name: float(value) for name, value in losses.items() if not value.isfinite()} == {}
    assert steps[0].keys() == steps[1].keys()
    assert any("mask" in name for name in steps[0]) == settings.learns_masks
    assert [name for name in unmoved if not MAY_STAY.fullmatch(name)] == []
