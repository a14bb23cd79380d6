"""Everything that a training forward pass computes.

Shape letters: B batch, C channels, D denoising queries, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from codetr_cli.losses.atss import AtssOutput
from codetr_cli.losses.denoising import DenoisingQueries
from codetr_cli.losses.mask_losses import MaskBranchOutput, RoiMaskOutput
from codetr_cli.losses.matcher import Match
from codetr_cli.losses.positive_queries import PositiveBoxes
from codetr_cli.losses.roi import RoiOutput
from codetr_cli.losses.rpn import RpnOutput
from codetr_cli.models.codetr import Encoded
from codetr_cli.models.decoder import DecoderOutput
from codetr_cli.models.proposals import Proposals
from codetr_cli.models.queries import Queries


@dataclass(frozen=True)
class AuxOutput:
    """The auxiliary heads.

    Attributes:
        maps: their input, per level (B, C, H, W).
        rpn: of the RPN.
        roi: of the RoI head.
        atss: of the one-stage head.
        roi_masks: of the RoI head's mask head, if any.
    """

    maps: list[Tensor]
    rpn: RpnOutput
    roi: RoiOutput
    atss: AtssOutput
    roi_masks: RoiMaskOutput | None


@dataclass(frozen=True)
class PositivePass:
    """What the decoder makes of the positive boxes of an auxiliary head.

    Attributes:
        selected: the boxes and their targets.
        queries: made from them.
        logits: (layers, B, Q, K).
        predicted_boxes: (layers, B, Q, 4).
    """

    selected: PositiveBoxes
    queries: Queries
    logits: Tensor
    predicted_boxes: Tensor


@dataclass
class ForwardRecord:
    """Everything that one training forward pass computed, in the order of computation.

    Attributes:
        decoded: of the denoising and the matching queries.
        logits: (layers, B, D + Q, K), of the same queries.
        boxes: (layers, B, D + Q, 4) cxcywh in [0, 1], of the same queries.
        positive: by name of the auxiliary head.
        matches: per layer, the last one that of the proposals, and per image.
        losses: weighted, under their published names.
    """

    encoded: Encoded
    denoising: DenoisingQueries | None
    proposals: Proposals
    decoded: DecoderOutput
    logits: Tensor
    boxes: Tensor
    positive: dict[str, PositivePass] = field(default_factory=dict)
    aux: AuxOutput | None = None
    masks: MaskBranchOutput | None = None
    matches: Sequence[Sequence[Match]] = ()
    losses: dict[str, Tensor] = field(default_factory=dict)
