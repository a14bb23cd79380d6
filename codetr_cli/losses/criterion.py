"""Losses of decoder queries with known target labels and boxes: of matched, denoising and positive queries.

Behaviour of co_dino_head.py and co_deformable_detr_head.py. Shape letters: B batch, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_cli.boxes import Targets, cxcywh_to_xyxy, paired_iou, size_scale, xyxy_to_cxcywh
from codetr_cli.losses.functional import average, focal_loss, giou_loss, quality_focal_loss
from codetr_cli.losses.matcher import Match


@dataclass(frozen=True)
class QueryTargets:
    """Target label and box of each query.

    Attributes:
        labels: (B, Q) int64; K for background.
        boxes: (B, Q, 4) normalised cxcywh; read only where the label is not background.
    """

    labels: Tensor
    boxes: Tensor

    @staticmethod
    def from_matches(
        matches: Sequence[Match],
        targets: Targets,
        num_queries: int,
        num_classes: int,
        dtype: torch.dtype,
    ) -> QueryTargets:
        """Targets of queries matched one to one; all other queries are background."""
        device = targets[0]["labels"].device
        labels = torch.full((len(targets), num_queries), num_classes, device=device)
        boxes = torch.zeros(len(targets), num_queries, 4, dtype=dtype, device=device)
        for i, ((queries, objects), target) in enumerate(zip(matches, targets, strict=True)):
            target_boxes = target["boxes"].to(dtype)
            labels[i, queries] = target["labels"][objects]
            boxes[i, queries] = (xyxy_to_cxcywh(target_boxes) / size_scale(target["norm_size"], target_boxes))[objects]
        return QueryTargets(labels, boxes)


class QueryCriterion:
    """Class, L1 and GIoU loss of one decoder layer.

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
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: QueryTargets,
        factors: Tensor,
        num_boxes: Tensor,
        num_classified: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The three losses.

        Args:
            logits: (B, Q, K).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            targets: of the same queries.
            factors: (B, 4) = (w, h, w, h) of each image in pixels.
            num_boxes: normalizer of the box losses: positives averaged over ranks, at least 1.
            num_classified: normalizer of the class loss; None: the positives of these targets, at least 1.

        Returns:
            cls, bbox, iou.
        """
        # Background queries get weight zero instead of being removed: indexing would synchronize with the device.
        positive = (targets.labels != logits.shape[-1]).to(boxes.dtype)  # (B, Q)
        predicted, target_boxes = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes)
        # Parity: Co-DINO's class loss is divided by the positives of this rank, not by their mean over ranks.
        normalizer = positive.sum().clamp(min=1) if num_classified is None else num_classified
        class_loss = average(self._class_loss(logits, targets.labels, predicted.detach(), target_boxes), normalizer)
        l1 = ((boxes - targets.boxes).abs().sum(-1) * positive).sum()
        giou = (giou_loss(predicted * factors[:, None], target_boxes * factors[:, None]) * positive).sum()
        return {
            "cls": class_loss * self.class_weight,
            "bbox": average(l1, num_boxes) * self.l1_weight,
            "iou": average(giou, num_boxes) * self.giou_weight,
        }

    def _class_loss(self, logits: Tensor, labels: Tensor, predicted: Tensor, target_boxes: Tensor) -> Tensor:
        """Summed over queries and classes; boxes (B, Q, 4) are xyxy in [0, 1]."""
        by_class = logits.transpose(1, 2)
        if self.class_loss == "focal":
            return focal_loss(by_class, labels).sum()
        return quality_focal_loss(by_class, labels, paired_iou(predicted, target_boxes)).sum()
