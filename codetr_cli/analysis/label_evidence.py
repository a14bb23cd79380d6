"""How surely the best detections are objects, and how they overlap the annotated objects of their images.

The annotations under suspicion are the only truth there is. So a score is judged by all of them: of detections with
about this score, so many are annotated objects. Most labels of a data set are right, which makes this a good estimate.
Shape letters: D judged detections, G annotated objects of an image, d its judged detections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.optimize import isotonic_regression

from codetr_cli.analysis.inputs import AnalysisInputs

HIT_IOU = 0.5
"""IoU from which a detection has found an object, COCO's lowest."""
JUDGED_PER_OBJECT = 5
"""Best detections that are judged, for each annotated object of the data set; those below prove nothing."""
PER_IMAGE = 100
"""Detections of an image that are judged at most."""
ONE_OBJECT_IOU = 0.7
"""Detections that overlap so much show one object: a network has several readings of it, under several classes."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImageEvidence:
    """Detections and annotated objects of one image. All arrays of detections are in the order of falling scores.

    Attributes:
        image: number of the evaluated image.
        rows: (d,) rows of the detections.
        labels: (d,) class indices of the detections.
        boxes: (d, 4) xywh pixels of the detections.
        scores: (d,) float64.
        sureness: (d,) float64 in [0, 1]: share of detections with such a score that are annotated objects.
        hits: (d,) bool, has found an object of its class.
        ignored: (d,) bool, found in a crowd, or not to be judged by the annotations.
        object_rows: (G,) rows in the annotations, crowds too.
        object_labels: (G,) class indices.
        object_boxes: (G, 4) xywh pixels.
        crowd: (G,) bool.
        iou: (d, G) overlap of detections and objects; a crowd's is IoU, too.
        inside: (d, G) share of each detection within each object.
        detection_of: (G,) the detection that has found each object; -1: none.
    """

    image: int
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: Floats
    scores: Floats
    sureness: Floats
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    object_rows: NDArray[np.int64]
    object_labels: NDArray[np.int64]
    object_boxes: Floats
    crowd: NDArray[np.bool_]
    iou: Floats
    inside: Floats
    detection_of: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sureness:
    """The share of detections that are annotated objects, as a step function of the score that never falls.

    Attributes:
        scores: (S,) ascending: lowest score of each step.
        shares: (S,) in (0, 1), ascending.
    """

    scores: Floats
    shares: Floats

    @classmethod
    def of(cls, scores: Floats, hits: NDArray[np.bool_]) -> Sureness:
        """Isotonic regression of `hits` on `scores`; each step as if one hit and one false alarm more had its score."""
        if not len(scores):
            return cls(np.zeros(1), np.full(1, 0.5))
        order = np.argsort(scores, kind="stable")
        blocks = isotonic_regression(hits[order].astype(np.float64)).blocks
        starts, ends = blocks[:-1], blocks[1:]
        sums = np.add.reduceat(hits[order].astype(np.float64), starts)
        shares = np.maximum.accumulate((sums + 1) / (ends - starts + 2))
        return cls(scores[order][starts], shares)

    def __call__(self, scores: Floats) -> Floats:
        """(N,) the shares at some scores."""
        found: Floats = self.shares[np.maximum(np.searchsorted(self.scores, scores, side="right") - 1, 0)]
        return found

    @property
    def best(self) -> float:
        """The share of the surest detections. What is missing to 1 is false alarms and missing labels."""
        return float(self.shares[-1])


def gather_evidence(inputs: AnalysisInputs) -> tuple[list[ImageEvidence], Sureness]:
    """The evidence of each image that has detections or objects, and how surely a score means an object."""
    found = list(_matched_images(inputs))
    judged = [~each.ignored for each in found]
    scores = np.concatenate([each.scores[keep] for each, keep in zip(found, judged, strict=True)] or [np.zeros(0)])
    hits = np.concatenate([each.hits[keep] for each, keep in zip(found, judged, strict=True)] or [np.zeros(0, bool)])
    sureness = Sureness.of(scores, hits)
    for each in found:
        each.sureness[:] = sureness(each.scores)
    return found, sureness


def overlaps(first: Floats, second: Floats, *, inside: bool = False) -> Floats:
    """(N, M) IoU of boxes xywh; or the share of each first box within each second one."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    found = coco_mask.iou(np.ascontiguousarray(first), np.ascontiguousarray(second), [int(inside)] * len(second))
    return np.asarray(found, np.float64).reshape(len(first), len(second))


def one_for_each_object(boxes: Floats) -> NDArray[np.int64]:
    """Indices of detections, best first, without those that show the object of a better one."""
    alike = overlaps(boxes, boxes) >= ONE_OBJECT_IOU
    kept: list[int] = []
    for index in range(len(boxes)):
        if not alike[index, kept].any():
            kept.append(index)
    return np.array(kept, np.int64)


def _matched_images(inputs: AnalysisInputs) -> Iterator[ImageEvidence]:
    truth, detections = inputs.ground_truth, inputs.detections
    object_rows = inputs.object_rows[~truth.ignore[inputs.object_rows]]
    number_of_row = np.full(len(truth.image_ids), -1)
    number_of_row[inputs.file_rows] = np.arange(len(inputs.file_rows))
    objects_of = _groups(number_of_row[truth.image_rows[object_rows]], len(inputs.image_ids))
    kept = _best_rows(inputs, JUDGED_PER_OBJECT * max(len(object_rows), len(inputs.image_ids)))
    numbers = np.searchsorted(inputs.image_ids, detections.image_ids[kept])
    detections_of = _groups(numbers, len(inputs.image_ids))
    labels = np.searchsorted(np.array(truth.category_ids, np.int64), detections.category_ids)
    for image in range(len(inputs.image_ids)):
        rows, of_image = kept[detections_of[image]][:PER_IMAGE], object_rows[objects_of[image]]
        if len(rows) or len(of_image):
            yield _matched(inputs, image, rows, labels[rows], of_image)


def _best_rows(inputs: AnalysisInputs, count: int) -> NDArray[np.int64]:
    """Rows of the best detections of the data set, best first."""
    scores = inputs.detections.scores
    if count < len(scores):
        rows = np.argpartition(-scores, count)[:count]
        return rows[np.lexsort((rows, -scores[rows]))]
    return np.argsort(-scores, kind="stable")


def _groups(numbers: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The indices that have each number, in their order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count)))


def _matched(
    inputs: AnalysisInputs,
    image: int,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    object_rows: NDArray[np.int64],
) -> ImageEvidence:
    """Detections matched as COCO does: best first, each with the free object of its class that it overlaps most."""
    truth = inputs.ground_truth
    boxes, object_boxes = inputs.detections.boxes_xywh[rows], truth.boxes_xywh[object_rows]
    object_labels = truth.labels[object_rows]
    crowd = (truth.iscrowd[object_rows] != 0) & (not truth.is_lvis)
    iou, inside = overlaps(boxes, object_boxes), overlaps(boxes, object_boxes, inside=True)
    same = labels[:, None] == object_labels
    detection_of = np.full(len(object_rows), -1, np.int64)
    candidates = np.where(same & ~crowd, iou, 0.0)
    hits = np.zeros(len(rows), bool)
    for index in np.flatnonzero((candidates >= HIT_IOU).any(1)).tolist() if len(object_rows) else ():
        free = np.where(detection_of < 0, candidates[index], 0.0)
        if free.max() >= HIT_IOU:
            hits[index] = True
            detection_of[free.argmax()] = index
    ignored = ~hits & (same & crowd & (inside >= HIT_IOU)).any(1)
    if truth.is_lvis:
        ignored |= ~hits & ~np.isin(labels, _exhaustive_labels(inputs, image, object_labels))
    return ImageEvidence(
        image=image,
        rows=rows,
        labels=labels,
        boxes=boxes,
        scores=inputs.detections.scores[rows],
        sureness=np.zeros(len(rows)),
        hits=hits,
        ignored=ignored,
        object_rows=object_rows,
        object_labels=object_labels,
        object_boxes=object_boxes,
        crowd=crowd,
        iou=iou,
        inside=inside,
        detection_of=detection_of,
    )


def _exhaustive_labels(inputs: AnalysisInputs, image: int, annotated: NDArray[np.int64]) -> NDArray[np.int64]:
    """LVIS: classes of which every object in an image is annotated."""
    truth, row = inputs.ground_truth, inputs.file_rows[image]
    ids = np.array(truth.category_ids, np.int64)
    absent, partial = (
        np.searchsorted(ids, np.array(lists[row], np.int64))
        for lists in (truth.neg_category_ids, truth.not_exhaustive_category_ids)
    )
    return np.setdiff1d(np.union1d(annotated, absent), partial)
