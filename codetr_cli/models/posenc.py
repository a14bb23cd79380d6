"""Sine encodings of cells and boxes.

Parity: the published model uses three orders and two temperatures. Cells: y then x, temperature 20 in
Co-DINO and 10000 in Co-Deformable-DETR. Queries of DINO: y, x, w, h, temperature 10000. Queries of Deformable DETR
and all positive queries: x, y, w, h, temperature 10000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr_cli.models.constants import cached_constant


@cached_constant(maxsize=64)
def _frequencies(dim: int, temperature: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Divisors (dim / 2,) of a position; the sine and the cosine of a pair share one."""
    return temperature ** (2 * torch.arange(dim // 2, dtype=dtype, device=device) / dim)


def _sin_cos(positions: Tensor, dim: int, temperature: float) -> Tensor:
    """Interleaved sine and cosine (..., dim) of positions (...) in radians, divided by the frequencies."""
    angles = positions[..., None] / _frequencies(dim, temperature, positions.dtype, positions.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def encode_cells(
    level_masks: Sequence[Tensor],
    *,
    dim: int,
    temperature: float,
    offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sine encoding of every cell of several maps, counted over unpadded cells only and normalised to [0, 2 pi].

    Args:
        level_masks: of each map bool (B, H, W), True = padding.
        dim: channels of the result, half for y and half for x.
        temperature: base of the frequencies.
        offset: added to the count before it is normalised.
        dtype: of the result.

    Returns:
        (B, S, dim), the cells of all maps in row-major order, one map after the other.
    """
    flat = (~torch.cat([mask.flatten(1) for mask in level_masks], 1)).int()
    shapes = [mask.shape[1:] for mask in level_masks]
    parts = torch.split(flat, [height * width for height, width in shapes], 1)
    inside = [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
    # Of all maps together: first y, then x.
    counts = [part.cumsum(axis, dtype=torch.int32) for axis in (1, 2) for part in inside]
    totals = [
        *(count[:, -1:].expand_as(count) for count in counts[: len(inside)]),
        *(count[:, :, -1:].expand_as(count) for count in counts[len(inside) :]),
    ]
    count, total = (torch.cat([part.flatten(1) for part in parts], 1).to(dtype) for parts in (counts, totals))
    eps, scale = 1e-6, 2 * math.pi
    positions = (count + offset) / (total + eps) * scale  # (B, 2 * S)
    return _sin_cos(positions.view(positions.shape[0], 2, -1).transpose(1, 2), dim // 2, temperature).flatten(2)


@cached_constant(maxsize=64)
def encode_unpadded_cells(
    height: int,
    width: int,
    *,
    dim: int,
    temperature: float,
    offset: float = 0.0,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """`encode_cells` of a map without padding, bit for bit, as its row and column parts.

    The parts are small and depend only on the size, so they are cached for recent sizes.

    Returns:
        row part (height, dim / 2) and column part (width, dim / 2).
    """
    tall = torch.zeros(1, height, 1, dtype=torch.bool, device=device)
    wide = torch.zeros(1, 1, width, dtype=torch.bool, device=device)
    encoding: dict[str, Any] = {"dim": dim, "temperature": temperature, "offset": offset}
    rows = encode_cells([tall], **encoding, dtype=dtype)[0, :, : dim // 2].clone()
    columns = encode_cells([wide], **encoding, dtype=dtype)[0, :, dim // 2 :].clone()
    return rows, columns


def encode_boxes(boxes_cxcywh: Tensor, *, dim: int, order: str, temperature: float = 10000.0) -> Tensor:
    """Sine encoding of boxes.

    Args:
        boxes_cxcywh: (..., 4) normalised.
        dim: channels per coordinate.
        order: coordinates of the result, a permutation of "xywh" (x, y = centre), e.g. "yxwh".
        temperature: base of the frequencies.

    Returns:
        (..., 4 * dim).
    """
    columns = torch.stack([boxes_cxcywh[..., "xywh".index(letter)] for letter in order], -1)
    return _sin_cos(columns * (2 * math.pi), dim, temperature).flatten(-2)
