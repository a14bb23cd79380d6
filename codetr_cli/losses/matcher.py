"""One-to-one assignment of queries to objects (arXiv 2005.12872, section 3.1). Behaviour of mmdet's HungarianAssigner.

Shape letters: B batch, G objects, K classes, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        return self.start(predictions, [targets] * len(predictions))()

    @torch.no_grad()
    def start(
        self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Sequence[dict[str, Any]]]
    ) -> Callable[[], list[list[Match]]]:
        """As calling the matcher, in a thread of its own; what comes back waits for the matches and gives them.

        Args:
            predictions: as for a call.
            targets: as for a call, one list a set.
        """
        device = predictions[0][0].device
        costs = [
            self._cost(logits[i], boxes[i], target)
            for (logits, boxes), of_set in zip(predictions, targets, strict=True)
            for i, target in enumerate(of_set)
        ]
        # One copy to the host for all problems, and only the thread waits for it.
        flat, arrived = _to_host(torch.cat([cost.flatten() for cost in costs]))
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="matching")
        pending = pool.submit(_solve, flat, [tuple(cost.shape) for cost in costs], arrived)
        pool.shutdown(wait=False)

        def matches() -> list[list[Match]]:
            pairs = pending.result()
            # One copy back, for the same reason.
            indices = _to_device(np.concatenate([np.stack(pair) for pair in pairs], axis=1), device)
            parts = torch.split(indices, [len(pair[0]) for pair in pairs], dim=1)
            found = [(part[0], part[1]) for part in parts]
            images = len(targets[0])
            return [found[first : first + images] for first in range(0, len(found), images)]

        return matches

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


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values in host memory once the event has happened; at once without an event."""
    if values.device.type != "cuda":
        return values.cpu(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event


def _to_device(indices: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(indices)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _solve(
    flat: Tensor, shapes: Sequence[tuple[int, ...]], arrived: torch.cuda.Event | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The cheapest pairs of every cost matrix; the matrices lie in `flat` one after the other."""
    if arrived is not None:
        arrived.synchronize()
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [linear_sum_assignment(part.view(shape).numpy()) for part, shape in zip(parts, shapes, strict=True)]
