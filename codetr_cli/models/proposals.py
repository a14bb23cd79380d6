"""Two-stage query selection: every token of the memory proposes a box, the best become references of the decoder.

Behaviour of Sense-X/Co-DETR, projects/models/transformer.py (gen_encoder_output_proposals) and co_dino_head.py.
Shape letters: B batch, C channels, K classes, Q queries, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from codetr_cli.models.encoder import TokenLayout
from codetr_cli.models.layers import at_least_float32, chunks_of, full_precision, runs_in_chunks


@dataclass(frozen=True)
class Proposals:
    """The selected tokens, best first.

    Attributes:
        indices: (B, Q) token of each query.
        logits: (B, Q, K) class logits.
        boxes: (B, Q, 4) cxcywh in [0, 1], with gradient.
        all_logits: (B, S, K) of every token, if requested.
        all_boxes: (B, S, 4) of every token, if requested; tokens without a valid proposal have boxes of ones.
    """

    indices: Tensor
    logits: Tensor
    boxes: Tensor
    all_logits: Tensor | None = None
    all_boxes: Tensor | None = None


def propose_boxes(layout: TokenLayout) -> Tensor:
    """One box before the sigmoid per token: centred on its cell, 5 % of the image wide at the finest level, doubling.

    Returns:
        (B, S, 4) logits of cxcywh relative to the valid size; +inf where the token is padding or any of the four values
        is not strictly inside (0.01, 0.99).
    """
    dtype, device = layout.valid_ratios.dtype, layout.valid_ratios.device
    if layout.padding_mask is None:
        logits = _propose_unpadded(tuple(layout.spatial_shapes), dtype, device)
        return logits.expand(len(layout.valid_ratios), -1, -1)
    logits = _propose(layout.level_masks, dtype, device)
    return logits.masked_fill(layout.padding_mask[..., None], float("inf"))


def _propose(level_masks: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Box logits (B, S, 4) of levels with padding masks, +inf where not inside (0.01, 0.99)."""
    boxes = []
    for level, mask in enumerate(level_masks):
        height, width = mask.shape[1:]
        valid_h = (~mask[:, :, 0]).sum(1).to(dtype)[:, None, None]
        valid_w = (~mask[:, 0, :]).sum(1).to(dtype)[:, None, None]
        y = (torch.arange(height, dtype=dtype, device=device) + 0.5)[None, :, None] / valid_h
        x = (torch.arange(width, dtype=dtype, device=device) + 0.5)[None, None, :] / valid_w
        side = torch.full_like(mask, 0.05 * 2**level, dtype=dtype)
        boxes.append(torch.stack([x.expand(-1, height, -1), y.expand(-1, -1, width), side, side], -1).flatten(1, 2))
    proposals = torch.cat(boxes, 1)
    inside = ((proposals > 0.01) & (proposals < 0.99)).all(-1)
    return torch.log(proposals / (1 - proposals)).masked_fill(~inside[..., None], float("inf"))


@lru_cache(maxsize=16)
def _propose_unpadded(spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Box logits (1, S, 4) of levels without padding; cached for recent sizes."""
    # Cached tensors are also used in training: they must not be created in inference mode.
    with torch.inference_mode(mode=False), torch.no_grad():
        masks = [torch.zeros(1, *shape, dtype=torch.bool, device=device) for shape in spatial_shapes]
        return _propose(masks, dtype, device)


class QuerySelection(nn.Module):
    """Scores every token and keeps the best ones.

    Args:
        dim: channels.
        num_queries: tokens kept.
        token_score: "best_class" compares tokens by their highest class logit; "first_class" by that of class 0, which
            is trained on objects of any class.

    Attributes:
        chunk_tokens: approximate number of tokens scored at once when no gradient is recorded; 0: all.
    """

    def __init__(self, *, dim: int, num_queries: int, token_score: str) -> None:
        super().__init__()
        self.chunk_tokens = 0
        self.num_queries, self.token_score = num_queries, token_score
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)

    def project(self, memory: Tensor, proposals: Tensor) -> Tensor:
        """Projects the memory (B, S, C) for scoring.

        Parity: tokens without a valid proposal are set to zero first, so all of them share one score.
        """
        invalid = torch.isinf(proposals[..., :1])
        return self.memory_norm(self.memory_proj(memory.masked_fill(invalid, 0.0)))

    def score(self, logits: Tensor) -> Tensor:
        """Score (B, S) of tokens with class logits (B, S, K)."""
        return logits.amax(-1) if self.token_score == "best_class" else logits[..., 0]

    def forward(
        self,
        memory: Tensor,
        layout: TokenLayout,
        class_head: nn.Module,
        box_head: nn.Module,
        *,
        all_tokens: bool = False,
    ) -> Proposals:
        """Selects the tokens with the highest score; all of them in images with fewer tokens than queries.

        Args:
            memory: (B, S, C).
            layout: of its tokens.
            class_head: (..., C) to logits (..., K).
            box_head: (..., C) to box logits (..., 4).
            all_tokens: also return logits and boxes of every token.
        """
        count = min(self.num_queries, memory.shape[1])
        # In half precision most of the compared scores would be tied.
        with full_precision(memory):
            proposals = propose_boxes(layout)
            if runs_in_chunks(self.chunk_tokens) and not all_tokens:
                indices = torch.topk(self._scores(memory, proposals, class_head), count, dim=1)[1]
                anchors = _gather_tokens(proposals, indices)
                projected = self.project(at_least_float32(_gather_tokens(memory, indices)), anchors)
                return Proposals(indices, class_head(projected), (box_head(projected) + anchors).sigmoid())
            projected = self.project(at_least_float32(memory), proposals)
            logits = class_head(projected)
            indices = torch.topk(self.score(logits), count, dim=1)[1]
            if all_tokens:
                boxes = (box_head(projected) + proposals).sigmoid()
                selected = _gather_tokens(logits, indices), _gather_tokens(boxes, indices)
                return Proposals(indices, *selected, logits, boxes)
            # The box branch runs on the selected tokens only: the others are not used.
            boxes = (box_head(_gather_tokens(projected, indices)) + _gather_tokens(proposals, indices)).sigmoid()
            return Proposals(indices, _gather_tokens(logits, indices), boxes)

    def _scores(self, memory: Tensor, proposals: Tensor, class_head: nn.Module) -> Tensor:
        """Score (B, S) of every token, in chunks: the logits of all tokens are never held at once."""
        scores = [
            self.score(class_head(self.project(at_least_float32(tokens), boxes)))
            for tokens, boxes in chunks_of(self.chunk_tokens, memory, proposals)
        ]
        return torch.cat(scores).view(memory.shape[:2])


def _gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Gathers tokens (B, S, C) by index (B, Q) to (B, Q, C)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
