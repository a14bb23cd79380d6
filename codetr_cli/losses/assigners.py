"""One-to-many assignment of anchors and regions to objects, and the sampling of a balanced subset.

Behaviour of mmdet's MaxIoUAssigner, ATSSAssigner and RandomSampler. Shape letters: A anchors or regions, G objects.
Assignments are (A,) int64: the object's index, -1 for background, -2 for anchors that take no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codetr_cli.boxes import box_iou
from codetr_cli.losses.draws import Draws

BACKGROUND = -1
IGNORED = -2


@torch.no_grad()
def assign_by_iou(
    boxes: Tensor, objects: Tensor, *, positive_iou: float, negative_iou: float, min_best_iou: float | None
) -> Tensor:
    """Gives each box the object it overlaps most.

    Args:
        boxes: (A, 4) xyxy pixels.
        objects: (G, 4) xyxy pixels.
        positive_iou: boxes from this IoU on are positive.
        negative_iou: boxes below are background; between the two they are ignored.
        min_best_iou: each object also takes all boxes that overlap it as much as its best one does, when that is at
            least this; later objects overwrite earlier ones. None: no such rule.
    """
    if len(objects) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    iou = box_iou(objects, boxes)  # (G, A)
    best_iou, best_object = iou.max(0)
    # No boolean indices here and below: they wait for the device.
    assigned = torch.where(best_iou < negative_iou, BACKGROUND, IGNORED)
    assigned = torch.where(best_iou >= positive_iou, best_object, assigned)
    if min_best_iou is not None:
        best_of_object = iou.max(1)[0]
        shared = (iou == best_of_object[:, None]) & (best_of_object >= min_best_iou)[:, None]
        last = len(objects) - 1 - shared.flip(0).to(torch.uint8).argmax(0)
        assigned = torch.where(shared.any(0), last, assigned)
    return assigned


@torch.no_grad()
def assign_atss(anchors_of_level: Sequence[Tensor], objects: Tensor, top_k: int = 9) -> Tensor:
    """Per object the closest anchors of each level, kept from the mean plus the deviation of their IoU on.

    Adaptive training sample selection, section 3.2 of arXiv 1912.02424.

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
    iou = box_iou(anchors, objects)  # (A, G)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    object_centres = (objects[:, :2] + objects[:, 2:]) / 2
    distances = (centres[:, None] - object_centres[None]).pow(2).sum(-1).sqrt()
    candidates, start = [], 0
    for level_anchors in anchors_of_level:
        end = start + len(level_anchors)
        closest = distances[start:end].topk(min(top_k, end - start), dim=0, largest=False)[1]
        candidates.append(closest + start)
        start = end
    index = torch.cat(candidates)  # (candidates, G)
    candidate_iou = iou.gather(0, index)
    threshold = candidate_iou.mean(0) + candidate_iou.std(0)
    centre = centres[index]  # (candidates, G, 2)
    margins = torch.cat([centre - objects[:, :2], objects[:, 2:] - centre], -1).min(-1)[0]
    positive = (candidate_iou >= threshold) & (margins > 0.01)
    chosen = torch.full_like(iou, -torch.inf)
    chosen.scatter_(0, index, torch.where(positive, candidate_iou, -torch.inf))
    best_iou, best_object = chosen.max(1)
    return torch.where(best_iou > -torch.inf, best_object, assigned)


def sample_balanced(assigned: Tensor, *, count: int, positive_fraction: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """Draws a subset with at most the given share of positives; draws only where there are more candidates than wanted.

    Args:
        assigned: (A,).
        count: size of the subset.
        positive_fraction: largest share of positives.
        draws: source of the permutations: first the positives', then the negatives'.

    Returns:
        Ascending indices of the positives and of the negatives.
    """
    positives = _choose((assigned >= 0).nonzero()[:, 0], int(count * positive_fraction), draws)
    negatives = _choose((assigned == BACKGROUND).nonzero()[:, 0], count - len(positives), draws)
    return positives, negatives


def _choose(candidates: Tensor, count: int, draws: Draws) -> Tensor:
    if len(candidates) <= count:
        return candidates
    return candidates[draws.permutation(len(candidates), candidates)[:count]].sort()[0]
