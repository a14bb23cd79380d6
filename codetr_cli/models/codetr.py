"""Co-DETR: features, memory, proposals, queries, outputs (arXiv 2211.12860).

Behaviour of Sense-X/Co-DETR and of MMDetection 3.3 projects/CO-DETR, which agree bit for bit up to the post-processing.
Shape letters: B batch, C channels, K classes, L levels, Q queries, S tokens of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_cli.boxes import Targets, inverse_sigmoid
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
from codetr_cli.models.queries import POSITIVE_QUERY_HEADS, Queries


@dataclass(frozen=True)
class Encoded:
    """Output of the encoder.

    Attributes:
        memory: (B, S, C).
        layout: of its tokens.
    """

    memory: Tensor
    layout: TokenLayout


class AuxHeads(nn.Module):
    """The one-to-many heads.

    Args:
        rpn: region proposal network.
        roi: class and box of each proposal.
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
        family: Co-DINO or Co-Deformable-DETR.
        backbone: images to maps.
        neck: maps to L maps of C channels.
        encoder: maps to memory.
        decoder: queries and memory to states and references.
        class_heads: one per decoder layer and, last, one for the proposals.
        box_heads: as above.
        dim: C.
        num_queries: Q.
        num_classes: K.
        norm_groups: groups of the norm of the auxiliary heads' extra level.
        aux_heads: the one-to-many heads; None builds a network without them and without other training-only parts.
        mask_branch: predicts masks of the decoder's detections; None: no masks.

    Attributes:
        optimized_for_inference: set by `optimize_for_inference`.
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
        self.optimized_for_inference = False
        self.backbone, self.neck, self.encoder, self.decoder = backbone, neck, encoder, decoder
        self.class_heads, self.box_heads = class_heads, box_heads
        self.proposals = QuerySelection(dim=dim, num_queries=num_queries, token_score=family.token_score)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.query_positions = family.query_pos(dim) if family.query_pos else None
        self.mask_branch = mask_branch
        self.aux_heads = aux_heads
        if aux_heads is not None:
            self.label_embed = nn.Embedding(num_classes, dim) if family.denoising else None
            self.downsample = ConvNorm(dim, dim, kernel_size=3, stride=2, norm_groups=norm_groups, bias=True)
            self.positive_queries = family.positive_queries(dim=dim, heads=POSITIVE_QUERY_HEADS)

    def encode(self, images: Tensor, padding_mask: Tensor | None) -> Encoded:
        """Runs backbone, neck and encoder.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` is True.
            padding_mask: bool (B, H, W), True = padding; None: no padding, which saves time and memory.
        """
        maps = self.neck(self.backbone(images))
        layout = describe_tokens(maps, padding_mask)
        return Encoded(self.encoder(maps, layout), layout)

    def select_queries(self, encoded: Encoded, *, all_tokens: bool = False) -> Proposals:
        """Selects the Q best tokens; query k gets the learned content of rank k (mixed selection)."""
        heads = self.class_heads[-1], self.box_heads[-1]
        return self.proposals(encoded.memory, encoded.layout, *heads, all_tokens=all_tokens)

    def decode(
        self,
        queries: Queries,
        encoded: Encoded,
        attn_mask: Tensor | None = None,
        group_sizes: Sequence[int] | None = None,
    ) -> DecoderOutput:
        """Runs the decoder; arguments as in `Decoder.forward`."""
        return self.decoder(queries, encoded.memory, encoded.layout, self.box_heads[:-1], attn_mask, group_sizes)

    def predict_layers(self, decoded: DecoderOutput) -> tuple[Tensor, Tensor]:
        """Class logits (layers, B, Q, K) and boxes cxcywh in [0, 1] (layers, B, Q, 4) of every decoder layer."""
        return self._predict(decoded, range(decoded.states.shape[0]))

    def _predict(self, decoded: DecoderOutput, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `predict_layers`, of some layers."""
        first, last = layers[0], layers[-1] + 1
        bases = inverse_sigmoid(decoded.references[first:last], self.decoder.reference_eps)
        with full_precision(bases):
            states = at_least_float32(decoded.states[first:last]).unbind()
            logits = _stack([self.class_heads[i](x) for i, x in zip(layers, states, strict=True)])
            deltas = _stack([self.box_heads[i](x) for i, x in zip(layers, states, strict=True)])
            return logits, (deltas + bases).sigmoid()

    def matching_queries(self, proposals: Proposals) -> Queries:
        """The queries that are matched to objects: learned content per rank, at the proposed boxes."""
        batch, count = proposals.indices.shape
        content = self.query_embed.weight[None, :count].expand(batch, -1, -1)
        references = proposals.boxes.detach()
        query_pos = None if self.query_positions is None else self.query_positions(references)
        return Queries(content, references, query_pos)

    def aux_maps(self, encoded: Encoded) -> list[Tensor]:
        """Input of the auxiliary heads: the L levels of the memory and one coarser level computed from the last."""
        maps = encoded.layout.split_levels(encoded.memory)
        return [*maps, self.downsample(maps[-1])]

    def forward(self, images: Tensor, padding_mask: Tensor | None) -> dict[str, Tensor]:
        """Predicts boxes and classes of every query.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` is True.
            padding_mask: bool (B, H, W), True = padding; None: no padding.

        Returns:
            pred_logits (B, Q, K) and pred_boxes (B, Q, 4) as cxcywh in [0, 1] relative to the valid image.
        """
        return self.predict(self.encode(images, padding_mask))

    def predict(self, encoded: Encoded) -> dict[str, Tensor]:
        """Predicts boxes and classes of every query from encoded images; returns the same as `forward`."""
        decoded = self.decode(self.matching_queries(self.select_queries(encoded)), encoded)
        logits, boxes = self._predict(decoded, [decoded.states.shape[0] - 1])
        return {"pred_logits": logits[0], "pred_boxes": boxes[0]}

    @torch.no_grad()
    def detect(
        self, images: Tensor, padding_mask: Tensor | None, targets: Targets, postprocess: PostProcess
    ) -> list[Detections]:
        """Detections in the pixels of the original images.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` is True.
            padding_mask: bool (B, H, W), True = padding; None: no padding.
            targets: per image `norm_size` (h, w) that boxes are normalised by and `scale_factor` (w, h) of the resize;
                `size` (h, w), if known, is the unpadded part of the input.
            postprocess: turns outputs into detections; its `head` selects the head.

        Raises:
            ValueError: an auxiliary head is requested and this model was built without them.
        """
        encoded = self.encode(images, self.needed_mask(images, padding_mask, targets))
        return self.detect_encoded(encoded, targets, postprocess)

    def needed_mask(self, images: Tensor, padding_mask: Tensor | None, targets: Targets) -> Tensor | None:
        """The padding mask, or None where the targets show that there is no padding; arguments as for `detect`."""
        # The targets show it without a device synchronization.
        if self.optimized_for_inference and all(target.get("size") == tuple(images.shape[-2:]) for target in targets):
            return None
        return padding_mask

    @torch.no_grad()
    def detect_encoded(self, encoded: Encoded, targets: Targets, postprocess: PostProcess) -> list[Detections]:
        """Detections of encoded images; arguments as for `detect`."""
        if postprocess.head == "decoder":
            outputs = self.predict(encoded)
            detections = postprocess(outputs["pred_logits"], outputs["pred_boxes"], targets)
            return self.add_masks(encoded, detections, targets, postprocess)
        if self.aux_heads is None:
            raise ValueError(
                f"head {postprocess.head!r} was requested but this model was built without auxiliary heads"
            )
        maps = self.aux_maps(encoded)
        sizes = [target["norm_size"] for target in targets]
        if postprocess.head == "atss":
            detections = self.aux_heads.atss.detect(maps, sizes)
        else:
            detections = self.aux_heads.roi.detect(maps, self.aux_heads.rpn.propose(maps, sizes), sizes)
        return [postprocess.to_original(each, target) for each, target in zip(detections, targets, strict=True)]

    def add_masks(
        self, encoded: Encoded, detections: list[Detections], targets: Targets, postprocess: PostProcess
    ) -> list[Detections]:
        """Adds masks to the decoder's detections that score enough; none without a mask branch."""
        if self.mask_branch is None:
            return detections
        kept = [each[each.scores >= postprocess.mask_min_score] for each in detections]
        return self.predict_masks(encoded, kept, targets)

    def predict_masks(self, encoded: Encoded, detections: Sequence[Detections], targets: Targets) -> list[Detections]:
        """Adds masks to detections of the decoder; arguments as for `detect`.

        Raises:
            ValueError: this model was built without a mask branch.
        """
        if self.mask_branch is None:
            raise ValueError("masks were requested but this model was built without a mask branch")
        maps = encoded.layout.split_levels(encoded.memory)
        with full_precision(encoded.memory):
            return self.mask_branch.detect([at_least_float32(m) for m in maps], detections, targets)


def _stack(layers: Sequence[Tensor]) -> Tensor:
    """The layers in one tensor; a single one, as for detections, is not copied."""
    return torch.stack(list(layers)) if len(layers) > 1 else layers[0][None]
