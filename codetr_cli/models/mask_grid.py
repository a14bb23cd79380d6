"""Masks on a grid over their box: boundaries, enlarging, and pasting into an image.

Behaviour of mmdet's FCNMaskHead (`_do_paste_mask`) and RefineMask's `generate_block_target`.
Shape letters: M cells along a mask's side, N masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.models.layers import full_precision

MASK_THRESHOLD = 0.5
BOUNDARY_SHARE = 0.1
"""A cell belongs to the boundary when more than this share of its window is of the other kind."""


def boundary(masks: Tensor, width: int) -> Tensor:
    """The foreground and background cells with enough cells of the other kind around them.

    Args:
        masks: bool (N, M, M). Cells beyond the edge count as background.
        width: radius in cells of the square window around a cell.

    Returns:
        bool (N, M, M).
    """
    side = 2 * width + 1
    cells = masks[:, None].to(torch.get_default_dtype())
    foreground = F.avg_pool2d(cells, side, stride=1, padding=width, divisor_override=1)[:, 0]
    other = torch.where(masks, side**2 - foreground, foreground)
    return other > BOUNDARY_SHARE * side**2


def enlarge(values: Tensor, size: int) -> Tensor:
    """Bilinear interpolation of maps (N, 1, M, M) to (N, 1, size, size) with aligned corners."""
    return F.interpolate(values, size=(size, size), mode="bilinear", align_corners=True)


# -------------------------------------------------------------------------------------------------------------- pasting


@dataclass(frozen=True)
class Pasted:
    """A mask in an image: `pixels` bool (h, w) with the first pixel at (`top`, `left`); all others are background."""

    top: int
    left: int
    pixels: Tensor


def paste_crops(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[Pasted]:
    """Yields every mask as the part of the image that its box covers.

    Bilinear samples at pixel centres with zero beyond the grid, compared with 0.5: pixels outside the box are never
    part of the mask. The two axes are interpolated separately, as the grid is parallel to the pixels.

    Args:
        probabilities: (N, M, M) in [0, 1].
        boxes: (N, 4) xyxy in pixels of the image; they may extend beyond it.
        size: (height, width) of the image.
    """
    height, width = size
    dtype = torch.float64 if probabilities.dtype == torch.float64 else torch.float32
    probabilities, boxes = probabilities.to(dtype), boxes.to(dtype)
    for cells, box, (x1, y1, x2, y2) in zip(probabilities, boxes, boxes.tolist(), strict=True):
        left, right = _covered(x1, x2, width)
        top, bottom = _covered(y1, y2, height)
        rows = _interpolation(box[1], box[3], top, bottom, len(cells))  # (h, M)
        columns = _interpolation(box[0], box[2], left, right, len(cells))  # (w, M)
        with full_precision(cells):  # mixed precision would move the edges
            pixels = rows @ cells @ columns.T >= MASK_THRESHOLD
        yield Pasted(top, left, pixels)


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks as bool (N, height, width); arguments as for `paste_crops`. The result is large: call it in chunks."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=probabilities.device)
    for mask, pasted in zip(masks, paste_crops(probabilities, boxes, size), strict=True):
        height, width = pasted.pixels.shape
        mask[pasted.top : pasted.top + height, pasted.left : pasted.left + width] = pasted.pixels
    return masks


def _covered(low: float, high: float, limit: int) -> tuple[int, int]:
    """First and one after last pixel whose centres can be between two coordinates, inside [0, limit]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return 0, 0
    first = min(max(math.floor(low), 0), limit)
    return first, min(max(math.ceil(high), first), limit)


def _interpolation(low: Tensor, high: Tensor, first: int, end: int, cells: int) -> Tensor:
    """Interpolation weight (end - first, cells) of each cell between two coordinates, for each pixel centre."""
    centres = torch.arange(first, end, device=low.device, dtype=low.dtype) + 0.5
    # Parity: via [-1, 1], so that pixels exactly between two cells are rounded as published.
    coordinate = (((centres - low) / (high - low) * 2 - 1 + 1) * cells - 1) / 2  # in cells, 0 = centre of the first one
    distance = (coordinate[:, None] - torch.arange(cells, device=low.device, dtype=low.dtype)).abs()
    return (1 - distance).clamp(min=0)
