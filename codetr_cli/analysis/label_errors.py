"""Suspected label errors: what confident detections say about the annotations, and annotations about each other.

Suspicions are shares in [0, 1], computed from how often detections with such a score are annotated objects (see
`label_evidence`); from `LISTED_FROM` on they are listed. A network that was trained on these images repeats the errors
that it has learned, and finds fewer of them.
Shape letters: d judged detections of an image, G its annotated objects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.background import Background, surest_near
from codetr_cli.analysis.box_spread import BoxSpread
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.label_evidence import (
    HIT_IOU,
    Evidence,
    ImageEvidence,
    gather_evidence,
    one_for_each_object,
    overlaps,
    readings_of,
)

Kind = Literal["missing box", "wrong class", "loose box", "duplicate", "crowd", "spurious box"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Action = Literal["add", "change class", "change box", "remove", "split", "unmark crowd"]

LISTED_FROM = 0.4
"""Suspicion of the least suspicious findings: of planted errors, about half of those near it are right."""
USUAL_DEVIATION = 3.0
"""Typical deviations of a side that say nothing; further ones are judged by Chebyshev's inequality."""
PART_INSIDE = 0.8
"""Share of a detection within a box that makes it a part of what the box is around."""
SAME_PLACE_IOU = 0.25
"""IoU from which a detection and an annotation of its class, which have no other partner, mean the same object."""
SAME_BOX_IOU = 0.8
"""IoU from which boxes of different classes are of the same thing, rather than one thing on another."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class LabelError:
    """A suspected label error.

    Attributes:
        kind: of the error.
        action: what corrects it.
        image: number of the evaluated image.
        image_id: in the annotations.
        score: suspicion in [0, 1].
        object_row: row of the annotation in question; None where one is missing.
        other_object_row: of a duplicate, row of the annotation that stays.
        detection_row: row of the detection that speaks against the annotation; None: the annotations alone do.
        box_xyxy: pixels: the proposed box, or that of the annotation to be removed.
        parts_xyxy: of a box around several objects, their boxes.
        category_id: original id of the proposed class.
        explanation: one sentence.
    """

    kind: Kind
    action: Action
    image: int
    image_id: int
    score: float
    object_row: int | None
    other_object_row: int | None = None
    detection_row: int | None
    box_xyxy: Box
    parts_xyxy: tuple[Box, ...] = ()
    category_id: int
    explanation: str


def find_label_errors(
    inputs: AnalysisInputs,
    limit: int | None = None,
    *,
    kinds: Collection[Kind] = KINDS,
    listed_from: float = LISTED_FROM,
    evidence: Evidence | None = None,
) -> list[LabelError]:
    """Suspected label errors, the most suspicious first.

    Args:
        inputs: detections with their scores, of a network that has not learned from these annotations.
        limit: number of findings; None: all.
        kinds: of errors.
        listed_from: suspicion of the least suspicious one.
        evidence: of the inputs; None: it is gathered here.
    """
    evidence = evidence or gather_evidence(inputs)
    spread, background = BoxSpread.of(evidence.images), Background.of(inputs, evidence.images)
    search = _Search(inputs, evidence, spread, background, listed_from)
    found = [error for each in evidence.images for error in search.errors_of(each)]
    found = [error for error in found if error.kind in kinds and error.score >= listed_from]
    found.sort(key=lambda error: (-error.score, error.image, KINDS.index(error.kind), error.box_xyxy))
    return found[:limit]


class _Search:
    """Finds the errors of one image after the other."""

    def __init__(
        self,
        inputs: AnalysisInputs,
        evidence: Evidence,
        spread: BoxSpread,
        background: Background,
        listed_from: float,
    ) -> None:
        self._inputs, self._evidence, self._spread, self._background = inputs, evidence, spread, background
        self._listed_from = listed_from
        self._names = inputs.ground_truth.class_names
        self._ids = inputs.ground_truth.category_ids

    def errors_of(self, each: ImageEvidence) -> Iterator[LabelError]:
        explained = np.zeros(len(each.rows), bool)
        suspected: set[int | None] = set()
        for search in (self._crowds, self._duplicates, self._wrong_classes, self._loose_boxes):
            for error in search(each, explained):
                suspected |= {error.object_row} if error.score >= self._listed_from else set()
                yield error
        yield from self._missing_boxes(each, explained)
        yield from self._spurious_boxes(each, suspected)

    def _missing_boxes(self, each: ImageEvidence, explained: NDArray[np.bool_]) -> Iterator[LabelError]:
        """Detections where no object of any class is annotated."""
        # No suspicion is above the share itself.
        for index in each.distinct[each.sureness[each.distinct] >= self._listed_from].tolist():
            free = not each.hits[index] and not each.ignored[index] and not explained[index]
            if free and not (each.iou[index] >= HIT_IOU).any():
                sureness = float(each.sureness[index])
                yield self._error(
                    each,
                    "missing box",
                    "add",
                    self._evidence.presence.suspicion(sureness),
                    detection=index,
                    text=f"{self._name(each, index)} is detected where nothing is annotated; "
                    f"{_percent(sureness)} of detections as sure as this one are annotated",
                )

    def _spurious_boxes(self, each: ImageEvidence, suspected: Collection[int | None]) -> Iterator[LabelError]:
        """Annotations near which nothing is detected, of any class, and which nothing else is wrong with."""
        near = surest_near(each, each.object_boxes)
        for number in np.flatnonzero(~each.crowd).tolist():
            ratio = self._background.ratio(each, number, float(near[number]))
            score = self._background.suspicion(ratio)
            if score < self._listed_from or int(each.object_rows[number]) in suspected:
                continue
            what = f"nothing surer than {_percent(float(near[number]))}" if near[number] > 0 else "nothing"
            yield self._error(
                each,
                "spurious box",
                "remove",
                score,
                number=number,
                box=each.object_boxes[number],
                label=int(each.object_labels[number]),
                text=f"annotated as {self._names[each.object_labels[number]]}, and {what} is detected here, of any "
                f"class: that is {1 / ratio:.0f} times as frequent where nothing is annotated",
            )

    def _wrong_classes(self, each: ImageEvidence, explained: NDArray[np.bool_]) -> Iterator[LabelError]:
        """Annotations on which another class is detected, and their own one is not, or with less certainty."""
        for number in np.flatnonzero(~each.crowd).tolist():
            index, margin = readings_of(each, number)
            if index < 0 or each.labels[index] == each.object_labels[number]:
                continue
            if each.hits[index] or each.ignored[index] or explained[index]:
                continue
            name = self._names[each.object_labels[number]]
            share = float(self._evidence.reading(np.array([margin]))[0])
            explained[(each.iou[:, number] >= HIT_IOU) & ~each.hits] = True
            yield self._error(
                each,
                "wrong class",
                "change class",
                self._evidence.reading.suspicion(share),
                number=number,
                detection=index,
                box=each.object_boxes[number],
                text=f"annotated as {name}, detected as {self._name(each, index)}: where a class is that far ahead of "
                f"the others, {_percent(share)} of annotations agree with it",
            )

    def _loose_boxes(self, each: ImageEvidence, explained: NDArray[np.bool_]) -> Iterator[LabelError]:
        """Annotations whose sides are further from those of their detection than is usual."""
        for number, index in self._pairs(each, explained):
            explained[index] = True
            deviation = self._spread.of_pair(each.boxes[index], each.object_boxes[number])
            excess = max(1 - (USUAL_DEVIATION / max(deviation, 1e-9)) ** 2, 0.0)
            score = self._evidence.presence.suspicion(float(each.sureness[index])) * excess
            yield self._error(
                each,
                "loose box",
                "change box",
                score,
                number=number,
                detection=index,
                text=f"the box overlaps the detected {self._name(each, index)} by an IoU of "
                f"{each.iou[index, number]:.2f}: a side is {deviation:.1f} times as far off as is usual here",
            )

    def _pairs(self, each: ImageEvidence, explained: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
        """Annotations with the detection of the same object: matched ones, and of the others mutual best ones."""
        same = np.where((each.labels[:, None] == each.object_labels) & ~each.crowd, each.iou, 0.0)
        free = ~each.hits & ~each.ignored & ~explained
        for number in np.flatnonzero(~each.crowd).tolist():
            index = int(each.detection_of[number])
            if index >= 0:
                yield number, index
                continue
            options = np.where(free, same[:, number], 0.0)
            index = int(options.argmax()) if len(options) else -1
            if index >= 0 and options[index] >= SAME_PLACE_IOU and same[index].argmax() == number:
                yield number, index

    def _duplicates(self, each: ImageEvidence, explained: NDArray[np.bool_]) -> Iterator[LabelError]:
        """Pairs of annotations that overlap so much that they are of one object, where no second one is detected."""
        single = np.flatnonzero(~each.crowd)
        boxes = each.object_boxes[single]
        pairs = np.argwhere(np.triu(overlaps(boxes, boxes), 1) >= HIT_IOU)
        for first, second in single[pairs].tolist():
            iou = float(overlaps(each.object_boxes[[first]], each.object_boxes[[second]])[0, 0])
            same_class = each.object_labels[first] == each.object_labels[second]
            if not same_class and (iou < SAME_BOX_IOU or self._inputs.ground_truth.is_lvis):
                continue
            support = [self._support(each, number, explained) for number in (first, second)]
            of_second = self._second_object(each, first, second)
            if not same_class and max(support) == 0:
                continue
            stays, goes = (first, second) if support[0] >= support[1] else (second, first)
            index = int(each.detection_of[stays])
            if each.detection_of[goes] >= 0:
                explained[each.detection_of[goes]] = True
            classes = " and ".join(sorted({self._names[each.object_labels[number]] for number in (first, second)}))
            yield self._error(
                each,
                "duplicate",
                "remove",
                iou**2 * (1 - of_second),
                number=goes,
                other=stays,
                detection=index if index >= 0 else None,
                box=each.object_boxes[goes],
                label=int(each.object_labels[goes]),
                text=f"two annotations of {classes} overlap by an IoU of {iou:.2f}"
                + (", and one detection explains both" if index >= 0 and each.detection_of[goes] < 0 else ""),
            )

    def _support(self, each: ImageEvidence, number: int, explained: NDArray[np.bool_]) -> float:
        """How well detections of its class confirm an annotation: sureness times IoU."""
        own = (each.labels == each.object_labels[number]) & (each.iou[:, number] >= HIT_IOU)
        return float((each.sureness * each.iou[:, number])[own].max(initial=0.0))

    def _second_object(self, each: ImageEvidence, first: int, second: int) -> float:
        """Sureness of the second object in the place of two annotations."""
        near = each.distinct[(each.iou[each.distinct][:, [first, second]] >= HIT_IOU).any(1)]
        return float(each.sureness[near[1]]) if len(near) > 1 else 0.0

    def _crowds(self, each: ImageEvidence, explained: NDArray[np.bool_]) -> Iterator[LabelError]:
        yield from self._around_several(each, explained)
        yield from self._single_crowds(each)

    def _around_several(self, each: ImageEvidence, explained: NDArray[np.bool_]) -> Iterator[LabelError]:
        """Boxes of one object with several of its class inside, which fill the box and are not annotated."""
        for number in np.flatnonzero(~each.crowd).tolist():
            own = each.labels == each.object_labels[number]
            within = own & (each.inside[:, number] >= PART_INSIDE) & (each.iou[:, number] < HIT_IOU)
            parts = np.flatnonzero(within & ~each.hits & ~each.ignored)
            parts = parts[one_for_each_object(each.boxes[parts])]
            parts = parts[each.sureness[parts] >= LISTED_FROM]
            if len(parts) < 2:
                continue
            filled = overlaps(_around(each.boxes[parts])[None], each.object_boxes[[number]])[0, 0]
            whole = float(each.sureness[each.iou[:, number] >= HIT_IOU].max(initial=0.0))  # of any class
            score = float(each.sureness[parts[1]]) * (1 - whole)
            if filled < HIT_IOU or score < LISTED_FROM:
                continue
            explained[parts] = True
            name = self._names[each.object_labels[number]]
            yield self._error(
                each,
                "crowd",
                "split",
                score,
                number=number,
                detection=int(parts[0]),
                box=each.object_boxes[number],
                parts=[each.boxes[part] for part in parts],
                text=f"one box of {name} is around {len(parts)} detected ones: annotate each, or mark it as a crowd",
            )

    def _single_crowds(self, each: ImageEvidence) -> Iterator[LabelError]:
        """Crowd flags on what is detected as one object."""
        for number in np.flatnonzero(each.crowd).tolist():
            own = each.distinct[each.labels[each.distinct] == each.object_labels[number]]
            whole = own[each.iou[own, number] >= HIT_IOU]
            if not len(whole):
                continue
            parts = own[(each.inside[own, number] >= PART_INSIDE) & (own != whole[0])]
            score = float(each.sureness[whole[0]] * (1 - each.sureness[parts].max(initial=0.0)))
            name = self._names[each.object_labels[number]]
            yield self._error(
                each,
                "crowd",
                "unmark crowd",
                score,
                number=number,
                detection=int(whole[0]),
                box=each.object_boxes[number],
                text=f"the box is marked as a crowd of {name}, and one {name} is detected that fills it",
            )

    def _name(self, each: ImageEvidence, index: int) -> str:
        return self._names[each.labels[index]]

    def _error(
        self,
        each: ImageEvidence,
        kind: Kind,
        action: Action,
        score: float,
        *,
        number: int | None = None,
        other: int | None = None,
        detection: int | None = None,
        box: NDArray[np.float64] | None = None,
        parts: Sequence[NDArray[np.float64]] = (),
        label: int | None = None,
        text: str,
    ) -> LabelError:
        if label is None:
            assert detection is not None
            label = int(each.labels[detection])
        return LabelError(
            kind=kind,
            action=action,
            image=each.image,
            image_id=int(self._inputs.image_ids[each.image]),
            score=round(min(max(score, 0.0), 1.0), 6),
            object_row=None if number is None else int(each.object_rows[number]),
            other_object_row=None if other is None else int(each.object_rows[other]),
            detection_row=None if detection is None else int(each.rows[detection]),
            box_xyxy=_corners(each.boxes[detection] if box is None else box),
            parts_xyxy=tuple(_corners(part) for part in parts),
            category_id=self._ids[label],
            explanation=text,
        )


def _around(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The box xywh around boxes xywh."""
    start, end = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
    return np.concatenate([start, end - start])


def _corners(box: NDArray[np.float64]) -> Box:
    x, y, width, height = box.tolist()
    return x, y, x + width, y + height


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
