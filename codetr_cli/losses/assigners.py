"""One-to-many assignment of anchors and regions to objects, and sampling of a balanced subset.

Behaviour of mmdet's MaxIoUAssigner, ATSSAssigner and RandomSampler. Shape letters: A anchors or regions, G objects.
Assignments are (A,) int64: the object's index, -1 for background, -2 for ignored anchors.
No tensor of size A x G is ever held: a large image has two million anchors, and some images a thousand objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_cli.boxes import box_iou, paired_iou
from codetr_cli.losses.random import RandomSource

BACKGROUND = -1
IGNORED = -2

CHUNK_PAIRS = {"cpu": 2**20}
"""Anchor-object pairs per chunk, by device type: their values fit into a CPU's cache."""

GPU_CHUNK_PAIRS = 2**24
"""The same on any other device: enough to keep it busy."""


@dataclass(frozen=True)
class SampledBoxes:
    """Boxes of one image that an auxiliary head is trained on; positive queries are selected from them.

    Attributes:
        boxes: (A, 4) xyxy pixels.
        labels: (A,) int64; K for background.
        objects: (A, 4) xyxy pixels of the assigned object; 0 for background.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor


def _objects_at_once(anchors: Tensor) -> int:
    return max(1, CHUNK_PAIRS.get(anchors.device.type, GPU_CHUNK_PAIRS) // len(anchors))


@torch.no_grad()
def assign_by_iou(
    boxes: Tensor, objects: Tensor, *, positive_iou: float, negative_iou: float, min_best_iou: float | None
) -> Tensor:
    """Assigns each box to the object with the highest IoU.

    Args:
        boxes: (A, 4) xyxy pixels.
        objects: (G, 4) xyxy pixels.
        positive_iou: minimum IoU of positive boxes.
        negative_iou: boxes with a lower IoU are background; boxes between the two thresholds are ignored.
        min_best_iou: each object is also assigned to all boxes that share its highest IoU, if that is at least this
            value; later objects overwrite earlier ones. None: no such rule.
    """
    if len(objects) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    boxes = boxes.t().contiguous().t()  # column-major, as IoUs are computed
    best_iou = torch.full_like(boxes[:, 0], -torch.inf)
    best_object = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    last_sharing = torch.full_like(best_object, -1)
    at_once = _objects_at_once(boxes)
    for first in range(0, len(objects), at_once):
        iou = box_iou(objects[first : first + at_once], boxes)  # (some of G, A)
        chunk_iou, chunk_object = iou.max(0)
        best_object = torch.where(chunk_iou > best_iou, chunk_object + first, best_object)
        best_iou = torch.maximum(best_iou, chunk_iou)
        if min_best_iou is not None:
            best_of_object = iou.max(1)[0]
            shared = (iou == best_of_object[:, None]) & (best_of_object >= min_best_iou)[:, None]
            index = torch.arange(first, first + len(iou), device=boxes.device)[:, None]
            last_sharing = torch.maximum(last_sharing, torch.where(shared, index, -1).amax(0))
    # No boolean indexing here: it would synchronize with the device.
    assigned = torch.where(best_iou < negative_iou, BACKGROUND, IGNORED)
    assigned = torch.where(best_iou >= positive_iou, best_object, assigned)
    return torch.where(last_sharing >= 0, last_sharing, assigned)


@torch.no_grad()
def assign_atss(anchors_of_level: Sequence[Tensor], objects: Tensor, top_k: int = 9) -> Tensor:
    """Adaptive training sample selection, section 3.2 of arXiv 1912.02424.

    The candidates of an object are the closest anchors of each level; those whose IoU is at least the mean plus the
    standard deviation of the candidates' IoUs are positive.

    Args:
        anchors_of_level: per level (A_i, 4) xyxy pixels.
        objects: (G, 4) xyxy pixels.
        top_k: candidates per level and object.

    Returns:
        (A,) over the concatenated levels.
    """
    anchors = torch.cat(list(anchors_of_level))
    assigned = torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    if len(objects) == 0 or len(anchors) == 0:
        return assigned
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    index = _closest(torch.split(centres, [len(level) for level in anchors_of_level]), objects, top_k)
    candidate_iou = paired_iou(anchors[index], objects)  # (candidates, G)
    threshold = candidate_iou.mean(0) + candidate_iou.std(0)
    centre = centres[index]  # (candidates, G, 2)
    margins = torch.cat([centre - objects[:, :2], objects[:, 2:] - centre], -1).min(-1)[0]
    positive = (candidate_iou >= threshold) & (margins > 0.01)
    # Per anchor, the object with the highest IoU among those it is a positive candidate of; ties: the first object.
    chosen, flat = torch.where(positive, candidate_iou, -torch.inf).flatten(), index.flatten()
    best_iou = torch.full_like(anchors[:, 0], -torch.inf).scatter_reduce(0, flat, chosen, "amax")
    is_best = positive.flatten() & (chosen == best_iou[flat])
    object_index = torch.arange(len(objects), device=anchors.device).expand_as(index).flatten()
    no_object = len(objects)
    best_object = torch.full_like(assigned, no_object).scatter_reduce(
        0, flat, torch.where(is_best, object_index, no_object), "amin"
    )
    return torch.where(best_object < no_object, best_object, assigned)


def _closest(centres_of_level: Sequence[Tensor], objects: Tensor, top_k: int) -> Tensor:
    """Indices (candidates, G) over all levels of the anchors with the `top_k` closest centres per level and object."""
    object_centres = (objects[:, :2] + objects[:, 2:]) / 2
    candidates, start = [], 0
    for centres in centres_of_level:
        if len(centres):
            x, y = centres.t().contiguous()
            parts = []
            for some in torch.split(object_centres, _objects_at_once(centres)):
                distances = ((x - some[:, :1]).square_() + (y - some[:, 1:]).square_()).sqrt_()  # (some of G, A_i)
                parts.append(distances.topk(min(top_k, len(centres)), dim=1, largest=False)[1])
            candidates.append(torch.cat(parts).t() + start)
        start += len(centres)
    return torch.cat(candidates)


def sample_balanced(
    assigned: Tensor, *, count: int, positive_fraction: float, random: RandomSource
) -> tuple[Tensor, Tensor]:
    """Samples a subset with at most the given share of positives.

    Random numbers are used only where there are more candidates than needed.

    Args:
        assigned: (A,).
        count: size of the subset.
        positive_fraction: maximum share of positives.
        random: random numbers: first a permutation of the positives, then one of the negatives.

    Returns:
        Ascending indices of the positives and of the negatives.
    """
    positives = _choose((assigned >= 0).nonzero()[:, 0], int(count * positive_fraction), random)
    negatives = _choose((assigned == BACKGROUND).nonzero()[:, 0], count - len(positives), random)
    return positives, negatives


def _choose(candidates: Tensor, count: int, random: RandomSource) -> Tensor:
    if len(candidates) <= count:
        return candidates
    return candidates[random.permutation(len(candidates), candidates)[:count]].sort()[0]
