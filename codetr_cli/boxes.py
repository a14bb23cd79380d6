"""Pure functions on boxes. The format determines the unit: xyxy in absolute pixels, cxcywh normalized to [0, 1].

Shape letters: N, M = numbers of boxes. Every function accepts any leading shape unless its docstring has (N, 4),
preserves the dtype and device of its input, and is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from codetr_cli.tracing import is_exporting

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
    centres, sides = boxes.chunk(2, dim=-1)
    half = 0.5 * sides
    return torch.cat([centres - half, centres + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Converts corner boxes (..., 4) to centre boxes (..., 4) in the same unit."""
    low, high = boxes.chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def size_scale(size: Size, like: Tensor) -> Tensor:
    """The factor (4,) = (w, h, w, h) that converts normalized boxes to pixels.

    Args:
        size: (height, width) in pixels.
        like: a tensor with the dtype and device of the result.
    """
    height, width = size
    return host_values([width, height, width, height], like)


def host_values(values: Sequence[Any] | np.ndarray, like: Tensor) -> Tensor:
    """Numbers, nested lists or an array as a tensor with the dtype and device of `like`, without a synchronization."""
    if like.device.type != "cuda":
        return like.new_tensor(values)
    return torch.tensor(values, dtype=like.dtype).pin_memory().to(like.device, non_blocking=True)


def level_sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Sizes (L, 2) as (w, h) of levels (H, W), with the dtype and device of `like`.

    In a program that is exported for images of any size they are computed from the sizes of its input.
    """
    if not is_exporting():
        return host_values([(width, height) for height, width in spatial_shapes], like)
    sides = [torch.stack([like.new_full((), side) for side in (width, height)]) for height, width in spatial_shapes]
    return torch.stack(sides)


def host_numbers(*tensors: Tensor) -> list[list[int]]:
    """The integers of several tensors of one device as one list each; waits for the device, once for all of them."""
    numbers = torch.cat([tensor.flatten() for tensor in tensors]).tolist()
    ends = list(accumulate(tensor.numel() for tensor in tensors))
    return [numbers[end - tensor.numel() : end] for tensor, end in zip(tensors, ends, strict=True)]


def clip_boxes(boxes_xyxy: Tensor, size: Size) -> Tensor:
    """Clips corner boxes (..., 4) to an image of `size` (height, width)."""
    height, width = size
    x, y = boxes_xyxy[..., 0::2].clamp(0, width), boxes_xyxy[..., 1::2].clamp(0, height)  # (..., 2)
    return torch.stack([x, y], dim=-1).flatten(-2)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Area (...) of corner boxes (..., 4). Negative sides are not clamped."""
    low, high = boxes_xyxy.chunk(2, dim=-1)
    return _product(high - low)


def _product(sides: Tensor) -> Tensor:
    """Width times height (...) of (..., 2)."""
    width, height = sides.unbind(-1)
    return width * height


def _union(a: Tensor, b: Tensor, intersection: Tensor) -> Tensor:
    return (box_area(a) + box_area(b) - intersection).clamp(min=IOU_EPS)


def _generalized(intersection: Tensor, union: Tensor, enclosing: Tensor) -> Tensor:
    enclosing = enclosing.clamp(min=IOU_EPS)
    return intersection / union - (enclosing - union) / enclosing


def _paired_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection (...) of broadcastable corner boxes: both coordinates of a corner at once, in few kernels."""
    (a_low, a_high), (b_low, b_high) = a.chunk(2, dim=-1), b.chunk(2, dim=-1)
    return _product((torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0))


def _pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Intersection (N, M) of corner boxes (N, 1, 4) and (1, M, 4).

    Computed per coordinate, so that no temporary is larger than the result: a large image has a million anchors.
    """
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    return width * height


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) in [0, 1] of pairs of corner boxes; `a` and `b` broadcast."""
    intersection = _paired_intersection(a, b)
    return intersection / _union(a, b, intersection)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (...) in [-1, 1] of pairs of corner boxes (arXiv 1902.09630); `a` and `b` broadcast."""
    intersection = _paired_intersection(a, b)
    (a_low, a_high), (b_low, b_high) = a.chunk(2, dim=-1), b.chunk(2, dim=-1)
    enclosing = _product((torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).clamp(min=0))
    return _generalized(intersection, _union(a, b, intersection), enclosing)


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (N, M) in [-1, 1] of every box of `a` (N, 4) with every box of `b` (M, 4), corner boxes."""
    a, b = a[:, None], b[None]
    intersection = _pairwise_intersection(a, b)
    width = (torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])).clamp(min=0)
    return _generalized(intersection, _union(a, b, intersection), width * height)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Logit of `x`, clamped to [0, 1], with numerator and denominator clamped to at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
