"""Inputs of deformable attention as the network makes them, for measuring it alone.

Shape letters: B batch, S tokens over all levels, Q queries, N heads, D channels of a head, L levels, P points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

FINEST_STRIDE = 4
NOISE_PX = 2.0
"""Standard deviation of the offsets around the ring that networks start from, in cells of the level."""

BORDER_SHARE = 0.1
"""Least distance of a sample from the lines where bilinear interpolation has no derivative, in cells."""

Shape = Literal["encoder", "decoder"]


@dataclass(frozen=True, kw_only=True)
class OperatorShape:
    """Sizes of one call.

    Attributes:
        name: "encoder": a query for every token, at its cell's centre; "decoder": boxes as references.
        size: (height, width) of the image in pixels.
        levels: L; the first has stride 4, each further one half the resolution.
        batch: B.
        heads: N.
        points: P.
        channels: D.
        decoder_queries: Q of the decoder.
    """

    name: Shape
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
        height, width = (_halved(side, int(math.log2(FINEST_STRIDE))) for side in self.size)
        return [(_halved(height, level), _halved(width, level)) for level in range(self.levels)]

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
        """Places that are interpolated in one call."""
        return self.batch * self.queries * self.heads * self.levels * self.points


@dataclass(frozen=True)
class OperatorInputs:
    """Arguments of one call, of the fused entry or of the classic one.

    Attributes:
        value: (B, S, N, D).
        spatial_shapes: (H, W) of each level.
        reference: (B, Q, L, 2 or 4), normalised; None for the classic entry.
        sampling: (B, Q, N, L, P, 2): raw offsets, or normalised locations for the classic entry.
        scores: (B, Q, N, L, P): logits, or weights for the classic entry.
    """

    value: Tensor
    spatial_shapes: list[tuple[int, int]]
    reference: Tensor | None
    sampling: Tensor
    scores: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        """What a training step needs gradients of: references come detached."""
        return self.value, self.sampling, self.scores

    @property
    def nbytes(self) -> int:
        """Bytes of all arguments."""
        reference = 0 if self.reference is None else self.reference.nbytes
        return reference + sum(tensor.nbytes for tensor in self.differentiable)

    def requiring_grad(self, *, reference: bool = False) -> OperatorInputs:
        """The same numbers as leaves of a graph.

        Args:
            reference: of the reference points as well.
        """
        value, sampling, scores = (tensor.detach().clone().requires_grad_() for tensor in self.differentiable)
        points = self.reference
        if points is not None and reference:
            points = points.detach().clone().requires_grad_()
        return OperatorInputs(value, self.spatial_shapes, points, sampling, scores)

    def to(self, dtype: torch.dtype) -> OperatorInputs:
        """The same numbers, all in one precision."""
        reference = None if self.reference is None else self.reference.to(dtype)
        return OperatorInputs(
            self.value.to(dtype), self.spatial_shapes, reference, self.sampling.to(dtype), self.scores.to(dtype)
        )

    def classic(self) -> OperatorInputs:
        """The same samples for the classic entry: locations and weights in the references' precision."""
        if self.reference is None:
            return self
        scores = self.scores.to(self.reference.dtype).flatten(3).softmax(-1).view_as(self.scores)
        return OperatorInputs(self.value, self.spatial_shapes, None, self._locations(), scores)

    def away_from_borders(self) -> OperatorInputs:
        """The fused entry's inputs with every sample moved inside its cell, so that derivatives exist there."""
        exact = self.to(torch.float64)
        assert exact.reference is not None
        sizes = exact.sampling.new_tensor([(w, h) for h, w in self.spatial_shapes])[:, None]  # (L, 1, 2)
        pixels = exact._locations() * sizes - 0.5
        share = pixels - pixels.floor()
        step = (1 - 2 * BORDER_SHARE) * share + BORDER_SHARE - share
        if exact.reference.shape[-1] == 4:
            step = step / (sizes * exact.reference[:, :, None, :, None, 2:] * 0.5 / self.sampling.shape[4])
        return replace(self, sampling=(exact.sampling + step).to(self.sampling.dtype))

    def _locations(self) -> Tensor:
        """Normalised sampling locations (B, Q, N, L, P, 2) in the references' precision."""
        assert self.reference is not None
        reference = self.reference[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        offsets = self.sampling.to(reference.dtype)
        if reference.shape[-1] == 2:
            sizes = reference.new_tensor([(w, h) for h, w in self.spatial_shapes])
            return reference + offsets / sizes[:, None]
        return reference[..., :2] + offsets / offsets.shape[4] * reference[..., 2:] * 0.5


def make_inputs(shape: OperatorShape, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> OperatorInputs:
    """Random inputs of the fused entry.

    Args:
        shape: sizes.
        device: where they are to be.
        dtype: of value, offsets and logits; reference points have at least float32, as in the network.
        seed: of the numbers, which are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    cells = (shape.batch, shape.queries, shape.heads, shape.levels, shape.points)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=full)

    if shape.name == "encoder":
        points = torch.cat([_centres(*level, dtype=full) for level in shape.spatial_shapes])  # (S, 2)
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


def _halved(side: int, times: int) -> int:
    for _ in range(times):
        side = (side + 1) // 2
    return side


def _centres(height: int, width: int, *, dtype: torch.dtype) -> Tensor:
    """Normalised centres (H W, 2) of a level's cells as (x, y)."""
    y, x = ((torch.arange(side, dtype=dtype) + 0.5) / side for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def _ring(heads: int, points: int, dtype: torch.dtype) -> Tensor:
    """Offsets (N, P, 2) that networks start from: a direction for each head, one cell further out for each point."""
    angles = torch.arange(heads, dtype=dtype) * (2 * math.pi / heads)
    directions = F.normalize(torch.stack([angles.cos(), angles.sin()], -1), p=math.inf, dim=-1)
    return directions[:, None] * torch.arange(1, points + 1, dtype=dtype)[:, None]
