"""Co-DETR: features, memory, proposals, queries, outputs (arXiv 2211.12860).

Behaviour of Sense-X/Co-DETR and of MMDetection 3.3 projects/CO-DETR, which agree bit for bit up to the post-processing.
Shape letters: B batch, C channels, K classes, L levels, Q queries, S tokens of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from codetr_cli.boxes import inverse_sigmoid
from codetr_cli.models.aux_heads.atss import AtssHead
from codetr_cli.models.aux_heads.roi import RoiHead
from codetr_cli.models.aux_heads.rpn import RpnHead
from codetr_cli.models.decoder import Decoder, DecoderOutput
from codetr_cli.models.encoder import DeformableEncoder, TokenLayout, describe_tokens
from codetr_cli.models.family import Family
from codetr_cli.models.layers import ConvNorm, at_least_float32, full_precision
from codetr_cli.models.mask_heads.branch import MaskBranch
from codetr_cli.models.postprocess import Detections, PostProcess
from codetr_cli.models.proposals import Proposals, QuerySelection
from codetr_cli.models.queries import Queries


@dataclass(frozen=True)
class Encoded:
    """The encoder's result.

    Attributes:
        memory: (B, S, C).
        layout: where its tokens lie.
        values: what each decoder layer samples, (B, S, N, D); None: the layers make their own.
    """

    memory: Tensor
    layout: TokenLayout
    values: list[Tensor] | None = None


class AuxHeads(nn.Module):
    """The one-to-many heads, read in this order.

    Args:
        rpn: region proposal network.
        roi: box head on the proposals.
        atss: one-stage head.
        checkpointing: recompute the convolutions of the RPN and the one-stage head in the backward pass.
    """

    def __init__(self, *, rpn: RpnHead, roi: RoiHead, atss: AtssHead, checkpointing: bool = False) -> None:
        super().__init__()
        self.rpn, self.roi, self.atss = rpn, roi, atss
        self.checkpointing = checkpointing


class CoDETR(nn.Module):
    """The network from normalised images to boxes.

    Args:
        family: what tells Co-DINO and Co-Deformable-DETR apart.
        backbone: images to maps.
        neck: maps to L maps of C channels.
        encoder: maps to memory.
        decoder: queries and memory to states and references.
        class_heads: one per decoder layer and, last, one for the proposals.
        box_heads: likewise.
        dim: C.
        num_queries: Q.
        num_classes: K.
        norm_groups: groups of the norm of the auxiliary heads' extra level.
        aux_heads: the one-to-many heads; None leaves them and all that only training needs out.
        mask_branch: draws the masks of the decoder's detections; None: they have none.

    Attributes:
        lean: changed by `optimize_for_inference`.
        shares_values: whether decoder passes over one memory share what they sample.
    """

    def __init__(
        self,
        *,
        family: Family,
        backbone: nn.Module,
        neck: nn.Module,
        encoder: DeformableEncoder,
        decoder: Decoder,
        class_heads: nn.ModuleList,
        box_heads: nn.ModuleList,
        dim: int,
        num_queries: int,
        num_classes: int,
        norm_groups: int,
        aux_heads: AuxHeads | None,
        mask_branch: MaskBranch | None = None,
    ) -> None:
        super().__init__()
        self.family, self.num_classes = family, num_classes
        self.lean, self.shares_values = False, True
        self.backbone, self.neck, self.encoder, self.decoder = backbone, neck, encoder, decoder
        self.class_heads, self.box_heads = class_heads, box_heads
        self.proposals = QuerySelection(dim=dim, num_queries=num_queries, token_score=family.token_score)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.query_positions = family.positions(dim) if family.positions else None
        self.mask_branch = mask_branch
        self.aux_heads = aux_heads
        if aux_heads is not None:
            self.label_embed = nn.Embedding(num_classes, dim) if family.denoising else None
            self.downsample = ConvNorm(dim, dim, kernel_size=3, stride=2, norm_groups=norm_groups, bias=True)
            self.positive_queries = family.positive_queries(dim=dim, num_heads=2)

    def encode(self, images: Tensor, padding_mask: Tensor | None) -> Encoded:
        """Runs backbone, neck and encoder.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` says padding.
            padding_mask: bool (B, H, W), True = padding; None: there is none, which saves time and memory.
        """
        maps = self.neck(self.backbone(images))
        layout = describe_tokens(maps, padding_mask)
        return Encoded(self.encoder(maps, layout), layout)

    def select_queries(self, encoded: Encoded, *, all_tokens: bool = False) -> Proposals:
        """Picks the Q best tokens; query k later carries the learned content of rank k (mixed selection)."""
        heads = self.class_heads[-1], self.box_heads[-1]
        return self.proposals(encoded.memory, encoded.layout, *heads, all_tokens=all_tokens)

    def decode(self, queries: Queries, encoded: Encoded, blocked: Tensor | None = None) -> DecoderOutput:
        """Runs the decoder; arguments as in `Decoder.forward`."""
        return self.decoder(queries, encoded.memory, encoded.layout, self.box_heads[:-1], blocked, encoded.values)

    def with_values(self, encoded: Encoded) -> Encoded:
        """The same with the values of all decoder layers, which several passes then share."""
        return replace(encoded, values=self.decoder.project_values(encoded.memory, encoded.layout))

    def predict_layers(self, decoded: DecoderOutput) -> tuple[Tensor, Tensor]:
        """Class logits (layers, B, Q, K) and boxes cxcywh in [0, 1] (layers, B, Q, 4) of every decoder layer."""
        layers = range(decoded.states.shape[0])
        logits = torch.stack([self._logits_of_layer(decoded, i) for i in layers])
        boxes = torch.stack([self._boxes_of_layer(decoded, i) for i in layers])
        return logits, boxes

    def _boxes_of_layer(self, decoded: DecoderOutput, layer: int) -> Tensor:
        base = inverse_sigmoid(decoded.references[layer], self.decoder.reference_eps)
        with full_precision(base):
            return (self.box_heads[layer](at_least_float32(decoded.states[layer])) + base).sigmoid()

    def _logits_of_layer(self, decoded: DecoderOutput, layer: int) -> Tensor:
        with full_precision(decoded.states):
            return self.class_heads[layer](at_least_float32(decoded.states[layer]))

    def matching_queries(self, proposals: Proposals) -> Queries:
        """The queries that are matched to objects: learned content, one row a rank, at the proposed boxes."""
        batch, count = proposals.indices.shape
        content = self.query_embed.weight[None, :count].expand(batch, -1, -1)
        references = proposals.boxes.detach()
        positions = None if self.query_positions is None else self.query_positions(references)
        return Queries(content, references, positions)

    def aux_maps(self, encoded: Encoded) -> list[Tensor]:
        """The maps the auxiliary heads read: the memory's L levels and one coarser level made from the last."""
        maps = encoded.layout.split_levels(encoded.memory)
        return [*maps, self.downsample(maps[-1])]

    def forward(self, images: Tensor, padding_mask: Tensor | None) -> dict[str, Tensor]:
        """Predicts boxes and classes of every query.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` says padding.
            padding_mask: bool (B, H, W), True = padding; None: there is none.

        Returns:
            pred_logits (B, Q, K) and pred_boxes (B, Q, 4) as cxcywh in [0, 1] relative to the valid image.
        """
        return self._decode_final(self.encode(images, padding_mask))

    def _decode_final(self, encoded: Encoded) -> dict[str, Tensor]:
        proposals = self.select_queries(encoded)
        if self.lean and encoded.memory.device.type != "cpu":
            encoded = self.with_values(encoded)
        decoded = self.decode(self.matching_queries(proposals), encoded)
        last = decoded.states.shape[0] - 1
        return {
            "pred_logits": self._logits_of_layer(decoded, last),
            "pred_boxes": self._boxes_of_layer(decoded, last),
        }

    @torch.no_grad()
    def detect(
        self, images: Tensor, padding_mask: Tensor | None, metas: Sequence[dict[str, Any]], postprocess: PostProcess
    ) -> list[Detections]:
        """Detections in the pixels of the original images.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` says padding.
            padding_mask: bool (B, H, W), True = padding; None: there is none.
            metas: per image `norm_size` (h, w) that boxes are normalised by and `scale_factor` (w, h) of the resize;
                `size` (h, w), where known, is the part of the input that is no padding.
            postprocess: turns outputs into detections; its `head` says whose.

        Raises:
            ValueError: an auxiliary head is asked for and this model was built without them.
        """
        # The metas tell without asking the device whether there is padding at all.
        if self.lean and all(meta.get("size") == tuple(images.shape[-2:]) for meta in metas):
            padding_mask = None
        return self.detect_encoded(self.encode(images, padding_mask), metas, postprocess)

    @torch.no_grad()
    def detect_encoded(
        self, encoded: Encoded, metas: Sequence[dict[str, Any]], postprocess: PostProcess
    ) -> list[Detections]:
        """Detections of images that have been encoded; arguments as for `detect`."""
        if postprocess.head == "decoder":
            outputs = self._decode_final(encoded)
            found = postprocess(outputs["pred_logits"], outputs["pred_boxes"], metas)
            if self.mask_branch is None:
                return found
            return self.draw_masks(encoded, [d[d.scores >= postprocess.mask_min_score] for d in found], metas)
        if self.aux_heads is None:
            raise ValueError(
                f"head {postprocess.head!r} was asked for but this model was built without auxiliary heads"
            )
        maps = self.aux_maps(encoded)
        sizes = [meta["norm_size"] for meta in metas]
        with full_precision(encoded.memory):
            maps = [at_least_float32(m) for m in maps]
            if postprocess.head == "atss":
                found = self.aux_heads.atss.detect(maps, sizes)
            else:
                found = self.aux_heads.roi.detect(maps, self.aux_heads.rpn.propose(maps, sizes), sizes)
        return [postprocess.to_original(detections, meta) for detections, meta in zip(found, metas, strict=True)]

    def draw_masks(
        self, encoded: Encoded, found: Sequence[Detections], metas: Sequence[dict[str, Any]]
    ) -> list[Detections]:
        """The decoder's detections with masks; arguments as for `detect`.

        Raises:
            ValueError: this model was built without a branch for masks.
        """
        if self.mask_branch is None:
            raise ValueError("masks were asked for but this model was built without a branch that draws them")
        maps = encoded.layout.split_levels(encoded.memory)
        with full_precision(encoded.memory):
            return self.mask_branch.detect([at_least_float32(m) for m in maps], found, metas)
