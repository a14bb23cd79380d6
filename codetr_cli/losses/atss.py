"""Targets and losses of the one-stage head. Behaviour of mmdet's ATSSHead as configured by Co-DETR.

Shape letters: A anchors of all levels, B batch, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.boxes import Target, Targets
from codetr_cli.losses.assigners import BACKGROUND, SampledBoxes, assign_atss
from codetr_cli.losses.functional import average, focal_loss, giou_loss
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.models.aux_heads.anchors import decode_deltas, flatten_map
from codetr_cli.models.aux_heads.atss import AtssHead


@dataclass(frozen=True)
class AtssOutput:
    """Outputs of the ATSS head, its targets and its losses.

    Attributes:
        logits: per level (B, K, H, W).
        deltas: per level (B, 4, H, W).
        centerness: per level logits (B, 1, H, W).
        sampled: per image, all A anchors.
        valid: per image bool (A,): anchors inside its padded size. The others are background without a loss.
        class_loss: unweighted, summed over levels.
        box_loss: as above.
        centerness_loss: as above.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    centerness: list[Tensor]
    sampled: list[SampledBoxes]
    valid: list[Tensor]
    class_loss: Tensor
    box_loss: Tensor
    centerness_loss: Tensor


def atss_losses(
    head: AtssHead,
    maps: Sequence[Tensor],
    targets: Targets,
    *,
    normalizers: Normalizers = SINGLE_PROCESS,
    checkpointing: bool = False,
) -> AtssOutput:
    """Runs the ATSS head and computes its losses.

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        targets: per image `boxes`, `labels`, `pad_size` for the validity of anchors.
        normalizers: of the losses.
        checkpointing: recompute the network in the backward pass.
    """
    logits, deltas, centerness = checkpoint(head, maps, use_reentrant=False) if checkpointing else head(maps)
    shapes = [(int(m.shape[-2]), int(m.shape[-1])) for m in maps]
    levels = head.anchors.boxes(shapes, maps[0])
    anchors = torch.cat(levels)
    valid, sampled = _assign(head, levels, shapes, targets)
    labels = torch.stack([s.labels for s in sampled])  # (B, A)
    flat_deltas = torch.cat([flatten_map(m, 4) for m in deltas], 1)
    flat_centerness = torch.cat([flatten_map(m, 1)[..., 0] for m in centerness], 1)
    # Parity: an image without positives still counts one.
    num_positives = (labels < head.num_classes).sum(1).clamp(min=1).sum()
    num_samples = normalizers.mean_over_ranks(num_positives.to(maps[0].dtype))
    # Level by level, without concatenating: one copy of all cells and classes can be a gigabyte.
    labels_of_level = torch.split(labels, [len(level) for level in levels], 1)
    of_cell = torch.cat([focal_loss(m.flatten(2), c) for m, c in zip(logits, labels_of_level, strict=True)], 1)
    class_sum = (of_cell * torch.stack(valid)).sum()
    image, cell = (labels < head.num_classes).nonzero().unbind(-1)
    target_boxes = torch.stack([s.objects for s in sampled])[image, cell]
    target_centerness = _centerness(anchors[cell], target_boxes)
    decoded = decode_deltas(anchors[cell], flat_deltas[image, cell], head.target_stds)
    box_sum = (giou_loss(decoded, target_boxes) * target_centerness).sum() + 0.0 * flat_deltas.sum()
    centerness_sum = F.binary_cross_entropy_with_logits(
        flat_centerness[image, cell], target_centerness, reduction="sum"
    )
    # Parity: the box loss is divided twice, by 1 (plus the epsilon) and by the summed centerness.
    total_centerness = normalizers.mean_over_ranks(target_centerness.sum())
    return AtssOutput(
        logits,
        deltas,
        centerness,
        sampled,
        valid,
        average(class_sum, num_samples),
        average(box_sum, 1.0) / total_centerness,
        average(centerness_sum + 0.0 * flat_centerness.sum(), num_samples),
    )


def _assign(
    head: AtssHead, levels: Sequence[Tensor], shapes: Sequence[tuple[int, int]], targets: Targets
) -> tuple[list[Tensor], list[SampledBoxes]]:
    """Per image, which anchors (A,) are valid, and the targets of all."""
    starts = [0, *accumulate(len(level) for level in levels[:-1])]
    count = sum(map(len, levels))
    valid, sampled = [], []
    for target in targets:
        rows = head.anchors.valid(shapes, target["pad_size"], levels[0].device)
        inside = [a[level_rows - start] for a, level_rows, start in zip(levels, rows, starts, strict=True)]
        index = torch.cat(rows)
        valid.append(torch.zeros(count, dtype=torch.bool, device=index.device).index_fill(0, index, True))
        sampled.append(_assign_image(inside, index, count, target, head.num_classes))
    return valid, sampled


def _assign_image(levels: list[Tensor], valid: Tensor, count: int, target: Target, num_classes: int) -> SampledBoxes:
    """Targets of all `count` anchors of one image; `levels` holds the anchors at the indices `valid`.

    Parity: anchors in the padding are zeros with the background label.
    """
    objects = target["boxes"].to(levels[0].dtype)
    assigned = torch.full((count,), BACKGROUND, device=valid.device)
    assigned[valid] = assign_atss(levels, objects)
    boxes = objects.new_zeros(count, 4)
    boxes[valid] = torch.cat(levels)
    # One more row for background: selecting the positives would synchronize with the device.
    labels = torch.cat([target["labels"], target["labels"].new_full((1,), num_classes)])[assigned]
    target_boxes = torch.cat([objects, objects.new_zeros(1, 4)])[assigned]
    return SampledBoxes(boxes, labels, target_boxes)


def _centerness(anchors: Tensor, objects: Tensor) -> Tensor:
    """Centerness in [0, 1] of each anchor in its object (Eq. 3 of arXiv 1904.01355)."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = centres - objects[:, :2], objects[:, 2:] - centres
    ratios = torch.minimum(before, after) / torch.maximum(before, after)
    return (ratios[:, 0] * ratios[:, 1]).sqrt()
