"""Multi-scale deformable attention with its parameters (arXiv 2010.04159, section 4.1); the sampling is in `ops/`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr_cli.models.layers import autocast_dtype_of
from codetr_cli.ops.deform_attn import fused_multi_scale_deformable_attention


class MultiScaleDeformableAttention(nn.Module):
    """Each query samples a few learned points of every level.

    Args:
        dim: channels.
        num_heads: heads; divides `dim`.
        num_levels: levels of the memory.
        num_points: points per head and level.
    """

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.backend = "auto"
        """Backend of the sampling: "auto" or a name of `ops.deform_attn.BACKENDS`."""
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets point in a different direction for every head, further out for every point; weights are uniform."""
        # On the CPU: with torch.device("meta"), where nothing has a value, each operator takes a millisecond.
        angles = torch.arange(self.num_heads, device="cpu") * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().max(-1, keepdim=True)[0]  # on the border of the unit square
        steps = torch.arange(1, self.num_points + 1, device="cpu")
        bias = directions[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def project_value(self, memory: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Values (B, S, N, D) of the memory (B, S, C), zero where `padding_mask` (B, S) is True."""
        value = self.value_proj(memory)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        return value.unflatten(-1, (self.num_heads, -1))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor | None,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
        value: Tensor | None = None,
    ) -> Tensor:
        """Samples the memory around the reference of each query.

        Args:
            query: (B, Q, C) content.
            query_pos: (B, Q, C) positional part, added to the query only.
            memory: (B, S, C) tokens to project to values; not used when `value` is given.
            reference_points: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, normalised, per level.
            spatial_shapes: (H, W) of each level.
            padding_mask: bool (B, S), True = padding: their values are zero. None: no padding.
            value: (B, S, N, D) of `project_value`; None: computed here.

        Returns:
            (B, Q, C), without the residual.
        """
        if value is None:
            if memory is None:
                raise ValueError("memory or value must be given")
            value = self.project_value(memory, padding_mask)
        shape = (self.num_heads, self.num_levels, self.num_points)
        query = query + query_pos
        dtype = autocast_dtype_of(query)
        query = query if dtype is None else query.to(dtype)  # once for both projections
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        logits = self.attention_weights(query).unflatten(-1, shape)
        return self.output_proj(
            fused_multi_scale_deformable_attention(
                value, spatial_shapes, reference_points, offsets, logits, backend=self.backend
            )
        )
