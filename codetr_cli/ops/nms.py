"""Non-maximum suppression per class: hard (torchvision's) and soft (arXiv 1704.04503), with the published behaviour.

Behaviour of `mmcv.ops.batched_nms`: boxes of class c are shifted by c * (largest coordinate + 1) so that classes never
overlap; IoU without the +1 of old pixel conventions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms as torchvision_batched_nms
from torchvision.ops import nms


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Hard NMS within each label.

    Args:
        boxes_xyxy: (N, 4) pixels.
        scores: (N,).
        labels: (N,) int64.
        iou_threshold: boxes with a higher IoU with a better box of the same label are dropped.

    Returns:
        (K,) int64 indices of the kept boxes, best score first.
    """
    return torchvision_batched_nms(boxes_xyxy, scores, labels, iou_threshold)


GPU_BOXES_AT_ONCE = 2**15
"""Boxes per call of the NMS of a GPU, which holds a bit for every pair of them."""


def grouped_nms(boxes_xyxy: Tensor, scores: Tensor, sizes: Sequence[int], iou_threshold: float) -> Tensor:
    """Hard NMS of several images together, within each group of boxes of an image.

    A GPU gets many groups at once, because the host waits for every call: the boxes of each group are shifted to where
    no other group's are, in float64, so that what is kept does not depend on the other groups.

    Args:
        boxes_xyxy: (B, N, 4) pixels.
        scores: (B, N).
        sizes: boxes of each group, which follow one another; their sum is N.
        iou_threshold: boxes with a higher IoU with a better box of the same group are dropped.

    Returns:
        bool (B, N), True for the boxes that are kept.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    if boxes_xyxy.device.type != "cuda":
        for of_image, image_boxes, image_scores in zip(kept, boxes_xyxy, scores, strict=True):
            parts = (torch.split(each, list(sizes)) for each in (of_image, image_boxes, image_scores))
            for of_group, group_boxes, group_scores in zip(*parts, strict=True):
                of_group.index_fill_(0, nms(group_boxes, group_scores, iou_threshold), True)
        return kept
    groups = torch.cat([scores.new_full((size,), i, dtype=torch.float64) for i, size in enumerate(sizes)])
    groups = groups + len(sizes) * torch.arange(len(scores), dtype=torch.float64, device=groups.device)[:, None]
    shifted = boxes_xyxy + (groups * (boxes_xyxy.amax() + 1))[..., None]
    at_once = max(1, GPU_BOXES_AT_ONCE // max(1, scores.shape[1]))
    for some, own, own_scores in zip(*(torch.split(each, at_once) for each in (kept, shifted, scores)), strict=True):
        index = nms(own.flatten(0, 1), own_scores.flatten().double(), iou_threshold)
        some.view(-1).index_fill_(0, index, True)
    return kept


SoftNms = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

ONE_BY_ONE_FROM = 10_000
"""From this many boxes on, labels are processed separately, as in mmcv: it is faster, and the best box of each label is
kept with any score."""


def batched_soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    min_score: float = 1e-3,
    method: str = "linear",
    sigma: float = 0.5,
    max_detections: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS within each label: overlapping boxes lose score instead of being dropped.

    Args:
        boxes_xyxy: (N, 4) pixels, float32 or float64; half precision is computed in float32.
        scores: (N,) in [0, 1].
        labels: (N,) int64.
        iou_threshold: minimum IoU of the linear decay, which multiplies by 1 - IoU.
        min_score: boxes with a lower decayed score are dropped.
        method: "linear" or "gaussian" (multiplies by exp(-IoU^2 / sigma) for any IoU).
        sigma: scale of the gaussian decay.
        max_detections: stop after this many boxes.

    Returns:
        (K,) int64 indices of the kept boxes and (K,) decayed scores, highest decayed score first.

    Raises:
        ValueError: unknown method.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"soft-NMS method must be 'linear' or 'gaussian', got {method!r}")
    if boxes_xyxy.numel() == 0:
        return labels.new_zeros(0), scores.new_zeros(0)
    dtype = torch.float64 if boxes_xyxy.dtype == torch.float64 else torch.float32
    boxes, host_labels = boxes_xyxy.detach().to("cpu", dtype), labels.detach().cpu()
    host_scores = scores.detach().to("cpu", dtype).numpy()
    limit = max_detections or len(boxes)
    how = functools.partial(
        _soft_nms,
        iou_threshold=iou_threshold,
        min_score=min_score,
        gaussian_sigma=sigma if method == "gaussian" else None,
        max_detections=limit,
    )
    if len(boxes) < ONE_BY_ONE_FROM:
        shifted = boxes + (host_labels.to(dtype) * (boxes.max() + 1))[:, None]
        keep, decayed = how(shifted.numpy(), host_scores)
    else:
        keep, decayed = _each_label(boxes.numpy(), host_scores, host_labels.numpy(), how)
        keep, decayed = keep[:limit], decayed[:limit]
    return torch.from_numpy(keep).to(labels.device), torch.from_numpy(decayed).to(scores.device, scores.dtype)


def _each_label(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, how: SoftNms) -> tuple[np.ndarray, ...]:
    """Soft-NMS label by label; indices and decayed scores, best first."""
    kept, decayed = [], []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        keep, own_scores = how(boxes[own], scores[own])
        kept.append(own[keep])
        decayed.append(own_scores)
    all_scores = np.concatenate(decayed)
    order = np.argsort(-all_scores, kind="stable")
    return np.concatenate(kept)[order], all_scores[order]


def parallel_soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    min_score: float = 1e-3,
    method: str = "linear",
    sigma: float = 0.5,
    rounds: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`batched_soft_nms` of several images together, on their device, without a loop over boxes.

    A box that scores higher than every undecided box it overlaps is picked before any of them, independent of all other
    boxes: all such boxes are picked together and decay the others, in rounds. The scores equal those of picking one by
    one, up to the rounding of products in another order; of equal scores the first box is picked first.

    Args:
        boxes_xyxy: (B, N, 4) pixels, float32 or float64.
        scores: (B, N) in [0, 1].
        labels: (B, N) int64.
        iou_threshold: as for `batched_soft_nms`.
        min_score: as above.
        method: as above.
        sigma: as above.
        rounds: at most so many; None: enough for any boxes.

    Returns:
        (B, N) decayed scores, -1 where the box is dropped; and bool (B,), True where the rounds were not enough and
        boxes are missing. Nothing here waits for a GPU.
    """
    factors = _decay_factors(boxes_xyxy, labels, iou_threshold, sigma if method == "gaussian" else None)
    linked = factors != 1  # (B, N, N)
    index = torch.arange(scores.shape[1], device=scores.device)
    earlier = index[:, None] < index
    is_first = index == scores.argmax(1, keepdim=True)  # picked even with a score below the limit
    undecided, picked = is_first | (scores >= min_score), torch.zeros_like(is_first)
    for _ in range(scores.shape[1] if rounds is None else min(rounds, scores.shape[1])):
        before = (scores[:, :, None] > scores[:, None]) | ((scores[:, :, None] == scores[:, None]) & earlier)
        waits = (undecided[:, :, None] & linked & before).any(1)
        ready = undecided & ~waits
        decay = torch.where(ready[:, :, None], factors, 1).prod(1)
        picked |= ready
        undecided = undecided & waits
        scores = torch.where(undecided, scores * decay, scores)
        undecided &= scores >= min_score
    return torch.where(picked, scores, -1), undecided.any(1)


def _decay_factors(boxes: Tensor, labels: Tensor, iou_threshold: float, gaussian_sigma: float | None) -> Tensor:
    """Factor of the score of box j when box i is picked, (B, N, N) indexed [image, i, j]."""
    boxes = boxes + (labels.to(boxes.dtype) * (boxes.amax((1, 2))[:, None] + 1))[..., None]  # classes never overlap
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    a, b = boxes[:, :, None], boxes[:, None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    iou = intersection / (areas[:, :, None] + areas[:, None] - intersection)
    if gaussian_sigma is None:
        factors = torch.where(iou >= iou_threshold, 1 - iou, 1)
    else:
        factors = torch.exp(-(iou * iou) / gaussian_sigma)
    return factors.masked_fill_(torch.eye(factors.shape[1], dtype=torch.bool, device=boxes.device), 1)


def _soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    iou_threshold: float,
    min_score: float,
    gaussian_sigma: float | None,
    max_detections: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS on one class-shifted set.

    Parity: candidates live in an array that the published operator permutes in place (the pick is swapped to the front,
    a dropped box is overwritten by the last one), and the first maximum wins: so exact ties are resolved as there.
    """
    order = np.arange(len(boxes))
    boxes, scores = boxes.copy(), scores.copy()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    end, start = len(boxes), 0
    while start < end and start < max_detections:
        best = start + int(np.argmax(scores[start:end]))
        for array in (boxes, scores, areas, order):
            array[[start, best]] = array[[best, start]]
        rest = slice(start + 1, end)
        sides = np.minimum(boxes[rest, 2:], boxes[start, 2:]) - np.maximum(boxes[rest, :2], boxes[start, :2])
        intersection = np.maximum(sides[:, 0], 0) * np.maximum(sides[:, 1], 0)
        iou = intersection / (areas[start] + areas[rest] - intersection)
        if gaussian_sigma is None:
            scores[rest] *= np.where(iou >= iou_threshold, 1 - iou, 1).astype(scores.dtype)
        else:
            scores[rest] *= np.exp(-(iou * iou) / gaussian_sigma)
        start += 1
        alive = scores[start:end] >= min_score
        count = int(alive.sum())
        if count < len(alive):
            holes = start + np.flatnonzero(~alive[:count])
            fillers = start + count + np.flatnonzero(alive[count:])[::-1]
            for array in (boxes, scores, areas, order):
                array[holes] = array[fillers]
            end = start + count
    return order[:start].astype(np.int64), scores[:start]
