"""Small transformer backbones and random batches for tests of whole networks."""

from __future__ import annotations

import torch

SWIN = [
    'model.backbone.kind="swin"',
    "model.backbone.embed_dim=8",
    "model.backbone.layers=[1, 1, 2, 1]",
    "model.backbone.num_heads=[1, 2, 2, 4]",
    "model.backbone.window_size=3",
]
VIT = [
    'model.backbone.kind="vit"',
    "model.backbone.embed_dim=32",
    "model.backbone.depth=3",
    "model.backbone.num_heads=2",
    "model.backbone.hidden_dim=24",
    "model.backbone.window_size=4",
    "model.backbone.global_blocks=[1]",
    "model.backbone.pretrain_size=64",
    "model.num_levels=5",
    "model.roi.num_convs=2",
    "model.roi.num_fcs=1",
    "model.roi.class_agnostic=true",
    "model.roi.target_stds=[0.05, 0.05, 0.1, 0.1]",
    'model.roi.nms="soft"',
    'model.atss.nms="soft"',
    "model.rpn.num_proposals_test=70",
    "model.rpn.nms_iou_test=0.9",
]
COARSE_SWIN = [*SWIN, "model.finest_stride=8"]
KINDS = {"swin": SWIN, "swin without its finest map": COARSE_SWIN, "vit": VIT}


def make_batch(height=96, width=128, valid=(96, 112)):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, generator=generator)
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    mask[1, valid[0] :], mask[1, :, valid[1] :] = True, True
    images = images.masked_fill(mask[:, None], 0.0)
    metas = [
        {"norm_size": (height, width), "scale_factor": (0.5, 0.5)},
        {"norm_size": valid, "scale_factor": (2.0, 1.0)},
    ]
    return images, mask, metas
