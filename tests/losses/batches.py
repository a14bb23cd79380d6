"""Objectives and random batches of tests of losses."""

from __future__ import annotations

import torch

from codetr_cli.config.overrides import apply_overrides
from codetr_cli.losses.build import build_objective
from codetr_cli.models.build import build_model

SMALL_MASKS = (
    "model.mask.dim=16",
    "model.mask.iou_fc_dim=8",
    "train.loss.mask_candidates=60",
    "train.loss.mask_samples=32",
)


def make_objective(settings, *overrides):
    settings = apply_overrides(settings, list(overrides))
    model = build_model(settings.model)
    return build_objective(model, settings.train.loss).train()


def make_batch(counts):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(counts), 3, 96, 96, generator=generator)
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 50
        targets.append(
            {
                "boxes": torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 30 + 10], 1),
                "labels": torch.randint(3, (count,), generator=generator),
                "norm_size": (96, 96),
                "pad_size": (96, 96),
            }
        )
    return images, torch.zeros(len(counts), 96, 96, dtype=torch.bool), targets


def discs(boxes, size):
    """The disc that fills each box, uint8 (G, h, w)."""
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    x1, y1, x2, y2 = (side[:, None, None] for side in boxes.unbind(1))
    return ((((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2) <= 1).to(torch.uint8)


def make_masked_batch(counts, size=(96, 96)):
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.randn(len(counts), 3, *size, generator=generator), []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 50
        boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 30 + 10], 1)
        labels = torch.randint(3, (count,), generator=generator)
        target = {"boxes": boxes, "labels": labels, "masks": discs(boxes, size)}
        targets.append({**target, "norm_size": size, "pad_size": size})
    return images, torch.zeros(len(counts), *size, dtype=torch.bool), targets
