"""Pure functions on boxes. The format determines the unit: xyxy in absolute pixels, cxcywh normalized to [0, 1].

Shape letters: N, M = numbers of boxes. Every function accepts any leading shape unless its docstring has (N, 4),
preserves the dtype and device of its input, and is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

Target: TypeAlias = dict[str, Any]
"""The target of one image; `codetr_cli.data.targets` documents the keys."""

Targets: TypeAlias = Sequence[Target]
"""The targets of a batch, in the order of its images."""

IOU_EPS = 1e-6
"""Lower bound of the union and of the enclosing area, as published."""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts centre boxes (..., 4) to corner boxes (..., 4) in the same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Converts corner boxes (..., 4) to centre boxes (..., 4) in the same unit."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Converts corner boxes (..., 4) to COCO's (x, y, width, height), in pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1, y1, x2 - x1, y2 - y1], dim=-1)


def size_scale(size: Size, like: Tensor) -> Tensor:
    """The factor (4,) = (w, h, w, h) that converts normalized boxes to pixels.

    Args:
        size: (height, width) in pixels.
        like: a tensor with the dtype and device of the result.
    """
    height, width = size
    return host_values([width, height, width, height], like)


def host_values(values: Sequence[Any], like: Tensor) -> Tensor:
    """Python numbers or nested lists as a tensor with the dtype and device of `like`, without a synchronization."""
    if like.device.type != "cuda":
        return like.new_tensor(values)
    return torch.tensor(values, dtype=like.dtype).pin_memory().to(like.device, non_blocking=True)


def clip_boxes(boxes_xyxy: Tensor, size: Size) -> Tensor:
    """Clips corner boxes (..., 4) to an image of `size` (height, width)."""
    height, width = size
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Area (...) of corner boxes (..., 4). Negative sides are not clamped."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of broadcastable corner boxes, the union at least IOU_EPS.

    Computed per coordinate, so that no temporary is larger than the result: a large image has a million anchors.
    """
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    intersection = width * height
    union = (box_area(a) + box_area(b) - intersection).clamp(min=IOU_EPS)
    return intersection, union


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) in [0, 1] of pairs of corner boxes; `a` and `b` broadcast."""
    intersection, union = _overlap(a, b)
    return intersection / union


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (N, M) in [0, 1] of every box of `a` (N, 4) with every box of `b` (M, 4), corner boxes."""
    return paired_iou(a[:, None], b[None])


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (...) in [-1, 1] of pairs of corner boxes (arXiv 1902.09630); `a` and `b` broadcast."""
    intersection, union = _overlap(a, b)
    enclosing = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    enclosing = enclosing.clamp(min=0)
    enclosing_area = (enclosing[..., 0] * enclosing[..., 1]).clamp(min=IOU_EPS)
    return intersection / union - (enclosing_area - union) / enclosing_area


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (N, M) in [-1, 1] of every box of `a` (N, 4) with every box of `b` (M, 4), corner boxes."""
    return paired_giou(a[:, None], b[None])


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Logit of `x`, clamped to [0, 1], with numerator and denominator clamped to at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
