"""Two-stage query selection: every token of the memory proposes a box, the best become the decoder's references.

Behaviour of Sense-X/Co-DETR, projects/models/transformer.py (gen_encoder_output_proposals) and co_dino_head.py.
Shape letters: B batch, C channels, K classes, Q queries, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_cli.models.encoder import TokenLayout
from codetr_cli.models.layers import at_least_float32, full_precision


@dataclass(frozen=True)
class Proposals:
    """The selected tokens, best first.

    Attributes:
        indices: (B, Q) token of each query.
        logits: (B, Q, K) class logits.
        boxes: (B, Q, 4) cxcywh in [0, 1], with gradient.
    """

    indices: Tensor
    logits: Tensor
    boxes: Tensor


def propose_boxes(layout: TokenLayout) -> Tensor:
    """One box before the sigmoid per token: centred on its cell, 5 % of the image wide at the finest level, doubling.

    Returns:
        (B, S, 4) logits of cxcywh relative to the valid size; +inf where the token is padding or any of the four values
        is not strictly inside (0.01, 0.99).
    """
    dtype, device = layout.valid_ratios.dtype, layout.valid_ratios.device
    boxes = []
    for level, mask in enumerate(layout.level_masks):
        height, width = mask.shape[1:]
        valid_h = (~mask[:, :, 0]).sum(1).to(dtype)[:, None, None]
        valid_w = (~mask[:, 0, :]).sum(1).to(dtype)[:, None, None]
        y = (torch.arange(height, dtype=dtype, device=device) + 0.5)[None, :, None] / valid_h
        x = (torch.arange(width, dtype=dtype, device=device) + 0.5)[None, None, :] / valid_w
        side = torch.full_like(mask, 0.05 * 2**level, dtype=dtype)
        boxes.append(torch.stack([x.expand(-1, height, -1), y.expand(-1, -1, width), side, side], -1).flatten(1, 2))
    proposals = torch.cat(boxes, 1)
    inside = ((proposals > 0.01) & (proposals < 0.99)).all(-1)
    logits = torch.log(proposals / (1 - proposals))
    return logits.masked_fill((layout.padding_mask | ~inside)[..., None], float("inf"))


class QuerySelection(nn.Module):
    """Scores every token and keeps the best.

    Args:
        dim: channels.
        num_queries: tokens kept.
    """

    def __init__(self, *, dim: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)

    def project(self, memory: Tensor, proposals: Tensor) -> Tensor:
        """Projects the memory (B, S, C) for scoring.

        Parity: tokens without a valid proposal are set to zero first, so all of them share one score.
        """
        invalid = torch.isinf(proposals[..., :1])
        return self.memory_norm(self.memory_proj(memory.masked_fill(invalid, 0.0)))

    def forward(self, memory: Tensor, layout: TokenLayout, class_head: nn.Module, box_head: nn.Module) -> Proposals:
        """Selects the tokens with the highest class logit; all of them in images with fewer tokens than queries."""
        count = min(self.num_queries, memory.shape[1])
        # Half precision would tie most of the scores that the selection compares.
        with full_precision(memory):
            proposals = propose_boxes(layout)
            projected = self.project(at_least_float32(memory), proposals)
            logits = class_head(projected)
            indices = torch.topk(logits.max(-1)[0], count, dim=1)[1]
            # The box branch runs on the selected tokens only: the others are never read.
            boxes = (box_head(_gather_tokens(projected, indices)) + _gather_tokens(proposals, indices)).sigmoid()
            return Proposals(indices, _gather_tokens(logits, indices), boxes)


def _gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Picks tokens (B, S, C) by index (B, Q) to (B, Q, C)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
