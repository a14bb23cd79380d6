"""Multi-scale deformable attention: the one seam between the network and the kernels that can run it.

The operator of Deformable DETR (arXiv 2010.04159, Eq. 2 and 3) after its linear projections: every query samples each
level at a few points, bilinearly with zeros outside the map, and sums the samples by weight.
`mmcv.ops.multi_scale_deform_attn` has the same definition. Callers never branch on hardware: they call
`multi_scale_deformable_attention`.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Samples every level of `value` at the given locations and sums by weight.

    Args:
        value: (B, S, N, D), the levels' tokens in row-major order, one level after the other.
        spatial_shapes: (H, W) of each level; their areas add up to S.
        sampling_locations: (B, Q, N, L, P, 2) as (x, y) in units of the map's size: [0, 1] covers the map, values
            outside read zeros.
        attention_weights: (B, Q, N, L, P), summing to 1 over levels and points as the caller's softmax leaves them.

    Returns:
        (B, Q, N * D), the dtype of `value`.

    Raises:
        ValueError: shapes that contradict each other, with the argument's name.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    if _gathers(value, sampling_locations, attention_weights):
        return _gathered_multi_scale_deformable_attention(value, spatial_shapes, sampling_locations, attention_weights)
    return reference_multi_scale_deformable_attention(value, spatial_shapes, sampling_locations, attention_weights)


def reference_multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The definition in plain PyTorch, level by level so that only one level's samples are held. Arguments as above.

    Samples are taken in the locations' precision: half precision would move them by whole cells on large maps.
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


def _gathers(*tensors: Tensor) -> bool:
    """Whether the gathering formulation suits: on a CPU, at inference, in float32 or float64."""
    return (
        not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.compiler.is_compiling()
        and tensors[0].device.type == "cpu"
        and tensors[0].dtype in (torch.float32, torch.float64)
    )


QUERIES_AT_ONCE = 1024
"""Chunk of the gathering formulation: its indices stay in the cache and no large temporary is made."""


def _gathered_multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same sums as bags of weighted rows: all levels and corners of a query in one pass, three times as fast.

    Forward only. Arguments as for `multi_scale_deformable_attention`.
    """
    batch, tokens, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    rows = value.reshape(-1, channels)  # row (b * S + s) * N + n
    starts = [0]
    for height, width in spatial_shapes[:-1]:
        starts.append(starts[-1] + height * width)
    heights, widths = (torch.tensor([size[axis] for size in spatial_shapes])[:, None] for axis in (0, 1))  # (L, 1)
    sizes = torch.stack([widths, heights], -1).to(sampling_locations.dtype)  # (L, 1, 2)
    first = torch.tensor(starts)[:, None] + (torch.arange(batch) * tokens)[:, None, None, None, None]
    head = torch.arange(heads)[:, None, None]
    output = value.new_empty(batch, queries, heads * channels)
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


def available_backends() -> dict[str, str | None]:
    """Every known backend, fastest first: None where it can run here, else one sentence that says why not."""
    return {"mmcv": _why_not_mmcv(), "torch": None}


def active_backend(device_type: str = "cpu") -> str:
    """The name of the backend that calls on `device_type` ("cpu", "cuda") use."""
    del device_type  # one backend serves every device
    return "torch"


def _why_not_mmcv() -> str:
    if importlib.util.find_spec("mmcv") is None:
        return "mmcv is not installed (it is optional; its operators run on CUDA only)."
    if importlib.util.find_spec("mmcv._ext") is None:
        return "mmcv is installed without its compiled operators (mmcv._ext is missing), so it offers nothing faster."
    return "mmcv's compiled operator is present but this version of codetr does not call it."


def _check_shapes(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must have shape (B, S, N, D), got {tuple(value.shape)}")
    batch, tokens, heads, _ = value.shape
    total = sum(height * width for height, width in spatial_shapes)
    if not torch.compiler.is_compiling() and total != tokens:
        raise ValueError(f"value has {tokens} tokens but spatial_shapes {list(spatial_shapes)} have {total} cells")
    if sampling_locations.dim() != 6 or sampling_locations.shape[-1] != 2:
        raise ValueError(
            f"sampling_locations must have shape (B, Q, N, L, P, 2), got {tuple(sampling_locations.shape)}"
        )
    if (sampling_locations.shape[0], *sampling_locations.shape[2:4]) != (batch, heads, len(spatial_shapes)):
        raise ValueError(
            f"sampling_locations {tuple(sampling_locations.shape)} do not fit value {tuple(value.shape)} and "
            f"{len(spatial_shapes)} levels"
        )
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise ValueError(
            f"attention_weights {tuple(attention_weights.shape)} do not fit sampling_locations "
            f"{tuple(sampling_locations.shape)}"
        )
