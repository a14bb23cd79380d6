"""The feed-forward layer of encoder and decoder, whose hidden values are the largest tensor of the whole network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TRAINING_CHUNK_TOKENS = 2048
"""Tokens per chunk in training on a CPU: their hidden values fit into the cache."""


class FeedForward(nn.Module):
    """Two linear layers with ReLU and a residual connection.

    Args:
        dim: channels of input and output.
        hidden_dim: channels between the layers.

    Attributes:
        training_chunk_tokens: approximate number of tokens per chunk in training on a CPU, where the hidden values are
            recomputed in the backward pass; 0: no chunks, and the hidden values are kept.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.training_chunk_tokens = TRAINING_CHUNK_TOKENS
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)

    def recomputes_hidden(self, x: Tensor) -> bool:
        """Whether the backward pass of (B, S, dim) recomputes the hidden values instead of keeping them."""
        # On a CPU memory is the bottleneck: fresh pages, and values that do not fit into the caches. A GPU has other
        # limits, and torch.compile and mixed precision choose for themselves.
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
        if self.recomputes_hidden(x):
            weights = self.linear1.weight, self.linear1.bias, self.linear2.weight, self.linear2.bias
            return _InChunks.apply(x, *weights, self.training_chunk_tokens)
        # In place: the hidden values of a large image are the largest tensor of the whole network.
        return x + self.linear2(F.relu(self.linear1(x), inplace=True))


class _InChunks(torch.autograd.Function):
    """x + relu(x @ w1.T + b1) @ w2.T + b2 in chunks; saves only x and computes the hidden values twice.

    Half the recomputation of checkpointing the layer, which would compute the output twice too.
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
        grad_x = grad.clone(memory_format=torch.contiguous_format)  # of the residual connection
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
    """Views (tokens, C) of a tensor (..., C), of about equal length."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    return flat.tensor_split(max(1, -(-len(flat) // chunk_tokens)))
