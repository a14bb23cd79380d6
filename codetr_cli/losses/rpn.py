"""Targets and losses of the region proposal network. Behaviour of mmdet's RPNHead as configured by Co-DETR.

Shape letters: B batch, C channels, M anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.boxes import Targets
from codetr_cli.losses.assigners import PaddedObjects, assign_by_iou, sample_balanced
from codetr_cli.losses.functional import average
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import encode_deltas, map_shapes
from codetr_cli.models.aux_heads.rpn import DELTA_STDS, RegionProposals, RpnHead
from codetr_cli.models.layers import full_precision


@dataclass(frozen=True)
class RpnOutput:
    """Outputs of the RPN, its proposals and its losses.

    Attributes:
        logits: per level (B, M / (H W), H, W).
        deltas: per level (B, 4 M / (H W), H, W).
        assigned: (B, M), the assignment of the anchors before sampling.
        valid: bool (B, M): anchors inside the padded size of their image.
        proposals: of all images.
        class_loss: unweighted, summed over levels.
        box_loss: as above.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    assigned: Tensor
    valid: Tensor
    proposals: RegionProposals
    class_loss: Tensor
    box_loss: Tensor


def rpn_losses(
    head: RpnHead,
    maps: Sequence[Tensor],
    targets: Targets,
    objects: PaddedObjects,
    *,
    samples: int,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
    checkpointing: bool = False,
) -> RpnOutput:
    """Runs the RPN in the network's precision and computes its losses and proposals in float32 at least.

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        targets: per image `norm_size` for the proposals, `pad_size` for the validity of anchors.
        objects: of the same images.
        samples: anchors trained per image, at most half of them positive.
        random: random numbers of the sampling.
        normalizers: of the losses.
        checkpointing: recompute the network in the backward pass.
    """
    logits, deltas = checkpoint(head, maps, use_reentrant=False) if checkpointing else head(maps)
    with full_precision(maps[0]):
        shapes = map_shapes(maps)
        flat_logits, flat_deltas = head.flatten(logits, deltas)  # (B, M), (B, M, 4)
        anchors = head.anchors.boxes(shapes, objects.boxes)
        valid = head.anchors.valid(shapes, [target["pad_size"] for target in targets], anchors)
        assigned = assign_by_iou(anchors[None], objects, valid, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3)
        positives, is_positive, negatives, is_negative = sample_balanced(
            assigned, count=samples, positive_fraction=0.5, random=random
        )
        sampled = flat_logits.gather(1, torch.cat([positives, negatives], 1))
        is_object = torch.cat([is_positive, torch.zeros_like(is_negative)], 1).to(sampled.dtype)
        weights = torch.cat([is_positive, is_negative], 1).to(sampled.dtype)
        class_sum = F.binary_cross_entropy_with_logits(sampled, is_object, weights, reduction="sum")
        matched = assigned.gather(1, positives).clamp(min=0)
        matched_boxes = objects.boxes.gather(1, matched[..., None].expand(-1, -1, 4))
        wanted = encode_deltas(anchors[positives], matched_boxes, DELTA_STDS)
        distances = flat_deltas.gather(1, positives[..., None].expand(-1, -1, 4)) - wanted
        # Masked before anything else: the deltas to no object are infinite.
        box_sum = distances.masked_fill(~is_positive[..., None], 0).abs().sum()
        # Parity: an image without positives still counts one.
        counts = torch.stack([is_positive.sum(1), is_negative.sum(1)]).clamp(min=1)
        num_samples = normalizers.per_rank(counts.sum().to(class_sum.dtype), class_sum)
        proposals = head.select_proposals(
            flat_logits.detach(), flat_deltas.detach(), shapes, [target["norm_size"] for target in targets]
        )
        class_loss, box_loss = average(class_sum, num_samples), average(box_sum, num_samples)
    return RpnOutput(logits, deltas, assigned, valid, proposals, class_loss, box_loss)
