"""Deformable encoder: maps of all levels become one sequence of tokens that attend to each other (arXiv 2010.04159).

Behaviour of Sense-X/Co-DETR, projects/models/transformer.py.
Shape letters: B batch, C channels, L levels, S tokens of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.boxes import level_sizes
from codetr_cli.models.attention import MultiScaleDeformableAttention
from codetr_cli.models.constants import cached_constant
from codetr_cli.models.feed_forward import FeedForward
from codetr_cli.models.layers import chunks_of, runs_in_chunks
from codetr_cli.models.posenc import encode_cells, encode_unpadded_cells
from codetr_cli.tracing import is_exporting


class TokenCells(NamedTuple):
    """What the sizes of the levels alone say about their tokens.

    Attributes:
        centres: (S, 2) centre (x, y) of every token in cells of its level.
        level: (S,) int64 level of every token.
        sizes: (L, 2) size (w, h) of each level in cells.
    """

    centres: Tensor
    level: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Layout of the tokens of the flattened levels.

    Attributes:
        spatial_shapes: (H, W) of each level.
        cells: the tokens of levels of these sizes.
        level_masks: per level bool (B, H, W), True = padding; empty without padding.
        padding_mask: bool (B, S), True = padding; None: no padding.
        valid_sizes: (B, L, 2) unpadded size (w, h) of each level in cells.
        valid_ratios: (B, L, 2) unpadded share of each level as (w, h).
    """

    spatial_shapes: list[tuple[int, int]]
    cells: TokenCells
    level_masks: list[Tensor]
    padding_mask: Tensor | None
    valid_sizes: Tensor
    valid_ratios: Tensor

    def split_levels(self, tokens: Tensor) -> list[Tensor]:
        """Turns tokens (B, S, C) back into maps (B, C, H, W), one per level."""
        parts = torch.split(tokens, [height * width for height, width in self.spatial_shapes], dim=1)
        return [
            part.transpose(1, 2).reshape(part.shape[0], -1, height, width)
            for part, (height, width) in zip(parts, self.spatial_shapes, strict=True)
        ]


def describe_tokens(maps: Sequence[Tensor], padding_mask: Tensor | None) -> TokenLayout:
    """Derives the layout from the maps of the neck and the padding of the images.

    Args:
        maps: (B, C, H, W) of each level.
        padding_mask: bool (B, H_image, W_image), True = padding; None: no padding.
    """
    # The geometry stays in float32 (or float64) even if autocast gives the maps another dtype.
    dtype = maps[0].dtype if maps[0].dtype == torch.float64 else torch.float32
    shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
    cells = token_cells(tuple(shapes), dtype, maps[0].device)
    if padding_mask is None:
        sizes = cells.sizes.expand(maps[0].shape[0], -1, -1)
        return TokenLayout(shapes, cells, [], None, sizes, torch.ones_like(sizes))
    # Parity: the mask is resized to each level with nearest interpolation, not by a ceiling division.
    resize = nearest_cells if is_exporting() else interpolate_nearest
    padded = torch.cat([resized.flatten(1) for resized in resize(padding_mask, shapes, dtype)], 1).bool()
    areas = [height * width for height, width in shapes]
    masks, inside = (
        [part.view(-1, *shape) for part, shape in zip(torch.split(tokens, areas, 1), shapes, strict=True)]
        for tokens in (padded, ~padded)
    )
    edges = [edge.sum(1) for part in inside for edge in (part[:, 0], part[:, :, 0])]  # first row, first column
    sizes = torch.stack(edges, 1).view(-1, len(shapes), 2).to(dtype)
    return TokenLayout(shapes, cells, masks, padded, sizes, sizes / cells.sizes)


def interpolate_nearest(mask: Tensor, shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> list[Tensor]:
    """What `nearest_cells` does in less time, as numbers of a dtype."""
    full = mask[:, None].to(dtype)
    return [F.interpolate(full, size=shape, mode="nearest")[:, 0] for shape in shapes]


def nearest_cells(mask: Tensor, shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> list[Tensor]:
    """Nearest interpolation as arithmetic of PyTorch's rounding, for programs that are exported.

    ONNX's Resize divides by the inverse of the factor: where a cell begins at a whole pixel, e.g. at 4 * 150 / 5, other
    rounding takes the pixel before it, and with it the last row or column of an image for padding or the reverse.

    Args:
        mask: (B, H, W).
        shapes: (H_i, W_i) of each result, not larger than the mask.
        dtype: of the arithmetic.

    Returns:
        (B, H_i, W_i) of each shape.
    """
    height, width = mask.shape[1:]
    like = mask.new_empty(0, dtype=dtype)
    factors = level_sizes([(height, width)], like) / level_sizes(shapes, like)  # (L, 2) as (w, h)
    resized = []
    for shape, factor in zip(shapes, factors, strict=True):
        rows, columns = (
            (torch.arange(side, dtype=dtype, device=mask.device) * step).floor().long()
            for side, step in zip(shape, factor.flip(0), strict=True)
        )
        resized.append(mask[:, rows][:, :, columns])
    return resized


@cached_constant(maxsize=32)
def token_cells(spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> TokenCells:
    """The tokens of levels of these sizes (H, W)."""
    centres, levels = [], []
    for level, (height, width) in enumerate(spatial_shapes):
        y, x = (torch.arange(side, dtype=dtype, device=device) + 0.5 for side in (height, width))
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)
        centres.append(grid.flatten(0, 1))
        levels.append(torch.full((height * width,), level, device=device))
    return TokenCells(torch.cat(centres), torch.cat(levels), level_sizes(spatial_shapes, centres[0]))


def cell_centres(layout: TokenLayout) -> Tensor:
    """Centres of every token in units of each level's padded size.

    Returns:
        (B, S, L, 2) as (x, y): the token's centre relative to its own level's valid size, times the target level's
        valid ratio.
    """
    ratios = layout.valid_ratios
    if layout.padding_mask is None:
        centres = _unpadded_centres(tuple(layout.spatial_shapes), ratios.dtype, ratios.device)
        return centres.expand(ratios.shape[0], -1, ratios.shape[1], -1)
    return _centres(layout.cells, ratios)[:, :, None] * ratios[:, None]


def _centres(cells: TokenCells, ratios: Tensor) -> Tensor:
    """Centre (B, S, 2) of every token relative to the valid size of its level, whose share is in `ratios` (B, L, 2)."""
    return cells.centres / (ratios * cells.sizes)[:, cells.level]


@cached_constant(maxsize=4)
def _unpadded_centres(spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Centre (1, S, 1, 2) of every token of maps without padding."""
    cells = token_cells(spatial_shapes, dtype, device)
    return _centres(cells, torch.ones_like(cells.sizes)[None])[:, :, None]


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward layer, each followed by its norm.

    Args:
        dim: channels.
        num_heads: attention heads.
        num_levels: maps.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward layer.

    Attributes:
        chunk_tokens: approximate number of tokens per chunk of the feed-forward layer when no gradient is recorded; 0:
            all. The hidden values of a chunk fit into a CPU's cache, and those of all tokens of a large image, the
            largest tensor of the whole network, are never held.
    """

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int) -> None:
        super().__init__()
        self.chunk_tokens = 0
        self.self_attn = MultiScaleDeformableAttention(
            dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.self_attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        tokens: Tensor,
        pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Maps tokens (B, S, C) to the same shape; see `MultiScaleDeformableAttention.forward` for the arguments."""
        attended = self.attend(tokens, pos, reference_points, spatial_shapes, padding_mask)
        if not runs_in_chunks(self.chunk_tokens):
            return self.finish(tokens, attended)
        # The second half is token-wise: it overwrites the output of the attention, unless the sum is wider, as that of
        # float32 tokens in mixed precision.
        dtype = torch.promote_types(tokens.dtype, attended.dtype)
        result = attended if attended.dtype == dtype else torch.empty_like(tokens, dtype=dtype)
        for own, out, finished in chunks_of(self.chunk_tokens, tokens, attended, result):
            finished.copy_(self.finish(own, out))
        return result

    def attend(
        self,
        tokens: Tensor,
        pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """First half of the layer, the attention; arguments as for `forward`."""
        return self.self_attn(tokens, pos, tokens, reference_points, spatial_shapes, padding_mask)

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Second half of the layer, on tokens (..., C) and their attention output."""
        return self.ffn_norm(self.ffn(self.self_attn_norm(tokens + attended)))


class DeformableEncoder(nn.Module):
    """Layers over the tokens of all levels.

    Args:
        num_layers: number of layers.
        dim: channels.
        num_heads: attention heads.
        num_levels: maps.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward layers.
        position_temperature: base of the frequencies of the cells' sine encoding.
        position_offset: added to row and column numbers before they are encoded.
        checkpointing: number of first layers that are recomputed in the backward pass.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        position_temperature: float,
        position_offset: float,
        checkpointing: int,
    ) -> None:
        super().__init__()
        self.dim, self.checkpointing = dim, checkpointing
        self.encoding: dict[str, Any] = {"dim": dim, "temperature": position_temperature, "offset": position_offset}
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, ffn_dim=ffn_dim)
            for _ in range(num_layers)
        )

    def encode_positions(self, layout: TokenLayout) -> Tensor:
        """Sine encoding (B, S, C) of every token of a layout with padding, before the level embedding."""
        return encode_cells(layout.level_masks, **self.encoding, dtype=layout.valid_ratios.dtype)

    def token_positions(self, layout: TokenLayout) -> Tensor:
        """Sine encoding plus level embedding of every token, (B, S, C); (1, S, C) without padding."""
        if layout.padding_mask is not None:
            batch, areas = layout.padding_mask.shape[0], [height * width for height, width in layout.spatial_shapes]
            embeds = [e.expand(batch, area, -1) for e, area in zip(self.level_embed, areas, strict=True)]
            return self.encode_positions(layout) + torch.cat(embeds, 1)
        half, dtype, device = self.dim // 2, layout.valid_ratios.dtype, layout.valid_ratios.device
        parts = []
        for (height, width), embed in zip(layout.spatial_shapes, self.level_embed, strict=True):
            rows, columns = encode_unpadded_cells(height, width, **self.encoding, dtype=dtype, device=device)
            rows = (rows + embed[:half])[:, None].expand(-1, width, -1)
            columns = (columns + embed[half:])[None].expand(height, -1, -1)
            parts.append(torch.cat([rows, columns], -1).flatten(0, 1))
        return torch.cat(parts)[None]

    def forward(self, maps: list[Tensor], layout: TokenLayout) -> Tensor:
        """Maps the levels (B, C, H, W) to the memory (B, S, C); clears the list so that the maps can be freed."""
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)  # (B, S, C)
        maps.clear()
        pos = self.token_positions(layout).to(tokens.dtype)
        references = cell_centres(layout)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            arguments = (tokens, pos, references, layout.spatial_shapes, layout.padding_mask)
            if not (self.training and index < self.checkpointing and torch.is_grad_enabled()):
                tokens = layer(*arguments)
            elif layer.ffn.recomputes_hidden(tokens):
                # The second half saves little for the backward pass: recomputing it too would only take time.
                tokens = layer.finish(tokens, checkpoint(layer.attend, *arguments, use_reentrant=False))
            else:
                tokens = checkpoint(layer, *arguments, use_reentrant=False)
        return tokens
