"""One-to-one assignment of queries to objects (arXiv 2005.12872, section 3.1). Behaviour of mmdet's HungarianAssigner.

Shape letters: B batch, G objects, K classes, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from codetr_cli.boxes import Target, Targets, cxcywh_to_xyxy, generalized_box_iou, size_scale, xyxy_to_cxcywh

Match = tuple[Tensor, Tensor]
"""Indices of queries and of the objects they are matched to, both (min(Q, G),) int64, queries ascending."""


CHUNK_PAIRS = {"cpu": 2**18}
"""Pairs of a query and an object, or a class, per chunk, by device type: they fit into a CPU's cache."""

GPU_CHUNK_PAIRS = 2**24
"""The same on any other device: enough to keep it busy."""


class HungarianMatcher:
    """Finds the cheapest one-to-one assignment.

    Args:
        class_cost: weight of the focal cost. Parity: the cost is focal although the loss is quality focal.
        l1_cost: weight of the L1 distance of normalised cxcywh boxes.
        giou_cost: weight of the negative GIoU of boxes in pixels.
    """

    def __init__(self, *, class_cost: float, l1_cost: float, giou_cost: float) -> None:
        self.class_cost, self.l1_cost, self.giou_cost = class_cost, l1_cost, giou_cost

    def __call__(self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Targets) -> list[list[Match]]:
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
        self, predictions: Sequence[tuple[Tensor, Tensor]], targets: Sequence[Targets]
    ) -> Callable[[], list[list[Match]]]:
        """Starts matching in a background thread; the returned function waits for the matches and returns them.

        Args:
            predictions: as for a call.
            targets: as for a call, one list per set.
        """
        device = predictions[0][0].device
        problems = [
            (logits[i], boxes[i], target)
            for (logits, boxes), of_set in zip(predictions, targets, strict=True)
            for i, target in enumerate(of_set)
        ]
        shapes = [(len(boxes), len(target["labels"])) for _, boxes, target in problems]
        costs = torch.empty(sum(map(math.prod, shapes)), dtype=predictions[0][0].dtype, device=device)
        for part, shape, problem in zip(torch.split(costs, [*map(math.prod, shapes)]), shapes, problems, strict=True):
            self._fill(part.view(shape), *problem)
        # One copy to the host for all problems, and only the thread waits for it.
        flat, arrived = _to_host(costs)
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="matching")
        pending = pool.submit(_solve, flat, shapes, arrived)
        pool.shutdown(wait=False)

        def matches() -> list[list[Match]]:
            pairs = pending.result()
            # One copy back for all problems too.
            indices = _to_device(np.concatenate([np.stack(pair) for pair in pairs], axis=1), device)
            parts = torch.split(indices, [len(pair[0]) for pair in pairs], dim=1)
            found = [(part[0], part[1]) for part in parts]
            images = len(targets[0])
            return [found[first : first + images] for first in range(0, len(found), images)]

        return matches

    def _fill(self, costs: Tensor, logits: Tensor, boxes: Tensor, target: Target) -> None:
        """Writes the costs of one image, in chunks of queries."""
        target_boxes = target["boxes"].to(boxes.dtype)
        factor = size_scale(target["norm_size"], boxes)
        normalized = xyxy_to_cxcywh(target_boxes) / factor
        at_once = max(
            1, CHUNK_PAIRS.get(costs.device.type, GPU_CHUNK_PAIRS) // max(1, len(target_boxes), logits.shape[1])
        )
        parts = (torch.split(rows, at_once) for rows in (costs, logits, boxes))
        for some_costs, some_logits, some_boxes in zip(*parts, strict=True):
            p = some_logits.sigmoid()[:, target["labels"]]
            l1 = torch.cdist(some_boxes, normalized, p=1)
            giou = generalized_box_iou(cxcywh_to_xyxy(some_boxes) * factor, target_boxes)
            some_costs.copy_(self._costs(p, l1, giou))

    def _costs(self, p: Tensor, l1: Tensor, giou: Tensor) -> Tensor:
        """Costs of pairs from the score of the object's class, distance and GIoU."""
        eps, alpha, gamma = 1e-12, 0.25, 2.0
        negative = -(1 - p + eps).log() * (1 - alpha) * p**gamma
        positive = -(p + eps).log() * alpha * (1 - p) ** gamma
        cost = self.class_cost * (positive - negative) + self.l1_cost * l1 - self.giou_cost * giou
        # Non-finite values of a diverging model must show in its loss, not fail in the solver.
        return torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values in host memory, valid once the event has completed; immediately without an event."""
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
    """The cheapest pairs of every cost matrix; `flat` concatenates the matrices."""
    if arrived is not None:
        arrived.synchronize()
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [_cheapest(part.view(shape).numpy()) for part, shape in zip(parts, shapes, strict=True)]


def _cheapest(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest pairs of one matrix (Q, G)."""
    if costs.shape[0] <= costs.shape[1]:
        return linear_sum_assignment(costs)
    # SciPy would copy it twice, to float64 and transposed; this way it copies once and solves the same problem.
    objects, queries = linear_sum_assignment(np.ascontiguousarray(costs.T, dtype=np.float64))
    order = queries.argsort()
    return queries[order], objects[order]
