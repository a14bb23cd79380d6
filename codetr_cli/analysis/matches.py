"""Which detection found which object, for all images and IoU thresholds at once, exactly as pycocotools matches them.

hotcoco matches in seconds but needs over a minute and 13 GB to list the matches of 1.5 million detections. Here only
pairs of one image and class with an IoU of 0.5 or more are compared, and the greedy rule runs over all images and
classes together: round r handles the detection with the r-th highest score of each.
Shape letters: N counted detections, G objects, I images, K classes, P pairs; the 10 IoU thresholds are 0.50:0.05:0.95.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.pairs import (
    AP50_MAX_DETS,
    COCO_MAX_DETS,
    PairedDetections,
    Pairs,
    group_ranks,
    pair_detections,
)
from codetr_cli.evaluation.backends import IouType

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_AREA = 1e5**2
"""COCO's largest area: larger objects, and unmatched detections that are larger, are ignored."""
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

    def without_ignored(self) -> Matches:
        """Without the detections that count at no IoU: AP is the same, and measured faster."""
        return self.select(~np.asarray(self.ignored.all(axis=0)))

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


def match_detections(inputs: AnalysisInputs, iou_type: IouType = "bbox", *, max_dets: int = COCO_MAX_DETS) -> Matches:
    """Matches detections to objects by COCO's rules, or by LVIS's where the annotations are LVIS's.

    Arguments and errors are those of `pair_detections`.
    """
    paired = pair_detections(inputs, iou_type, max_dets)
    objects, detections = inside_area(inputs)
    return match_pairs(paired, objects, detections if iou_type == "bbox" else np.ones_like(detections))


def inside_area(
    inputs: AnalysisInputs, area: tuple[float, float] = (0.0, MAX_AREA)
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which objects, (G,), and which detections, by row, have an area between two, in square pixels, as COCO has it."""
    of_objects = inputs.ground_truth.area[inputs.object_rows]
    w, h = inputs.detections.boxes_xywh[:, 2:].T
    return inside(of_objects, area), inside(w * h, area)


def inside(values: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.bool_]:
    """Which values are in a range; those on an edge are, as in COCO."""
    return (values >= limits[0]) & (values <= limits[1])


def match_pairs(
    paired: PairedDetections, objects_inside: NDArray[np.bool_], detections_inside: NDArray[np.bool_]
) -> Matches:
    """Matches paired detections to the objects of a part of the data, as AP by size does.

    Each detection, best score first, takes the free object of its image and class with the highest IoU from the
    threshold on, of equal IoUs the one that comes later in the file. Where there is none it may lie in a crowd, which
    takes any number; then the IoU is over the area of the detection alone.

    Args:
        paired: detections and objects.
        objects_inside: (G,) the objects to find; others are ignored, and so is what finds them.
        detections_inside: by row of the detections of the inputs, which are wrong where they find nothing; others are
            ignored.
    """
    inputs, counted = paired.inputs, paired.counted
    ignored = paired.crowds | ~objects_inside
    found = _assign(paired.pairs, counted.groups, ignored, paired.crowds)
    excused = paired.excused | ~detections_inside[counted.rows]
    is_ignored = np.repeat(excused[None], len(IOU_THRESHOLDS), axis=0)
    some = np.flatnonzero((found != NONE).any(axis=0))
    is_ignored[:, some] = np.where(found[:, some] == NONE, excused[some], np.append(ignored, False)[found[:, some]])
    return Matches(
        rows=counted.rows,
        images=counted.images,
        labels=counted.labels,
        scores=counted.scores,
        objects=found,
        ignored=is_ignored,
        object_rows=inputs.object_rows,
        object_images=paired.object_images,
        object_labels=paired.object_labels,
        object_ignored=ignored,
        num_images=len(inputs.image_ids),
        num_classes=len(inputs.ground_truth.category_ids),
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


# ------------------------------------------------------------------------------------------------------ the greedy rule


def _assign(
    pairs: Pairs, groups: NDArray[np.int64], ignored: NDArray[np.bool_], crowd: NDArray[np.bool_]
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
