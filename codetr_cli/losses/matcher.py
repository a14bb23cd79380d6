"""One-to-one assignment of queries to objects (arXiv 2005.12872, section 3.1). Behaviour of mmdet's HungarianAssigner.

Shape letters: B batch, G objects, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from codetr_cli.boxes import cxcywh_to_xyxy, generalized_box_iou, size_scale, xyxy_to_cxcywh

Match = tuple[Tensor, Tensor]
"""Indices of queries and of the objects they are matched to, both (min(Q, G),) int64, queries ascending."""


class HungarianMatcher:
    """Finds the cheapest one-to-one assignment.

    Args:
        class_cost: weight of the focal cost. Parity: the cost is focal although the loss is quality focal.
        l1_cost: weight of the L1 distance of normalised cxcywh boxes.
        giou_cost: weight of the negative GIoU of boxes in pixels.
    """

    def __init__(self, *, class_cost: float, l1_cost: float, giou_cost: float) -> None:
        self.class_cost, self.l1_cost, self.giou_cost = class_cost, l1_cost, giou_cost

    @torch.no_grad()
    def __call__(
        self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Sequence[dict[str, Any]]
    ) -> list[list[Match]]:
        """Matches several sets of predictions (the decoder's layers) to the same objects.

        Args:
            predictions: logits (B, Q, K) and boxes (B, Q, 4) cxcywh in [0, 1] of each set.
            targets: per image `boxes` (G, 4) xyxy pixels, `labels` (G,), `norm_size` (h, w).

        Returns:
            Per set and image a `Match`, on the device of the predictions.
        """
        device = predictions[0][0].device
        costs = [
            self._cost(logits[i], boxes[i], target) for logits, boxes in predictions for i, target in enumerate(targets)
        ]
        # One copy to the host for all problems: each copy would wait for the device.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        parts = torch.split(flat, [cost.numel() for cost in costs])
        pairs = [linear_sum_assignment(part.view(cost.shape)) for part, cost in zip(parts, costs, strict=True)]
        # One copy back, for the same reason.
        indices = torch.from_numpy(np.concatenate([np.stack(pair) for pair in pairs], axis=1)).to(device)
        matches = [(part[0], part[1]) for part in torch.split(indices, [len(pair[0]) for pair in pairs], dim=1)]
        images = len(targets)
        return [matches[start : start + images] for start in range(0, len(matches), images)]

    def _cost(self, logits: Tensor, boxes: Tensor, target: dict[str, Any]) -> Tensor:
        """Cost (Q, G) of giving each object to each query of one image."""
        eps, alpha, gamma = 1e-12, 0.25, 2.0
        p = logits.sigmoid()[:, target["labels"]]
        negative = -(1 - p + eps).log() * (1 - alpha) * p**gamma
        positive = -(p + eps).log() * alpha * (1 - p) ** gamma
        factor = size_scale(target["norm_size"], boxes)
        wanted = target["boxes"].to(boxes.dtype)
        l1 = torch.cdist(boxes, xyxy_to_cxcywh(wanted) / factor, p=1)
        giou = generalized_box_iou(cxcywh_to_xyxy(boxes) * factor, wanted)
        cost = self.class_cost * (positive - negative) + self.l1_cost * l1 - self.giou_cost * giou
        # A diverging model must be reported by its loss, not by the solver.
        return torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
