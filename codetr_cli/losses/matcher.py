"""One-to-one assignment of queries to objects (arXiv 2005.12872, section 3.1). Behaviour of mmdet's HungarianAssigner.

Shape letters: B batch, G objects of an image, K classes, L layers, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from codetr_cli.boxes import cxcywh_to_xyxy, generalized_box_iou
from codetr_cli.losses.objects import BatchObjects

Match = tuple[np.ndarray, np.ndarray]
"""Indices of queries and of the objects of the image that they are matched to, both (min(Q, G),) int64 in host memory,
queries ascending."""

Layers = tuple[Tensor, Tensor]
"""Logits (L, B, Q, K) and boxes (L, B, Q, 4) cxcywh in [0, 1] of layers with equally many queries."""

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

    def __call__(self, predictions: Sequence[Layers], objects: BatchObjects) -> list[list[Match]]:
        """Matches every layer's predictions to the same objects.

        Args:
            predictions: stacks of layers.
            objects: of the batch.

        Returns:
            Per layer, of all stacks in order, and per image a `Match`.
        """
        return self.start(predictions, [objects] * len(predictions))()

    @torch.no_grad()
    def start(self, predictions: Sequence[Layers], objects: Sequence[BatchObjects]) -> Callable[[], list[list[Match]]]:
        """Starts matching in a background thread; the returned function waits for the matches and returns them.

        Args:
            predictions: as for a call.
            objects: as for a call, of each stack.
        """
        shapes = [
            (count, len(boxes), boxes.shape[2])
            for (_, boxes), of_stack in zip(predictions, objects, strict=True)
            for count in of_stack.counts
        ]  # (G, L, Q) per stack and image
        sizes = [math.prod(shape) for shape in shapes]
        costs = predictions[0][1].new_empty(sum(sizes))
        parts = iter(torch.split(costs, sizes))
        for (logits, boxes), of_stack in zip(predictions, objects, strict=True):
            corners = cxcywh_to_xyxy(boxes) * of_stack.factors[:, None]
            for image, count in enumerate(of_stack.counts):
                part = next(parts).view(count, len(boxes), boxes.shape[2])
                if count:
                    self._fill(part, logits[:, image], boxes[:, image], corners[:, image], of_stack, image)
        # One copy to the host for all problems, and only the thread waits for it.
        flat, arrived = _to_host(costs)
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="matching")
        pending = pool.submit(_solve, flat, shapes, len(objects[0].counts), arrived)
        pool.shutdown(wait=False)
        return pending.result

    def _fill(
        self, costs: Tensor, logits: Tensor, boxes: Tensor, corners: Tensor, objects: BatchObjects, image: int
    ) -> None:
        """Writes the costs (G, L, Q) of one image, in chunks of queries; the predictions are (L, Q, .)."""
        rows = objects.rows(image)
        labels, wanted, wanted_corners = objects.labels[rows], objects.boxes_cxcywh[rows], objects.boxes_xyxy[rows]
        pairs = CHUNK_PAIRS.get(costs.device.type, GPU_CHUNK_PAIRS)
        at_once = max(1, pairs // (len(boxes) * max(len(labels), logits.shape[-1])))
        parts = [
            *(torch.split(t, at_once, dim=1) for t in (logits, boxes, corners)),
            torch.split(costs, at_once, dim=2),
        ]
        for some_logits, some_boxes, some_corners, some_costs in zip(*parts, strict=True):
            by_class = some_logits.permute(2, 0, 1)  # (K, L, some of Q)
            few = len(labels) < len(by_class)
            p = by_class[labels].sigmoid() if few else by_class.sigmoid()[labels]
            l1 = torch.cdist(wanted, some_boxes.reshape(-1, 4), p=1).view(p.shape)
            giou = generalized_box_iou(wanted_corners, some_corners.reshape(-1, 4)).view(p.shape)
            some_costs.copy_(self._costs(p, l1, giou))

    def _costs(self, p: Tensor, l1: Tensor, giou: Tensor) -> Tensor:
        """Costs of pairs from the score of the object's class, distance and GIoU."""
        eps, alpha = 1e-12, 0.25
        q = 1 - p
        # Focal cost with gamma = 2: that of the label minus that of its absence.
        cost = (q + eps).log().mul_(p.square()).mul_(self.class_cost * (1 - alpha))
        cost -= (p + eps).log().mul_(q.square_()).mul_(self.class_cost * alpha)
        cost.add_(l1, alpha=self.l1_cost).sub_(giou, alpha=self.giou_cost)
        # Non-finite values of a diverging model must show in its loss, not fail in the solver.
        return cost.nan_to_num_(nan=1e6, posinf=1e6, neginf=-1e6)


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values in host memory, valid once the event has completed; immediately without an event."""
    if values.device.type != "cuda":
        return values.cpu(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    # The thread that waits for it sleeps; by default it would poll and keep a core busy.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    # The current device may be another one, whose stream knows nothing of this copy.
    event.record(torch.cuda.current_stream(values.device))
    return host, event


def _solve(
    flat: Tensor, shapes: Sequence[tuple[int, int, int]], images: int, arrived: torch.cuda.Event | None
) -> list[list[Match]]:
    """The cheapest pairs of every layer and image.

    Args:
        flat: the concatenated costs.
        shapes: (G, L, Q) of the costs of each stack of layers and image.
        images: number of images.
        arrived: event of the copy.
    """
    if arrived is not None:
        arrived.synchronize()
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    costs = [part.view(shape).numpy() for part, shape in zip(parts, shapes, strict=True)]
    of_stacks = [costs[first : first + images] for first in range(0, len(costs), images)]
    return [
        [_cheapest(of_image[:, layer]) for of_image in of_stack]
        for of_stack in of_stacks
        for layer in range(of_stack[0].shape[1])
    ]


def _cheapest(costs: np.ndarray) -> Match:
    """The cheapest pairs of one matrix (G, Q)."""
    # SciPy would copy a strided matrix twice.
    objects, queries = linear_sum_assignment(np.ascontiguousarray(costs, dtype=np.float64))
    order = queries.argsort()
    return queries[order], objects[order]
