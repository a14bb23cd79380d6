"""Targets and losses of the RoI head. Behaviour of mmdet's BBoxHead with decoded GIoU as configured by Co-DETR.

Shape letters: B batch, C channels, K classes, P proposals, R sampled regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import Target, Targets
from codetr_cli.losses.assigners import SampledBoxes, assign_by_iou, sample_balanced
from codetr_cli.losses.functional import average, giou_loss
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import decode_deltas
from codetr_cli.models.aux_heads.roi import RoiHead


@dataclass(frozen=True)
class RoiOutput:
    """Sampled regions, outputs of the RoI head on them and its losses; regions are concatenated over images.

    Attributes:
        sampled: per image, its regions, positives first.
        num_positives: per image.
        object_indices: per image, the indices of its positives in the concatenation of its objects and its proposals.
        matched_objects: per image, the object of each positive.
        pooled: (R, C, s, s).
        logits: (R, K + 1).
        deltas: (R, 4 K) or, for a class-agnostic head, (R, 4).
        class_loss: unweighted.
        box_loss: unweighted.
    """

    sampled: list[SampledBoxes]
    num_positives: list[int]
    object_indices: list[Tensor]
    matched_objects: list[Tensor]
    pooled: Tensor
    logits: Tensor
    deltas: Tensor
    class_loss: Tensor
    box_loss: Tensor


def roi_losses(
    head: RoiHead,
    maps: Sequence[Tensor],
    proposals: Sequence[tuple[Tensor, Tensor]],
    targets: Targets,
    *,
    samples: int,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
) -> RoiOutput:
    """Samples regions, runs the RoI head on them and computes its losses.

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        proposals: per image boxes (P, 4) xyxy pixels and scores (P,).
        targets: per image `boxes`, `labels`.
        samples: regions per image, at most a quarter of them positive.
        random: random numbers of the sampling.
        normalizers: of the losses.
    """
    sampled, counts, indices, matched = [], [], [], []
    for (boxes, _), target in zip(proposals, targets, strict=True):
        regions, positives, objects = sample_regions(boxes, target, head.num_classes, samples, random)
        sampled.append(regions)
        counts.append(len(positives))
        indices.append(positives)
        matched.append(objects)
    boxes_of_image = [regions.boxes for regions in sampled]
    pooled = head.pool(maps, boxes_of_image)
    logits, deltas = head(pooled)
    labels = torch.cat([regions.labels for regions in sampled])
    class_sum = F.cross_entropy(logits, labels, reduction="sum")
    positive = (labels < head.num_classes).nonzero()[:, 0]
    own_deltas = head.deltas_of(deltas[positive], labels[positive])
    decoded = decode_deltas(torch.cat(boxes_of_image)[positive], own_deltas, head.target_stds)
    target_boxes = torch.cat([regions.objects for regions in sampled])[positive]
    box_sum = giou_loss(decoded, target_boxes).sum() + 0.0 * deltas.sum()
    # Parity: the box loss too is divided by all sampled regions, not by the positives.
    num_regions = normalizers.per_rank(len(labels), class_sum)
    return RoiOutput(
        sampled,
        counts,
        indices,
        matched,
        pooled,
        logits,
        deltas,
        average(class_sum, num_regions),
        average(box_sum, num_regions),
    )


def sample_regions(
    proposals: Tensor, target: Target, num_classes: int, samples: int, random: RandomSource
) -> tuple[SampledBoxes, Tensor, Tensor]:
    """Samples regions of one image from its objects' own boxes, which come first, and its proposals.

    Args:
        proposals: (P, 4) xyxy pixels.
        target: `boxes`, `labels`.
        num_classes: the background label.
        samples: regions, at most a quarter of them positive.
        random: random numbers of the sampling.

    Returns:
        The regions, positives first; the indices of the positives among objects and proposals; the object of each.
    """
    objects = target["boxes"].to(proposals.dtype)
    assigned = assign_by_iou(proposals, objects, positive_iou=0.5, negative_iou=0.5, min_best_iou=None)
    boxes = torch.cat([objects, proposals])
    assigned = torch.cat([torch.arange(len(objects), device=boxes.device), assigned])
    positive, negative = sample_balanced(assigned, count=samples, positive_fraction=0.25, random=random)
    chosen = torch.cat([positive, negative])
    labels = torch.full((len(chosen),), num_classes, device=boxes.device)
    labels[: len(positive)] = target["labels"][assigned[positive]]
    target_boxes = boxes.new_zeros(len(chosen), 4)
    target_boxes[: len(positive)] = objects[assigned[positive]]
    return SampledBoxes(boxes[chosen], labels, target_boxes), positive, assigned[positive]
