"""Customized positive queries: positive boxes of the auxiliary heads, decoded in addition to the learned queries.

Section 3.3 of arXiv 2211.12860; behaviour of co_dino_head.py (get_aux_targets).
Shape letters: A sampled boxes, B batch, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_cli.boxes import xyxy_to_cxcywh
from codetr_cli.losses.assigners import SampledBoxes
from codetr_cli.losses.criterion import QueryTargets
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource

MIN_QUERIES = 9
"""Minimum queries of a pass; images with fewer positives are filled up with random background boxes."""


@dataclass(frozen=True)
class PositiveBoxes:
    """Boxes of an auxiliary head that are decoded.

    Attributes:
        boxes: (B, Q, 4) normalised cxcywh, not clipped.
        targets: the assigned object for positives, background for the others, which act as negatives.
        indices: (B, Q) of the boxes among the sampled boxes of their image.
        num_positives: positives among them, over the batch.
    """

    boxes: Tensor
    targets: QueryTargets
    indices: Tensor
    num_positives: int


@torch.no_grad()
def select_positive_queries(
    sampled: Sequence[Sequence[SampledBoxes]],
    factors: Tensor,
    *,
    num_classes: int,
    max_queries: int,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
) -> list[PositiveBoxes]:
    """Selects, per head, as many boxes in every image as the image with the most positives has.

    Args:
        sampled: per head and image, the boxes that the head was trained on.
        factors: (B, 4) = (w, h, w, h) of each image in pixels.
        num_classes: K.
        max_queries: maximum number of queries.
        random: random numbers of the selection.
        normalizers: counts of a global batch.
    """
    # Parity: images are cut to the smallest number of sampled boxes before anything is counted.
    common = normalizers.smallest([min(len(s.labels) for s in of_head) for of_head in sampled])
    is_positive = [
        torch.stack([s.labels[:length] for s in of_head]) < num_classes
        for of_head, length in zip(sampled, common, strict=True)
    ]
    # Known to the host already: nothing here waits for the device.
    positives = [
        [min(s.num_positives, length) for s in of_head] for of_head, length in zip(sampled, common, strict=True)
    ]
    most = normalizers.largest([max(of_images) for of_images in positives])
    selected = []
    for of_head, mask, counts, of_richest in zip(sampled, is_positive, positives, most, strict=True):
        if mask.shape[1] == 0:  # a diverged network has no proposals: its loss must show it
            selected.append(_background(factors, num_classes))
            continue
        count = max(min(of_richest, max_queries), MIN_QUERIES)
        # Positives first, both in ascending order.
        orders = mask.to(torch.uint8).sort(dim=1, descending=True, stable=True)[1]
        chosen = [_fill(order, number, count, random) for order, number in zip(orders, counts, strict=True)]
        selected.append(_gather(of_head, chosen, factors, _num_positives(counts, mask.shape[1], count)))
    return selected


def _background(factors: Tensor, num_classes: int) -> PositiveBoxes:
    blank = factors.new_zeros(len(factors), MIN_QUERIES, 4)
    background = torch.full(blank.shape[:2], num_classes, device=blank.device)
    return PositiveBoxes(blank, QueryTargets(background, blank), torch.zeros_like(background), 0)


def _gather(
    sampled: Sequence[SampledBoxes], chosen: list[Tensor], factors: Tensor, num_positives: int
) -> PositiveBoxes:
    images = list(zip(sampled, chosen, strict=True))
    boxes = torch.stack([torch.stack([s.boxes[index], s.objects[index]]) for s, index in images], 1)  # (2, B, Q, 4)
    boxes, objects = xyxy_to_cxcywh(boxes / factors[:, None])
    labels = torch.stack([s.labels[index] for s, index in images])
    return PositiveBoxes(boxes, QueryTargets(labels, objects), torch.stack(chosen), num_positives)


def _fill(order: Tensor, positives: int, count: int, random: RandomSource) -> Tensor:
    """Indices of `count` boxes: a random subset of the positives, or all of them and random background.

    Args:
        order: indices of all boxes, positives first.
        positives: their number.
        count: number of boxes.
        random: random numbers of the selection.
    """
    positive, background = order[:positives], order[positives:]
    if positives > count:
        return positive[random.permutation(positives, order)[:count]]
    missing = count - positives
    if missing == 0:
        return positive
    if len(background) == 0:  # every box is positive: repeat some
        return torch.cat([positive, _repeated(positive, missing)])
    return torch.cat([positive, background[_repeated(random.permutation(len(background), order), missing)]])


def _repeated(indices: Tensor, count: int) -> Tensor:
    """The first `count` indices, from the start again where there are fewer."""
    return indices.repeat(-(-count // len(indices)))[:count]


def _num_positives(positives: Sequence[int], boxes: int, count: int) -> int:
    """Positives among the `count` boxes that `_fill` selects in each image."""
    return sum(count if number == boxes else min(number, count) for number in positives)
