"""The detections that count, and which of them overlap which object of their image and class enough to find it.

What an object or a detection has to be to count, such as its size, changes nothing here: one pairing serves all.
Shape letters: N counted detections, G objects, I images, K classes, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.evaluation.backends import IouType
from codetr_cli.evaluation.scoring import COCO_MAX_DETS as COCO_LIMITS
from codetr_cli.evaluation.scoring import LVIS_MAX_DETS, parsed_outlines

COCO_MAX_DETS = 100
"""Detections of an image and class that count, in the AP over IoU 0.50:0.95 of the published convention."""
AP50_MAX_DETS = max(COCO_LIMITS)
"""The same for AP50, AP75 and the AP by size."""
LEAST_IOU = 0.5
PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True, eq=False)
class Counted:
    """Detections that count, in the order of `Matches`; `groups` (N,) int64 numbers each pair of image and class."""

    rows: NDArray[np.int64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    groups: NDArray[np.int64]

    def select(self, chosen: NDArray[Any]) -> Counted:
        """Some of them, in the order of `chosen`."""
        columns = (self.rows, self.images, self.labels, self.scores, self.groups)
        return Counted(*(column[chosen] for column in columns))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections (P,) and objects (P,) int64 of one image and class, and their IoU (P,) float64 of 0.5 or more."""

    detections: NDArray[np.int64]
    objects: NDArray[np.int64]
    ious: NDArray[np.float64]

    @classmethod
    def join(cls, parts: Iterator[Pairs]) -> Pairs:
        """All pairs of several parts."""
        none = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        found = [none, *parts]
        return Pairs(
            np.concatenate([part.detections for part in found]),
            np.concatenate([part.objects for part in found]),
            np.concatenate([part.ious for part in found]),
        )


@dataclass(frozen=True, eq=False)
class PairedDetections:
    """Detections that count with the objects that they may find.

    Attributes:
        inputs: that they are from.
        counted: the detections.
        pairs: of them and objects.
        object_images: (G,) int64 number of the evaluated image of each object of `inputs.object_rows`.
        object_labels: (G,) int64 class index.
        crowds: (G,) bool: any number of detections may be in them, and nobody has to find them.
        excused: (N,) bool: detections that are not wrong where they find nothing, as not all objects of their class are
            annotated in the image (LVIS).
    """

    inputs: AnalysisInputs
    counted: Counted
    pairs: Pairs
    object_images: NDArray[np.int64]
    object_labels: NDArray[np.int64]
    crowds: NDArray[np.bool_]
    excused: NDArray[np.bool_]


def pair_detections(
    inputs: AnalysisInputs, iou_type: IouType = "bbox", max_dets: int = COCO_MAX_DETS
) -> PairedDetections:
    """Pairs the detections that count with the objects of their image and class.

    Args:
        inputs: detections and objects; for masks, both have them.
        iou_type: compare boxes ("bbox") or masks ("segm").
        max_dets: detections of an image and class that count; LVIS's rules have their own number.

    Raises:
        DatasetError: an object's outline is broken.
        ValueError: detections of images or categories that the annotations do not have.
    """
    ground_truth, rows = inputs.ground_truth, inputs.object_rows
    images = np.searchsorted(inputs.image_ids, ground_truth.image_ids[ground_truth.image_rows[rows]]).astype(np.int64)
    labels = np.asarray(ground_truth.labels[rows], np.int64)
    groups = images * len(ground_truth.category_ids) + labels
    crowds = np.zeros(len(rows), bool) if ground_truth.is_lvis else ground_truth.iscrowd[rows] != 0
    counted = _counted_detections(inputs, iou_type, groups, max_dets)
    parts = (_box_pairs if iou_type == "bbox" else _mask_pairs)(inputs, counted, groups, crowds)
    excused = np.zeros(len(counted.rows), bool)
    if ground_truth.is_lvis:
        excused = np.isin(counted.groups, _listed_groups(inputs, ground_truth.not_exhaustive_category_ids))
    return PairedDetections(inputs, counted, Pairs.join(parts), images, labels, crowds, excused)


# ---------------------------------------------------------------------------------------------- detections that count


def _counted_detections(
    inputs: AnalysisInputs, iou_type: IouType, object_groups: NDArray[np.int64], max_dets: int
) -> Counted:
    detections, category_ids = inputs.detections, np.array(inputs.ground_truth.category_ids, np.int64)
    images = _indices(inputs.image_ids, detections.image_ids, "images")
    labels = _indices(category_ids, detections.category_ids, "categories")
    scores = detections.scores if iou_type == "bbox" else detections.ranking_of_masks()
    groups = images * len(category_ids) + labels
    counted = Counted(np.arange(len(scores)), images, labels, np.asarray(scores, np.float64), groups)
    if (np.diff(images) < 0).any():
        counted = counted.select(np.argsort(images, kind="stable"))
    counted = counted.select(np.argsort(-counted.scores, kind="stable"))
    if inputs.ground_truth.is_lvis:
        counted = counted.select(group_ranks(counted.images) < LVIS_MAX_DETS)
        annotated = np.concatenate([object_groups, _listed_groups(inputs, inputs.ground_truth.neg_category_ids)])
        counted = counted.select(np.isin(counted.groups, annotated))
    else:
        counted = counted.select(group_ranks(counted.groups) < max_dets)
    return counted.select(np.argsort(counted.labels.astype(np.int32), kind="stable"))


def _indices(known: NDArray[np.int64], ids: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    """Where each of `ids` is in `known`, which ascends."""
    found = np.searchsorted(known, ids).astype(np.int64)
    if len(ids) and (not len(known) or not np.array_equal(known[found.clip(max=len(known) - 1)], ids)):
        raise ValueError(f"detections of {what} that the annotations do not have")
    return found


def group_ranks(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how many earlier entries have the same value."""
    order = np.argsort(groups, kind="stable")
    is_first = np.append(True, np.diff(groups[order]) != 0)[: len(order)]
    starts = np.flatnonzero(is_first)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - starts[np.cumsum(is_first) - 1]
    return ranks


def _listed_groups(inputs: AnalysisInputs, lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The groups of LVIS's lists of categories, one list for each image of the annotations."""
    category_ids = np.array(inputs.ground_truth.category_ids, np.int64)
    of_images = [np.asarray(lists[row], np.int64) for row in inputs.file_rows.tolist()]
    if not of_images:
        return np.zeros(0, np.int64)
    images = np.repeat(np.arange(len(of_images)), [len(ids) for ids in of_images])
    ids = np.concatenate(of_images)
    labels = np.searchsorted(category_ids, ids).clip(max=len(category_ids) - 1)
    known = category_ids[labels] == ids
    groups: NDArray[np.int64] = (images * len(category_ids) + labels)[known].astype(np.int64)
    return groups


# --------------------------------------------------------------------------------------------------------------- pairs


def _object_spans(
    counted: Counted, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The objects of each detection's image and class.

    Returns:
        The objects in the order of their groups, (G,); the detections with objects, (D,); where the objects of each
        start in that order, (D,), and how many there are, (D,).
    """
    order = np.argsort(groups, kind="stable")
    known, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    if not len(known):
        none = np.zeros(0, np.int64)
        return order, none, none, none
    places = np.searchsorted(known, counted.groups).clip(max=len(known) - 1)
    detections = np.flatnonzero(known[places] == counted.groups)
    places = places[detections]
    return order, detections, starts[places], counts[places]


def _box_pairs(
    inputs: AnalysisInputs, counted: Counted, groups: NDArray[np.int64], crowd: NDArray[np.bool_]
) -> Iterator[Pairs]:
    order, detections, starts, counts = _object_spans(counted, groups)
    ends = np.cumsum(counts)
    boxes, object_boxes = inputs.detections.boxes_xywh[counted.rows], inputs.ground_truth.boxes_xywh[inputs.object_rows]
    first = 0
    while first < len(detections):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
        repeats = counts[first:last]
        detection = np.repeat(detections[first:last], repeats)
        within = np.arange(len(detection)) - np.repeat(ends[first:last] - repeats - done, repeats)
        objects = order[np.repeat(starts[first:last], repeats) + within]
        ious = _box_ious(boxes[detection], object_boxes[objects], crowd[objects])
        near = ious >= LEAST_IOU
        yield Pairs(detection[near], objects[near], ious[near])
        first = last


def _box_ious(
    boxes: NDArray[np.float64], object_boxes: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(P,) IoU of boxes (P, 4) and (P, 4) xywh, operation for operation as pycocotools: ties must stay ties."""
    x, y, w, h = boxes.T
    object_x, object_y, object_w, object_h = object_boxes.T
    overlap_w = np.minimum(w + x, object_w + object_x) - np.maximum(x, object_x)
    overlap_h = np.minimum(h + y, object_h + object_y) - np.maximum(y, object_y)
    area, overlap = w * h, overlap_w * overlap_h
    union = np.where(crowd, area, area + object_w * object_h - overlap)
    overlapping = (overlap_w > 0) & (overlap_h > 0)
    return np.divide(overlap, union, out=np.zeros(len(boxes)), where=overlapping)


def _mask_pairs(
    inputs: AnalysisInputs, counted: Counted, groups: NDArray[np.int64], crowd: NDArray[np.bool_]
) -> Iterator[Pairs]:
    """As `_box_pairs` with masks, one image and class after another."""
    masks = inputs.detections.masks or []
    order, detections, starts, counts = _object_spans(counted, groups)
    outlines = object_codes(inputs, inputs.object_rows) if len(detections) else []
    by_span = np.argsort(starts, kind="stable")
    bounds = [0, *(np.flatnonzero(np.diff(starts[by_span])) + 1).tolist(), len(by_span)] if len(by_span) else [0]
    for begin, end in pairwise(bounds):
        of_group = by_span[begin:end]
        found = detections[of_group]
        start = starts[of_group[0]]
        objects = order[start : start + counts[of_group[0]]]
        ious = mask_utils.iou(
            [masks[row] for row in counted.rows[found].tolist()],
            [outlines[index] for index in objects.tolist()],
            crowd[objects].astype(np.uint8).tolist(),
        )
        near = np.nonzero(ious >= LEAST_IOU)
        yield Pairs(found[near[0]], objects[near[1]], ious[near])


def object_codes(inputs: AnalysisInputs, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The outlines of the objects in some rows of the annotations as run-length codes.

    Raises:
        DatasetError: an outline is broken.
    """
    ground_truth = inputs.ground_truth
    sizes = ground_truth.sizes[ground_truth.image_rows[rows]].tolist()
    codes = []
    for outline, (height, width) in zip(
        parsed_outlines(ground_truth, rows, str(inputs.paths.annotations_path)), sizes, strict=True
    ):
        if isinstance(outline, list):
            outline = mask_utils.merge(mask_utils.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            outline = mask_utils.frPyObjects(outline, height, width)
        codes.append(outline)
    return codes
