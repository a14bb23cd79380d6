"""The weights and options of the objective, grouped by part of the model; the values are those of `LossConfig`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """Loss weights of decoder queries and of the encoder's proposals, and costs of their matching."""

    class_weight: float
    l1_weight: float
    giou_weight: float
    class_cost: float
    l1_cost: float
    giou_cost: float


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """Denoising queries.

    Attributes:
        num_queries: pairs of a positive and a negative query wanted; 0 disables denoising.
        label_noise: twice the share of labels that are replaced.
        box_noise: maximum shift of a corner in half sides.
    """

    num_queries: int
    label_noise: float
    box_noise: float


@dataclass(frozen=True, kw_only=True)
class RpnOptions:
    """Loss weights of the RPN; `samples` anchors per image are trained."""

    class_weight: float
    l1_weight: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class RoiOptions:
    """Loss weights of the RoI head, with `mask_weight` for its masks; `samples` regions per image are trained."""

    class_weight: float
    giou_weight: float
    mask_weight: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class AtssOptions:
    """Loss weights of the ATSS head."""

    class_weight: float
    giou_weight: float
    centerness_weight: float


@dataclass(frozen=True, kw_only=True)
class AuxHeadOptions:
    """The auxiliary heads."""

    rpn: RpnOptions
    roi: RoiOptions
    atss: AtssOptions


@dataclass(frozen=True, kw_only=True)
class PositiveQueryOptions:
    """Positive queries of the auxiliary heads.

    Attributes:
        weight: lambda_1 of the paper.
        max_queries: maximum number per image and pass.
    """

    weight: float
    max_queries: int


@dataclass(frozen=True, kw_only=True)
class MaskBranchOptions:
    """The branch that refines masks.

    Attributes:
        weight: of the sum over mask sizes.
        stage_weights: of each mask size.
        iou_weight: of the estimated mask IoU.
        candidates: best detections per image that regions are sampled from.
        samples: regions sampled per image; at most a quarter of them is positive and used.
    """

    weight: float
    stage_weights: tuple[float, ...]
    iou_weight: float
    candidates: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """All options of the objective.

    Attributes:
        queries: of decoder queries and proposals.
        denoising: of denoising queries; families without denoising ignore them.
        aux_heads: None: the auxiliary heads are not trained.
        positive_queries: None: the positive boxes of the auxiliary heads are not decoded.
        mask_branch: used where the model has a mask branch.
    """

    queries: QueryOptions
    denoising: DenoisingOptions
    aux_heads: AuxHeadOptions | None
    positive_queries: PositiveQueryOptions | None
    mask_branch: MaskBranchOptions
