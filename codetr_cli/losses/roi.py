"""Targets and losses of the RoI head. Behaviour of mmdet's BBoxHead with decoded GIoU as configured by Co-DETR.

Shape letters: B batch, C channels, G objects, K classes, P proposals, R sampled regions, S samples per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.losses.assigners import IGNORED, PaddedObjects, SampledBoxes, assign_by_iou, sample_balanced
from codetr_cli.losses.functional import average, giou_loss
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import decode_deltas
from codetr_cli.models.aux_heads.roi import RoiHead
from codetr_cli.models.aux_heads.rpn import RegionProposals
from codetr_cli.models.layers import at_least_float32, full_precision


@dataclass(frozen=True)
class RegionSamples:
    """Sampled regions of a batch, as long as the host does not know how many there are.

    In each image the positives come first, then the background, then rows that mean nothing.

    Attributes:
        boxes: (B, S, 4) xyxy pixels.
        labels: (B, S) int64; K for background.
        objects: (B, S, 4) xyxy pixels of the assigned object; 0 for background.
        matched: (B, S) the index of the assigned object; read for positives only.
        is_object: bool (B, S), the region is an object's own box.
        num_positives: (B,) int64.
        num_regions: (B,) int64, positives and background.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    matched: Tensor
    is_object: Tensor
    num_positives: Tensor
    num_regions: Tensor

    @property
    def present(self) -> Tensor:
        """Which rows are regions, as bool (B, S)."""
        return torch.arange(self.boxes.shape[1], device=self.boxes.device) < self.num_regions[:, None]

    def cut(self, num_positives: list[int], num_regions: list[int]) -> SampledRegions:
        """The regions of each image, given the values of the two tensors."""
        return SampledRegions(
            [
                SampledBoxes(self.boxes[i, :count], self.labels[i, :count], self.objects[i, :count], positives)
                for i, (count, positives) in enumerate(zip(num_regions, num_positives, strict=True))
            ],
            [self.is_object[i, :count] for i, count in enumerate(num_positives)],
            [self.matched[i, :count] for i, count in enumerate(num_positives)],
        )


@dataclass(frozen=True)
class SampledRegions:
    """Sampled regions of each image.

    Attributes:
        boxes: per image, its regions, positives first.
        is_object: per image bool, which of its positives are objects' own boxes.
        matched_objects: per image, the object of each positive.
    """

    boxes: list[SampledBoxes]
    is_object: list[Tensor]
    matched_objects: list[Tensor]

    def positives(self) -> tuple[list[Tensor], list[Tensor]]:
        """Per image, boxes (P_i, 4) and labels (P_i,) of the positives."""
        boxes = [each.boxes[: each.num_positives] for each in self.boxes]
        return boxes, [each.labels[: each.num_positives] for each in self.boxes]


@dataclass(frozen=True)
class RoiOutput:
    """Outputs of the RoI head on sampled regions, concatenated over images, and its losses.

    Attributes:
        regions: the sampled regions.
        pooled: (R, C, s, s).
        logits: (R, K + 1).
        deltas: (R, 4 K) or, for a class-agnostic head, (R, 4).
        class_loss: unweighted.
        box_loss: unweighted.
    """

    regions: SampledRegions
    pooled: Tensor
    logits: Tensor
    deltas: Tensor
    class_loss: Tensor
    box_loss: Tensor

    @property
    def sampled(self) -> list[SampledBoxes]:
        """The sampled regions of each image, positives first."""
        return self.regions.boxes


def roi_losses(
    head: RoiHead, regions: SampledRegions, pooled: Tensor, *, normalizers: Normalizers = SINGLE_PROCESS
) -> RoiOutput:
    """Runs the RoI head on sampled regions in the network's precision and computes its losses in float32 at least.

    Args:
        head: the network.
        regions: of `sample_regions`.
        pooled: (R, C, s, s), the regions of all images.
        normalizers: of the losses.
    """
    logits, deltas = head(pooled)
    with full_precision(pooled):
        logits, deltas = at_least_float32(logits), at_least_float32(deltas)
        labels = torch.cat([each.labels for each in regions.boxes])
        class_sum = F.cross_entropy(logits, labels, reduction="sum")
        own_deltas = head.deltas_of(deltas, labels.clamp(max=head.num_classes - 1))
        decoded = decode_deltas(torch.cat([each.boxes for each in regions.boxes]), own_deltas, head.target_stds)
        of_region = giou_loss(decoded, torch.cat([each.objects for each in regions.boxes]))
        box_sum = of_region.masked_fill(labels == head.num_classes, 0).sum()
        # Parity: the box loss too is divided by all sampled regions, not by the positives.
        num_regions = normalizers.per_rank(len(labels), class_sum)
        class_loss, box_loss = average(class_sum, num_regions), average(box_sum, num_regions)
    return RoiOutput(regions, pooled, logits, deltas, class_loss, box_loss)


@torch.no_grad()
def sample_regions(
    proposals: RegionProposals, objects: PaddedObjects, *, num_classes: int, samples: int, random: RandomSource
) -> RegionSamples:
    """Samples regions from the objects' own boxes, which come first, and the proposals; does not wait for the device.

    Args:
        proposals: of a batch.
        objects: of the same images.
        num_classes: the background label.
        samples: regions per image, at most a quarter of them positive.
        random: random numbers of the sampling.
    """
    found = assign_by_iou(
        proposals.boxes, objects, proposals.present, positive_iou=0.5, negative_iou=0.5, min_best_iou=None
    )
    own = torch.arange(objects.boxes.shape[1], device=found.device)
    assigned = torch.cat([torch.where(objects.present(), own, IGNORED), found], 1)  # (B, G + P)
    positives, is_positive, negatives, is_negative = sample_balanced(
        assigned, count=samples, positive_fraction=0.25, random=random
    )
    # Sorted by numbers that put ascending positives before ascending negatives before the rest.
    total = assigned.shape[1]
    places = torch.cat(
        [torch.where(is_positive, positives, 2 * total), torch.where(is_negative, negatives + total, 2 * total)], 1
    ).sort(1)[0][:, :samples]
    background, rows = places >= total, places % total
    matched = assigned.gather(1, rows).clamp(min=0)
    boxes = torch.cat([objects.boxes, proposals.boxes], 1)
    num_positives = is_positive.sum(1)
    return RegionSamples(
        boxes=_rows_of(boxes, rows),
        labels=objects.labels.gather(1, matched).masked_fill(background, num_classes),
        objects=_rows_of(objects.boxes, matched).masked_fill(background[..., None], 0),
        matched=matched,
        is_object=rows < objects.boxes.shape[1],
        num_positives=num_positives,
        num_regions=num_positives + is_negative.sum(1),
    )


def _rows_of(boxes: Tensor, rows: Tensor) -> Tensor:
    """The given rows (B, S) of boxes (B, N, 4)."""
    return boxes.gather(1, rows[..., None].expand(-1, -1, 4))
