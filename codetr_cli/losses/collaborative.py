"""What makes it Co-DETR: one-to-many heads train the encoder, and their positive boxes train the decoder.

Sections 3.2 and 3.3 of arXiv 2211.12860; behaviour of Sense-X/Co-DETR, projects/models/co_detr.py, co_dino_head.py and
co_deformable_detr_head.py.
The total is the sum of the decoder's losses, of the auxiliary heads' (lambda_2, multiplied into their weights) and of
the positive queries' (lambda_1). Shape letters: B batch, D denoising queries, K classes, Q matching queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from codetr_cli.boxes import host_values
from codetr_cli.losses.aux_heads import AtssStep, Candidates, RoiStep, RpnOutput, atss_step, roi_step, rpn_step
from codetr_cli.losses.criterion import QueryCriterion, QueryTargets
from codetr_cli.losses.denoising import DenoisingQueries, make_denoising_queries
from codetr_cli.losses.masks import MaskStep, RoiMaskStep, mask_step, roi_mask_step
from codetr_cli.losses.matcher import HungarianMatcher, Match
from codetr_cli.losses.normalizers import ALONE, Normalizers
from codetr_cli.losses.positive_queries import select_positive_queries
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.codetr import AuxHeads, CoDETR, Encoded
from codetr_cli.models.decoder import DecoderOutput
from codetr_cli.models.layers import at_least_float32, full_precision
from codetr_cli.models.proposals import Proposals
from codetr_cli.models.queries import Queries

Targets = Sequence[dict[str, Any]]

Sets = Sequence[tuple[Tensor, Tensor]]
"""Logits (B, Q, K) and boxes (B, Q, 4) of several layers."""


@dataclass
class PositivePass:
    """One decoder pass over the positive boxes of an auxiliary head."""

    boxes: Tensor
    targets: QueryTargets
    queries: Queries
    logits: Tensor
    predicted_boxes: Tensor
    chosen: Tensor


@dataclass
class Step:
    """Everything one training forward computed, in the order it was computed."""

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
    roi: RoiStep | None = None
    atss: AtssStep | None = None
    roi_masks: RoiMaskStep | None = None
    masks: MaskStep | None = None
    positive: list[PositivePass] = field(default_factory=list)


class CollaborativeObjective(nn.Module):
    """The network with all its training losses; every trained parameter gets a gradient in every step.

    Args:
        model: built with its auxiliary heads.
        agreement: of the processes on normalisers; the default is for one process.
        class_weight, l1_weight, giou_weight: of the decoder's losses.
        class_cost, l1_cost, giou_cost: of the matching.
        denoising_queries: pairs wanted; 0 switches denoising off, which the family without it has anyway.
        label_noise, box_noise: of denoising.
        aux_heads: train the RPN, RoI and ATSS heads.
        positive_queries: decode their positive boxes; only together with `aux_heads`.
        rpn_class_weight, rpn_l1_weight, roi_class_weight, roi_giou_weight: of the RPN's and RoI head's losses.
        atss_class_weight, atss_giou_weight, atss_centerness_weight: of the ATSS head's losses.
        positive_queries_weight: lambda_1.
        max_positive_queries: upper limit per pass.
        rpn_samples, roi_samples: anchors and regions per image that are trained on.
        roi_mask_weight: of the RoI head's masks, where it has some.
        mask_weight, mask_iou_weight: of the refined masks and their quality, where the model has a mask branch.
        mask_stage_weights: of the refined masks' sizes.
        mask_candidates, mask_samples: detections per image that refined masks are trained on, before and after drawing.
    """

    def __init__(
        self,
        model: CoDETR,
        *,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        class_cost: float,
        l1_cost: float,
        giou_cost: float,
        denoising_queries: int,
        label_noise: float,
        box_noise: float,
        aux_heads: bool,
        positive_queries: bool,
        rpn_class_weight: float,
        rpn_l1_weight: float,
        roi_class_weight: float,
        roi_giou_weight: float,
        atss_class_weight: float,
        atss_giou_weight: float,
        atss_centerness_weight: float,
        positive_queries_weight: float,
        max_positive_queries: int,
        rpn_samples: int,
        roi_samples: int,
        roi_mask_weight: float = 12.0,
        mask_weight: float = 15.96,
        mask_stage_weights: Sequence[float] = (0.5, 0.75, 0.75, 1.0),
        mask_iou_weight: float = 6.0,
        mask_candidates: int = 1000,
        mask_samples: int = 512,
        agreement: Normalizers = ALONE,
    ) -> None:
        super().__init__()
        if model.aux_heads is None:
            raise ValueError("training needs a model that was built with its auxiliary heads")
        self.model = model
        self.agreement = agreement
        self.criterion = QueryCriterion(
            class_loss=model.family.class_loss,
            class_weight=class_weight,
            l1_weight=l1_weight,
            giou_weight=giou_weight,
        )
        self.matcher = HungarianMatcher(class_cost=class_cost, l1_cost=l1_cost, giou_cost=giou_cost)
        self.denoising_queries = denoising_queries if model.family.denoising else 0
        self.label_noise, self.box_noise = label_noise, box_noise
        self.use_aux_heads, self.use_positive_queries = aux_heads, aux_heads and positive_queries
        self.rpn_weights = (rpn_class_weight, rpn_l1_weight)
        self.roi_weights = (roi_class_weight, roi_giou_weight)
        self.atss_weights = (atss_class_weight, atss_giou_weight, atss_centerness_weight)
        self.positive_queries_weight, self.max_positive_queries = positive_queries_weight, max_positive_queries
        self.rpn_samples, self.roi_samples = rpn_samples, roi_samples
        self.roi_mask_weight, self.mask_weight = roi_mask_weight, mask_weight
        self.mask_stage_weights, self.mask_iou_weight = tuple(mask_stage_weights), mask_iou_weight
        self.mask_candidates, self.mask_samples = mask_candidates, mask_samples
        self._leave_out_unused()

    def _leave_out_unused(self) -> None:
        """Stops training the parameters that the chosen losses never reach: the rest have a gradient in every step."""
        model = self.model
        if not self.use_aux_heads:
            self._heads.requires_grad_(False)
            model.downsample.requires_grad_(False)
        if not self.use_positive_queries:
            model.positive_queries.requires_grad_(False)
        if not self.denoising_queries and model.label_embed is not None:
            model.label_embed.requires_grad_(False)

    @property
    def _heads(self) -> AuxHeads:
        heads = self.model.aux_heads
        assert heads is not None  # the constructor has refused such a model
        return heads

    def forward(
        self, images: Tensor, padding_mask: Tensor, targets: Targets, draws: RandomSource | None = None
    ) -> dict[str, Tensor]:
        """All losses, weighted, under their published names; the total is their sum.

        Args:
            images: (B, 3, H, W) normalised; zero where `padding_mask` says padding.
            padding_mask: bool (B, H, W), True = padding.
            targets: per image `boxes` (G, 4) xyxy pixels, `labels` (G,) int64, `norm_size` and `pad_size` (h, w);
                `masks` uint8 (G, h, w) of the padded size where the network learns masks.
            draws: source of random numbers; None: torch's global generators.
        """
        return self.run(images, padding_mask, targets, draws or RandomSource()).losses

    def run(self, images: Tensor, padding_mask: Tensor, targets: Targets, draws: RandomSource) -> Step:
        """The forward pass with all it computed; arguments as for `forward`."""
        encoded = self.model.encode(images, padding_mask)
        if self.use_positive_queries and self.model.shares_values:
            encoded = self.model.with_values(encoded)  # three passes read the same memory
        step = self._decode_matching(encoded, targets, draws)
        # Costs, boxes and losses are computed in float32 whatever the precision of the network.
        with full_precision(images):
            sets, matches = self._start_matching(step, targets)
        if self.use_aux_heads:  # while a thread solves the matching
            self._run_aux_heads(step, targets, draws)
        else:
            self._run_mask_branch(step, targets, draws)
        with full_precision(images):
            step.matches = matches()
            self._decoder_losses(step, sets, targets)
            self._mask_losses(step)
        if step.rpn and step.roi and step.atss:
            self._aux_head_losses(step, step.rpn, step.roi, step.atss)
            if self.use_positive_queries:
                for head, candidates in enumerate((step.roi.candidates, step.atss.candidates)):
                    features = self._features_of_candidates(step, head)
                    self._positive_losses(step, candidates, features, targets, head, draws)
        return step

    def _decode_matching(self, encoded: Encoded, targets: Targets, draws: RandomSource) -> Step:
        model = self.model
        proposals = model.select_queries(encoded, all_tokens=model.family.supervises == "all_tokens")
        queries, blocked, denoising = model.matching_queries(proposals), None, None
        if self.denoising_queries:
            assert model.label_embed is not None
            denoising = make_denoising_queries(
                targets,
                label_embed=model.label_embed,
                num_matching=queries.content.shape[1],
                num_queries=self.denoising_queries,
                label_noise=self.label_noise,
                box_noise=self.box_noise,
                dtype=queries.references.dtype,
                draws=draws,
                agreement=self.agreement,
            )
            queries = Queries(
                torch.cat([denoising.content.to(queries.content.dtype), queries.content], 1),
                torch.cat([denoising.reference_logits.sigmoid(), queries.references], 1),
            )
            blocked = denoising.blocked
        decoded = model.decode(queries, encoded, blocked)
        logits, boxes = model.predict_layers(decoded)
        return Step(encoded, denoising, proposals, decoded, logits, boxes, matches=[], losses={})

    def _start_matching(self, step: Step, targets: Targets) -> tuple[Sets, Callable[[], list[list[Match]]]]:
        """Logits and boxes of the matching queries, one pair a layer and last the proposals', and their matches."""
        logits, boxes = at_least_float32(step.logits), at_least_float32(step.boxes)
        first = step.denoising.labels.shape[1] if step.denoising else 0
        sets = [(logits[i, :, first:], boxes[i, :, first:]) for i in range(len(logits))]
        proposed = step.proposals
        if proposed.all_logits is not None and proposed.all_boxes is not None:
            sets.append((proposed.all_logits, proposed.all_boxes))
        else:
            sets.append((at_least_float32(proposed.logits), at_least_float32(proposed.boxes)))
        wanted = [targets] * len(logits) + [self._wanted_proposals(targets)]
        return sets, self.matcher.start([(a.detach(), b.detach()) for a, b in sets], wanted)

    def _wanted_proposals(self, targets: Targets) -> Targets:
        """The objects as proposals should say them: all of class 0 where tokens are selected by that class."""
        if self.model.family.token_score == "best_class":
            return targets
        return [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]

    def _decoder_losses(self, step: Step, sets: Sets, targets: Targets) -> None:
        classes = self.model.num_classes
        logits, boxes = at_least_float32(step.logits), at_least_float32(step.boxes)
        factors = _factors(targets, boxes)
        num_boxes = self._mean_count(sum(len(queries) for queries, _ in step.matches[0]), boxes)
        num_classified = self._num_classified(num_boxes)
        for layer, ((set_logits, set_boxes), matches) in enumerate(zip(sets, step.matches, strict=True)):
            proposed = layer == len(logits)
            objects = self._wanted_proposals(targets) if proposed else targets
            wanted = QueryTargets.from_matches(matches, objects, set_logits.shape[1], classes, boxes.dtype)
            terms = self.criterion(set_logits, set_boxes, wanted, factors, num_boxes, num_classified)
            prefix = "enc_" if proposed else _layer_prefix(layer, len(logits))
            step.losses.update({f"{prefix}loss_{name}": value for name, value in terms.items()})
        if step.denoising is None:
            return
        first = step.denoising.labels.shape[1]
        wanted = QueryTargets(step.denoising.labels, step.denoising.boxes)
        num_boxes = self._mean_count(step.denoising.num_positives, boxes)
        for layer in range(len(logits)):
            terms = self.criterion(
                logits[layer, :, :first],
                boxes[layer, :, :first],
                wanted,
                factors,
                num_boxes,
                self._num_classified(num_boxes),
            )
            prefix = _layer_prefix(layer, len(logits))
            step.losses.update({f"{prefix}dn_loss_{name}": value for name, value in terms.items()})

    def _run_aux_heads(self, step: Step, targets: Targets, draws: RandomSource) -> None:
        heads = self._heads
        step.aux_maps = self.model.aux_maps(step.encoded)
        with full_precision(step.aux_maps[0]):
            maps = [at_least_float32(m) for m in step.aux_maps]
            again, agreed = heads.checkpointing, self.agreement
            step.rpn = rpn_step(
                heads.rpn,
                maps,
                targets,
                samples=self.rpn_samples,
                draws=draws,
                agreement=agreed,
                checkpointing=again,
            )
            self._run_mask_branch(step, targets, draws)
            step.roi = roi_step(
                heads.roi,
                maps,
                step.rpn.proposals,
                targets,
                samples=self.roi_samples,
                draws=draws,
                agreement=agreed,
            )
            if heads.roi.mask_head is not None:
                step.roi_masks = roi_mask_step(heads.roi.mask_head, maps, step.roi, targets, agreed)
            step.atss = atss_step(heads.atss, maps, targets, agreement=agreed, checkpointing=again)

    def _run_mask_branch(self, step: Step, targets: Targets, draws: RandomSource) -> None:
        """Masks of the last decoder layer's detections. Parity: drawn between the RPN's and the RoI head's samples."""
        branch = self.model.mask_branch
        if branch is None:
            return
        with full_precision(step.encoded.memory):
            step.masks = mask_step(
                branch,
                [at_least_float32(m) for m in step.encoded.layout.split_levels(step.encoded.memory)],
                at_least_float32(step.logits[-1]),
                at_least_float32(step.boxes[-1]),
                targets,
                candidates=self.mask_candidates,
                samples=self.mask_samples,
                draws=draws,
                agreement=self.agreement,
            )

    def _mask_losses(self, step: Step) -> None:
        if step.masks is not None:
            of_sizes = zip(self.mask_stage_weights, step.masks.stage_losses, strict=True)
            step.losses["loss_mask"] = torch.stack([w * loss for w, loss in of_sizes]).sum() * self.mask_weight
            step.losses["loss_mask_iou"] = step.masks.iou_loss * self.mask_iou_weight
        if step.roi_masks is not None:
            step.losses["loss_mask0"] = step.roi_masks.loss * self.roi_mask_weight

    def _aux_head_losses(self, step: Step, rpn: RpnOutput, roi: RoiStep, atss: AtssStep) -> None:
        step.losses["loss_rpn_cls"] = rpn.class_loss * self.rpn_weights[0]
        step.losses["loss_rpn_bbox"] = rpn.box_loss * self.rpn_weights[1]
        step.losses["loss_cls0"] = roi.class_loss * self.roi_weights[0]
        step.losses["loss_bbox0"] = roi.box_loss * self.roi_weights[1]
        step.losses["loss_cls1"] = atss.class_loss * self.atss_weights[0]
        step.losses["loss_bbox1"] = atss.box_loss * self.atss_weights[1]
        step.losses["loss_centerness1"] = atss.centerness_loss * self.atss_weights[2]

    def _positive_losses(
        self,
        step: Step,
        candidates: Sequence[Candidates],
        features: Sequence[Tensor] | None,
        targets: Targets,
        head: int,
        draws: RandomSource,
    ) -> None:
        done = self._positive_pass(step.encoded, candidates, features, targets, head, draws)
        step.positive.append(done)
        with full_precision(done.logits):
            logits, boxes = at_least_float32(done.logits), at_least_float32(done.predicted_boxes)
            positives = (done.targets.labels < self.model.num_classes).sum().to(boxes.dtype)
            factors, num_boxes = _factors(targets, boxes), self.agreement.shared(positives)
            num_classified = self._num_classified(num_boxes)
            for layer in range(len(logits)):
                terms = self.criterion(logits[layer], boxes[layer], done.targets, factors, num_boxes, num_classified)
                prefix = _layer_prefix(layer, len(logits))
                for name, value in terms.items():
                    step.losses[f"{prefix}loss_{name}_aux{head}"] = value * self.positive_queries_weight

    def _positive_pass(
        self,
        encoded: Encoded,
        candidates: Sequence[Candidates],
        features: Sequence[Tensor] | None,
        targets: Targets,
        head: int,
        draws: RandomSource,
    ) -> PositivePass:
        """Decodes one head's positive boxes: no mask, so that all queries of an image see each other."""
        boxes, wanted, chosen = select_positive_queries(
            candidates,
            targets,
            num_classes=self.model.num_classes,
            max_queries=self.max_positive_queries,
            draws=draws,
            agreement=self.agreement,
        )
        seen = None
        if features is not None:
            seen = torch.stack([of_image[index] for of_image, index in zip(features, chosen, strict=True)])
        queries = self.model.positive_queries(boxes, head, seen)
        decoded = self.model.decode(queries, encoded)
        logits, predicted = self.model.predict_layers(decoded)
        return PositivePass(boxes, wanted, queries, logits, predicted, chosen)

    def _features_of_candidates(self, step: Step, head: int) -> Sequence[Tensor] | None:
        """What was seen in each candidate of a head, (A, C) an image: the mean of a region, the token of an anchor."""
        if not self.model.positive_queries.uses_features:
            return None
        if head == 0:
            assert step.roi is not None
            counts = [len(candidates.labels) for candidates in step.roi.candidates]
            return torch.split(step.roi.pooled.mean((2, 3)), counts)
        return torch.cat([m.flatten(2).transpose(1, 2) for m in step.aux_maps], 1).unbind(0)

    def _mean_count(self, count: int, like: Tensor) -> Tensor:
        return self.agreement.shared(like.new_full((), count))

    def _num_classified(self, num_boxes: Tensor) -> Tensor | None:
        """The class loss's normaliser where it is not the process's own number of positives."""
        return num_boxes if self.model.family.mean_class_normaliser or self.agreement.whole_batch else None


def group_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums the losses by the part of the objective they belong to, for people to read."""
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
    return {"0": "roi", "1": "atss"}.get(name[-1], "decoder")


def _layer_prefix(layer: int, num_layers: int) -> str:
    return "" if layer == num_layers - 1 else f"d{layer}."


def _factors(targets: Targets, like: Tensor) -> Tensor:
    """(B, 4) = (w, h, w, h) of each image in pixels."""
    return host_values([[w, h, w, h] for h, w in (target["norm_size"] for target in targets)], like)
