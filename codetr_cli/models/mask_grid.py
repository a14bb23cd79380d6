"""Masks on a grid over their box: boundaries, enlarging, and pasting into an image.

Behaviour of mmdet's FCNMaskHead (`_do_paste_mask`) and RefineMask's `generate_block_target`.
Shape letters: M cells along a mask's side, N masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import host_values
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
    foreground = F.avg_pool2d(cells, side, stride=1, padding=width)[:, 0]  # the conversion to ONNX ignores divisors
    other = torch.where(masks, 1 - foreground, foreground)
    return other > BOUNDARY_SHARE


def enlarge(values: Tensor, size: int) -> Tensor:
    """Bilinear interpolation of maps (N, 1, M, M) to (N, 1, size, size) with aligned corners."""
    return F.interpolate(values, size=(size, size), mode="bilinear", align_corners=True)


# -------------------------------------------------------------------------------------------------------------- pasting


PIXELS_AT_ONCE = {"cpu": 0}
"""Pixels of the masks that are pasted together, by device type; one mask is always pasted. A CPU gains nothing."""

GPU_PIXELS_AT_ONCE = 2**26
"""The same on any other device, which waits for every download: 320 MB."""


@dataclass(frozen=True)
class Pasted:
    """A mask in an image: `pixels` bool (h, w), on the host, with the first pixel at (`top`, `left`).

    All other pixels are background.
    """

    top: int
    left: int
    pixels: Tensor


def paste_crops(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Pasted]]:
    """Yields the index of every mask and the mask as the part of the image that its box covers, small boxes first.

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
    if not len(boxes):
        return
    corners = boxes.tolist()
    rows = [_covered(y1, y2, height) for _, y1, _, y2 in corners]
    columns = [_covered(x1, x2, width) for x1, _, x2, _ in corners]
    sides = [(bottom - top, right - left) for (top, bottom), (left, right) in zip(rows, columns, strict=True)]
    chunks = _chunks(sides, PIXELS_AT_ONCE.get(boxes.device.type, GPU_PIXELS_AT_ONCE))
    order = host_values([i for chunk in chunks for i in chunk], boxes).long()
    starts = host_values([(columns[i][0], rows[i][0]) for chunk in chunks for i in chunk], boxes)
    parts = (torch.split(each, [*map(len, chunks)]) for each in (probabilities[order], boxes[order], starts))
    for chunk, cells, own, first in zip(chunks, *parts, strict=True):
        tallest, widest = (max(sides[i][axis] for i in chunk) for axis in (0, 1))
        down = _interpolation(own[:, 1], own[:, 3], first[:, 1], tallest, cells.shape[-1])  # (n, h, M)
        across = _interpolation(own[:, 0], own[:, 2], first[:, 0], widest, cells.shape[-1])  # (n, w, M)
        with full_precision(cells):  # mixed precision would move the edges
            pixels = (down @ cells @ across.transpose(1, 2) >= MASK_THRESHOLD).cpu()
        for i, of_mask in zip(chunk, pixels, strict=True):
            yield i, Pasted(rows[i][0], columns[i][0], of_mask[: sides[i][0], : sides[i][1]])


def _chunks(sides: Sequence[tuple[int, int]], pixels: int) -> list[list[int]]:
    """Indices of masks with few pixels together when all of them are as large as the largest; small ones first."""
    chunks: list[list[int]] = []
    tallest = widest = 0
    for i in sorted(range(len(sides)), key=lambda i: sides[i][0] * sides[i][1]):
        tallest, widest = max(tallest, sides[i][0]), max(widest, sides[i][1])
        if chunks and (len(chunks[-1]) + 1) * tallest * widest <= pixels:
            chunks[-1].append(i)
        else:
            chunks.append([i])
            tallest, widest = sides[i]
    return chunks


def _covered(low: float, high: float, limit: int) -> tuple[int, int]:
    """First and one after last pixel whose centres can be between two coordinates, inside [0, limit]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return 0, 0
    first = min(max(math.floor(low), 0), limit)
    return first, min(max(math.ceil(high), first), limit)


def _interpolation(low: Tensor, high: Tensor, first: Tensor, length: int, cells: int) -> Tensor:
    """Interpolation weight (N, length, cells) of each cell between two coordinates, for the centres of pixels.

    Args:
        low: (N,) first coordinate of each mask.
        high: (N,) last coordinate.
        first: (N,) first pixel.
        length: number of pixels.
        cells: along the side of a mask.
    """
    centres = first[:, None] + torch.arange(length, device=low.device, dtype=low.dtype) + 0.5
    low, high = low[:, None], high[:, None]
    # Parity: via [-1, 1], so that pixels exactly between two cells are rounded as published.
    coordinate = (((centres - low) / (high - low) * 2 - 1 + 1) * cells - 1) / 2  # in cells, 0 = centre of the first one
    distance = (coordinate[..., None] - torch.arange(cells, device=low.device, dtype=low.dtype)).abs()
    return (1 - distance).clamp(min=0)
