"""Plain transformer with rotary position encoding and mostly windowed attention (EVA-02, arXiv 2303.11331).

Behaviour of mmdet/models/backbones/vit.py of Sense-X/Co-DETR.
- Keys have no bias.
- Windows at the border are padded after the norm, and the padding is attended to.
- A position table is added once, and queries and keys are rotated in every block; every window has its own origin.
- The feed-forward layer is gated (SwiGLU, arXiv 2002.05202) with an inner norm.

Shape letters: B images, C channels, D channels of a head, N heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.models.layers import DropPath, add_rows_in_chunks, at_least_float32, float64_device, runs_in_chunks

NORM_EPS = 1e-6
ROTARY_BASE = 10000.0
ROTARY_EXTENT = 16
"""Rotary positions range from 0 to this over a window or an image of any size in tokens."""

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angle of every token and channel of a head, (T, D) each."""


class ViT(nn.Module):
    """Image to one map.

    Args:
        embed_dim: channels.
        depth: blocks.
        num_heads: heads; channels per head are a multiple of 4.
        hidden_dim: channels inside the feed-forward layers.
        patch_size: side of a token in pixels.
        window_size: side of a window in tokens.
        global_blocks: blocks that attend to the whole image.
        pretrain_size: image side of the position table.
        fixed_size: the only supported image side, with rotary tables of that size; None: any, and the tables follow it.
        drop_path: share of residual branches dropped in the last block in training; rises linearly from 0.
        checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        hidden_dim: int,
        patch_size: int,
        window_size: int,
        global_blocks: Sequence[int],
        pretrain_size: int,
        fixed_size: int | None,
        drop_path: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.patch_size, self.window_size, self.fixed_size = patch_size, window_size, fixed_size
        self.head_dim, self.checkpointing = embed_dim // num_heads, checkpointing
        self.out_channels = [embed_dim]
        self.pretrain_cells = pretrain_size // patch_size
        # Parity: the first row belongs to a class token, which detection does not use.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.pretrain_cells**2, embed_dim))
        self.patch_embed = PatchEmbed(embed_dim, patch_size)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                hidden_dim,
                window_size=0 if i in global_blocks else window_size,
                drop_path=drop_path * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.out_norm = nn.LayerNorm(embed_dim)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps normalised images (B, 3, H, W) to one map (B, C, H / patch_size, W / patch_size), rounded down.

        Raises:
            ValueError: the images do not have the only supported size.
        """
        if self.fixed_size is not None and images.shape[-2:] != (self.fixed_size, self.fixed_size):
            raise ValueError(
                f"images must be {self.fixed_size} x {self.fixed_size} pixels for this backbone's fixed rotary tables, "
                f"got {images.shape[-2]} x {images.shape[-1]}"
            )
        x = self.patch_embed(images)
        height, width = x.shape[1], x.shape[2]
        x = x + self._positions(height, width)
        window, image = self.rotations(height, width, like=x)
        for block in self.blocks:
            assert isinstance(block, Block)
            angles = window if block.window_size else image
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, angles, use_reentrant=False)
            else:
                x = block(x, angles)
        return [self.out_norm(x).permute(0, 3, 1, 2)]

    def rotations(self, height: int, width: int, *, like: Tensor) -> tuple[Rotation, Rotation]:
        """Rotations of a window and of an image of this many tokens; `like` as for `rotation`."""
        window = rotation(self.window_size, self.window_size, self.head_dim, like=like)
        return window, rotation(height, width, self.head_dim, like=like)

    def _positions(self, height: int, width: int) -> Tensor:
        """The position table resized to a map, (1, H, W, C)."""
        cells = self.pretrain_cells
        table = self.pos_embed[:, 1:].view(1, cells, cells, -1)
        if (height, width) == (cells, cells):
            return table
        resized = F.interpolate(table.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Image patches to tokens.

    Args:
        dim: channels of a token.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, H / patch_size, W / patch_size, C)."""
        tokens: Tensor = self.proj(images)
        return tokens.permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention and a feed-forward layer, each normed before and added to its input.

    Args:
        dim: channels.
        num_heads: heads.
        hidden_dim: channels inside the feed-forward layer.
        window_size: side of a window in tokens; 0 attends to the whole image.
        drop_path: share of branches dropped in training.

    Attributes:
        chunk_tokens: approximate number of tokens per chunk of the feed-forward layer at inference; 0: all.
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, *, window_size: int, drop_path: float) -> None:
        super().__init__()
        self.window_size, self.chunk_tokens = window_size, 0
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = GatedMlp(dim, hidden_dim)

    def forward(self, x: Tensor, angles: Rotation) -> Tensor:
        """Maps tokens (B, H, W, C) to the same shape; `angles` are those of a window or of the image."""
        x = x + self.drop_path(self._attend(self.norm1(x), angles))
        if runs_in_chunks(self.chunk_tokens):
            return add_rows_in_chunks(x, lambda part: self.mlp(self.norm2(part)), self.chunk_tokens)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, angles: Rotation) -> Tensor:
        batch, height, width, dim = x.shape
        if not self.window_size:
            return self.attn(x.flatten(1, 2), angles).view(batch, height, width, dim)
        size = self.window_size
        # Parity: the padding is attended to; its queries and values are the biases.
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        windows = x.view(batch, rows, size, columns, size, dim).transpose(2, 3).reshape(-1, size * size, dim)
        x = self.attn(windows, angles).view(batch, rows, columns, size, size, dim).transpose(2, 3)
        return x.reshape(batch, rows * size, columns * size, dim)[:, :height, :width]


class Attention(nn.Module):
    """Multi-head self-attention whose queries and keys are rotated by their position.

    Args:
        dim: channels.
        num_heads: heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, angles: Rotation) -> Tensor:
        """Maps tokens (B, T, C) to the same shape."""
        q = rotate(self._heads(self.q_proj(x)), angles)
        k = rotate(self._heads(self.k_proj(x)), angles)
        v = self._heads(self.v_proj(x))
        attended = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, N, T, D)


class GatedMlp(nn.Module):
    """A feed-forward layer in which one hidden half gates the other, with a norm before the output layer.

    Args:
        dim: channels of input and output.
        hidden_dim: channels between the layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim)
        self.w2 = nn.Linear(dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=NORM_EPS)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., dim) to (..., dim)."""
        gate = self.w1(x)
        # In place without a backward pass: the hidden tensors are the largest of the block.
        gate = F.silu(gate, inplace=not gate.requires_grad)
        return self.w3(self.norm(gate * self.w2(x)))


def rotation(height: int, width: int, head_dim: int, *, like: Tensor) -> Rotation:
    """Rotation of the tokens of a window or an image, in row-major order.

    The first half of a head's channels rotates with the row, the second with the column; within a half each pair of
    neighbouring channels has its own frequency, from 1 down.

    Args:
        height: rows of tokens.
        width: columns of tokens.
        head_dim: D.
        like: a tensor whose device and dtype the result takes; computed in float64 and rounded once.
    """
    half = head_dim // 2
    place = float64_device(like.device)
    steps = torch.arange(0, half, 2, device=place, dtype=torch.float64)
    frequencies = (ROTARY_BASE ** (-steps / half)).repeat_interleave(2)  # (D / 2)
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    angles = [
        torch.arange(count, device=place, dtype=torch.float64)[:, None] / count * ROTARY_EXTENT * frequencies
        for count in (height, width)
    ]
    tables = []
    for function in (torch.cos, torch.sin):
        # Before they are expanded: such small tables become float32 constants of ONNX files; TensorRT has no float64.
        rows, columns = (function(side).to(like.device, dtype) for side in angles)
        grid = torch.cat([rows[:, None].expand(height, width, half), columns.expand(height, width, half)], -1)
        tables.append(grid.flatten(0, 1))  # (T, D)
    return tables[0], tables[1]


def rotate(x: Tensor, angles: Rotation) -> Tensor:
    """Rotates each pair of neighbouring channels of (..., T, D) by its angle; at least in float32."""
    cosine, sine = angles
    x = at_least_float32(x)
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return x * cosine + torch.stack([-odd, even], -1).flatten(-2) * sine
