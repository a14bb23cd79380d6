"""Shared building blocks: precision, chunking, MLP, norms, self-attention, drop path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr_cli.tracing import is_exporting


def at_least_float32(x: Tensor) -> Tensor:
    """Converts to float32; float64 stays as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def float64_device(device: torch.device) -> torch.device:
    """Where to compute constants in float64 for a device: there, or on the CPU for Apple's GPUs, which have none."""
    return torch.device("cpu") if device.type == "mps" else device


def full_precision(x: Tensor) -> torch.autocast:
    """A context without mixed precision on the device of `x`: for scores, boxes and losses."""
    # The meta device has no autocast; that of the CPU is used, so that networks can be measured there.
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def autocast_dtype_of(x: Tensor) -> torch.dtype | None:
    """The type of matrix products and convolutions of `x` where mixed precision is on; None elsewhere."""
    kind = x.device.type
    if x.is_meta or not x.is_floating_point() or not torch.is_autocast_enabled(kind):
        return None
    return None if x.dtype == torch.float64 else torch.get_autocast_dtype(kind)


def smaller(a: int, b: int) -> int:
    """The smaller of two sizes; in a program that is exported for images of any size, it is computed from theirs."""
    if is_exporting():
        return torch.sym_min(a, b)  # type: ignore[return-value]
    return min(a, b)


def runs_in_chunks(chunk_tokens: int) -> bool:
    """Whether work is split into chunks of this size: only eagerly and without gradients."""
    return chunk_tokens > 0 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def chunks_of(chunk_tokens: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of the tokens of several tensors (B, S, C), image by image, as views (tokens, C).

    All chunks have about the same length: a short remainder would use another matrix product kernel and round
    differently. On one CPU thread a token's values are then the same to the last bit for any number of chunks.
    """
    for image in zip(*tensors, strict=True):
        pieces = max(1, -(-len(image[0]) // chunk_tokens))
        yield from zip(*(tokens.tensor_split(pieces) for tokens in image), strict=True)


def add_rows_in_chunks(x: Tensor, branch: Callable[[Tensor], Tensor], chunk_tokens: int) -> Tensor:
    """Adds a token-wise branch to tokens (B, H, W, C), in place and in chunks of rows."""
    rows = max(1, chunk_tokens // (x.shape[0] * x.shape[2]))
    for part in torch.split(x, rows, dim=1):
        part += branch(part)
    return x


def init_conv(conv: nn.Conv2d, *, std: float, bias: float = 0.0) -> None:
    """Initializes with normal weights and a constant bias, if any."""
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        in_dim: channels of the input.
        hidden_dim: channels between the layers.
        out_dim: channels of the output.
        num_layers: number of linear layers.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ConvNorm(nn.Module):
    """A convolution followed by group norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel; the padding keeps the size at stride 1.
        norm_groups: groups of the norm.
        stride: stride of the convolution.
        bias: whether the convolution has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        norm_groups: int,
        stride: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias)
        self.norm = nn.GroupNorm(norm_groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up."""
        return self.norm(self.conv(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention; positional parts are added to queries and keys, not to values.

    Args:
        dim: channels.
        num_heads: heads; divides `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Tensor, pos: Tensor, attn_mask: Tensor | None = None, group_sizes: Sequence[int] | None = None
    ) -> Tensor:
        """Attends among the queries of each image.

        Args:
            x: (B, Q, C) content.
            pos: (B, Q, C) positional part of queries and keys.
            attn_mask: bool, True where the query of the row must not attend to that of the column, or None: (Q, Q), or
                that of the first group.
            group_sizes: sizes of consecutive groups of queries, each of which attends to itself only, without any mask
                but for the first; None: one group.

        Returns:
            (B, Q, C), without the residual.
        """
        batch, queries, dim = x.shape
        weight_qk, weight_v = torch.split(self.in_proj_weight, [2 * dim, dim])
        bias_qk, bias_v = torch.split(self.in_proj_bias, [2 * dim, dim])
        q, k = F.linear(x + pos, weight_qk, bias_qk).chunk(2, dim=-1)
        v = F.linear(x, weight_v, bias_v)
        q, k, v = (t.view(batch, queries, self.num_heads, -1).transpose(1, 2) for t in (q, k, v))  # (B, N, Q, D)
        sizes = [queries] if group_sizes is None else list(group_sizes)
        masks = [None if attn_mask is None else ~attn_mask, *[None] * (len(sizes) - 1)]
        # One block of the attention matrix for each group: no product is computed to be masked.
        groups = zip(*(torch.split(t, sizes, dim=2) for t in (q, k, v)), masks, strict=True)
        blocks = [F.scaled_dot_product_attention(*group).transpose(1, 2).reshape(batch, -1, dim) for group in groups]
        return self.out_proj(torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0])


class DropPath(nn.Module):
    """Drops a residual branch for some images in training (arXiv 1603.09382).

    Args:
        rate: share of images, in [0, 1].
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Zeroes random images of (B, ...) and scales the others so that the expectation stays the same."""
        if self.rate == 0 or not self.training:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - self.rate)
        return branch * (kept / max(1 - self.rate, 1e-6))


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
