"""Customized positive queries: positive boxes of the auxiliary heads, decoded in addition to the learned queries.

Section 3.3 of arXiv 2211.12860; behaviour of co_dino_head.py (get_aux_targets).
Shape letters: A sampled boxes, B batch, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codetr_cli.boxes import Targets, size_scale, xyxy_to_cxcywh
from codetr_cli.losses.assigners import SampledBoxes
from codetr_cli.losses.criterion import QueryTargets
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource

MIN_QUERIES = 9
"""Minimum queries of a pass; images with fewer positives are filled up with random background boxes."""


@torch.no_grad()
def select_positive_queries(
    sampled: Sequence[SampledBoxes],
    targets: Targets,
    *,
    num_classes: int,
    max_queries: int,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
) -> tuple[Tensor, QueryTargets, Tensor]:
    """Selects as many boxes in every image as the image with the most positives has.

    Args:
        sampled: per image, the boxes that a head was trained on.
        targets: per image `norm_size` (h, w).
        num_classes: K.
        max_queries: maximum number of queries.
        random: random numbers of the selection.
        normalizers: counts of a global batch.

    Returns:
        Boxes (B, Q, 4) normalised cxcywh, not clipped; their targets: the assigned object for positives, background for
        the others, which act as negatives; the index (B, Q) of each among the sampled boxes of its image.
    """
    # Parity: images are cut to the smallest number of sampled boxes before anything is counted.
    common = normalizers.smallest(min(len(s.labels) for s in sampled))
    if common == 0:  # a diverged network has no proposals: its loss must show it
        blank = sampled[0].boxes.new_zeros(len(sampled), MIN_QUERIES, 4)
        background = torch.full(blank.shape[:2], num_classes, device=blank.device)
        return blank, QueryTargets(background, blank), torch.zeros_like(background)
    positives = [(s.labels[:common] < num_classes).nonzero()[:, 0] for s in sampled]
    most = normalizers.largest(max(len(p) for p in positives))
    count = max(min(most, max_queries), MIN_QUERIES)
    boxes, labels, objects, indices = [], [], [], []
    for image, positive, target in zip(sampled, positives, targets, strict=True):
        chosen = _fill(image.labels[:common], positive, count, num_classes, random)
        factor = size_scale(target["norm_size"], image.boxes)
        boxes.append(xyxy_to_cxcywh(image.boxes[chosen] / factor))
        objects.append(xyxy_to_cxcywh(image.objects[chosen] / factor))
        labels.append(image.labels[chosen])
        indices.append(chosen)
    return torch.stack(boxes), QueryTargets(torch.stack(labels), torch.stack(objects)), torch.stack(indices)


def _fill(labels: Tensor, positive: Tensor, count: int, num_classes: int, random: RandomSource) -> Tensor:
    """Indices of `count` boxes: a random subset of the positives, or all of them and random background."""
    if len(positive) > count:
        return positive[random.permutation(len(positive), positive)[:count]]
    missing = count - len(positive)
    if missing == 0:
        return positive
    background = (labels == num_classes).nonzero()[:, 0]
    if len(background) == 0:  # every box is positive: repeat some
        return torch.cat([positive, positive[torch.arange(missing, device=positive.device) % len(positive)]])
    order = random.permutation(len(background), background)
    return torch.cat([positive, background[order[torch.arange(missing, device=order.device) % len(order)]]])
