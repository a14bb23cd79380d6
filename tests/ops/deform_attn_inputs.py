"""Random problems for tests of deformable attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_cli.ops.deform_attn import (
    fused_multi_scale_deformable_attention,
    multi_scale_deformable_attention,
)


@dataclass(frozen=True)
class Problem:
    """Inputs of one call; `reference_points` is None for the entry that takes locations and weights."""

    value: Tensor
    spatial_shapes: list[tuple[int, int]]
    reference_points: Tensor | None
    sampling: Tensor
    scores: Tensor

    def leaves(self) -> list[Tensor]:
        """The tensors, ready to gather gradients."""
        tensors = (self.value, self.reference_points, self.sampling, self.scores)
        return [tensor.detach().clone().requires_grad_() for tensor in tensors if tensor is not None]


def make_problem(
    *,
    shapes: list[tuple[int, int]],
    reference: int = 2,
    batch: int = 2,
    queries: int | None = None,
    heads: int = 2,
    channels: int = 32,
    points: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """Makes a problem with samples inside, at the border and outside of the maps.

    Args:
        shapes: (H, W) of each level.
        reference: 2 points, 4 boxes, 0 locations and weights instead.
        batch: images.
        queries: None: as many as tokens.
        heads: heads.
        channels: of a head.
        points: per level.
        dtype: of all tensors.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, levels = sum(height * width for height, width in shapes), len(shapes)
    queries = tokens if queries is None else queries
    sampling = torch.randn(batch, queries, heads, levels, points, 2, generator=generator, dtype=dtype)
    scores = torch.randn(batch, queries, heads, levels, points, generator=generator, dtype=dtype)
    references = None
    if reference:
        references = torch.rand(batch, queries, levels, reference, generator=generator, dtype=dtype)
        sampling = 3 * sampling
    else:
        sampling = 0.5 + 0.5 * sampling
        scores = scores.flatten(3).softmax(-1).view_as(scores)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=dtype)
    return Problem(value, shapes, references, sampling, scores)


SHAPES = [(6, 9), (3, 5), (2, 2), (1, 1)]


def attend(problem: Problem, leaves: list[Tensor], backend: str) -> Tensor:
    if problem.reference_points is None:
        return multi_scale_deformable_attention(leaves[0], problem.spatial_shapes, *leaves[1:], backend=backend)
    return fused_multi_scale_deformable_attention(leaves[0], problem.spatial_shapes, *leaves[1:], backend=backend)
