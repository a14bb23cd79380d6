"""Customised positive queries: boxes of the auxiliary heads' positives, decoded beside the learned queries.

Section 3.3 of arXiv 2211.12860; behaviour of co_dino_head.py (get_aux_targets).
Shape letters: B batch, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr_cli.boxes import size_scale, xyxy_to_cxcywh
from codetr_cli.losses.aux_heads import Candidates
from codetr_cli.losses.criterion import QueryTargets
from codetr_cli.losses.normalizers import ALONE, Normalizers
from codetr_cli.losses.random import RandomSource

MIN_QUERIES = 9
"""Fewest queries of a pass; images without that many positives are filled up with random background boxes."""


@torch.no_grad()
def select_positive_queries(
    candidates: Sequence[Candidates],
    targets: Sequence[dict[str, Any]],
    *,
    num_classes: int,
    max_queries: int,
    draws: RandomSource,
    agreement: Normalizers = ALONE,
) -> tuple[Tensor, QueryTargets, Tensor]:
    """Chooses as many boxes in every image as the image with most positives has.

    Args:
        candidates: per image, the boxes a head was trained on.
        targets: per image `norm_size` (h, w).
        num_classes: K.
        max_queries: upper limit of queries.
        draws: source of the random choices.
        agreement: of the processes on what the images of a batch share.

    Returns:
        Boxes (B, Q, 4) normalised cxcywh, not clipped; their targets: the assigned object for positives, background for
        the others, which act as negatives; which candidates (B, Q) of their image they are.
    """
    # Parity: images are cut to the smallest number of candidates before anything is counted.
    shared = agreement.smallest(min(len(c.labels) for c in candidates))
    if shared == 0:  # a network that has diverged proposes nothing: its loss must say so
        blank = candidates[0].boxes.new_zeros(len(candidates), MIN_QUERIES, 4)
        labels_of_none = torch.full(blank.shape[:2], num_classes, device=blank.device)
        return blank, QueryTargets(labels_of_none, blank), torch.zeros_like(labels_of_none)
    positives = [(c.labels[:shared] < num_classes).nonzero()[:, 0] for c in candidates]
    richest = agreement.largest(max(len(p) for p in positives))
    count = max(min(richest, max_queries), MIN_QUERIES)
    boxes, labels, objects, indices = [], [], [], []
    for candidate, positive, target in zip(candidates, positives, targets, strict=True):
        chosen = _fill(candidate.labels[:shared], positive, count, num_classes, draws)
        factor = size_scale(target["norm_size"], candidate.boxes)
        boxes.append(xyxy_to_cxcywh(candidate.boxes[chosen] / factor))
        objects.append(xyxy_to_cxcywh(candidate.objects[chosen] / factor))
        labels.append(candidate.labels[chosen])
        indices.append(chosen)
    return torch.stack(boxes), QueryTargets(torch.stack(labels), torch.stack(objects)), torch.stack(indices)


def _fill(labels: Tensor, positive: Tensor, count: int, num_classes: int, draws: RandomSource) -> Tensor:
    """Indices of `count` boxes: a random subset of the positives, or all of them and random background."""
    if len(positive) > count:
        return positive[draws.permutation(len(positive), positive)[:count]]
    missing = count - len(positive)
    if missing == 0:
        return positive
    background = (labels == num_classes).nonzero()[:, 0]
    if len(background) == 0:  # every candidate is positive: repeat some
        return torch.cat([positive, positive[torch.arange(missing, device=positive.device) % len(positive)]])
    order = draws.permutation(len(background), background)
    return torch.cat([positive, background[order[torch.arange(missing, device=order.device) % len(order)]]])
