"""Hierarchical transformer with shifted windows (arXiv 2103.14030), with Microsoft's parameter names.

Behaviour of projects/models/swin_transformer.py of Sense-X/Co-DETR and of mmdet's SwinTransformer, which differ only in
the order of the channels in patch merging: this is the order of the former.
Shape letters: B images, C channels, D channels of a head, N heads, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.models.layers import DropPath, add_rows_in_chunks, runs_in_chunks

PATCH_SIZE = 4
MLP_RATIO = 4
MASKED_SCORE = -100.0
"""Added to the attention score of two tokens that are in one window only because of the shift."""


class Grid(NamedTuple):
    """Sizes of a stage: of its map in tokens, and of the windows that cover it."""

    height: int
    width: int
    rows: int
    columns: int


class SwinTransformer(nn.Module):
    """Four stages of window attention; returns the normed map of each requested stage.

    Args:
        embed_dim: channels of the first stage; they double from stage to stage.
        layers: blocks of each stage.
        num_heads: heads of each stage; divide its channels.
        window_size: side of a window in tokens.
        drop_path: share of residual branches dropped in the last block in training; rises linearly from 0.
        finest_stride: 4 returns the maps of all stages, 8 those of the last three.
        checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        layers: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path: float,
        finest_stride: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.window_size, self.checkpointing = window_size, checkpointing
        self.first_output = {4: 0, 8: 1}[finest_stride]
        self.patch_embed = PatchEmbed(embed_dim)
        last = max(sum(layers) - 1, 1)
        rates = [drop_path * i / last for i in range(sum(layers))]
        self.layers = nn.ModuleList()
        self.out_channels: list[int] = []
        for stage, (depth, heads) in enumerate(zip(layers, num_heads, strict=True)):
            dim = embed_dim * 2**stage
            first = sum(layers[:stage])
            self.layers.append(
                Stage(dim, heads, window_size, rates[first : first + depth], merge=stage + 1 < len(layers))
            )
            if stage >= self.first_output:
                self.add_module(f"norm{stage}", nn.LayerNorm(dim))
                self.out_channels.append(dim)
        self.relative_index: Tensor
        self.masks: Tensor
        self.register_buffer("relative_index", relative_index(window_size), persistent=False)
        self.register_buffer("masks", shift_masks(window_size), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps normalised images (B, 3, H, W) of any size to maps (B, C_i, ceil(H / stride_i), ...), finest first."""
        x = self.patch_embed(images)
        outputs = []
        for index, stage in enumerate(self.layers):
            assert isinstance(stage, Stage)
            height, width = images.shape[-2:]
            grid = stage_grid(height, width, PATCH_SIZE * 2**index, self.window_size)
            for block in stage.blocks:
                if self.checkpointing and torch.is_grad_enabled() and self.training:
                    x = checkpoint(block, x, grid, self.relative_index, self.masks, use_reentrant=False)
                else:
                    x = block(x, grid, self.relative_index, self.masks)
            if index >= self.first_output:
                outputs.append(getattr(self, f"norm{index}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x, stage_grid(height, width, PATCH_SIZE * 2 ** (index + 1), self.window_size))
        return outputs


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels to tokens.

    Args:
        dim: channels of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH_SIZE, PATCH_SIZE)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W), zero padded at the bottom and right to whole patches, to (B, H / 4, W / 4, C)."""
        height, width = images.shape[-2:]
        below, right = (PATCH_SIZE * ceil_div(side, PATCH_SIZE) - side for side in (height, width))
        images = F.pad(images, (0, right, 0, below))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """The blocks of one resolution and the step to the next.

    Args:
        dim: channels.
        num_heads: heads of every block.
        window_size: side of a window in tokens.
        drop_path: of every block.
        merge: whether there is a next stage.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, drop_path: Sequence[float], *, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, window_size, shifted=i % 2 == 1, drop_path=rate) for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim) if merge else None


class Block(nn.Module):
    """Attention within windows and a feed-forward layer, each normed before and added to its input.

    Args:
        dim: channels.
        num_heads: heads.
        window_size: side of a window in tokens.
        shifted: whether the windows are shifted by half a window down and right.
        drop_path: share of branches dropped in training.

    Attributes:
        chunk_tokens: approximate number of tokens per chunk of the feed-forward layer at inference; 0: all.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, *, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window_size, self.shift = window_size, window_size // 2 if shifted else 0
        self.chunk_tokens = 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, x: Tensor, grid: Grid, index: Tensor, masks: Tensor) -> Tensor:
        """Maps tokens (B, H, W, C) to the same shape.

        Args:
            x: tokens.
            grid: their number, and that of the windows.
            index: of `relative_index`.
            masks: of `shift_masks`.
        """
        x = x + self.drop_path(self._attend(self.norm1(x), grid, index, masks if self.shift else None))
        if runs_in_chunks(self.chunk_tokens):
            return add_rows_in_chunks(x, lambda part: self.mlp(self.norm2(part)), self.chunk_tokens)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, grid: Grid, index: Tensor, masks: Tensor | None) -> Tensor:
        batch, _, _, dim = x.shape
        height, width, rows, columns = grid
        size = self.window_size
        # Parity: zero padding is added after the norm and takes part in the attention.
        x = F.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.view(batch, rows, size, columns, size, dim).transpose(2, 3)  # (B, rows, columns, size, size, C)
        x = self.attn(x.reshape(batch, rows, columns, size * size, dim), index, masks)
        x = x.view(batch, rows, columns, size, size, dim).transpose(2, 3)
        x = x.reshape(batch, rows * size, columns * size, dim)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x.narrow(1, 0, height).narrow(2, 0, width)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for every relative position.

    Args:
        dim: channels.
        num_heads: heads.
        window_size: side of a window in tokens.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, index: Tensor, masks: Tensor | None) -> Tensor:
        """Maps windows (B, rows, columns, T, C) to the same shape.

        Args:
            x: windows.
            index: of `relative_index`.
            masks: of `shift_masks` for shifted windows; None for others.
        """
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)  # (N, T, T)
        qkv = self.qkv(x)
        if masks is None:
            return self.proj(self._attend(qkv, bias))
        if not isinstance(qkv.shape[1], int):
            return self.proj(self.attend_any_grid(qkv, bias, masks))
        # Only windows of the last row and column contain tokens of two edges of the image: four masks are enough.
        rows = []
        for mask_row, part in zip(masks, (qkv[:, :-1], qkv[:, -1:]), strict=True):
            if part.shape[1] == 0:
                continue
            pieces = zip(mask_row, (part[:, :, :-1], part[:, :, -1:]), strict=True)
            rows.append(torch.cat([self._attend(piece, bias + mask) for mask, piece in pieces if piece.shape[2]], 2))
        return self.proj(torch.cat(rows, 1))

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Maps (B, rows, columns, T, 3 C) to (B, rows, columns, T, C); `bias` (N, T, T) is added to the scores."""
        *grid, tokens, channels = qkv.shape
        heads = qkv.reshape(-1, tokens, 3, self.num_heads, channels // (3 * self.num_heads))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (windows, N, T, D) each
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        return attended.transpose(1, 2).reshape(*grid, tokens, channels // 3)

    def attend_any_grid(self, qkv: Tensor, bias: Tensor, masks: Tensor) -> Tensor:
        """What `forward` does piece by piece, as operators that do not depend on the number of windows.

        `torch.export` traces it for images of any size, in which a piece may be empty.

        Args:
            qkv: (B, rows, columns, T, 3 C).
            bias: (N, T, T).
            masks: of `shift_masks`.

        Returns:
            (B, rows, columns, T, C).
        """
        batch, rows, columns, tokens, channels = qkv.shape
        heads = qkv.reshape(batch, rows * columns, tokens, 3, self.num_heads, channels // (3 * self.num_heads))
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5)  # (B, windows, N, T, D) each
        last_row, last_column = (torch.arange(1 - n, 1, device=qkv.device) == 0 for n in (rows, columns))
        which = 2 * last_row.long()[:, None] + last_column.long()  # (rows, columns)
        mask = masks.flatten(0, 1)[which.flatten()][:, None]  # (windows, 1, T, T)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias.to(q.dtype) + mask.to(q.dtype)
        attended = scores.softmax(-1) @ v
        return attended.transpose(2, 3).reshape(batch, rows, columns, tokens, channels // 3)


class Mlp(nn.Module):
    """Two linear layers with GELU.

    Args:
        dim: channels of input and output.
        hidden_dim: channels between the layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., dim) to (..., dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


class PatchMerging(nn.Module):
    """Merges every 2 x 2 tokens into one with twice the channels.

    Args:
        dim: channels of the input.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, merged: Grid) -> Tensor:
        """Maps (B, H, W, C), zero padded at the bottom and right to even sides, to (B, H / 2, W / 2, 2 C).

        Args:
            x: tokens.
            merged: sizes of the result.
        """
        batch, height, width, dim = x.shape
        rows, columns = merged.height, merged.width
        x = F.pad(x, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
        x = x.reshape(batch, rows, 2, columns, 2, dim)
        # Parity: the second quarter of the channels is the token below, the third the one to the right.
        x = x.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * dim)
        return self.reduction(self.norm(x))


def ceil_div(number: int, divisor: int) -> int:
    """The quotient rounded up. In a program for images of any size, `-(-a // b)` and `%` take minutes to simplify."""
    return (number + divisor - 1) // divisor


def stage_grid(height: int, width: int, stride: int, window_size: int) -> Grid:
    """Sizes of the stage with a stride, for images of this height and width.

    All are computed from the images', with one division each: rounding up stage by stage gives the same numbers, but
    expressions that grow from stage to stage, which torch.export does not simplify within minutes.
    """
    window = stride * window_size
    return Grid(ceil_div(height, stride), ceil_div(width, stride), ceil_div(height, window), ceil_div(width, window))


def relative_index(window_size: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a window, (T, T) int64."""
    side = torch.arange(window_size)
    rows, columns = side.repeat_interleave(window_size), side.repeat(window_size)
    row_step = rows[:, None] - rows + window_size - 1
    column_step = columns[:, None] - columns + window_size - 1
    return row_step * (2 * window_size - 1) + column_step


def shift_masks(window_size: int) -> Tensor:
    """Additive masks of the scores within shifted windows, for images of any size.

    Returns:
        (2, 2, T, T): first index 1 for windows of the last row, second 1 for those of the last column.
    """
    # The shift rolls the first rows of the image to the end of the last window.
    wrapped = torch.arange(window_size) >= window_size - window_size // 2
    rows, columns = wrapped.repeat_interleave(window_size), wrapped.repeat(window_size)
    apart_rows, apart_columns = rows[:, None] != rows, columns[:, None] != columns
    apart = torch.stack(
        [
            torch.stack([torch.zeros_like(apart_rows), apart_columns]),
            torch.stack([apart_rows, apart_rows | apart_columns]),
        ]
    )
    return torch.where(apart, MASKED_SCORE, 0.0)
