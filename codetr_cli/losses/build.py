"""Builds the objective from its settings; the only file in this room that reads them."""

from __future__ import annotations

from codetr_cli.config.train_settings import LossConfig
from codetr_cli.losses.collaborative import CollaborativeObjective
from codetr_cli.losses.normalizers import SINGLE_PROCESS, Normalizers
from codetr_cli.losses.options import (
    AtssOptions,
    AuxHeadOptions,
    DenoisingOptions,
    MaskBranchOptions,
    ObjectiveOptions,
    PositiveQueryOptions,
    QueryOptions,
    RoiOptions,
    RpnOptions,
)
from codetr_cli.models.codetr import CoDETR


def build_objective(
    model: CoDETR, config: LossConfig, *, normalizers: Normalizers = SINGLE_PROCESS
) -> CollaborativeObjective:
    """Builds the objective around a network.

    Args:
        model: built with its auxiliary heads.
        config: weights and switches.
        normalizers: reductions over ranks.
    """
    return CollaborativeObjective(model, _options(config), normalizers=normalizers)


def _options(config: LossConfig) -> ObjectiveOptions:
    return ObjectiveOptions(
        queries=QueryOptions(
            class_weight=config.class_weight,
            l1_weight=config.l1_weight,
            giou_weight=config.giou_weight,
            class_cost=config.class_cost,
            l1_cost=config.l1_cost,
            giou_cost=config.giou_cost,
        ),
        denoising=DenoisingOptions(
            num_queries=config.denoising_queries, label_noise=config.label_noise, box_noise=config.box_noise
        ),
        aux_heads=_aux_head_options(config) if config.aux_heads else None,
        positive_queries=PositiveQueryOptions(
            weight=config.positive_queries_weight, max_queries=config.max_positive_queries
        )
        if config.aux_heads and config.positive_queries
        else None,
        mask_branch=MaskBranchOptions(
            weight=config.mask_weight,
            stage_weights=config.mask_stage_weights,
            iou_weight=config.mask_iou_weight,
            candidates=config.mask_candidates,
            samples=config.mask_samples,
        ),
    )


def _aux_head_options(config: LossConfig) -> AuxHeadOptions:
    return AuxHeadOptions(
        rpn=RpnOptions(
            class_weight=config.rpn_class_weight, l1_weight=config.rpn_l1_weight, samples=config.rpn_samples
        ),
        roi=RoiOptions(
            class_weight=config.roi_class_weight,
            giou_weight=config.roi_giou_weight,
            mask_weight=config.roi_mask_weight,
            samples=config.roi_samples,
        ),
        atss=AtssOptions(
            class_weight=config.atss_class_weight,
            giou_weight=config.atss_giou_weight,
            centerness_weight=config.atss_centerness_weight,
        ),
    )
