"""Two-stage query selection: every token of the memory proposes a box, the best become references of the decoder.

Behaviour of Sense-X/Co-DETR, projects/models/transformer.py (gen_encoder_output_proposals) and co_dino_head.py.
Shape letters: B batch, C channels, K classes, Q queries, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_cli.models.constants import cached_constant
from codetr_cli.models.encoder import TokenCells, TokenLayout, token_cells
from codetr_cli.models.layers import at_least_float32, chunks_of, full_precision, runs_in_chunks, smaller

FINEST_SIDE = 0.05
"""Share of the image that the side of a proposal is long at the finest level; it doubles from level to level."""


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
    shapes, dtype, device = tuple(layout.spatial_shapes), layout.valid_sizes.dtype, layout.valid_sizes.device
    if layout.padding_mask is None:
        return _propose_unpadded(shapes, dtype, device).expand(layout.valid_sizes.shape[0], -1, -1)
    logits = _propose(layout.cells, _sides(shapes, dtype, device), layout.valid_sizes)
    return logits.masked_fill(layout.padding_mask[..., None], float("inf"))


def _propose(cells: TokenCells, sides: Tensor, valid_sizes: Tensor) -> Tensor:
    """Box logits (B, S, 4) of levels with valid sizes (B, L, 2), +inf where not inside (0.01, 0.99)."""
    centres = cells.centres / valid_sizes[:, cells.level]  # (B, S, 2)
    proposals = torch.cat([centres, sides.expand(centres.shape[0], -1, -1)], -1)
    inside = ((proposals > 0.01) & (proposals < 0.99)).all(-1)
    return torch.log(proposals / (1 - proposals)).masked_fill(~inside[..., None], float("inf"))


@cached_constant(maxsize=32)
def _sides(spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Width and height (S, 2) of the box of every token."""
    areas = [height * width for height, width in spatial_shapes]
    sides = [
        torch.full((area, 2), FINEST_SIDE * 2**level, dtype=dtype, device=device) for level, area in enumerate(areas)
    ]
    return torch.cat(sides)


@cached_constant(maxsize=4)
def _propose_unpadded(spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Box logits (1, S, 4) of levels without padding."""
    cells = token_cells(spatial_shapes, dtype, device)
    return _propose(cells, _sides(spatial_shapes, dtype, device), cells.sizes[None])


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
        count = smaller(self.num_queries, memory.shape[1])
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
