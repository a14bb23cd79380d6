"""Decoder queries: content, position and the box each starts from.

Behaviour of Sense-X/Co-DETR, projects/models/transformer.py. Shape letters: B batch, C channels, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_cli.boxes import inverse_sigmoid
from codetr_cli.models.posenc import encode_boxes


@dataclass(frozen=True)
class Queries:
    """What enters the decoder.

    Attributes:
        content: (B, Q, C).
        references: (B, Q, 4) cxcywh relative to the valid image; positive boxes may lie partly outside [0, 1].
        positions: (B, Q, C); None where the decoder makes its own in every layer.
    """

    content: Tensor
    references: Tensor
    positions: Tensor | None = None


class BoxPositions(nn.Module):
    """Projects a box to the position of the query that starts from it.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # Parity: the second half of the projection would be content, which is learned instead (mixed selection); it is
        # part of the norm.
        self.projection = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, boxes_cxcywh: Tensor) -> Tensor:
        """Maps boxes (B, Q, 4) in [0, 1] to (B, Q, C)."""
        sine = encode_boxes(boxes_cxcywh, dim=self.dim // 2, order="xywh")
        return self.norm(self.projection(sine))[..., : self.dim]


def _sine_of_positive_boxes(boxes_cxcywh: Tensor, dim: int) -> Tensor:
    # Parity: the embedding is of the sigmoid of the clamped logit (eps 1e-5), in the order cx, cy, w, h.
    return encode_boxes(inverse_sigmoid(boxes_cxcywh, 1e-5).sigmoid(), dim=dim // 2, order="xywh")


class BoxQueries(nn.Module):
    """Turns boxes of an auxiliary head into content, one projection per head (Co-DINO).

    Args:
        dim: C.
        num_heads: number of auxiliary heads that give boxes.
    """

    uses_features = False

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.projections = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(num_heads))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_heads))

    def forward(self, boxes_cxcywh: Tensor, head: int, features: Tensor | None = None) -> Queries:
        """Embeds normalised boxes (B, Q, 4), possibly outside [0, 1]; features are not read."""
        sine = _sine_of_positive_boxes(boxes_cxcywh, self.dim)
        return Queries(self.norms[head](self.projections[head](sine)), boxes_cxcywh)


class BoxAndFeatureQueries(nn.Module):
    """Turns boxes and features of an auxiliary head into content and position (Co-Deformable-DETR).

    Args:
        dim: C.
        num_heads: number of auxiliary heads that give boxes.
    """

    uses_features = True

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.projections = nn.ModuleList(nn.Linear(2 * dim, 2 * dim) for _ in range(num_heads))
        self.norms = nn.ModuleList(nn.LayerNorm(2 * dim) for _ in range(num_heads))
        self.feature_projections = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_heads))
        self.feature_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_heads))
        # Parity: one number per head, meant to be a vector, moves all channels of its queries' positions.
        self.head_embed = nn.Parameter(torch.empty(num_heads, 1))
        nn.init.normal_(self.head_embed)

    def forward(self, boxes_cxcywh: Tensor, head: int, features: Tensor | None = None) -> Queries:
        """Embeds normalised boxes (B, Q, 4), possibly outside [0, 1], and what was seen in them, (B, Q, C).

        Raises:
            ValueError: no features.
        """
        if features is None:
            raise ValueError("positive queries of this family need the features of their boxes")
        sine = _sine_of_positive_boxes(boxes_cxcywh, self.dim)
        position, content = self.norms[head](self.projections[head](sine)).split(self.dim, -1)
        content = content + self.feature_norms[head](self.feature_projections[head](features))
        return Queries(content, boxes_cxcywh, position + self.head_embed[head])
