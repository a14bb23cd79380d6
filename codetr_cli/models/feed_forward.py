"""The feed-forward layer of encoder and decoder, whose hidden numbers are the largest of the whole network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TRAINING_CHUNK_TOKENS = 2048
"""Tokens at once in training on a CPU: their hidden numbers fit the cache."""


class FeedForward(nn.Module):
    """Two linear layers with ReLU and a residual connection.

    Args:
        dim: channels of input and output.
        hidden_dim: channels between the layers.

    Attributes:
        training_chunk_tokens: about how many tokens are at work at once in training on a CPU, where the hidden numbers
            are made again in the backward pass; 0: all, and the hidden numbers are kept.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.training_chunk_tokens = TRAINING_CHUNK_TOKENS
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)

    def is_lean(self, x: Tensor) -> bool:
        """Whether the backward pass of (B, S, dim) will keep nothing of the hidden numbers."""
        # Memory is what a CPU waits for: fresh pages, and numbers that do not fit its caches. A GPU has other limits,
        # and a compiler or mixed precision makes its own choices.
        return (
            torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == self.linear1.weight.dtype
            and x.numel() // x.shape[-1] > self.training_chunk_tokens > 0
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., dim) to (..., dim)."""
        if self.is_lean(x):
            weights = self.linear1.weight, self.linear1.bias, self.linear2.weight, self.linear2.bias
            return _InChunks.apply(x, *weights, self.training_chunk_tokens)
        # In place: the hidden tensor of a large image's tokens is the largest of the whole network.
        return x + self.linear2(F.relu(self.linear1(x), inplace=True))


class _InChunks(torch.autograd.Function):
    """x + relu(x @ w1.T + b1) @ w2.T + b2, some tokens after others; keeps x alone and makes the hidden numbers twice.

    Half the recomputation of checkpointing the layer, whose output would be made twice too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, chunk_tokens: int) -> Tensor:
        ctx.save_for_backward(x, w1, b1, w2)
        ctx.chunk_tokens = chunk_tokens
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for tokens, result in zip(_pieces(x, chunk_tokens), _pieces(out, chunk_tokens), strict=True):
            hidden = torch.addmm(b1, tokens, w1.t()).relu_()
            torch.addmm(b2, hidden, w2.t(), out=result)
            result += tokens
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, b1, w2 = ctx.saved_tensors
        grad_x = grad.clone(memory_format=torch.contiguous_format)  # the residual connection's share
        grad_w1, grad_b1, grad_w2 = torch.zeros_like(w1), torch.zeros_like(b1), torch.zeros_like(w2)
        pieces = (_pieces(t, ctx.chunk_tokens) for t in (x, grad, grad_x))
        for tokens, out, result in zip(*pieces, strict=True):
            hidden = torch.addmm(b1, tokens, w1.t()).relu_()
            grad_w2.addmm_(out.t(), hidden)
            grad_hidden = torch.mm(out, w2).masked_fill_(hidden == 0, 0.0)
            grad_w1.addmm_(grad_hidden.t(), tokens)
            grad_b1 += grad_hidden.sum(0)
            result.addmm_(grad_hidden, w1)
        return grad_x, grad_w1, grad_b1, grad_w2, grad.flatten(0, -2).sum(0), None


def _pieces(tokens: Tensor, chunk_tokens: int) -> tuple[Tensor, ...]:
    """Views (tokens, C) of a tensor (..., C), about equally long."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    return flat.tensor_split(max(1, -(-len(flat) // chunk_tokens)))
