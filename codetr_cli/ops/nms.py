"""Non-maximum suppression per class: hard (torchvision's) and soft (arXiv 1704.04503), with the published behaviour.

Behaviour of `mmcv.ops.batched_nms`: boxes of class c are shifted by c * (largest coordinate + 1) so that classes never
overlap; IoU without the +1 of old pixel conventions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms as torchvision_batched_nms


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Hard NMS within each label.

    Args:
        boxes_xyxy: (N, 4) pixels.
        scores: (N,).
        labels: (N,) int64.
        iou_threshold: boxes that overlap a better one of their label by more than this are dropped.

    Returns:
        (K,) int64 indices of the kept boxes, best score first.
    """
    return torchvision_batched_nms(boxes_xyxy, scores, labels, iou_threshold)


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
        iou_threshold: linear decay multiplies by 1 - IoU from this IoU on.
        min_score: boxes whose decayed score falls below are dropped.
        method: "linear" or "gaussian" (multiplies by exp(-IoU^2 / sigma), whatever the IoU).
        sigma: width of the gaussian decay.
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
    boxes = boxes_xyxy.detach().to("cpu", dtype)
    shifted = boxes + (labels.detach().cpu().to(dtype) * (boxes.max() + 1))[:, None]
    keep, decayed = _soft_nms(
        shifted.numpy(),
        scores.detach().to("cpu", dtype).numpy(),
        iou_threshold=iou_threshold,
        min_score=min_score,
        gaussian_sigma=sigma if method == "gaussian" else None,
        max_detections=max_detections or len(boxes),
    )
    return torch.from_numpy(keep).to(labels.device), torch.from_numpy(decayed).to(scores.device, scores.dtype)


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
