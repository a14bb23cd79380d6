"""Precision and recall of suspected label errors where the errors are known."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from codetr_cli.analysis.label_errors import KINDS, Box, Kind
from tests.analysis.planted_errors import Planted, iou

SAME_IOU = 0.5


class IsFinding(Protocol):
    """What is judged of a finding."""

    @property
    def kind(self) -> Kind: ...
    @property
    def image_id(self) -> int: ...
    @property
    def box_xyxy(self) -> Box: ...


@dataclass(frozen=True)
class Finding:
    """A finding as a file of results has it."""

    kind: Kind
    image_id: int
    box_xyxy: Box


@dataclass(frozen=True)
class JudgedFinding:
    """Whether an error of its kind is in a finding's place, or only one of another kind."""

    kind: Kind
    is_right: bool
    is_other: bool


@dataclass
class KindScore:
    """Counts of one kind; `order` says of each finding, the most suspicious first, whether it is right."""

    planted: int = 0
    order: list[bool] = field(default_factory=list)

    @property
    def precision(self) -> float:
        return sum(self.order) / len(self.order) if self.order else 1.0

    @property
    def recall(self) -> float:
        return sum(self.order) / self.planted if self.planted else 1.0


def judge_findings(found: Sequence[IsFinding], planted: Sequence[Planted]) -> list[JudgedFinding]:
    """Each finding, in its order; it is right if an error of its kind is in its place, each error once."""
    left: dict[int, list[Planted]] = defaultdict(list)
    for error in planted:
        left[error.image_id].append(error)
    judged = []
    for finding in found:
        here = [error for error in left[finding.image_id] if _is_place(finding, error)]
        match = next((error for error in here if error.kind == finding.kind), None)
        if match is not None:
            left[finding.image_id].remove(match)
        judged.append(JudgedFinding(finding.kind, match is not None, match is None and bool(here)))
    return judged


def score_findings(found: Sequence[IsFinding], planted: Sequence[Planted]) -> dict[Kind, KindScore]:
    """By kind."""
    judged = judge_findings(found, planted)
    counts = Counter(error.kind for error in planted)
    return {kind: KindScore(counts[kind], [each.is_right for each in judged if each.kind == kind]) for kind in KINDS}


def _is_place(finding: IsFinding, error: Planted) -> bool:
    x1, y1, x2, y2 = finding.box_xyxy
    box = (x1, y1, x2 - x1, y2 - y1)
    return max(iou(box, each) for each in (error.box_xywh, *error.true_boxes_xywh)) >= SAME_IOU
