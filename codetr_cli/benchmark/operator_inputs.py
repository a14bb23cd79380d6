"""Inputs of deformable attention with the shapes and values that the network gives it.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels per head, L levels, P points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

FINEST_STRIDE = 4
NOISE_PX = 2.0
"""Standard deviation of the offsets around their initial ring, in cells of the level."""


@dataclass(frozen=True, kw_only=True)
class OperatorShape:
    """Sizes of one call.

    Attributes:
        name: "encoder": one query per token, at the center of its cell; "decoder": boxes as reference points.
        size: (height, width) of the image in pixels.
        levels: L; the first has stride 4, each further one half the resolution.
        batch: B.
        heads: N.
        points: P.
        channels: D.
        decoder_queries: Q of the decoder.
    """

    name: Literal["encoder", "decoder"]
    size: tuple[int, int]
    levels: int
    batch: int = 1
    heads: int = 8
    points: int = 4
    channels: int = 32
    decoder_queries: int = 900

    @property
    def spatial_shapes(self) -> list[tuple[int, int]]:
        """(H, W) of each level; every halving rounds up, as the network's convolutions do."""
        height, width = self.size
        strides = [FINEST_STRIDE * 2**level for level in range(self.levels)]
        return [(-(-height // stride), -(-width // stride)) for stride in strides]

    @property
    def tokens(self) -> int:
        """S."""
        return sum(height * width for height, width in self.spatial_shapes)

    @property
    def queries(self) -> int:
        """Q."""
        return self.tokens if self.name == "encoder" else self.decoder_queries

    @property
    def samples(self) -> int:
        """Bilinear samples of one call."""
        return self.batch * self.queries * self.heads * self.levels * self.points


@dataclass(frozen=True)
class OperatorInputs:
    """Arguments of one call, of the fused or of the unfused operator.

    Attributes:
        value: (B, S, N, D).
        spatial_shapes: (H, W) of each level.
        reference: (B, Q, L, 2 or 4), normalized; None for the unfused operator.
        sampling: (B, Q, N, L, P, 2): raw offsets, or normalized locations for the unfused operator.
        scores: (B, Q, N, L, P): logits, or weights for the unfused operator.
    """

    value: Tensor
    spatial_shapes: list[tuple[int, int]]
    reference: Tensor | None
    sampling: Tensor
    scores: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        """Inputs that need gradients in a training step: reference points are detached."""
        return self.value, self.sampling, self.scores

    @property
    def nbytes(self) -> int:
        """Bytes of all arguments."""
        reference = 0 if self.reference is None else self.reference.nbytes
        return reference + sum(tensor.nbytes for tensor in self.differentiable)

    def requiring_grad(self) -> OperatorInputs:
        """A copy with the differentiable inputs as leaves of a graph."""
        value, sampling, scores = (tensor.detach().clone().requires_grad_() for tensor in self.differentiable)
        return OperatorInputs(value, self.spatial_shapes, self.reference, sampling, scores)

    def unfused(self) -> OperatorInputs:
        """The same samples for the unfused operator: locations and weights in the precision of the reference points."""
        assert self.reference is not None
        reference = self.reference[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        offsets = self.sampling.to(reference.dtype)
        if reference.shape[-1] == 2:
            sizes = reference.new_tensor([(w, h) for h, w in self.spatial_shapes])  # (L, 2)
            locations = reference + offsets / sizes[:, None]
        else:
            locations = reference[..., :2] + offsets / offsets.shape[4] * reference[..., 2:] * 0.5
        weights = self.scores.to(reference.dtype).flatten(3).softmax(-1).view_as(self.scores)
        return OperatorInputs(self.value, self.spatial_shapes, None, locations, weights)


def make_inputs(shape: OperatorShape, device: torch.device, dtype: torch.dtype) -> OperatorInputs:
    """Random inputs of the fused operator, the same on every device.

    Args:
        shape: sizes.
        device: of the tensors.
        dtype: of value, offsets and logits; reference points have at least float32, as in the network.
    """
    generator = torch.Generator().manual_seed(0)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    cells = (shape.batch, shape.queries, shape.heads, shape.levels, shape.points)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=full)

    if shape.name == "encoder":
        points = torch.cat([_centers(*level, dtype=full) for level in shape.spatial_shapes])  # (S, 2)
    else:
        points = torch.rand(shape.queries, 4, generator=generator, dtype=full) * 0.4 + torch.tensor(
            [0.3, 0.3, 0.02, 0.02]
        )
    reference = points[None, :, None].repeat(shape.batch, 1, shape.levels, 1)
    offsets = normal(*cells, 2).mul_(NOISE_PX).add_(_ring(shape.heads, shape.points, full)[:, None])
    value, scores = normal(shape.batch, shape.tokens, shape.heads, shape.channels), normal(*cells)
    return OperatorInputs(
        value.to(device, dtype),
        shape.spatial_shapes,
        reference.to(device),
        offsets.to(device, dtype),
        scores.to(device, dtype),
    )


def _centers(height: int, width: int, *, dtype: torch.dtype) -> Tensor:
    """Normalized centers (H W, 2) of a level's cells as (x, y)."""
    y, x = ((torch.arange(side, dtype=dtype) + 0.5) / side for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def _ring(heads: int, points: int, dtype: torch.dtype) -> Tensor:
    """Initial offsets (N, P, 2) of a network: one direction per head, each point one cell further out."""
    angles = torch.arange(heads, dtype=dtype) * (2 * math.pi / heads)
    directions = F.normalize(torch.stack([angles.cos(), angles.sin()], -1), p=math.inf, dim=-1)
    return directions[:, None] * torch.arange(1, points + 1, dtype=dtype)[:, None]
