"""Sine encodings of cells and boxes.

Parity: the published model uses three orders and two temperatures. Cells: y then x, temperature 20 in
Co-DINO and 10000 in Co-Deformable-DETR. Queries of DINO: y, x, w, h, temperature 10000. Queries of Deformable DETR
and all positive queries: x, y, w, h, temperature 10000.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def _sin_cos(positions: Tensor, dim: int, temperature: float) -> Tensor:
    """Interleaved sine and cosine (..., dim) of positions (...) in radians, divided by the frequencies."""
    index = torch.arange(dim, dtype=positions.dtype, device=positions.device)
    frequencies = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / dim)
    angles = positions[..., None] / frequencies
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def encode_cells(
    padding_mask: Tensor, *, dim: int, temperature: float, offset: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sine encoding of every cell of a map, counted over unpadded cells only and normalised to [0, 2 pi].

    Args:
        padding_mask: bool (B, H, W), True = padding.
        dim: channels of the result, half for y and half for x.
        temperature: base of the frequencies.
        offset: added to the count before it is normalised.
        dtype: of the result.

    Returns:
        (B, H, W, dim).
    """
    inside = (~padding_mask).to(dtype)
    y, x = inside.cumsum(1), inside.cumsum(2)
    eps, scale = 1e-6, 2 * math.pi
    y = (y + offset) / (y[:, -1:, :] + eps) * scale
    x = (x + offset) / (x[:, :, -1:] + eps) * scale
    return torch.cat([_sin_cos(y, dim // 2, temperature), _sin_cos(x, dim // 2, temperature)], dim=-1)


@lru_cache(maxsize=64)
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
    # Cached tensors are also used in training: they must not be created in inference mode.
    with torch.inference_mode(mode=False), torch.no_grad():
        tall = torch.zeros(1, height, 1, dtype=torch.bool, device=device)
        wide = torch.zeros(1, 1, width, dtype=torch.bool, device=device)
        encoding: dict[str, Any] = {"dim": dim, "temperature": temperature, "offset": offset}
        rows = encode_cells(tall, **encoding, dtype=dtype)[0, :, 0, : dim // 2].clone()
        columns = encode_cells(wide, **encoding, dtype=dtype)[0, 0, :, dim // 2 :].clone()
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
