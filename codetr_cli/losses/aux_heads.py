"""Targets and losses of the one-to-many heads.

Behaviour of mmdet's RPNHead, BBoxHead with decoded GIoU, and ATSSHead as configured by Co-DETR.
Shape letters: A anchors of all levels, B batch, C channels, K classes, R sampled regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.losses.assigners import BACKGROUND, assign_atss, assign_by_iou, sample_balanced
from codetr_cli.losses.functional import average, focal_loss, giou_loss
from codetr_cli.losses.normalizers import ALONE, Normalizers
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import decode_deltas, encode_deltas, flatten_map
from codetr_cli.models.aux_heads.atss import AtssHead
from codetr_cli.models.aux_heads.roi import RoiHead
from codetr_cli.models.aux_heads.rpn import DELTA_STDS, RpnHead

Targets = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Candidates:
    """Boxes of one image that a head was trained on: where positive queries are taken from.

    Attributes:
        boxes: (A, 4) xyxy pixels.
        labels: (A,) int64; K for background.
        objects: (A, 4) xyxy pixels of the assigned object; 0 for background.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor


# ----------------------------------------------------------------------------------------------------------------- RPN


@dataclass(frozen=True)
class RpnOutput:
    """Outputs of the RPN and what was made of them; losses are sums over levels.

    `assigned` is the assignment of each image's valid anchors, before sampling.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    assigned: list[Tensor]
    proposals: list[tuple[Tensor, Tensor]]
    class_loss: Tensor
    box_loss: Tensor


def rpn_step(
    head: RpnHead,
    maps: Sequence[Tensor],
    targets: Targets,
    *,
    samples: int,
    draws: RandomSource,
    agreement: Normalizers = ALONE,
    checkpointing: bool = False,
) -> RpnOutput:
    """Runs the RPN, its losses (unweighted) and its proposals.

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        targets: per image `boxes`, `norm_size` for the proposals, `pad_size` for the anchors' validity.
        samples: anchors per image that are trained on, half of them positive at most.
        draws: source of the samples.
        agreement: of the processes on the normaliser.
        checkpointing: recompute the network in the backward pass.
    """
    logits, deltas = checkpoint(head, maps, use_reentrant=False) if checkpointing else head(maps)
    shapes = [(int(m.shape[-2]), int(m.shape[-1])) for m in maps]
    anchors = torch.cat(head.anchors.boxes(shapes, maps[0]))
    flat_logits = torch.cat([flatten_map(m, 1)[..., 0] for m in logits], 1)  # (B, A)
    flat_deltas = torch.cat([flatten_map(m, 4) for m in deltas], 1)  # (B, A, 4)
    class_sum, box_sum, normaliser = maps[0].new_zeros(()), maps[0].new_zeros(()), 0
    assignments = []
    for i, target in enumerate(targets):
        valid = torch.cat(head.anchors.valid(shapes, target["pad_size"], maps[0].device))
        objects = target["boxes"].to(anchors.dtype)
        assigned = assign_by_iou(anchors[valid], objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3)
        assignments.append(assigned)
        positive, negative = sample_balanced(assigned, count=samples, positive_fraction=0.5, draws=draws)
        wanted = encode_deltas(anchors[valid[positive]], objects[assigned[positive]], DELTA_STDS)
        chosen = flat_logits[i, valid[torch.cat([positive, negative])]]
        is_object = (torch.arange(len(chosen), device=chosen.device) < len(positive)).to(chosen.dtype)
        class_sum = class_sum + F.binary_cross_entropy_with_logits(chosen, is_object, reduction="sum")
        box_sum = box_sum + (flat_deltas[i, valid[positive]] - wanted).abs().sum()
        # Parity: an image without positives still counts one.
        normaliser += max(len(positive), 1) + max(len(negative), 1)
    proposals = head.select_proposals(
        [m.detach() for m in logits], [m.detach() for m in deltas], [target["norm_size"] for target in targets]
    )
    box_sum = box_sum + 0.0 * flat_deltas.sum()
    agreed = agreement.own(normaliser, class_sum)
    class_loss, box_loss = average(class_sum, agreed), average(box_sum, agreed)
    return RpnOutput(logits, deltas, assignments, proposals, class_loss, box_loss)


# ----------------------------------------------------------------------------------------------------------------- RoI


@dataclass(frozen=True)
class RoiStep:
    """Sampled regions and the box head's outputs on them, images one after the other.

    `object_indices` are the places of each image's positives among its objects and, after them, its proposals;
    `matched_objects` the objects they belong to.
    """

    candidates: list[Candidates]
    num_positives: list[int]
    object_indices: list[Tensor]
    matched_objects: list[Tensor]
    pooled: Tensor
    logits: Tensor
    deltas: Tensor
    class_loss: Tensor
    box_loss: Tensor


def roi_step(
    head: RoiHead,
    maps: Sequence[Tensor],
    proposals: Sequence[tuple[Tensor, Tensor]],
    targets: Targets,
    *,
    samples: int,
    draws: RandomSource,
    agreement: Normalizers = ALONE,
) -> RoiStep:
    """Samples regions, runs the box head and its losses (unweighted).

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        proposals: per image boxes (P, 4) xyxy pixels and scores.
        targets: per image `boxes`, `labels`.
        samples: regions per image, a quarter of them positive at most.
        draws: source of the samples.
        agreement: of the processes on the normaliser.
    """
    candidates, counts, indices, matched = [], [], [], []
    for (boxes, _), target in zip(proposals, targets, strict=True):
        regions, chosen, objects = sample_regions(boxes, target, head.num_classes, samples, draws)
        candidates.append(regions)
        counts.append(len(chosen))
        indices.append(chosen)
        matched.append(objects)
    regions_of_image = [c.boxes for c in candidates]
    pooled = head.pool(maps, regions_of_image)
    logits, deltas = head(pooled)
    labels = torch.cat([c.labels for c in candidates])
    class_sum = F.cross_entropy(logits, labels, reduction="sum")
    positive = (labels < head.num_classes).nonzero()[:, 0]
    own = head.deltas_of(deltas[positive], labels[positive])
    decoded = decode_deltas(torch.cat(regions_of_image)[positive], own, head.target_stds)
    box_sum = giou_loss(decoded, torch.cat([c.objects for c in candidates])[positive]).sum() + 0.0 * deltas.sum()
    # Parity: the box loss too is divided by all sampled regions, not by the positives.
    num_regions = agreement.own(len(labels), class_sum)
    return RoiStep(
        candidates,
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
    proposals: Tensor, target: dict[str, Any], num_classes: int, samples: int, draws: RandomSource
) -> tuple[Candidates, Tensor, Tensor]:
    """Draws regions of one image; the objects themselves stand in front of the proposals.

    Args:
        proposals: (P, 4) xyxy pixels.
        target: `boxes`, `labels`.
        num_classes: the label of background.
        samples: regions, a quarter of them positive at most.
        draws: source of the samples.

    Returns:
        The regions, positives first; the positives' indices among objects and proposals; the objects they belong to.
    """
    objects = target["boxes"].to(proposals.dtype)
    assigned = assign_by_iou(proposals, objects, positive_iou=0.5, negative_iou=0.5, min_best_iou=None)
    boxes = torch.cat([objects, proposals])
    assigned = torch.cat([torch.arange(len(objects), device=boxes.device), assigned])
    positive, negative = sample_balanced(assigned, count=samples, positive_fraction=0.25, draws=draws)
    chosen = torch.cat([positive, negative])
    labels = torch.full((len(chosen),), num_classes, device=boxes.device)
    labels[: len(positive)] = target["labels"][assigned[positive]]
    wanted = boxes.new_zeros(len(chosen), 4)
    wanted[: len(positive)] = objects[assigned[positive]]
    return Candidates(boxes[chosen], labels, wanted), positive, assigned[positive]


# ---------------------------------------------------------------------------------------------------------------- ATSS


@dataclass(frozen=True)
class AtssStep:
    """Outputs of the ATSS head and its targets; losses are sums over levels.

    `valid` says of each image's anchors which lie in its padded size: the others are background without a loss.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    centerness: list[Tensor]
    candidates: list[Candidates]
    valid: list[Tensor]
    class_loss: Tensor
    box_loss: Tensor
    centerness_loss: Tensor


def atss_step(
    head: AtssHead,
    maps: Sequence[Tensor],
    targets: Targets,
    *,
    agreement: Normalizers = ALONE,
    checkpointing: bool = False,
) -> AtssStep:
    """Runs the ATSS head and its losses (unweighted).

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        targets: per image `boxes`, `labels`, `pad_size` for the anchors' validity.
        agreement: of the processes on the normalisers.
        checkpointing: recompute the network in the backward pass.
    """
    logits, deltas, centerness = checkpoint(head, maps, use_reentrant=False) if checkpointing else head(maps)
    shapes = [(int(m.shape[-2]), int(m.shape[-1])) for m in maps]
    levels = head.anchors.boxes(shapes, maps[0])
    anchors = torch.cat(levels)
    starts = [0, *accumulate(len(level) for level in levels[:-1])]
    valid, candidates = [], []
    for target in targets:
        rows = head.anchors.valid(shapes, target["pad_size"], maps[0].device)
        inside = [a[level_rows - start] for a, level_rows, start in zip(levels, rows, starts, strict=True)]
        index = torch.cat(rows)
        valid.append(torch.zeros(len(anchors), dtype=torch.bool, device=index.device).index_fill(0, index, True))
        candidates.append(_assign_image(inside, index, len(anchors), target, head.num_classes))
    labels = torch.stack([c.labels for c in candidates])  # (B, A)
    flat_deltas = torch.cat([flatten_map(m, 4) for m in deltas], 1)
    flat_centerness = torch.cat([flatten_map(m, 1)[..., 0] for m in centerness], 1)
    # Parity: an image without positives still counts one.
    normaliser = (labels < head.num_classes).sum(1).clamp(min=1).sum()
    num_samples = agreement.shared(normaliser.to(maps[0].dtype))
    # The maps as they are: one copy of all cells and classes can be a gigabyte.
    labels_of_level = torch.split(labels, [len(level) for level in levels], 1)
    of_cell = torch.cat([focal_loss(m.flatten(2), c) for m, c in zip(logits, labels_of_level, strict=True)], 1)
    class_sum = (of_cell * torch.stack(valid)).sum()
    image, cell = (labels < head.num_classes).nonzero().unbind(-1)
    wanted = torch.stack([c.objects for c in candidates])[image, cell]
    ideal = _centerness(anchors[cell], wanted)
    decoded = decode_deltas(anchors[cell], flat_deltas[image, cell], head.target_stds)
    box_sum = (giou_loss(decoded, wanted) * ideal).sum() + 0.0 * flat_deltas.sum()
    centerness_sum = F.binary_cross_entropy_with_logits(flat_centerness[image, cell], ideal, reduction="sum")
    # Parity: the box loss is divided twice, by 1 (plus the epsilon) and by the summed centerness.
    total_ideal = agreement.shared(ideal.sum())
    return AtssStep(
        logits,
        deltas,
        centerness,
        candidates,
        valid,
        average(class_sum, num_samples),
        average(box_sum, 1.0) / total_ideal,
        average(centerness_sum + 0.0 * flat_centerness.sum(), num_samples),
    )


def _assign_image(
    levels: list[Tensor], valid: Tensor, count: int, target: dict[str, Any], num_classes: int
) -> Candidates:
    """Targets of all `count` anchors of one image, of which those at the indices `valid` stand in `levels`.

    Parity: anchors in the padding are zeros with the label of background.
    """
    objects = target["boxes"].to(levels[0].dtype)
    assigned = torch.full((count,), BACKGROUND, device=valid.device)
    assigned[valid] = assign_atss(levels, objects)
    boxes = objects.new_zeros(count, 4)
    boxes[valid] = torch.cat(levels)
    # One more row for background: choosing the positives would wait for the device.
    labels = torch.cat([target["labels"], target["labels"].new_full((1,), num_classes)])[assigned]
    wanted = torch.cat([objects, objects.new_zeros(1, 4)])[assigned]
    return Candidates(boxes, labels, wanted)


def _centerness(anchors: Tensor, objects: Tensor) -> Tensor:
    """How central the anchor lies in its object, in [0, 1] (Eq. 3 of arXiv 1904.01355)."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = centres - objects[:, :2], objects[:, 2:] - centres
    ratios = torch.minimum(before, after) / torch.maximum(before, after)
    return (ratios[:, 0] * ratios[:, 1]).sqrt()
