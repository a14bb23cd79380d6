"""Precision and recall of suspected label errors where the errors are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from codetr_cli.analysis.label_errors import KINDS, LabelError
from tests.analysis.planted_errors import Planted, iou

SAME_IOU = 0.5


@dataclass
class KindScore:
    """Counts of one kind; `order` says of each finding, the most suspicious first, whether it is right.

    Attributes:
        planted: number of errors.
        order: of all findings of the kind.
        other_errors: findings that are on an error of another kind.
    """

    planted: int = 0
    order: list[bool] = field(default_factory=list)
    other_errors: int = 0

    @property
    def precision(self) -> float:
        return sum(self.order) / len(self.order) if self.order else 1.0

    @property
    def recall(self) -> float:
        return sum(self.order) / self.planted if self.planted else 1.0


def score_findings(found: Sequence[LabelError], planted: Sequence[Planted]) -> dict[str, KindScore]:
    """By kind; a finding is right if an error of its kind is in its place, each error once."""
    scores = {kind: KindScore() for kind in KINDS}
    left: dict[int, list[Planted]] = defaultdict(list)
    for error in planted:
        scores[error.kind].planted += 1
        left[error.image_id].append(error)
    for finding in found:
        here = [error for error in left[finding.image_id] if _is_place(finding, error)]
        match = next((error for error in here if error.kind == finding.kind), None)
        scores[finding.kind].order.append(match is not None)
        if match is not None:
            left[finding.image_id].remove(match)
        elif here:
            scores[finding.kind].other_errors += 1
    return scores


def _is_place(finding: LabelError, error: Planted) -> bool:
    x1, y1, x2, y2 = finding.box_xyxy
    box = (x1, y1, x2 - x1, y2 - y1)
    return max(iou(box, each) for each in (error.box_xywh, *error.true_boxes_xywh)) >= SAME_IOU
