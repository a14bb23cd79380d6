"""Multi-scale deformable attention in plain PyTorch: the reference that every other backend is compared with.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import level_sizes


def reference_multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The definition, level by level so that only one level's samples are held.

    Samples are taken in the locations' precision: half precision would move them by whole cells on large maps.

    Args:
        value: (B, S, N, D), the levels' tokens in row-major order, one level after the other.
        spatial_shapes: (H, W) of each level; their areas add up to S.
        sampling_locations: (B, Q, N, L, P, 2) as (x, y) in units of the map's size: [0, 1] covers the map, values
            outside read zeros.
        attention_weights: (B, Q, N, L, P).

    Returns:
        (B, Q, N * D), the dtype of `value`.
    """
    batch, tokens, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], len(spatial_shapes), sampling_locations.shape[4]
    # Queries innermost: the sums over points then run along contiguous memory.
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    maps = value.to(dtype).permute(0, 2, 3, 1).reshape(batch * heads, channels, tokens)
    grids = (2 * sampling_locations - 1).to(dtype)  # grid_sample wants [-1, 1] with align_corners=False
    grids = grids.permute(3, 0, 2, 4, 1, 5).reshape(levels, batch * heads, points, queries, 2)
    weights = attention_weights.to(dtype).permute(3, 0, 2, 4, 1).reshape(levels, batch * heads, 1, points, queries)
    output = maps.new_zeros(batch * heads, channels, queries)
    parts = torch.split(maps, [height * width for height, width in spatial_shapes], dim=2)
    for size, part, grid, weight in zip(spatial_shapes, parts, grids, weights, strict=True):
        sampled = F.grid_sample(
            part.view(batch * heads, channels, *size), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (B N, D, P, Q)
        output = output + (sampled * weight).sum(2)
    return output.to(value.dtype).view(batch, heads * channels, queries).transpose(1, 2)


def place_samples(
    spatial_shapes: Sequence[tuple[int, int]], reference_points: Tensor, sampling_offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Turns raw offsets and logits into locations (B, Q, N, L, P, 2) and weights (B, Q, N, L, P).

    Locations keep the references' precision: half precision would move them by whole cells on large maps.

    Args:
        spatial_shapes: (H, W) of each level.
        reference_points: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, normalised.
        sampling_offsets: (B, Q, N, L, P, 2): cells of the level around points, multiples of half a side over P around
            the centres of boxes.
        logits: (B, Q, N, L, P), softmaxed over levels and points together.
    """
    weights = F.softmax(logits.flatten(3), -1).view(logits.shape)
    offsets = sampling_offsets.to(reference_points.dtype)
    if reference_points.shape[-1] == 2:
        sizes = level_sizes(spatial_shapes, reference_points)  # (L, 2)
        return reference_points[:, :, None, :, None] + offsets / sizes[:, None], weights
    centres, sides = torch.split(reference_points[:, :, None, :, None], 2, dim=-1)
    return centres + offsets / offsets.shape[4] * sides * 0.5, weights


def reference_fused_multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The same from references, raw offsets and logits; arguments as for `place_samples`, result as above."""
    locations, weights = place_samples(spatial_shapes, reference_points, sampling_offsets, attention_logits)
    return reference_multi_scale_deformable_attention(value, spatial_shapes, locations, weights)


def wants_fixed_order() -> bool:
    """Whether sums must be made in a fixed order: torch's setting, or CODETR_DETERMINISTIC=1."""
    return torch.are_deterministic_algorithms_enabled() or os.environ.get("CODETR_DETERMINISTIC") == "1"


def forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
    *,
    gather: bool,
) -> Tensor:
    """Both entries in one, differentiable; arguments as for every backend's `forward`.

    Args:
        value: (B, S, N, D).
        spatial_shapes: (H, W) of each level.
        reference_points: (B, Q, L, 2) or (B, Q, L, 4); None: locations and weights are given.
        sampling: (B, Q, N, L, P, 2) raw offsets, or locations.
        scores: (B, Q, N, L, P) logits, or weights.
        gather: use the faster formulation where it applies: on a CPU, no gradient, single or double precision.
    """
    if reference_points is not None:
        sampling, scores = place_samples(spatial_shapes, reference_points, sampling, scores)
    if gather and _gathers(value, sampling, scores):
        return gathered_multi_scale_deformable_attention(value, spatial_shapes, sampling, scores)
    return reference_multi_scale_deformable_attention(value, spatial_shapes, sampling, scores)


def _gathers(*tensors: Tensor) -> bool:
    return (
        not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.compiler.is_compiling()
        and tensors[0].device.type == "cpu"
        and tensors[0].dtype in (torch.float32, torch.float64)
    )


QUERIES_AT_ONCE = 1024
"""Chunk of the gathering formulation: its indices stay in the cache and no large temporary is made."""


def gathered_multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same sums as bags of weighted rows: all levels and corners of a query in one pass, three times as fast.

    Forward only, and on a CPU only. Arguments and result as for the reference.
    """
    batch, tokens, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    output = value.new_empty(batch, queries, heads * channels)
    if output.numel() == 0:
        return output
    rows = value.reshape(-1, channels)  # row (b * S + s) * N + n
    starts = [0]
    for height, width in spatial_shapes[:-1]:
        starts.append(starts[-1] + height * width)
    heights, widths = (torch.tensor([size[axis] for size in spatial_shapes])[:, None] for axis in (0, 1))  # (L, 1)
    sizes = torch.stack([widths, heights], -1).to(sampling_locations.dtype)  # (L, 1, 2)
    first = torch.tensor(starts)[:, None] + (torch.arange(batch) * tokens)[:, None, None, None, None]
    head = torch.arange(heads)[:, None, None]
    for begin in range(0, queries, QUERIES_AT_ONCE):
        part = slice(begin, begin + QUERIES_AT_ONCE)
        places = sampling_locations[:, part] * sizes - 0.5
        corner = places.floor()
        share_x, share_y = (places - corner).to(value.dtype).unbind(-1)  # (B, q, N, L, P)
        # Far outside, integers would overflow: everything beyond one cell outside has weight zero anyway.
        left, top = corner.clamp(min=-2).minimum(sizes + 1).long().unbind(-1)
        weights = attention_weights[:, part].to(value.dtype)
        indices, shares = [], []
        for down, of_row in ((0, 1 - share_y), (1, share_y)):
            y = top + down
            row_weight = of_row * weights * ((y >= 0) & (y < heights))
            row_start = y.clamp(min=0).minimum(heights - 1) * widths + first
            for right, of_column in ((0, 1 - share_x), (1, share_x)):
                x = left + right
                indices.append((row_start + x.clamp(min=0).minimum(widths - 1)) * heads + head)
                shares.append(row_weight * of_column * ((x >= 0) & (x < widths)))
        bags = torch.stack(indices, -1).flatten(3).flatten(0, 2)  # (B q N, L P 4)
        bag_weights = torch.stack(shares, -1).flatten(3).flatten(0, 2)
        sums = F.embedding_bag(bags, rows, per_sample_weights=bag_weights, mode="sum")  # (B q N, D)
        output[:, part] = sums.view(batch, -1, heads * channels)
    return output
