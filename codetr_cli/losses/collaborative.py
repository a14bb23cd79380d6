"""What makes it Co-DETR: one-to-many heads train the encoder, and their positive boxes train the decoder.

Sections 3.2 and 3.3 of arXiv 2211.12860; behaviour of Sense-X/Co-DETR, projects/models/co_detr.py, co_dino_head.py and
co_deformable_detr_head.py.
The total is the sum of the losses of the decoder, of the auxiliary heads (their weights contain lambda_2) and of the
positive queries (lambda_1).
Shape letters: A sampled boxes, B batch, C channels, K classes, L decoder layers, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from codetr_cli.boxes import Targets, host_values
from codetr_cli.losses.aux_heads import AuxSamples, sample_aux_boxes, train_aux_heads
from codetr_cli.losses.criterion import QueryCriterion, QueryGroups, QueryTargets
from codetr_cli.losses.denoising import DenoisingQueries, make_denoising_queries
from codetr_cli.losses.mask_losses import mask_branch_losses
from codetr_cli.losses.matcher import HungarianMatcher, Match
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.objects import BatchObjects
from codetr_cli.losses.options import ObjectiveOptions
from codetr_cli.losses.positive_queries import PositiveBoxes, select_positive_queries
from codetr_cli.losses.random import RandomSource
from codetr_cli.losses.record import ForwardRecord, PositivePass
from codetr_cli.models.codetr import AuxHeads, CoDETR, Encoded
from codetr_cli.models.decoder import DecoderOutput
from codetr_cli.models.layers import at_least_float32, full_precision
from codetr_cli.models.queries import POSITIVE_QUERY_HEADS, Queries, concatenate_queries


@dataclass(frozen=True)
class _LossPart:
    """Consecutive queries whose losses have names and normalizers of their own.

    Attributes:
        targets: (B, Q), or (L, B, Q) where they differ between layers.
        num_positives: in one layer.
        weight: of all losses.
        prefix: of the losses' published names.
        suffix: of the same.
    """

    targets: QueryTargets
    num_positives: int
    weight: float = 1.0
    prefix: str = ""
    suffix: str = ""


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
        model = self.model
        encoded = model.encode(images, padding_mask)
        proposals = model.select_queries(encoded, all_tokens=model.family.proposal_targets == "all_tokens")
        objects = BatchObjects.of(targets, proposals.boxes.dtype)
        first = model.matching_queries(proposals)
        denoising = self._denoising_queries(first.content.shape[1], objects, random)
        if denoising is not None:
            noisy = Queries(denoising.content, denoising.reference_logits.sigmoid())
            first = concatenate_queries([noisy, first])
        samples = self._aux_samples(encoded, targets, random)
        positive = self._positive_queries(samples, objects, random)
        # One pass for the queries of all heads, of which each group attends to itself only.
        groups = [first, *(queries for _, queries in positive.values())]
        sizes = [group.content.shape[1] for group in groups]
        attn_mask = None if denoising is None else denoising.attn_mask
        decoded = model.decode(concatenate_queries(groups), encoded, attn_mask, sizes)
        # Costs, boxes and losses are computed in float32 whatever the precision of the network.
        logits, boxes = (at_least_float32(t) for t in model.predict_layers(decoded))
        (of_first, *of_heads) = zip(torch.split(logits, sizes, 2), torch.split(boxes, sizes, 2), strict=True)
        decoded = DecoderOutput(decoded.states[:, :, : sizes[0]], decoded.references[:, :, : sizes[0]])
        record = ForwardRecord(encoded, denoising, proposals, decoded, *of_first)
        for (head, chosen), predicted in zip(positive.items(), of_heads, strict=True):
            record.positive[head] = PositivePass(*chosen, *predicted)
        with full_precision(images):
            matches = self._start_matching(record, objects)
        if samples is not None:  # while a thread solves the matching
            record.aux = train_aux_heads(self._heads, samples, targets, self.normalizers)
        self._run_mask_branch(record, targets, random)
        with full_precision(images):
            record.matches = matches()
            self._query_losses(record, logits, boxes, objects)
            self._mask_losses(record)
            self._aux_head_losses(record)
        return record

    def _denoising_queries(
        self, num_matching: int, objects: BatchObjects, random: RandomSource
    ) -> DenoisingQueries | None:
        if not self.num_denoising:
            return None
        assert self.model.label_embed is not None
        return make_denoising_queries(
            objects,
            label_embed=self.model.label_embed,
            num_matching=num_matching,
            num_queries=self.num_denoising,
            label_noise=self.options.denoising.label_noise,
            box_noise=self.options.denoising.box_noise,
            random=random,
            normalizers=self.normalizers,
        )

    def _aux_samples(self, encoded: Encoded, targets: Targets, random: RandomSource) -> AuxSamples | None:
        if self.options.aux_heads is None:
            return None
        maps = self.model.aux_maps(encoded)
        return sample_aux_boxes(self._heads, maps, targets, self.options.aux_heads, random, self.normalizers)

    def _positive_queries(
        self, samples: AuxSamples | None, objects: BatchObjects, random: RandomSource
    ) -> dict[str, tuple[PositiveBoxes, Queries]]:
        """The positive boxes of each auxiliary head and the queries made from them."""
        options, module = self.options.positive_queries, self.model.positive_queries
        if samples is None or options is None:
            return {}
        selected = select_positive_queries(
            [samples.regions.boxes, samples.anchors],
            objects.factors,
            num_classes=self.model.num_classes,
            max_queries=options.max_queries,
            random=random,
            normalizers=self.normalizers,
        )
        queries: dict[str, tuple[PositiveBoxes, Queries]] = {}
        for head, chosen in zip(POSITIVE_QUERY_HEADS, selected, strict=True):
            features = None
            if module.uses_features:
                of_images = zip(_features_of_boxes(samples, head), chosen.indices, strict=True)
                features = torch.stack([of_image[index] for of_image, index in of_images])
            queries[head] = chosen, module(chosen.boxes, head, features)
        return queries

    def _start_matching(self, record: ForwardRecord, objects: BatchObjects) -> Callable[[], list[list[Match]]]:
        """Starts matching the decoder's layers and the proposals; returns a function that waits for the matches."""
        first = record.logits.shape[2] - record.proposals.indices.shape[1]
        of_layers = record.logits[:, :, first:].detach(), record.boxes[:, :, first:].detach()
        logits, boxes = _trained_proposals(record)
        proposed = logits[None].detach(), boxes[None].detach()
        return self.matcher.start([of_layers, proposed], [objects, self._proposal_objects(objects)])

    def _proposal_objects(self, objects: BatchObjects) -> BatchObjects:
        """Objects of the proposals: all labels are 0 where tokens are scored by class 0."""
        if self.model.family.token_score == "best_class":
            return objects
        return replace(objects, labels=torch.zeros_like(objects.labels))

    def _query_losses(self, record: ForwardRecord, logits: Tensor, boxes: Tensor, objects: BatchObjects) -> None:
        """Losses of the decoder's queries, logits (L, B, Q, K) and boxes (L, B, Q, 4), and of the proposals."""
        num_layers, classes = len(logits), self.model.num_classes
        *of_layers, of_proposals = record.matches
        num_matching = record.proposals.indices.shape[1]
        matched = _LossPart(
            QueryTargets.from_matches(of_layers, objects, num_matching, classes),
            sum(min(count, num_matching) for count in objects.counts),
        )
        denoising = self._denoising_parts(record)
        parts = [*denoising, matched, *self._positive_parts(record)]
        groups = self._query_groups(parts, boxes)
        targets = QueryTargets.concatenate([part.targets for part in parts], num_layers)
        terms = self.criterion(logits, boxes, targets, objects.factors, groups)
        scalars = {term: values.flatten().unbind() for term, values in terms.items()}
        for column, part in enumerate(parts):
            for layer in range(num_layers):
                layer_prefix = "" if layer == num_layers - 1 else f"d{layer}."
                for term, values in scalars.items():
                    name = f"{layer_prefix}{part.prefix}loss_{term}{part.suffix}"
                    record.losses[name] = values[layer * len(parts) + column]
        proposed_logits, proposed_boxes = _trained_proposals(record)
        num_proposed = proposed_logits.shape[1]
        proposal_objects = self._proposal_objects(objects)
        targets = QueryTargets.from_matches([of_proposals], proposal_objects, num_proposed, classes)
        # Parity: divided by the matches of the decoder, also where more proposals are matched.
        groups = groups.only(len(denoising), num_proposed)
        terms = self.criterion(proposed_logits[None], proposed_boxes[None], targets, objects.factors, groups)
        record.losses.update({f"enc_loss_{term}": value.view(()) for term, value in terms.items()})

    def _denoising_parts(self, record: ForwardRecord) -> list[_LossPart]:
        if record.denoising is None:
            return []
        wanted = QueryTargets(record.denoising.labels, record.denoising.boxes)
        return [_LossPart(wanted, record.denoising.num_positives, prefix="dn_")]

    def _positive_parts(self, record: ForwardRecord) -> list[_LossPart]:
        options = self.options.positive_queries
        if options is None:
            return []
        return [
            _LossPart(
                record.positive[head].selected.targets,
                record.positive[head].selected.num_positives,
                options.weight,
                suffix=f"_aux{number}",
            )
            for number, head in enumerate(POSITIVE_QUERY_HEADS)
        ]

    def _query_groups(self, parts: Sequence[_LossPart], like: Tensor) -> QueryGroups:
        """The parts with their normalizers: one upload and one reduction over ranks for all."""
        counts = [part.num_positives for part in parts]
        at_least_one = [max(count, 1) for count in counts]
        own, own_at_least_one, weights = host_values([counts, at_least_one, [part.weight for part in parts]], like)
        num_boxes = self.normalizers.mean_over_ranks(own)
        # Parity: Co-DINO's class loss is divided by the positives of this rank, not by their mean over ranks.
        mean = self.model.family.mean_class_normalizer or self.normalizers.global_batch
        sizes = [part.targets.labels.shape[-1] for part in parts]
        return QueryGroups(sizes, num_boxes, num_boxes if mean else own_at_least_one, weights)

    def _run_mask_branch(self, record: ForwardRecord, targets: Targets, random: RandomSource) -> None:
        """Masks of the detections of the last decoder layer."""
        branch = self.model.mask_branch
        if branch is None:
            return
        with full_precision(record.encoded.memory):
            record.masks = mask_branch_losses(
                branch,
                [at_least_float32(m) for m in record.encoded.layout.split_levels(record.encoded.memory)],
                record.logits[-1],
                record.boxes[-1],
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
        aux, options = record.aux, self.options.aux_heads
        if aux is not None and aux.roi_masks is not None and options is not None:
            record.losses["loss_mask0"] = aux.roi_masks.loss * options.roi.mask_weight

    def _aux_head_losses(self, record: ForwardRecord) -> None:
        aux, weights = record.aux, self.options.aux_heads
        if aux is None or weights is None:
            return
        record.losses["loss_rpn_cls"] = aux.rpn.class_loss * weights.rpn.class_weight
        record.losses["loss_rpn_bbox"] = aux.rpn.box_loss * weights.rpn.l1_weight
        record.losses["loss_cls0"] = aux.roi.class_loss * weights.roi.class_weight
        record.losses["loss_bbox0"] = aux.roi.box_loss * weights.roi.giou_weight
        record.losses["loss_cls1"] = aux.atss.class_loss * weights.atss.class_weight
        record.losses["loss_bbox1"] = aux.atss.box_loss * weights.atss.giou_weight
        record.losses["loss_centerness1"] = aux.atss.centerness_loss * weights.atss.centerness_weight


def _trained_proposals(record: ForwardRecord) -> tuple[Tensor, Tensor]:
    """Logits (B, Q, K) and boxes (B, Q, 4) of the proposals that are matched to objects: the selected ones or all."""
    proposed = record.proposals
    if proposed.all_logits is not None and proposed.all_boxes is not None:
        return proposed.all_logits, proposed.all_boxes
    return proposed.logits, proposed.boxes


def _features_of_boxes(samples: AuxSamples, head: str) -> Sequence[Tensor]:
    """Features (A, C) per image of the sampled boxes of a head: the mean of a region, the token of an anchor."""
    if head == "roi":
        counts = [len(sampled.labels) for sampled in samples.regions.boxes]
        return torch.split(samples.pooled.mean((2, 3)), counts)
    return torch.cat([m.flatten(2).transpose(1, 2) for m in samples.maps], 1).unbind(0)


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
