"""The memory of the one-stage head's loss."""

from __future__ import annotations

import torch

from codetr_cli.losses.assigners import pad_objects
from codetr_cli.losses.atss import atss_losses, atss_targets
from codetr_cli.models.aux_heads.anchors import AnchorGrid, map_shapes
from codetr_cli.models.aux_heads.atss import AtssHead
from tests.losses.many_objects import STRIDES, make_objects, peak_bytes


def test_the_one_stage_head_holds_its_logits_once_and_their_gradient():
    """Forward and backward pass of 300 classes: twice the logits and somewhat for the rest; plainly it is ten times."""
    size, classes = (200, 160), 300
    head = AtssHead(
        dim=8,
        num_classes=classes,
        anchors=AnchorGrid(strides=STRIDES, scales=[8.0], ratios=[1.0]),
        norm_groups=2,
        target_stds=(0.1, 0.1, 0.2, 0.2),
        pre_nms=10,
        nms="hard",
        nms_iou=0.6,
        max_detections=10,
    )
    maps = [torch.randn(1, 8, -(-size[0] // s), -(-size[1] // s), requires_grad=True) for s in STRIDES]
    logits_bytes = sum(m.shape[-1] * m.shape[-2] for m in maps) * classes * 4
    target = {"boxes": make_objects(20), "labels": torch.randint(classes, (20,)), "pad_size": size}

    def run():
        objects = pad_objects([target], torch.float32)
        step = atss_losses(head, maps, atss_targets(head, map_shapes(maps), [target], objects), [])
        (step.class_loss + step.box_loss + step.centerness_loss).backward()

    assert logits_bytes < peak_bytes(run) < 3.5 * logits_bytes
