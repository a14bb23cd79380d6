"""Decoders: queries attend to each other and to the memory; every layer refines their boxes.

DINO (arXiv 2203.03605) and Deformable DETR (arXiv 2010.04159) differ only in the positional part of queries and in the
input of the heads. Behaviour of Sense-X/Co-DETR, projects/models/transformer.py (DinoTransformerDecoder,
CoDeformableDetrTransformerDecoder).
Shape letters: B batch, C channels, D channels of a head, L levels, N heads, Q queries, S tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.boxes import inverse_sigmoid
from codetr_cli.models.attention import MultiScaleDeformableAttention
from codetr_cli.models.encoder import TokenLayout
from codetr_cli.models.feed_forward import FeedForward
from codetr_cli.models.layers import MLP, SelfAttention, at_least_float32, full_precision
from codetr_cli.models.posenc import encode_boxes
from codetr_cli.models.queries import Queries

DINO_REFERENCE_EPS = 1e-3
"""Parity: DINO's floor of the inverse sigmoid of reference boxes (1e-5 elsewhere)."""

ONE_PRODUCT_BYTES = 2**31
"""Values of all layers are computed by one matrix product on a GPU up to this size: faster than one per layer."""


def shares_one_product(memory: Tensor, num_layers: int) -> bool:
    """Whether the values of all layers are computed together: on a GPU, if they fit easily."""
    return memory.device.type != "cpu" and num_layers * memory.numel() * memory.itemsize <= ONE_PRODUCT_BYTES


@dataclass(frozen=True)
class DecoderOutput:
    """Outputs of every layer.

    Attributes:
        states: (layers, B, Q, C), input of the heads; DINO's are after the shared norm.
        references: (layers + 1, B, Q, 4) cxcywh in [0, 1]: the initial boxes and those after each layer's refinement,
            with gradient (look forward twice).
    """

    states: Tensor
    references: Tensor


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and a feed-forward layer, each followed by its norm.

    Args:
        dim: channels.
        num_heads: attention heads.
        num_levels: maps of the memory.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward layer.
    """

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.cross_attn = MultiScaleDeformableAttention(
            dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference_boxes: Tensor,
        memory: Tensor,
        layout: TokenLayout,
        attn_mask: Tensor | None,
        group_sizes: Sequence[int] | None,
        value: Tensor | None,
    ) -> Tensor:
        """Maps queries (B, Q, C) to the same shape.

        Args:
            x: (B, Q, C) content.
            pos: (B, Q, C) positional part.
            reference_boxes: (B, Q, L, 4) cxcywh in units of each level's padded size.
            memory: (B, S, C).
            layout: of the memory's tokens.
            attn_mask: as for `SelfAttention`.
            group_sizes: as for `SelfAttention`.
            value: (B, S, N, D), the layer's own of `Decoder.project_values`; None: computed here.
        """
        x = self.self_attn_norm(x + self.self_attn(x, pos, attn_mask, group_sizes))
        attended = self.cross_attn(x, pos, memory, reference_boxes, layout.spatial_shapes, layout.padding_mask, value)
        x = self.cross_attn_norm(x + attended)
        return self.ffn_norm(self.ffn(x))


class Decoder(nn.Module, ABC):
    """Layers with box refinement between them.

    Args:
        num_layers: number of layers.
        dim: channels.
        num_heads: attention heads.
        num_levels: maps of the memory.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward layers.
        checkpointing: recompute the layers in the backward pass.

    Attributes:
        reference_eps: floor of the inverse sigmoid of reference boxes.
    """

    reference_eps: float

    def __init__(
        self,
        *,
        num_layers: int,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.checkpointing = dim, checkpointing
        self.layers = nn.ModuleList(
            DecoderLayer(dim=dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, ffn_dim=ffn_dim)
            for _ in range(num_layers)
        )

    @abstractmethod
    def query_pos(self, boxes: Tensor, given: Tensor | None) -> Tensor:
        """Positional part (B, Q, C) of each query in a layer.

        Args:
            boxes: (B, Q, 4) cxcywh references of the layer in units of level 0's padded size.
            given: (B, Q, C) of `Queries.query_pos`, if any.
        """

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """Turns the output (B, Q, C) of a layer into the input of the heads."""

    def project_values(self, memory: Tensor, layout: TokenLayout) -> list[Tensor]:
        """Values (B, S, N, D) that each layer samples, by one matrix product.

        Args:
            memory: (B, S, C) encoder output.
            layout: of the memory's tokens.
        """
        attentions = [module for module in self.modules() if isinstance(module, MultiScaleDeformableAttention)]
        weight = torch.cat([attention.value_proj.weight for attention in attentions])
        bias = torch.cat([attention.value_proj.bias for attention in attentions])
        values = F.linear(memory, weight, bias)
        if layout.padding_mask is not None:
            values = values.masked_fill(layout.padding_mask[..., None], 0.0)
        heads = attentions[0].num_heads
        return list(values.view(*memory.shape[:2], len(attentions), heads, -1).unbind(2))

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        layout: TokenLayout,
        box_heads: Sequence[nn.Module],
        attn_mask: Tensor | None = None,
        group_sizes: Sequence[int] | None = None,
    ) -> DecoderOutput:
        """Decodes one set of queries, or several groups of queries at once.

        Args:
            queries: content, references and positional parts.
            memory: (B, S, C) encoder output.
            layout: of the memory's tokens.
            box_heads: one per layer, shared with the heads outside.
            attn_mask: bool, True where the query of the row must not attend to that of the column, or None: (Q, Q), or
                that of the first group.
            group_sizes: sizes of consecutive groups of queries that attend to themselves only; None: one group.
        """
        ratios = torch.cat([layout.valid_ratios, layout.valid_ratios], -1)[:, None]  # (B, 1, L, 4)
        x, references = queries.content, queries.references
        states, all_references = [], [references]
        recomputes = self.checkpointing and self.training and torch.is_grad_enabled()
        # Layers that are recomputed make their own values, so that nobody has to keep them.
        at_once = not recomputes and shares_one_product(memory, len(self.layers))
        values = self.project_values(memory, layout) if at_once else [None] * len(self.layers)
        for layer, box_head, value in zip(self.layers, box_heads, values, strict=True):
            boxes = references[:, :, None] * ratios  # (B, Q, L, 4)
            pos = self.query_pos(boxes[:, :, 0], queries.query_pos).to(x.dtype)
            arguments = (x, pos, boxes, memory, layout, attn_mask, group_sizes, value)
            x = checkpoint(layer, *arguments, use_reentrant=False) if recomputes else layer(*arguments)
            # Parity: refinement reads the raw state, the heads read the output of `finish`. The reference of the next
            # layer is detached, the one for the heads is not (look forward twice).
            with full_precision(x):
                refined = (box_head(at_least_float32(x)) + inverse_sigmoid(references, self.reference_eps)).sigmoid()
            references = refined.detach()
            states.append(self.finish(x))
            all_references.append(refined)
        return DecoderOutput(torch.stack(states), torch.stack(all_references))


class DinoDecoder(Decoder):
    """Positional parts follow the boxes in every layer, and all outputs share one norm; arguments as for `Decoder`."""

    reference_eps = DINO_REFERENCE_EPS

    def __init__(self, *, dim: int, **sizes: Any) -> None:
        super().__init__(dim=dim, **sizes)
        self.query_pos_mlp = MLP(2 * dim, dim, dim, 2)
        self.norm = nn.LayerNorm(dim)

    def query_pos(self, boxes: Tensor, given: Tensor | None) -> Tensor:
        """Computed from the boxes; `given` is ignored. Parity: in the order y, x, w, h."""
        sine = encode_boxes(boxes, dim=self.dim // 2, order="yxwh")
        return self.query_pos_mlp(sine.to(self.norm.weight.dtype))

    def finish(self, x: Tensor) -> Tensor:
        """The shared norm."""
        return self.norm(x)


class DeformableDecoder(Decoder):
    """Positional parts are given once and the heads read the raw outputs; arguments as for `Decoder`."""

    reference_eps = 1e-5

    def query_pos(self, boxes: Tensor, given: Tensor | None) -> Tensor:
        """Returns `given`.

        Raises:
            ValueError: it is None.
        """
        if given is None:
            raise ValueError("queries of this decoder need their positional part")
        return given

    def finish(self, x: Tensor) -> Tensor:
        """Returns `x`."""
        return x
