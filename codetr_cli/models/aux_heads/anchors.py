"""Anchors and box deltas of the one-to-many heads.

Behaviour of mmdet's AnchorGenerator (scale_major, center_offset 0) and DeltaXYWHBBoxCoder.
Shape letters: A anchors of a cell, B images, M anchors of all levels, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr_cli.boxes import Size, host_values
from codetr_cli.models.constants import cached_constant

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Maximum change of width or height by a delta, as a logarithm."""


class AnchorGrid:
    """Anchors of every cell of every level.

    Args:
        strides: pixels per cell of each level.
        scales: sizes of the anchors in strides.
        ratios: height / width.
    """

    def __init__(self, *, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> None:
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)

    @property
    def per_cell(self) -> int:
        """Anchors of one cell."""
        return len(self.scales) * len(self.ratios)

    def _of_cell(self, stride: int) -> list[tuple[float, float, float, float]]:
        """Anchors around (0, 0).

        Parity: assignment compares IoUs for equality, so the last bit counts: this order of operations, and the exactly
        rounded square root of the host (torch's may be one unit off).
        """
        cell = []
        for ratio in self.ratios:
            height_ratio = math.sqrt(ratio)
            for scale in self.scales:
                half_w = 0.5 * (stride * (1 / height_ratio) * scale)
                half_h = 0.5 * (stride * height_ratio * scale)
                cell.append((-half_w, -half_h, half_w, half_h))
        return cell

    def counts(self, shapes: Sequence[Size]) -> list[int]:
        """Anchors of each level, given the (H, W) of each."""
        return [height * width * self.per_cell for height, width in shapes]

    def boxes(self, shapes: Sequence[Size], like: Tensor) -> Tensor:
        """Anchors (M, 4) xyxy in pixels of all levels, one level after the other.

        Cells are in row-major order; within a cell the ratio is the outer loop and the scale the inner one.
        Parity: a cell's anchors are centred on its top left corner, not on its middle.

        Args:
            shapes: (H, W) of each level.
            like: a tensor whose dtype and device the anchors take.
        """
        cells = tuple(tuple(self._of_cell(stride)) for stride in self.strides)
        return _grid_boxes(tuple(shapes), self.strides, cells, like.dtype, like.device)

    def valid(self, shapes: Sequence[Size], pad_sizes: Sequence[Size], like: Tensor) -> Tensor:
        """Which anchors' cells start inside the own padded size (h, w) of each image, as bool (B, M).

        Args:
            shapes: (H, W) of each level.
            pad_sizes: of each image.
            like: a tensor on the device of the result, of the dtype of the anchors.
        """
        corners = _cell_corners(tuple(shapes), self.strides, like.dtype, like.device)
        limits = host_values([(width, height) for height, width in pad_sizes], like)
        return (corners < limits[:, None]).all(-1).repeat_interleave(self.per_cell, 1)

    def valid_cells(self, shapes: Sequence[Size], pad_size: Size) -> list[Size]:
        """(rows, columns) of the cells of each level that start inside an image's own padded size (h, w)."""
        return [
            (min(height, math.ceil(pad_size[0] / stride)), min(width, math.ceil(pad_size[1] / stride)))
            for (height, width), stride in zip(shapes, self.strides, strict=True)
        ]


@cached_constant(maxsize=4)
def _grid_boxes(
    shapes: tuple[Size, ...], strides: tuple[int, ...], cells: tuple[Any, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The anchors of `AnchorGrid.boxes`; `cells` holds those around (0, 0) of each level."""
    corners = _cell_corners(shapes, strides, dtype, device)
    of_levels = torch.split(corners.repeat(1, 2)[:, None], [height * width for height, width in shapes])
    of_cells = host_values(cells, corners)  # (L, A, 4)
    return torch.cat([(level + of_cell).flatten(0, 1) for level, of_cell in zip(of_levels, of_cells, strict=True)])


@cached_constant(maxsize=4)
def _cell_corners(
    shapes: tuple[Size, ...], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The top left corner (x, y) in pixels of every cell of every level."""
    corners = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y, x = (torch.arange(side, dtype=dtype, device=device) * stride for side in (height, width))
        corners.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(corners)


@cached_constant(maxsize=4)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return host_values(values, torch.empty(0, dtype=dtype, device=device))


def centres_and_sides(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (..., 2) and sides (..., 2) of corner boxes (..., 4)."""
    first, last = torch.split(boxes_xyxy, 2, -1)
    return (first + last) / 2, last - first


def encode_deltas(anchors: Tensor, boxes: Tensor, stds: Sequence[float]) -> Tensor:
    """The deltas (..., 4) that turn anchors into boxes, all (..., 4) xyxy pixels, divided by `stds`."""
    (centres, sides), (box_centres, box_sides) = centres_and_sides(anchors), centres_and_sides(boxes)
    deltas = torch.cat([(box_centres - centres) / sides, torch.log(box_sides / sides)], -1)
    return deltas if all(std == 1 for std in stds) else deltas / _constant(tuple(stds), deltas.dtype, deltas.device)


def decode_deltas(anchors: Tensor, deltas: Tensor, stds: Sequence[float], limits: Tensor | None = None) -> Tensor:
    """Boxes (..., 4) xyxy pixels of anchors moved by deltas.

    Args:
        anchors: (..., 4) xyxy pixels, broadcastable to `deltas`.
        deltas: (..., 4).
        stds: divisors of the deltas.
        limits: clip to images of this (w, h, w, h) in pixels, broadcastable; None: no clipping.
    """
    if any(std != 1 for std in stds):
        deltas = deltas * _constant(tuple(stds), deltas.dtype, deltas.device)
    shifts, growths = torch.split(deltas, 2, -1)
    centres, sides = centres_and_sides(anchors)
    centres = centres + shifts * sides
    half = sides * growths.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    boxes = torch.cat([centres - half, centres + half], -1)
    return boxes if limits is None else torch.minimum(boxes.clamp(min=0), limits)


def flatten_map(prediction: Tensor, channels: int) -> Tensor:
    """Turns a head's map (B, A * channels, H, W) into (B, H * W * A, channels), in the order of the anchors."""
    return prediction.permute(0, 2, 3, 1).reshape(prediction.shape[0], -1, channels)


def map_shapes(maps: Sequence[Tensor]) -> list[Size]:
    """(H, W) of each map (B, C, H, W)."""
    return [(int(m.shape[-2]), int(m.shape[-1])) for m in maps]
