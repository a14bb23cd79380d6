"""One training step of the auxiliary heads: RPN and RoI head, ATSS head, masks of the RoI head.

In two parts: the first finds the boxes that the heads are trained on, of which the decoder gets queries; the second,
which nobody waits for, runs the heads on them. The host waits for the device twice, both times in the first part: for
the result of the NMS, and for how much was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from codetr_cli.boxes import Targets, host_numbers
from codetr_cli.losses.assigners import SampledBoxes, pad_objects
from codetr_cli.losses.atss import AtssTargets, atss_losses, atss_targets
from codetr_cli.losses.mask_losses import roi_mask_losses
from codetr_cli.losses.normalizers import Normalizers
from codetr_cli.losses.options import AuxHeadOptions
from codetr_cli.losses.random import RandomSource
from codetr_cli.losses.record import AuxOutput
from codetr_cli.losses.roi import SampledRegions, roi_losses, sample_regions
from codetr_cli.losses.rpn import RpnOutput, rpn_losses
from codetr_cli.models.aux_heads.anchors import map_shapes
from codetr_cli.models.codetr import AuxHeads
from codetr_cli.models.layers import at_least_float32, full_precision
from codetr_cli.models.pooling import number_regions


@dataclass(frozen=True)
class AuxSamples:
    """What the auxiliary heads are trained on.

    Attributes:
        maps: their input, per level (B, C, H, W).
        rpn: output and losses of the RPN.
        regions: of the RoI head.
        pooled: (R, C, s, s), the regions of all images.
        anchors: per image, those of the ATSS head.
        anchor_targets: the same, of the batch.
    """

    maps: list[Tensor]
    rpn: RpnOutput
    regions: SampledRegions
    pooled: Tensor
    anchors: list[SampledBoxes]
    anchor_targets: AtssTargets


def sample_aux_boxes(
    heads: AuxHeads,
    maps: Sequence[Tensor],
    targets: Targets,
    options: AuxHeadOptions,
    random: RandomSource,
    normalizers: Normalizers,
) -> AuxSamples:
    """Runs the RPN and finds the boxes that the other heads are trained on.

    Args:
        heads: the networks.
        maps: per level (B, C, H, W).
        targets: of the images.
        options: of the losses.
        random: random numbers of the sampling.
        normalizers: of the losses.
    """
    dtype = at_least_float32(maps[0][:0]).dtype
    with full_precision(maps[0]):
        objects = pad_objects(targets, dtype)
        for_anchors = atss_targets(heads.atss, map_shapes(maps), targets, objects)
    rpn = rpn_losses(
        heads.rpn,
        maps,
        targets,
        objects,
        samples=options.rpn.samples,
        random=random,
        normalizers=normalizers,
        checkpointing=heads.checkpointing,
    )
    with full_precision(maps[0]):
        samples = sample_regions(
            rpn.proposals,
            objects,
            num_classes=heads.roi.num_classes,
            samples=options.roi.samples,
            random=random,
        )
        of_levels = heads.roi.pooling.count_levels(samples.boxes, samples.present)
        num_positives, num_regions, level_counts, positive_anchors = host_numbers(
            samples.num_positives, samples.num_regions, of_levels, for_anchors.num_positives
        )
        regions = samples.cut(num_positives, num_regions)
        anchors = for_anchors.sampled(positive_anchors)
    pooled = heads.roi.pool(maps, number_regions([each.boxes for each in regions.boxes]), level_counts)
    return AuxSamples(list(maps), rpn, regions, pooled, anchors, for_anchors)


def train_aux_heads(heads: AuxHeads, samples: AuxSamples, targets: Targets, normalizers: Normalizers) -> AuxOutput:
    """Runs RoI and ATSS head in the network's precision and computes their losses in float32 at least.

    Args:
        heads: the networks.
        samples: of `sample_aux_boxes`.
        targets: of the images.
        normalizers: of the losses.
    """
    maps = samples.maps
    roi = roi_losses(heads.roi, samples.regions, samples.pooled, normalizers=normalizers)
    roi_masks = None
    if heads.roi.mask_head is not None:
        with full_precision(maps[0]):
            precise = [at_least_float32(m) for m in maps]
            roi_masks = roi_mask_losses(heads.roi.mask_head, precise, samples.regions, targets, normalizers)
    atss = atss_losses(
        heads.atss,
        maps,
        samples.anchor_targets,
        samples.anchors,
        normalizers=normalizers,
        checkpointing=heads.checkpointing,
    )
    return AuxOutput(maps, samples.rpn, roi, atss, roi_masks)
