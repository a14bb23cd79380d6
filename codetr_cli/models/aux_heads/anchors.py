"""Anchors and box deltas of the one-to-many heads.

Behaviour of mmdet's AnchorGenerator (scale_major, center_offset 0) and DeltaXYWHBBoxCoder.
Shape letters: A anchors of a cell, M anchors of a map, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from codetr_cli.boxes import clip_boxes, xyxy_to_cxcywh

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

    def boxes(self, shapes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
        """Anchors (M_i, 4) xyxy in pixels, one tensor per level.

        Cells are in row-major order; within a cell the ratio is the outer loop and the scale the inner one.
        Parity: a cell's anchors are centred on its top left corner, not on its middle.

        Args:
            shapes: (H, W) of each level.
            like: a tensor whose dtype and device the anchors take.
        """
        anchors = []
        for (height, width), stride in zip(shapes, self.strides, strict=True):
            base = like.new_tensor(self._of_cell(stride))  # (A, 4)
            x = torch.arange(width, dtype=like.dtype, device=like.device) * stride
            y = torch.arange(height, dtype=like.dtype, device=like.device) * stride
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], -1).view(-1, 1, 4)
            anchors.append((shifts + base).view(-1, 4))
        return anchors

    def valid(self, shapes: Sequence[tuple[int, int]], pad_size: tuple[int, int], device: torch.device) -> list[Tensor]:
        """Per level the anchors whose cell starts inside the image's own padded size (h, w).

        Returns:
            ascending int64 indices over the anchors of all levels, one tensor per level; no device synchronization.
        """
        indices, start = [], 0
        for (height, width), stride in zip(shapes, self.strides, strict=True):
            rows = torch.arange(min(height, math.ceil(pad_size[0] / stride)), device=device)
            columns = torch.arange(min(width, math.ceil(pad_size[1] / stride)), device=device)
            of_cell = torch.arange(self.per_cell, device=device)
            cells = rows[:, None] * width + columns
            indices.append((cells[..., None] * self.per_cell + of_cell).flatten() + start)
            start += height * width * self.per_cell
        return indices


def encode_deltas(anchors: Tensor, boxes: Tensor, stds: Sequence[float]) -> Tensor:
    """The deltas (N, 4) that turn anchors (N, 4) into boxes (N, 4), both xyxy pixels, divided by `stds`."""
    a, b = xyxy_to_cxcywh(anchors), xyxy_to_cxcywh(boxes)
    deltas = torch.cat([(b[:, :2] - a[:, :2]) / a[:, 2:], torch.log(b[:, 2:] / a[:, 2:])], -1)
    return deltas / deltas.new_tensor(stds)


def decode_deltas(
    anchors: Tensor, deltas: Tensor, stds: Sequence[float], size: tuple[int, int] | None = None
) -> Tensor:
    """Boxes (..., 4) xyxy pixels of anchors moved by deltas.

    Args:
        anchors: (..., 4) xyxy pixels, broadcastable to `deltas`.
        deltas: (..., 4).
        stds: divisors of the deltas.
        size: clip to an image of this (height, width); None: no clipping.
    """
    deltas = deltas * deltas.new_tensor(stds)
    centre_size = xyxy_to_cxcywh(anchors)
    centres, sides = centre_size[..., :2], centre_size[..., 2:]
    centres = centres + deltas[..., :2] * sides
    half = sides * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    boxes = torch.cat([centres - half, centres + half], -1)
    return boxes if size is None else clip_boxes(boxes, size)


def flatten_map(prediction: Tensor, channels: int) -> Tensor:
    """Turns a head's map (B, A * channels, H, W) into (B, H * W * A, channels), in the order of the anchors."""
    return prediction.permute(0, 2, 3, 1).reshape(prediction.shape[0], -1, channels)
