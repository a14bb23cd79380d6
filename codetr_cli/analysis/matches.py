"""Which detection found which object, for all images and IoU thresholds at once, exactly as pycocotools matches them.

hotcoco matches in seconds but needs over a minute and 13 GB to list the matches of 1.5 million detections. Here only
pairs of one image and class with an IoU of 0.5 or more are compared, and the greedy rule runs over all images and
classes together: round r handles the detection with the r-th highest score of each.
Shape letters: N counted detections, G objects, I images, K classes, P pairs; the 10 IoU thresholds are 0.50:0.05:0.95.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.evaluation.backends import IouType
from codetr_cli.evaluation.scoring import COCO_MAX_DETS as COCO_LIMITS
from codetr_cli.evaluation.scoring import LVIS_MAX_DETS, parsed_outlines

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_MAX_DETS = 100
"""Detections of an image and class that count, in the AP over IoU 0.50:0.95 of the published convention."""
AP50_MAX_DETS = max(COCO_LIMITS)
"""The same for AP50, AP75 and the AP by size."""
MAX_AREA = 1e5**2
"""COCO's largest area: larger objects, and unmatched detections that are larger, are ignored."""
PAIRS_AT_ONCE = 2_000_000
NONE = -1
"""In `Matches.objects`: no object was found."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections that count, each with the object that it found.

    By COCO's rules, the 100 best detections of each image and class; by LVIS's, the 300 best of each image over all
    classes, without those of classes that the image was not annotated for. They are sorted by class, then by falling
    score, then by image, then by row: the order in which AP counts them.

    Attributes:
        rows: (N,) int64 rows in the detections of the inputs.
        images: (N,) int64 number of the evaluated image, in [0, I).
        labels: (N,) int64 class index, in [0, K).
        scores: (N,) float64 in [0, 1]; of masks, the score that they are ranked by.
        objects: (10, N) int32 index into `object_rows` of the object found at each IoU threshold, -1 for none.
        ignored: (10, N) bool: neither right nor wrong, such as a detection in a crowd.
        object_rows: (G,) int64 ascending rows in the annotations.
        object_images: (G,) int64 number of the evaluated image.
        object_labels: (G,) int64 class index.
        object_ignored: (G,) bool: crowds, which nobody has to find.
        num_images: I.
        num_classes: K.
    """

    rows: NDArray[np.int64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    objects: NDArray[np.int32]
    ignored: NDArray[np.bool_]
    object_rows: NDArray[np.int64]
    object_images: NDArray[np.int64]
    object_labels: NDArray[np.int64]
    object_ignored: NDArray[np.bool_]
    num_images: int
    num_classes: int

    def hits(self, level: int = 0) -> NDArray[np.bool_]:
        """(N,) which detections found an object that counts, at IoU threshold number `level` (0: 0.50, 9: 0.95)."""
        found: NDArray[np.bool_] = (self.objects[level] != NONE) & ~self.ignored[level]
        return found

    def false_alarms(self, level: int = 0) -> NDArray[np.bool_]:
        """(N,) which detections are wrong at an IoU threshold: they found nothing and are not ignored."""
        wrong: NDArray[np.bool_] = (self.objects[level] == NONE) & ~self.ignored[level]
        return wrong

    def select(self, chosen: NDArray[np.bool_]) -> Matches:
        """The chosen (N,) bool detections, as if the others found nothing; all objects.

        Matches stay right where the chosen ones of an image and class are its best.
        """
        return replace(
            self,
            rows=self.rows[chosen],
            images=self.images[chosen],
            labels=self.labels[chosen],
            scores=self.scores[chosen],
            objects=self.objects[:, chosen],
            ignored=self.ignored[:, chosen],
        )

    @property
    def class_starts(self) -> NDArray[np.int64]:
        """(K + 1,) the detections of class k are number class_starts[k] to class_starts[k + 1]."""
        return np.searchsorted(self.labels, np.arange(self.num_classes + 1)).astype(np.int64)

    @property
    def class_objects(self) -> NDArray[np.int64]:
        """(K,) number of objects to find of each class, crowds not counted."""
        counts: NDArray[np.int64] = np.bincount(
            self.object_labels[~self.object_ignored], minlength=self.num_classes
        ).astype(np.int64)
        return counts


@dataclass(frozen=True, eq=False)
class _Counted:
    """Detections that count, in the order of `Matches`; `groups` (N,) int64 numbers each pair of image and class."""

    rows: NDArray[np.int64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    groups: NDArray[np.int64]

    def select(self, chosen: NDArray[Any]) -> _Counted:
        """Some of them, in the order of `chosen`."""
        columns = (self.rows, self.images, self.labels, self.scores, self.groups)
        return _Counted(*(column[chosen] for column in columns))


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Detections (P,) and objects (P,) int64 of one image and class, and their IoU (P,) float64 of 0.5 or more."""

    detections: NDArray[np.int64]
    objects: NDArray[np.int64]
    ious: NDArray[np.float64]

    @classmethod
    def join(cls, parts: Iterator[_Pairs]) -> _Pairs:
        """All pairs of several parts."""
        none = _Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        found = [none, *parts]
        return _Pairs(
            np.concatenate([part.detections for part in found]),
            np.concatenate([part.objects for part in found]),
            np.concatenate([part.ious for part in found]),
        )


def match_detections(
    inputs: AnalysisInputs,
    iou_type: IouType = "bbox",
    *,
    area: tuple[float, float] = (0.0, MAX_AREA),
    max_dets: int = COCO_MAX_DETS,
) -> Matches:
    """Matches detections to objects by COCO's rules, or by LVIS's where the annotations are LVIS's.

    Each detection, best score first, takes the free object of its image and class with the highest IoU from the
    threshold on, of equal IoUs the one that comes later in the file. Where there is none it may lie in a crowd, which
    takes any number; then the IoU is over the area of the detection alone.

    Args:
        inputs: detections and objects; for masks, both have them.
        iou_type: compare boxes ("bbox") or masks ("segm").
        area: smallest and largest area, in square pixels, of the objects to find, as AP by size has it; others are
            ignored, and so are unmatched detections of another area. Only for boxes.
        max_dets: detections of an image and class that count; LVIS's rules have their own number.

    Raises:
        DatasetError: an object's outline is broken.
        ValueError: detections of images or categories that the annotations do not have.
    """
    ground_truth, rows = inputs.ground_truth, inputs.object_rows
    num_classes = len(ground_truth.category_ids)
    images = np.searchsorted(inputs.image_ids, ground_truth.image_ids[ground_truth.image_rows[rows]]).astype(np.int64)
    labels = np.asarray(ground_truth.labels[rows], np.int64)
    groups = images * num_classes + labels
    crowd = np.zeros(len(rows), bool) if ground_truth.is_lvis else ground_truth.iscrowd[rows] != 0
    object_area = ground_truth.area[rows]
    ignored = crowd | (object_area < area[0]) | (object_area > area[1])
    counted = _counted_detections(inputs, iou_type, groups, max_dets)
    if iou_type == "bbox":
        parts = _box_pairs(inputs, counted, groups, crowd)
    else:
        parts = _mask_pairs(inputs, counted, groups, crowd)
    objects = _assign(_Pairs.join(parts), counted.groups, ignored, crowd)
    excused = _excused(inputs, counted, iou_type, area)
    return Matches(
        rows=counted.rows,
        images=counted.images,
        labels=counted.labels,
        scores=counted.scores,
        objects=objects,
        ignored=np.where(objects == NONE, excused, np.append(ignored, False)[objects]),
        object_rows=rows,
        object_images=images,
        object_labels=labels,
        object_ignored=ignored,
        num_images=len(inputs.image_ids),
        num_classes=num_classes,
    )


def matches_of_ap50(inputs: AnalysisInputs, matches: Matches, iou_type: IouType = "bbox") -> Matches:
    """The matches of all detections that AP50 counts, which may be more than AP counts.

    Args:
        inputs: detections and objects.
        matches: of these by `match_detections`; they are the result where no image has more detections of a class.
        iou_type: of `matches`.
    """
    if inputs.ground_truth.is_lvis or len(matches.rows) == len(inputs.detections):
        return matches
    return match_detections(inputs, iou_type, max_dets=AP50_MAX_DETS)


# ---------------------------------------------------------------------------------------------- detections that count


def _counted_detections(
    inputs: AnalysisInputs, iou_type: IouType, object_groups: NDArray[np.int64], max_dets: int
) -> _Counted:
    detections, category_ids = inputs.detections, np.array(inputs.ground_truth.category_ids, np.int64)
    images = _indices(inputs.image_ids, detections.image_ids, "images")
    labels = _indices(category_ids, detections.category_ids, "categories")
    scores = detections.scores if iou_type == "bbox" else detections.ranking_of_masks()
    groups = images * len(category_ids) + labels
    counted = _Counted(np.arange(len(scores)), images, labels, np.asarray(scores, np.float64), groups)
    if (np.diff(images) < 0).any():
        counted = counted.select(np.argsort(images, kind="stable"))
    counted = counted.select(np.argsort(-counted.scores, kind="stable"))
    if inputs.ground_truth.is_lvis:
        counted = counted.select(group_ranks(counted.images) < LVIS_MAX_DETS)
        annotated = np.concatenate([object_groups, _listed(inputs, inputs.ground_truth.neg_category_ids)])
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


def _listed(inputs: AnalysisInputs, lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
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


def _excused(
    inputs: AnalysisInputs, counted: _Counted, iou_type: IouType, area: tuple[float, float]
) -> NDArray[np.bool_]:
    """(N,) which detections are not wrong where they found nothing."""
    excused = np.zeros(len(counted.rows), bool)
    if iou_type == "bbox":
        w, h = inputs.detections.boxes_xywh[counted.rows, 2:].T
        excused = (w * h < area[0]) | (w * h > area[1])
    if inputs.ground_truth.is_lvis:
        excused |= np.isin(counted.groups, _listed(inputs, inputs.ground_truth.not_exhaustive_category_ids))
    return excused


# --------------------------------------------------------------------------------------------------------------- pairs


def _object_spans(
    counted: _Counted, groups: NDArray[np.int64]
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
    inputs: AnalysisInputs, counted: _Counted, groups: NDArray[np.int64], crowd: NDArray[np.bool_]
) -> Iterator[_Pairs]:
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
        near = ious >= IOU_THRESHOLDS[0]
        yield _Pairs(detection[near], objects[near], ious[near])
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
    inputs: AnalysisInputs, counted: _Counted, groups: NDArray[np.int64], crowd: NDArray[np.bool_]
) -> Iterator[_Pairs]:
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
        near = np.nonzero(ious >= IOU_THRESHOLDS[0])
        yield _Pairs(found[near[0]], objects[near[1]], ious[near])


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


# ------------------------------------------------------------------------------------------------------ the greedy rule


def _assign(
    pairs: _Pairs, groups: NDArray[np.int64], ignored: NDArray[np.bool_], crowd: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """(10, N) the object that each detection takes.

    Args:
        pairs: that may match.
        groups: (N,) of the detections, in the order in which those of a group choose.
        ignored: (G,) objects that are taken only where no other is free.
        crowd: (G,) objects that any number of detections take.
    """
    found = np.full((len(IOU_THRESHOLDS), len(groups)), NONE, np.int32)
    taken = np.zeros((len(ignored), len(IOU_THRESHOLDS)), bool)
    candidates = np.unique(pairs.detections)
    rank = np.zeros(len(groups), np.int64)
    rank[candidates] = group_ranks(groups[candidates])
    ranks = rank[pairs.detections]
    order = np.lexsort((-pairs.objects, -pairs.ious, ignored[pairs.objects], pairs.detections, ranks))
    detections, objects, ious = pairs.detections[order], pairs.objects[order], pairs.ious[order]
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    reusable = crowd[:, None]
    for begin, end in pairwise(np.searchsorted(ranks[order], np.arange(int(ranks.max(initial=NONE)) + 2)).tolist()):
        choices, chosen_by = objects[begin:end], detections[begin:end]
        free = (ious[begin:end, None] >= limits) & (~taken[choices] | reusable[choices])  # (P, 10)
        starts = np.flatnonzero(np.diff(chosen_by, prepend=NONE))
        numbers = np.where(free, np.arange(len(choices))[:, None], len(choices))
        first = np.minimum.reduceat(numbers, starts, axis=0)  # (detections of this round, 10)
        which, level = np.nonzero(first < len(choices))
        best = choices[first[which, level]]
        found[level, chosen_by[starts[which]]] = best
        taken[best, level] = True
    return found
