"""Losses of decoder queries whose label and box are known: matched, denoising and positive queries share them.

Behaviour of co_dino_head.py and co_deformable_detr_head.py. Shape letters: B batch, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codetr_cli.boxes import cxcywh_to_xyxy, paired_iou, size_scale, xyxy_to_cxcywh
from codetr_cli.losses.functional import average, focal_loss, giou_loss, quality_focal_loss
from codetr_cli.losses.matcher import Match


@dataclass(frozen=True)
class QueryTargets:
    """What each query should say.

    Attributes:
        labels: (B, Q) int64; K for background.
        boxes: (B, Q, 4) normalised cxcywh; read where the label is not background.
    """

    labels: Tensor
    boxes: Tensor

    @staticmethod
    def from_matches(
        matches: Sequence[Match],
        targets: Sequence[dict[str, Any]],
        num_queries: int,
        num_classes: int,
        dtype: torch.dtype,
    ) -> QueryTargets:
        """Targets of queries matched one to one; the rest is background."""
        device = targets[0]["labels"].device
        labels = torch.full((len(targets), num_queries), num_classes, device=device)
        boxes = torch.zeros(len(targets), num_queries, 4, dtype=dtype, device=device)
        for i, ((queries, objects), target) in enumerate(zip(matches, targets, strict=True)):
            wanted = target["boxes"].to(dtype)
            labels[i, queries] = target["labels"][objects]
            boxes[i, queries] = (xyxy_to_cxcywh(wanted) / size_scale(target["norm_size"], wanted))[objects]
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
            num_boxes: normaliser of the box losses: positives averaged over processes, at least 1.
            num_classified: normaliser of the class loss; None: the positives of these targets, at least 1.

        Returns:
            cls, bbox, iou.
        """
        # Background queries are weighted with zero, not left out: picking the others would wait for the device.
        positive = (targets.labels != logits.shape[-1]).to(boxes.dtype)  # (B, Q)
        predicted, wanted = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes)
        # Parity: Co-DINO's class loss is divided by this process's own positives, not by their mean over processes.
        normaliser = positive.sum().clamp(min=1) if num_classified is None else num_classified
        class_loss = average(self._class_loss(logits, targets.labels, predicted.detach(), wanted), normaliser)
        l1 = ((boxes - targets.boxes).abs().sum(-1) * positive).sum()
        giou = (giou_loss(predicted * factors[:, None], wanted * factors[:, None]) * positive).sum()
        return {
            "cls": class_loss * self.class_weight,
            "bbox": average(l1, num_boxes) * self.l1_weight,
            "iou": average(giou, num_boxes) * self.giou_weight,
        }

    def _class_loss(self, logits: Tensor, labels: Tensor, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Summed over queries and classes; boxes (B, Q, 4) are xyxy in [0, 1]."""
        by_class = logits.transpose(1, 2)
        if self.class_loss == "focal":
            return focal_loss(by_class, labels).sum()
        return quality_focal_loss(by_class, labels, paired_iou(predicted, wanted)).sum()
