"""Targets and losses of the one-stage head. Behaviour of mmdet's ATSSHead as configured by Co-DETR.

Shape letters: B batch, C channels, K classes, M anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.boxes import Size, Targets
from codetr_cli.losses.assigners import AtssAssignment, PaddedObjects, SampledBoxes, assign_atss
from codetr_cli.losses.functional import average, focal_loss, giou_loss
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.models.aux_heads.anchors import centres_and_sides, decode_deltas, flatten_map, map_shapes
from codetr_cli.models.aux_heads.atss import AtssHead
from codetr_cli.models.layers import at_least_float32, full_precision


@dataclass(frozen=True)
class AtssTargets:
    """What the anchors of the ATSS head are trained for.

    Attributes:
        assignment: of the anchors.
        boxes: (B, M, 4) xyxy pixels, the anchors.
        labels: (B, M) int64; K for background.
        objects: (B, M, 4) xyxy pixels of the assigned object; 0 for background.
        valid: bool (B, M): anchors inside the padded size of their image. The others have no loss.
        num_positives: (B,) int64.
    """

    assignment: AtssAssignment
    boxes: Tensor
    labels: Tensor
    objects: Tensor
    valid: Tensor
    num_positives: Tensor

    def sampled(self, num_positives: Sequence[int]) -> list[SampledBoxes]:
        """All anchors of each image, given the values of `num_positives`."""
        images = zip(self.boxes, self.labels, self.objects, num_positives, strict=True)
        return [SampledBoxes(*image) for image in images]


@dataclass(frozen=True)
class AtssOutput:
    """Outputs of the ATSS head, its targets and its losses.

    Attributes:
        logits: per level (B, K, H, W).
        deltas: per level (B, 4, H, W).
        centerness: per level logits (B, 1, H, W).
        targets: of the anchors.
        sampled: per image, all M anchors.
        class_loss: unweighted, summed over levels.
        box_loss: as above.
        centerness_loss: as above.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    centerness: list[Tensor]
    targets: AtssTargets
    sampled: list[SampledBoxes]
    class_loss: Tensor
    box_loss: Tensor
    centerness_loss: Tensor


@torch.no_grad()
def atss_targets(head: AtssHead, shapes: Sequence[Size], targets: Targets, objects: PaddedObjects) -> AtssTargets:
    """Assigns the anchors to objects; does not wait for the device.

    Parity: anchors in the padding are zeros with the background label.

    Args:
        head: the network.
        shapes: (H, W) of each level.
        targets: per image `pad_size` for the validity of anchors.
        objects: of the same images.
    """
    pad_sizes = [target["pad_size"] for target in targets]
    assignment = assign_atss(head.anchors, shapes, pad_sizes, objects)
    anchors = head.anchors.boxes(shapes, objects.boxes)
    valid = head.anchors.valid(shapes, pad_sizes, anchors)
    background = assignment.assigned < 0
    own = assignment.assigned.clamp(min=0)
    labels = objects.labels.gather(1, own).masked_fill(background, head.num_classes)
    wanted = objects.boxes.gather(1, own[..., None].expand(-1, -1, 4)).masked_fill(background[..., None], 0)
    boxes = torch.where(valid[..., None], anchors, 0)
    num_positives = own.shape[1] - background.sum(1)
    return AtssTargets(assignment, boxes, labels, wanted, valid, num_positives)


def atss_losses(
    head: AtssHead,
    maps: Sequence[Tensor],
    targets: AtssTargets,
    sampled: list[SampledBoxes],
    *,
    normalizers: Normalizers = SINGLE_PROCESS,
    checkpointing: bool = False,
) -> AtssOutput:
    """Runs the ATSS head in the network's precision and computes its losses in float32 at least.

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        targets: of `atss_targets`.
        sampled: the same anchors for the positive queries.
        normalizers: of the losses.
        checkpointing: recompute the network in the backward pass.
    """
    logits, deltas, centerness = checkpoint(head, maps, use_reentrant=False) if checkpointing else head(maps)
    with full_precision(maps[0]):
        # Parity: an image without positives still counts one.
        num_positives = targets.num_positives.clamp(min=1).sum()
        num_samples = normalizers.mean_over_ranks(num_positives.to(targets.assignment.objects.dtype))
        class_sum = _class_loss(logits, targets)
        box_sum, centerness_sum, total_centerness = _box_losses(head, deltas, centerness, targets.assignment)
        # Parity: the box loss is divided twice, by 1 (plus the epsilon) and by the summed centerness.
        box_loss = average(box_sum, 1.0) / normalizers.mean_over_ranks(total_centerness)
        class_loss, centerness_loss = average(class_sum, num_samples), average(centerness_sum, num_samples)
    return AtssOutput(logits, deltas, centerness, targets, sampled, class_loss, box_loss, centerness_loss)


def _class_loss(logits: Sequence[Tensor], targets: AtssTargets) -> Tensor:
    """Summed focal loss of the valid anchors, from the logits of each level."""
    # Level by level, without concatenating: one copy of all cells and classes can be a gigabyte.
    labels = torch.split(targets.labels, [m.shape[-2] * m.shape[-1] for m in logits], 1)
    levels = zip(logits, labels, strict=True)
    of_cell = torch.cat([focal_loss(at_least_float32(m).flatten(2), own) for m, own in levels], 1)
    return (of_cell * targets.valid).sum()


def _box_losses(
    head: AtssHead, deltas: Sequence[Tensor], centerness: Sequence[Tensor], assignment: AtssAssignment
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed losses of boxes and centerness, and the summed centerness of the positive anchors."""
    rows, chosen, objects = assignment.rows, assignment.chosen, assignment.objects
    anchors = head.anchors.boxes(map_shapes(deltas), objects)
    anchors = anchors[rows % len(anchors)]
    own_deltas = at_least_float32(torch.cat([flatten_map(m, 4) for m in deltas], 1).flatten(0, 1)[rows])
    own_centerness = at_least_float32(torch.cat([flatten_map(m, 1)[..., 0] for m in centerness], 1).flatten()[rows])
    wanted = torch.where(chosen, _centerness(anchors, objects), 0)  # of candidates outside their object it is no number
    of_box = giou_loss(decode_deltas(anchors, own_deltas, head.target_stds), objects)
    centerness_sum = F.binary_cross_entropy_with_logits(
        own_centerness, wanted, chosen.to(wanted.dtype), reduction="sum"
    )
    return (of_box * wanted).sum(), centerness_sum, wanted.sum()


@torch.no_grad()
def _centerness(anchors: Tensor, objects: Tensor) -> Tensor:
    """Centerness in [0, 1] of each anchor in its object (Eq. 3 of arXiv 1904.01355)."""
    centres, _ = centres_and_sides(anchors)
    before, after = centres - objects[:, :2], objects[:, 2:] - centres
    ratios = torch.minimum(before, after) / torch.maximum(before, after)
    return (ratios[:, 0] * ratios[:, 1]).sqrt()
