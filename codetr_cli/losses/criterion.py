"""Losses of decoder queries with known target labels and boxes: of matched, denoising and positive queries.

Behaviour of co_dino_head.py and co_deformable_detr_head.py. Shape letters: B batch, G groups of queries, K classes,
L decoder layers, Q queries of all groups. All layers and groups are computed at once and summed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codetr_cli.boxes import cxcywh_to_xyxy, host_values, paired_iou
from codetr_cli.losses.functional import average, focal_loss, giou_loss, quality_focal_loss
from codetr_cli.losses.matcher import Match
from codetr_cli.losses.objects import BatchObjects


@dataclass(frozen=True)
class QueryTargets:
    """Target label and box of each query.

    Attributes:
        labels: (..., B, Q) int64; K for background.
        boxes: (..., B, Q, 4) normalised cxcywh; read only where the label is not background.
    """

    labels: Tensor
    boxes: Tensor

    @staticmethod
    def from_matches(
        matches: Sequence[Sequence[Match]], objects: BatchObjects, num_queries: int, num_classes: int
    ) -> QueryTargets:
        """Targets (L, B, Q) of queries matched one to one, per layer and image; all others are background."""
        layers, images = len(matches), len(objects.counts)
        pairs = [
            ((layer * images + image) * num_queries + queries, objects.starts[image] + indices)
            for layer, of_layer in enumerate(matches)
            for image, (queries, indices) in enumerate(of_layer)
        ]
        # One upload for all layers and images.
        flat, chosen = host_values(np.concatenate([np.stack(pair) for pair in pairs], axis=1), objects.labels)
        labels = objects.labels.new_full((layers * images * num_queries,), num_classes)
        boxes = objects.boxes_cxcywh.new_zeros(len(labels), 4)
        labels.scatter_(0, flat, objects.labels[chosen])
        boxes.scatter_(0, flat[:, None].expand(-1, 4), objects.boxes_cxcywh[chosen])
        return QueryTargets(labels.view(layers, images, -1), boxes.view(layers, images, -1, 4))

    @staticmethod
    def concatenate(parts: Sequence[QueryTargets], layers: int) -> QueryTargets:
        """Targets (L, B, Q) of several groups of queries; those (B, Q) are the same in every layer."""
        labels = [part.labels.expand(layers, -1, -1) for part in parts]
        boxes = [part.boxes.expand(layers, -1, -1, -1) for part in parts]
        return QueryTargets(torch.cat(labels, 2), torch.cat(boxes, 2))


@dataclass(frozen=True)
class QueryGroups:
    """Consecutive groups of queries, whose losses are summed and normalised apart.

    Attributes:
        sizes: queries of each group.
        num_boxes: (G,) normalizers of the box losses: positives averaged over ranks, at least 1.
        num_classified: (G,) normalizers of the class loss.
        weights: (G,) of all losses.
    """

    sizes: Sequence[int]
    num_boxes: Tensor
    num_classified: Tensor
    weights: Tensor

    def only(self, group: int, size: int) -> QueryGroups:
        """One group, with another number of queries."""
        kept = slice(group, group + 1)
        return QueryGroups([size], self.num_boxes[kept], self.num_classified[kept], self.weights[kept])


class QueryCriterion:
    """Class, L1 and GIoU loss of decoder layers.

    Args:
        class_loss: "quality_focal" or "focal".
        class_weight: weight of the class loss.
        l1_weight: weight of the L1 loss of normalised cxcywh boxes.
        giou_weight: weight of the GIoU loss of boxes in pixels.
    """

    def __init__(self, *, class_loss: str, class_weight: float, l1_weight: float, giou_weight: float) -> None:
        self.class_loss = class_loss
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight

    def __call__(
        self, logits: Tensor, boxes: Tensor, targets: QueryTargets, factors: Tensor, groups: QueryGroups
    ) -> dict[str, Tensor]:
        """The three losses of every layer and group.

        Args:
            logits: (L, B, Q, K).
            boxes: (L, B, Q, 4) cxcywh in [0, 1].
            targets: (L, B, Q), of the same queries.
            factors: (B, 4) = (w, h, w, h) of each image in pixels.
            groups: of the queries.

        Returns:
            cls, bbox, iou: (L, G) each.
        """
        # Background queries get weight zero instead of being removed: indexing would synchronize with the device.
        positive = (targets.labels != logits.shape[-1]).to(boxes.dtype)  # (L, B, Q)
        predicted, target_boxes = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes)
        classes = self._class_loss(logits, targets.labels, predicted.detach(), target_boxes)
        l1 = (boxes - targets.boxes).abs().sum(-1) * positive
        giou = giou_loss(predicted * factors[:, None], target_boxes * factors[:, None]) * positive
        of_groups = torch.split(torch.stack([classes, l1, giou]), list(groups.sizes), dim=-1)
        sums = torch.stack([of_group.sum((2, 3)) for of_group in of_groups], -1)  # (3, L, G)
        normalizers = torch.stack([groups.num_classified, groups.num_boxes, groups.num_boxes])[:, None]
        cls, bbox, iou = (average(sums, normalizers) * groups.weights).unbind()
        return {"cls": cls * self.class_weight, "bbox": bbox * self.l1_weight, "iou": iou * self.giou_weight}

    def _class_loss(self, logits: Tensor, labels: Tensor, predicted: Tensor, target_boxes: Tensor) -> Tensor:
        """Summed over classes: (L, B, Q); boxes (L, B, Q, 4) are xyxy in [0, 1]."""
        by_class, flat_labels = logits.flatten(0, 1).transpose(1, 2), labels.flatten(0, 1)
        if self.class_loss == "focal":
            return focal_loss(by_class, flat_labels).view(labels.shape)
        quality = paired_iou(predicted, target_boxes).flatten(0, 1)
        return quality_focal_loss(by_class, flat_labels, quality).view(labels.shape)
