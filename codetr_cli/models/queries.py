"""Decoder queries: content, reference box and positional part.

Behaviour of Sense-X/Co-DETR, projects/models/transformer.py. Shape letters: B batch, C channels, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_cli.boxes import inverse_sigmoid
from codetr_cli.models.posenc import encode_boxes

POSITIVE_QUERY_HEADS = ("roi", "atss")
"""Auxiliary heads whose positive boxes are decoded, in the order of their weights and of published loss names."""


@dataclass(frozen=True)
class Queries:
    """Input of the decoder.

    Attributes:
        content: (B, Q, C).
        references: (B, Q, 4) cxcywh relative to the valid image; positive boxes may lie partly outside [0, 1].
        query_pos: (B, Q, C) positional part; None where the decoder computes its own in every layer.
    """

    content: Tensor
    references: Tensor
    query_pos: Tensor | None = None


def concatenate_queries(parts: Sequence[Queries]) -> Queries:
    """One set of all queries, in this order, whose content has the dtype of the first part."""
    dtype = parts[0].content.dtype
    positions = [part.query_pos for part in parts if part.query_pos is not None]
    return Queries(
        torch.cat([part.content.to(dtype) for part in parts], 1),
        torch.cat([part.references for part in parts], 1),
        torch.cat(positions, 1) if positions else None,
    )


class BoxPosEncoding(nn.Module):
    """Projects a reference box to the positional part of its query.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # Parity: the second half of the projection would be content, which is learned instead (mixed selection); it is
        # still part of the norm.
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
    """Turns boxes of an auxiliary head into the content of queries, one projection per head (Co-DINO).

    Args:
        dim: C.
        heads: names of the auxiliary heads.
    """

    uses_features = False

    def __init__(self, *, dim: int, heads: Sequence[str]) -> None:
        super().__init__()
        self.dim, self.heads = dim, tuple(heads)
        self.projections = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in heads)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in heads)

    def forward(self, boxes_cxcywh: Tensor, head: str, features: Tensor | None = None) -> Queries:
        """Embeds normalised boxes (B, Q, 4), possibly outside [0, 1]; features are not used."""
        index = self.heads.index(head)
        sine = _sine_of_positive_boxes(boxes_cxcywh, self.dim)
        return Queries(self.norms[index](self.projections[index](sine)), boxes_cxcywh)


class BoxAndFeatureQueries(nn.Module):
    """Turns boxes and features of an auxiliary head into queries (Co-Deformable-DETR).

    Args:
        dim: C.
        heads: names of the auxiliary heads.
    """

    uses_features = True

    def __init__(self, *, dim: int, heads: Sequence[str]) -> None:
        super().__init__()
        self.dim, self.heads = dim, tuple(heads)
        self.projections = nn.ModuleList(nn.Linear(2 * dim, 2 * dim) for _ in heads)
        self.norms = nn.ModuleList(nn.LayerNorm(2 * dim) for _ in heads)
        self.feature_projections = nn.ModuleList(nn.Linear(dim, dim) for _ in heads)
        self.feature_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in heads)
        # Parity: one number per head, meant to be a vector, is added to all channels of the positional part.
        self.head_embed = nn.Parameter(torch.empty(len(self.heads), 1))
        nn.init.normal_(self.head_embed)

    def forward(self, boxes_cxcywh: Tensor, head: str, features: Tensor | None = None) -> Queries:
        """Embeds normalised boxes (B, Q, 4), possibly outside [0, 1], and their features (B, Q, C).

        Raises:
            ValueError: `features` is None.
        """
        if features is None:
            raise ValueError("positive queries of this family need the features of their boxes")
        index = self.heads.index(head)
        sine = _sine_of_positive_boxes(boxes_cxcywh, self.dim)
        query_pos, content = self.norms[index](self.projections[index](sine)).split(self.dim, -1)
        content = content + self.feature_norms[index](self.feature_projections[index](features))
        return Queries(content, boxes_cxcywh, query_pos + self.head_embed[index])
