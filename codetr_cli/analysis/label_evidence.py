"""How surely the best detections are objects, and how they overlap the annotated objects of their images.

The annotations under suspicion are the only truth there is. So a score is judged by all of them: of detections with
about this score, so many are annotated objects. Most labels of a data set are right, which makes this a good estimate.
Shape letters: D judged detections, G annotated objects of an image, d its judged detections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
MOST_ERRORS = 0.07
"""Share of annotations that are wrong in one way, at most: a network that disagrees with more is itself wrong."""
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
        sureness: (d,) float64 in [0, 1]: of detections with such a score that are not on objects of other classes,
            this share are annotated objects.
        hits: (d,) bool, has found an object of its class.
        distinct: indices of detections without other readings of the same objects.
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
    distinct: NDArray[np.int64]
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
        surest: share of the quarter with the highest scores.
    """

    scores: Floats
    shares: Floats
    surest: float

    @classmethod
    def of(cls, scores: Floats, hits: NDArray[np.bool_]) -> Sureness:
        """Isotonic regression of `hits` on `scores`; each step as if one hit and one false alarm more had its score."""
        if not len(scores):
            return cls(np.zeros(1), np.full(1, 0.5), 0.5)
        order = np.argsort(scores, kind="stable")
        found = hits[order].astype(np.float64)
        blocks = isotonic_regression(found).blocks
        starts, ends = blocks[:-1], blocks[1:]
        shares = np.maximum.accumulate((np.add.reduceat(found, starts) + 1) / (ends - starts + 2))
        quarter = found[np.searchsorted(np.cumsum(found), 0.75 * found.sum()) :]
        return cls(scores[order][starts], shares, float((quarter.sum() + 1) / (len(quarter) + 2)))

    def __call__(self, scores: Floats) -> Floats:
        """(N,) the shares at some scores."""
        found: Floats = self.shares[np.maximum(np.searchsorted(self.scores, scores, side="right") - 1, 0)]
        return found

    def suspicion(self, share: float) -> float:
        """How likely an annotation is wrong that disagrees with a detection of some share, in [0, 1].

        At most as likely as the detection is right, the share itself. By Bayes' rule it is the odds of the share times
        those of an error of annotation, of which nobody knows how many there are: at most as many as disagree with
        the surest quarter of detections, and hardly more than `MOST_ERRORS`. The result is the geometric mean of both.
        """
        errors = min(1 - self.surest, MOST_ERRORS)
        return float(share * np.sqrt(min(_odds(share) * _odds(errors), 1.0)))


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of a data set.

    Attributes:
        images: those that have detections or objects.
        presence: share of detections by their score that are annotated objects, without those on objects of other
            classes.
        reading: share of annotated objects that have the class detected on them, by how much its score is above that
            of the next best class there.
    """

    images: list[ImageEvidence]
    presence: Sureness
    reading: Sureness


def gather_evidence(inputs: AnalysisInputs) -> Evidence:
    """The evidence of each image, and what scores mean over all of them."""
    images = list(_matched_images(inputs))
    scores, hits = _joined([(each.scores[keep], each.hits[keep]) for each in images for keep in [_present(each)]])
    presence = Sureness.of(scores, hits > 0)
    margins, right = _joined([_readings(each) for each in images])
    for each in images:
        each.sureness[:] = presence(each.scores)
    return Evidence(images, presence, Sureness.of(margins, right > 0))


def readings_of(each: ImageEvidence, number: int) -> tuple[int, float]:
    """The best detection on an object and the margin of its score over the best one of another class; -1: none."""
    near = np.flatnonzero(each.iou[:, number] >= HIT_IOU)
    if not len(near):
        return -1, 0.0
    best = int(near[0])
    others = near[each.labels[near] != each.labels[best]]
    return best, float(each.scores[best] - (each.scores[others[0]] if len(others) else 0.0))


def _readings(each: ImageEvidence) -> tuple[Floats, NDArray[np.bool_]]:
    """Margins of the best detections on objects, and whether they have the class of the object."""
    margins, right = [], []
    for number in np.flatnonzero(~each.crowd).tolist():
        best, margin = readings_of(each, number)
        if best < 0 or each.ignored[best]:
            continue
        same = bool(each.labels[best] == each.object_labels[number])
        if same or not each.hits[best]:  # one that has found another object does not speak against this one
            margins.append(margin)
            right.append(same)
    return np.array(margins, np.float64), np.array(right, bool)


def _present(each: ImageEvidence) -> NDArray[np.bool_]:
    """Detections that say whether something is there: hits, and those on no annotated object."""
    is_distinct = np.zeros(len(each.rows), bool)
    is_distinct[each.distinct] = True
    return ~each.ignored & (each.hits | (is_distinct & ~(each.iou >= HIT_IOU).any(1)))


def _joined(pairs: Sequence[tuple[Floats, NDArray[np.bool_]]]) -> tuple[Floats, NDArray[np.bool_]]:
    first, second = zip(*pairs, strict=True) if pairs else ([np.zeros(0)], [np.zeros(0, bool)])
    return np.concatenate(first), np.concatenate(second)


def _odds(share: float) -> float:
    return share / (1 - share)


def overlaps(first: Floats, second: Floats, *, inside: bool = False) -> Floats:
    """(N, M) IoU of boxes xywh; or the share of each first box within each second one."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    found = coco_mask.iou(np.ascontiguousarray(first), np.ascontiguousarray(second), [int(inside)] * len(second))
    return np.asarray(found, np.float64).reshape(len(first), len(second))


def one_for_each_object(boxes: Floats) -> NDArray[np.int64]:
    """Indices of detections, best first, without those that show the object of a better one."""
    alike = np.tril(overlaps(boxes, boxes) >= ONE_OBJECT_IOU, -1)
    kept = np.logical_not(alike.any(axis=1))
    for index in np.flatnonzero(~kept).tolist():
        kept[index] = not (alike[index] & kept).any()
    return np.flatnonzero(kept)


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
        distinct=one_for_each_object(boxes),
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
