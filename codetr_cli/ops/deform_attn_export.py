"""Multi-scale deformable attention as exported programs express it, beside the reference formulation with GridSample.

`gather` reads the four cells around each sample as rows of the tokens: for TensorRT, which has been silently wrong with
GridSample (NVIDIA/TensorRT#4813). `plugin` is one node that TensorRT's own plugin library computes.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr_cli.boxes import level_sizes
from codetr_cli.ops.deform_attn_torch import place_samples, reference_multi_scale_deformable_attention

FORMULATIONS = ("gridsample", "gather", "plugin")

PLUGIN_NAME = "MultiscaleDeformableAttnPlugin_TRT"
"""The plugin's name for TensorRT and in ONNX files."""

_formulation = "gridsample"


@contextlib.contextmanager
def use_formulation(name: str) -> Iterator[None]:
    """Programs that are exported in the context, in any thread, express the attention in this way.

    Args:
        name: one of `FORMULATIONS`.
    """
    global _formulation
    assert name in FORMULATIONS, name
    before, _formulation = _formulation, name
    try:
        yield
    finally:
        _formulation = before


def forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor | None,
    sampling: Tensor,
    scores: Tensor,
) -> Tensor:
    """The formulation of the context; arguments and result as for every backend's `forward`."""
    if reference_points is not None:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # the softmax of half precision is coarse
        sampling, scores = place_samples(spatial_shapes, reference_points, sampling, scores)
    if _formulation == "gather":
        return gather_rows(value, spatial_shapes, sampling, scores)
    if _formulation == "plugin":
        return call_plugin(value, spatial_shapes, sampling, scores)
    return reference_multi_scale_deformable_attention(value, spatial_shapes, sampling, scores)


def gather_rows(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Bilinear samples as weighted rows; arguments and result as for the reference.

    One level at a time: the rows of a level, (B, Q, N, 4 P, D), are the largest tensor. All shapes are known before the
    values; cells outside the map have a weight of zero instead of a padded copy of the map.
    """
    batch, tokens, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], len(spatial_shapes), sampling_locations.shape[4]
    rows = value.reshape(-1, channels)  # row (b * S + s) * N + n
    sizes = level_sizes(spatial_shapes, sampling_locations)[:, None]  # (L, 1, 2) as (w, h)
    places = sampling_locations * sizes - 0.5
    # Far outside, integers would overflow: everything beyond one cell outside has weight zero anyway.
    low = torch.minimum(places.floor().clamp(min=-2), sizes + 1)
    share = places - low
    corners = torch.stack([low, low + 1], -2)  # (B, Q, N, L, P, 2, 2): low or high, x or y
    last = (sizes - 1)[:, :, None]
    inside = ((corners >= 0) & (corners <= last)).to(places.dtype)
    weights = torch.stack([1 - share, share], -2) * inside
    x, y = torch.minimum(corners.clamp(min=0), last).int().unbind(-1)  # (B, Q, N, L, P, 2)
    weights_x, weights_y = weights.unbind(-1)
    # The four corners of a sample, rows outermost: (B, Q, N, L, P, 2, 2).
    corner_weights = weights_y[..., None] * weights_x[..., None, :] * attention_weights[..., None, None]
    widths, starts = _widths_and_starts(spatial_shapes, x)
    cells = (y * widths)[..., None] + x[..., None, :] + starts[..., None]
    image, head = (torch.arange(count, dtype=torch.int32, device=value.device) for count in (batch, heads))
    index = (cells + tokens * image.view(-1, 1, 1, 1, 1, 1, 1)) * heads + head.view(-1, 1, 1, 1, 1)
    index = index.view(batch, queries, heads, levels, points * 4)
    corner_weights = corner_weights.view(batch, queries, heads, levels, points * 4, 1)
    output = None
    for level in range(levels):
        sampled = F.embedding(index[:, :, :, level], rows)  # (B, Q, N, 4 P, D)
        summed = (sampled.to(corner_weights.dtype) * corner_weights[:, :, :, level]).sum(3)
        output = summed if output is None else output + summed
    assert output is not None
    return output.to(value.dtype).view(batch, queries, heads * channels)


def _widths_and_starts(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Width and first token of every level, (L, 1, 1) each, with the dtype and device of `like`."""
    starts = [0]
    for height, width in spatial_shapes[:-1]:
        starts.append(starts[-1] + height * width)
    widths = [width for _, width in spatial_shapes]
    of_widths, of_starts = (
        torch.stack([like.new_full((), number) for number in numbers]).view(-1, 1, 1) for numbers in (widths, starts)
    )
    return of_widths, of_starts


def call_plugin(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """One node for the plugin, in float32; arguments and result as for the reference.

    The plugin wants one dtype for values, locations and weights, and half precision would move samples on large maps.
    """
    shapes = level_sizes(spatial_shapes, torch.zeros((), dtype=torch.int32, device=value.device)).flip(-1)
    _, starts = _widths_and_starts(spatial_shapes, shapes)
    inputs = value.float(), shapes, starts.flatten(), sampling_locations.float(), attention_weights.float()
    return plugin_operator(*inputs).flatten(2).to(value.dtype)


@torch.library.custom_op("codetr::deform_attn_plugin", mutates_args=())
def plugin_operator(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """What TensorRT's MultiscaleDeformableAttnPlugin_TRT computes, and its inputs.

    Args:
        value: float32 (B, S, N, D).
        spatial_shapes: int32 (L, 2) as (h, w).
        level_start_index: int32 (L,), first token of each level.
        sampling_locations: float32 (B, Q, N, L, P, 2).
        attention_weights: float32 (B, Q, N, L, P).

    Returns:
        (B, Q, N, D).
    """
    shapes = [(height, width) for height, width in spatial_shapes.tolist()]
    output = reference_multi_scale_deformable_attention(value, shapes, sampling_locations, attention_weights)
    return output.contiguous().view(*output.shape[:2], *value.shape[2:])


@plugin_operator.register_fake
def _(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    return value.new_empty(value.shape[0], sampling_locations.shape[1], value.shape[2], value.shape[3])
