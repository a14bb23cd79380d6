"""Multi-scale deformable attention with its parameters (arXiv 2010.04159, section 4.1); the sampling is in `ops/`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.ops.deform_attn import multi_scale_deformable_attention


class MultiScaleDeformableAttention(nn.Module):
    """Each query looks at a few learned points of every level.

    Args:
        dim: channels.
        num_heads: heads; divides `dim`.
        num_levels: maps the memory consists of.
        num_points: points per head and level.
    """

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets point in a different direction for every head, further out for every point; weights are uniform."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().max(-1, keepdim=True)[0]  # on the unit square's border
        steps = torch.arange(1, self.num_points + 1)
        bias = directions[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Samples the memory around the reference of each query.

        Args:
            query: (B, Q, C) content.
            query_pos: (B, Q, C) position, added to the query only.
            memory: (B, S, C) tokens that values are made of.
            reference_points: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, normalised, per level.
            spatial_shapes: (H, W) of each level.
            padding_mask: bool (B, S), True = padding: their values are zero. None: no padding.

        Returns:
            (B, Q, C), without the residual.
        """
        batch, queries, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(memory)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.view(batch, -1, heads, value.shape[-1] // heads)
        query = query + query_pos
        offsets = self.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
        logits = self.attention_weights(query).view(batch, queries, heads, levels * points)
        weights = F.softmax(logits, -1).view(batch, queries, heads, levels, points)
        # Locations keep the references' precision: half precision would move them by whole cells on large maps.
        offsets = offsets.to(reference_points.dtype)
        if reference_points.shape[-1] == 2:
            sizes = reference_points.new_tensor([(w, h) for h, w in spatial_shapes])  # (L, 2)
            locations = reference_points[:, :, None, :, None] + offsets / sizes[:, None]
        else:
            centres, sides = torch.split(reference_points[:, :, None, :, None], 2, dim=-1)
            locations = centres + offsets / points * sides * 0.5
        return self.output_proj(multi_scale_deformable_attention(value, spatial_shapes, locations, weights))
