"""What makes it Co-DETR: one-to-many heads train the encoder, and their positive boxes train the decoder.

Sections 3.2 and 3.3 of arXiv 2211.12860; behaviour of Sense-X/Co-DETR, projects/models/co_detr.py, co_dino_head.py and
co_deformable_detr_head.py.
The total is the sum of the losses of the decoder, of the auxiliary heads (their weights contain lambda_2) and of the
positive queries (lambda_1). Shape letters: A sampled boxes, B batch, C channels, D denoising queries, K classes, Q
matching queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from codetr_cli.boxes import Targets, host_values
from codetr_cli.losses.assigners import SampledBoxes
from codetr_cli.losses.atss import AtssOutput, atss_losses
from codetr_cli.losses.criterion import QueryCriterion, QueryTargets
from codetr_cli.losses.denoising import DenoisingQueries, make_denoising_queries
from codetr_cli.losses.mask_losses import MaskBranchOutput, RoiMaskOutput, mask_branch_losses, roi_mask_losses
from codetr_cli.losses.matcher import HungarianMatcher, Match
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.options import AuxHeadOptions, ObjectiveOptions, PositiveQueryOptions
from codetr_cli.losses.positive_queries import select_positive_queries
from codetr_cli.losses.random import RandomSource
from codetr_cli.losses.roi import RoiOutput, roi_losses
from codetr_cli.losses.rpn import RpnOutput, rpn_losses
from codetr_cli.models.codetr import AuxHeads, CoDETR, Encoded
from codetr_cli.models.decoder import DecoderOutput
from codetr_cli.models.layers import at_least_float32, full_precision
from codetr_cli.models.proposals import Proposals
from codetr_cli.models.queries import POSITIVE_QUERY_HEADS, Queries

PredictionSets = Sequence[tuple[Tensor, Tensor]]
"""Logits (B, Q, K) and boxes (B, Q, 4) of several layers."""


@dataclass
class PositivePass:
    """One decoder pass over the positive boxes of an auxiliary head.

    Attributes:
        boxes: (B, Q, 4) normalised cxcywh.
        targets: of these boxes.
        queries: made from them.
        logits: (layers, B, Q, K).
        predicted_boxes: (layers, B, Q, 4).
        indices: (B, Q) of the boxes among the sampled boxes of their image.
    """

    boxes: Tensor
    targets: QueryTargets
    queries: Queries
    logits: Tensor
    predicted_boxes: Tensor
    indices: Tensor


@dataclass
class ForwardRecord:
    """Everything that one training forward pass computed, in the order of computation.

    Attributes:
        logits: (layers, B, D + Q, K).
        boxes: (layers, B, D + Q, 4) cxcywh in [0, 1].
        matches: per layer, the last one that of the proposals, and per image.
        losses: weighted, under their published names.
        positive: by name of the auxiliary head.
    """

    encoded: Encoded
    denoising: DenoisingQueries | None
    proposals: Proposals
    decoded: DecoderOutput
    logits: Tensor
    boxes: Tensor
    matches: list[list[Match]]
    losses: dict[str, Tensor]
    aux_maps: list[Tensor] = field(default_factory=list)
    rpn: RpnOutput | None = None
    roi: RoiOutput | None = None
    atss: AtssOutput | None = None
    roi_masks: RoiMaskOutput | None = None
    masks: MaskBranchOutput | None = None
    positive: dict[str, PositivePass] = field(default_factory=dict)


class CollaborativeObjective(nn.Module):
    """The network with all its training losses; every trained parameter gets a gradient in every step.

    Args:
        model: built with its auxiliary heads.
        options: weights and options of the losses.
        normalizers: reductions over ranks; the default is for a single process.
    """

    def __init__(self, model: CoDETR, options: ObjectiveOptions, *, normalizers: Normalizers = SINGLE_PROCESS) -> None:
        super().__init__()
        if model.aux_heads is None:
            raise ValueError("training needs a model that was built with its auxiliary heads")
        self.model, self.options, self.normalizers = model, options, normalizers
        queries = options.queries
        self.criterion = QueryCriterion(
            class_loss=model.family.class_loss,
            class_weight=queries.class_weight,
            l1_weight=queries.l1_weight,
            giou_weight=queries.giou_weight,
        )
        self.matcher = HungarianMatcher(
            class_cost=queries.class_cost, l1_cost=queries.l1_cost, giou_cost=queries.giou_cost
        )
        self.num_denoising = options.denoising.num_queries if model.family.denoising else 0
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Freezes the parameters that no enabled loss reaches: all others have a gradient in every step."""
        model = self.model
        if self.options.aux_heads is None:
            self._heads.requires_grad_(False)
            model.downsample.requires_grad_(False)
        if self.options.positive_queries is None:
            model.positive_queries.requires_grad_(False)
        if not self.num_denoising and model.label_embed is not None:
            model.label_embed.requires_grad_(False)

    @property
    def _heads(self) -> AuxHeads:
        heads = self.model.aux_heads
        assert heads is not None  # checked by the constructor
        return heads

    def forward(
        self, images: Tensor, padding_mask: Tensor, targets: Targets, random: RandomSource | None = None
    ) -> dict[str, Tensor]:
        """All losses, weighted, under their published names; the total is their sum.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` is True.
            padding_mask: bool (B, H, W), True = padding.
            targets: per image `boxes` (G, 4) xyxy pixels, `labels` (G,) int64, `norm_size` and `pad_size` (h, w);
                `masks` uint8 (G, h, w) of the padded size where the network learns masks.
            random: source of random numbers; None: torch's global generators.
        """
        return self.run(images, padding_mask, targets, random or RandomSource()).losses

    def run(self, images: Tensor, padding_mask: Tensor, targets: Targets, random: RandomSource) -> ForwardRecord:
        """The forward pass with everything it computed; arguments as for `forward`."""
        options = self.options
        encoded = self.model.encode(images, padding_mask)
        if options.positive_queries is not None and self.model.shares_values:
            encoded = self.model.with_values(encoded)  # three passes read the same memory
        record = self._decode_matching(encoded, targets, random)
        # Costs, boxes and losses are computed in float32 whatever the precision of the network.
        with full_precision(images):
            sets, matches = self._start_matching(record, targets)
        if options.aux_heads is not None:  # while a thread solves the matching
            self._run_aux_heads(record, targets, random, options.aux_heads)
        else:
            self._run_mask_branch(record, targets, random)
        with full_precision(images):
            record.matches = matches()
            self._decoder_losses(record, sets, targets)
            self._mask_losses(record)
        if record.rpn and record.roi and record.atss and options.aux_heads is not None:
            self._aux_head_losses(record, record.rpn, record.roi, record.atss, options.aux_heads)
            if options.positive_queries is not None:
                sampled = {"roi": record.roi.sampled, "atss": record.atss.sampled}
                for head in POSITIVE_QUERY_HEADS:
                    self._positive_losses(record, head, sampled[head], targets, random, options.positive_queries)
        return record

    def _decode_matching(self, encoded: Encoded, targets: Targets, random: RandomSource) -> ForwardRecord:
        model = self.model
        proposals = model.select_queries(encoded, all_tokens=model.family.proposal_targets == "all_tokens")
        queries, attn_mask, denoising = model.matching_queries(proposals), None, None
        if self.num_denoising:
            assert model.label_embed is not None
            denoising = make_denoising_queries(
                targets,
                label_embed=model.label_embed,
                num_matching=queries.content.shape[1],
                num_queries=self.num_denoising,
                label_noise=self.options.denoising.label_noise,
                box_noise=self.options.denoising.box_noise,
                dtype=queries.references.dtype,
                random=random,
                normalizers=self.normalizers,
            )
            queries = Queries(
                torch.cat([denoising.content.to(queries.content.dtype), queries.content], 1),
                torch.cat([denoising.reference_logits.sigmoid(), queries.references], 1),
            )
            attn_mask = denoising.attn_mask
        decoded = model.decode(queries, encoded, attn_mask)
        logits, boxes = model.predict_layers(decoded)
        return ForwardRecord(encoded, denoising, proposals, decoded, logits, boxes, matches=[], losses={})

    def _start_matching(
        self, record: ForwardRecord, targets: Targets
    ) -> tuple[PredictionSets, Callable[[], list[list[Match]]]]:
        """Predictions of the matching queries per layer and, last, of the proposals; and a function for the matches."""
        logits, boxes = at_least_float32(record.logits), at_least_float32(record.boxes)
        first = record.denoising.labels.shape[1] if record.denoising else 0
        sets = [(logits[i, :, first:], boxes[i, :, first:]) for i in range(len(logits))]
        proposed = record.proposals
        if proposed.all_logits is not None and proposed.all_boxes is not None:
            sets.append((proposed.all_logits, proposed.all_boxes))
        else:
            sets.append((at_least_float32(proposed.logits), at_least_float32(proposed.boxes)))
        targets_of_set = [targets] * len(logits) + [self._proposal_targets(targets)]
        return sets, self.matcher.start([(a.detach(), b.detach()) for a, b in sets], targets_of_set)

    def _proposal_targets(self, targets: Targets) -> Targets:
        """Targets of the proposals: all labels are 0 where tokens are scored by class 0."""
        if self.model.family.token_score == "best_class":
            return targets
        return [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]

    def _decoder_losses(self, record: ForwardRecord, sets: PredictionSets, targets: Targets) -> None:
        classes = self.model.num_classes
        logits, boxes = at_least_float32(record.logits), at_least_float32(record.boxes)
        factors = _factors(targets, boxes)
        num_boxes = self._mean_count(sum(len(queries) for queries, _ in record.matches[0]), boxes)
        num_classified = self._num_classified(num_boxes)
        for layer, ((set_logits, set_boxes), matches) in enumerate(zip(sets, record.matches, strict=True)):
            is_proposals = layer == len(logits)
            objects = self._proposal_targets(targets) if is_proposals else targets
            query_targets = QueryTargets.from_matches(matches, objects, set_logits.shape[1], classes, boxes.dtype)
            terms = self.criterion(set_logits, set_boxes, query_targets, factors, num_boxes, num_classified)
            prefix = "enc_" if is_proposals else _layer_prefix(layer, len(logits))
            record.losses.update({f"{prefix}loss_{name}": value for name, value in terms.items()})
        if record.denoising is None:
            return
        first = record.denoising.labels.shape[1]
        query_targets = QueryTargets(record.denoising.labels, record.denoising.boxes)
        num_boxes = self._mean_count(record.denoising.num_positives, boxes)
        num_classified = self._num_classified(num_boxes)
        for layer in range(len(logits)):
            terms = self.criterion(
                logits[layer, :, :first], boxes[layer, :, :first], query_targets, factors, num_boxes, num_classified
            )
            prefix = _layer_prefix(layer, len(logits))
            record.losses.update({f"{prefix}dn_loss_{name}": value for name, value in terms.items()})

    def _run_aux_heads(
        self, record: ForwardRecord, targets: Targets, random: RandomSource, options: AuxHeadOptions
    ) -> None:
        heads = self._heads
        record.aux_maps = self.model.aux_maps(record.encoded)
        with full_precision(record.aux_maps[0]):
            maps = [at_least_float32(m) for m in record.aux_maps]
            record.rpn = rpn_losses(
                heads.rpn,
                maps,
                targets,
                samples=options.rpn.samples,
                random=random,
                normalizers=self.normalizers,
                checkpointing=heads.checkpointing,
            )
            self._run_mask_branch(record, targets, random)
            record.roi = roi_losses(
                heads.roi,
                maps,
                record.rpn.proposals,
                targets,
                samples=options.roi.samples,
                random=random,
                normalizers=self.normalizers,
            )
            if heads.roi.mask_head is not None:
                record.roi_masks = roi_mask_losses(heads.roi.mask_head, maps, record.roi, targets, self.normalizers)
            record.atss = atss_losses(
                heads.atss, maps, targets, normalizers=self.normalizers, checkpointing=heads.checkpointing
            )

    def _run_mask_branch(self, record: ForwardRecord, targets: Targets, random: RandomSource) -> None:
        """Masks of the detections of the last decoder layer. Parity: sampled between the RPN and the RoI head."""
        branch = self.model.mask_branch
        if branch is None:
            return
        with full_precision(record.encoded.memory):
            record.masks = mask_branch_losses(
                branch,
                [at_least_float32(m) for m in record.encoded.layout.split_levels(record.encoded.memory)],
                at_least_float32(record.logits[-1]),
                at_least_float32(record.boxes[-1]),
                targets,
                candidates=self.options.mask_branch.candidates,
                samples=self.options.mask_branch.samples,
                random=random,
                normalizers=self.normalizers,
            )

    def _mask_losses(self, record: ForwardRecord) -> None:
        if record.masks is not None:
            weights = self.options.mask_branch
            stages = zip(weights.stage_weights, record.masks.stage_losses, strict=True)
            record.losses["loss_mask"] = torch.stack([w * loss for w, loss in stages]).sum() * weights.weight
            record.losses["loss_mask_iou"] = record.masks.iou_loss * weights.iou_weight
        if record.roi_masks is not None and self.options.aux_heads is not None:
            record.losses["loss_mask0"] = record.roi_masks.loss * self.options.aux_heads.roi.mask_weight

    def _aux_head_losses(
        self, record: ForwardRecord, rpn: RpnOutput, roi: RoiOutput, atss: AtssOutput, weights: AuxHeadOptions
    ) -> None:
        record.losses["loss_rpn_cls"] = rpn.class_loss * weights.rpn.class_weight
        record.losses["loss_rpn_bbox"] = rpn.box_loss * weights.rpn.l1_weight
        record.losses["loss_cls0"] = roi.class_loss * weights.roi.class_weight
        record.losses["loss_bbox0"] = roi.box_loss * weights.roi.giou_weight
        record.losses["loss_cls1"] = atss.class_loss * weights.atss.class_weight
        record.losses["loss_bbox1"] = atss.box_loss * weights.atss.giou_weight
        record.losses["loss_centerness1"] = atss.centerness_loss * weights.atss.centerness_weight

    def _positive_losses(
        self,
        record: ForwardRecord,
        head: str,
        sampled: Sequence[SampledBoxes],
        targets: Targets,
        random: RandomSource,
        options: PositiveQueryOptions,
    ) -> None:
        done = self._positive_pass(record, head, sampled, targets, random, options.max_queries)
        record.positive[head] = done
        with full_precision(done.logits):
            logits, boxes = at_least_float32(done.logits), at_least_float32(done.predicted_boxes)
            positives = (done.targets.labels < self.model.num_classes).sum().to(boxes.dtype)
            factors, num_boxes = _factors(targets, boxes), self.normalizers.mean_over_ranks(positives)
            num_classified = self._num_classified(num_boxes)
            for layer in range(len(logits)):
                terms = self.criterion(logits[layer], boxes[layer], done.targets, factors, num_boxes, num_classified)
                prefix, number = _layer_prefix(layer, len(logits)), POSITIVE_QUERY_HEADS.index(head)
                for name, value in terms.items():
                    record.losses[f"{prefix}loss_{name}_aux{number}"] = value * options.weight

    def _positive_pass(
        self,
        record: ForwardRecord,
        head: str,
        sampled: Sequence[SampledBoxes],
        targets: Targets,
        random: RandomSource,
        max_queries: int,
    ) -> PositivePass:
        """Decodes the positive boxes of one head without a mask: all queries of an image attend to each other."""
        boxes, query_targets, indices = select_positive_queries(
            sampled,
            targets,
            num_classes=self.model.num_classes,
            max_queries=max_queries,
            random=random,
            normalizers=self.normalizers,
        )
        features = None
        if self.model.positive_queries.uses_features:
            of_images = zip(self._features_of_boxes(record, head), indices, strict=True)
            features = torch.stack([of_image[index] for of_image, index in of_images])
        queries = self.model.positive_queries(boxes, head, features)
        decoded = self.model.decode(queries, record.encoded)
        logits, predicted = self.model.predict_layers(decoded)
        return PositivePass(boxes, query_targets, queries, logits, predicted, indices)

    def _features_of_boxes(self, record: ForwardRecord, head: str) -> Sequence[Tensor]:
        """Features (A, C) per image of the sampled boxes of a head: the mean of a region, the token of an anchor."""
        if head == "roi":
            assert record.roi is not None
            counts = [len(sampled.labels) for sampled in record.roi.sampled]
            return torch.split(record.roi.pooled.mean((2, 3)), counts)
        return torch.cat([m.flatten(2).transpose(1, 2) for m in record.aux_maps], 1).unbind(0)

    def _mean_count(self, count: int, like: Tensor) -> Tensor:
        return self.normalizers.mean_over_ranks(like.new_full((), count))

    def _num_classified(self, num_boxes: Tensor) -> Tensor | None:
        """Normalizer of the class loss where it is not this rank's own number of positives."""
        mean = self.model.family.mean_class_normalizer or self.normalizers.global_batch
        return num_boxes if mean else None


def group_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums the losses by the part of the objective that they belong to, for display."""
    groups: dict[str, Tensor] = {}
    for name, value in losses.items():
        group = _group_of(name)
        groups[group] = groups[group] + value if group in groups else value
    return groups


def _group_of(name: str) -> str:
    if "mask" in name:
        return "masks"
    if "_aux" in name:
        return "positive queries"
    if "dn_loss" in name:
        return "denoising"
    if name.startswith("enc_"):
        return "proposals"
    if "rpn" in name:
        return "rpn"
    return POSITIVE_QUERY_HEADS[int(name[-1])] if name[-1].isdigit() else "decoder"


def _layer_prefix(layer: int, num_layers: int) -> str:
    return "" if layer == num_layers - 1 else f"d{layer}."


def _factors(targets: Targets, like: Tensor) -> Tensor:
    """(B, 4) = (w, h, w, h) of each image in pixels."""
    return host_values([[w, h, w, h] for h, w in (target["norm_size"] for target in targets)], like)
