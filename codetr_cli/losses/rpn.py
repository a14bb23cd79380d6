"""Targets and losses of the region proposal network. Behaviour of mmdet's RPNHead as configured by Co-DETR.

Shape letters: A anchors of all levels, B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codetr_cli.boxes import Targets
from codetr_cli.losses.assigners import assign_by_iou, sample_balanced
from codetr_cli.losses.functional import average
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.random import RandomSource
from codetr_cli.models.aux_heads.anchors import encode_deltas, flatten_map
from codetr_cli.models.aux_heads.rpn import DELTA_STDS, RpnHead


@dataclass(frozen=True)
class RpnOutput:
    """Outputs of the RPN, its proposals and its losses.

    Attributes:
        logits: per level (B, A / (H W), H, W).
        deltas: per level (B, 4 A / (H W), H, W).
        assigned: per image, the assignment of its valid anchors before sampling.
        proposals: per image boxes (P, 4) xyxy pixels and scores (P,).
        class_loss: unweighted, summed over levels.
        box_loss: as above.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    assigned: list[Tensor]
    proposals: list[tuple[Tensor, Tensor]]
    class_loss: Tensor
    box_loss: Tensor


def rpn_losses(
    head: RpnHead,
    maps: Sequence[Tensor],
    targets: Targets,
    *,
    samples: int,
    random: RandomSource,
    normalizers: Normalizers = SINGLE_PROCESS,
    checkpointing: bool = False,
) -> RpnOutput:
    """Runs the RPN and computes its losses and proposals.

    Args:
        head: the network.
        maps: per level (B, C, H, W).
        targets: per image `boxes`, `norm_size` for the proposals, `pad_size` for the validity of anchors.
        samples: anchors trained per image, at most half of them positive.
        random: random numbers of the sampling.
        normalizers: of the losses.
        checkpointing: recompute the network in the backward pass.
    """
    logits, deltas = checkpoint(head, maps, use_reentrant=False) if checkpointing else head(maps)
    shapes = [(int(m.shape[-2]), int(m.shape[-1])) for m in maps]
    anchors = torch.cat(head.anchors.boxes(shapes, maps[0]))
    flat_logits = torch.cat([flatten_map(m, 1)[..., 0] for m in logits], 1)  # (B, A)
    flat_deltas = torch.cat([flatten_map(m, 4) for m in deltas], 1)  # (B, A, 4)
    class_sum, box_sum, normalizer = maps[0].new_zeros(()), maps[0].new_zeros(()), 0
    assignments = []
    for i, target in enumerate(targets):
        valid = torch.cat(head.anchors.valid(shapes, target["pad_size"], maps[0].device))
        objects = target["boxes"].to(anchors.dtype)
        assigned = assign_by_iou(anchors[valid], objects, positive_iou=0.7, negative_iou=0.3, min_best_iou=0.3)
        assignments.append(assigned)
        positive, negative = sample_balanced(assigned, count=samples, positive_fraction=0.5, random=random)
        target_deltas = encode_deltas(anchors[valid[positive]], objects[assigned[positive]], DELTA_STDS)
        sampled = flat_logits[i, valid[torch.cat([positive, negative])]]
        is_object = (torch.arange(len(sampled), device=sampled.device) < len(positive)).to(sampled.dtype)
        class_sum = class_sum + F.binary_cross_entropy_with_logits(sampled, is_object, reduction="sum")
        box_sum = box_sum + (flat_deltas[i, valid[positive]] - target_deltas).abs().sum()
        # Parity: an image without positives still counts one.
        normalizer += max(len(positive), 1) + max(len(negative), 1)
    proposals = head.select_proposals(
        [m.detach() for m in logits], [m.detach() for m in deltas], [target["norm_size"] for target in targets]
    )
    box_sum = box_sum + 0.0 * flat_deltas.sum()
    num_samples = normalizers.per_rank(normalizer, class_sum)
    class_loss, box_loss = average(class_sum, num_samples), average(box_sum, num_samples)
    return RpnOutput(logits, deltas, assignments, proposals, class_loss, box_loss)
