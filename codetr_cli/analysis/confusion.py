"""Which class is taken for which: a confusion matrix with background, and examples of each confusion.

Each detection from a score on, best first, takes the free object of any class that it overlaps most, from IoU 0.50 on.
Detections in crowds, and those that LVIS's rules ignore, are not counted.
Shape letters: K classes, N detections, G objects, P pairs of classes: with 1,203 classes, few of the million occur.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import Matches
from codetr_cli.analysis.overlaps import PlacedBoxes, overlapping_pairs

EXAMPLES = 3
"""Examples of each confusion: the detections with the highest scores, and the largest of missed objects."""


@dataclass(frozen=True)
class Example:
    """One confusion.

    Attributes:
        image: number of the evaluated image.
        object_row: of the object in the annotations; of a detection that finds none, the object that it overlaps most,
            from IoU 0.50 on, which another detection has taken; None: there is none.
        detection_row: in the detections; None: an object that no detection takes.
    """

    image: int
    object_row: int | None
    detection_row: int | None


@dataclass(frozen=True, eq=False)
class Confusion:
    """Objects by their class and by the class that was detected in their place.

    Attributes:
        class_names: K names.
        true: (P,) int64 class index of the objects of each pair that occurs; K: background, there is no object.
        found: (P,) int64 class index of the detections of each pair; K: background, nothing was detected.
        counts: (P,) int64 how often it occurs.
        repeated: number of detections without an object that are on one that another detection has taken.
        threshold: score from which detections count.
        iou: from which a detection is in the place of an object.
        examples: by row and column of the matrix, off its diagonal, at most `EXAMPLES` each.
    """

    class_names: list[str]
    true: NDArray[np.int64]
    found: NDArray[np.int64]
    counts: NDArray[np.int64]
    repeated: int
    threshold: float
    iou: float
    examples: dict[tuple[int, int], list[Example]]

    @cached_property
    def matrix(self) -> NDArray[np.int64]:
        """(K + 1, K + 1) rows are annotated classes, columns detected ones, the last of each is background."""
        size = len(self.class_names) + 1
        matrix = np.zeros((size, size), np.int64)
        matrix[self.true, self.found] = self.counts
        return matrix


def confusion_matrix(inputs: AnalysisInputs, matches: Matches, threshold: float, iou: float = 0.5) -> Confusion:
    """The confusion matrix of detections from a score on, as hotcoco's `confusion_matrix` where nothing is ignored."""
    used = np.flatnonzero((matches.scores >= threshold) & ~matches.ignored[0])
    used = used[np.lexsort((matches.rows[used], -matches.scores[used], matches.images[used]))]
    countable = np.flatnonzero(~matches.object_ignored)
    boxes = PlacedBoxes(inputs.detections.boxes_xywh[matches.rows[used]], matches.images[used], matches.labels[used])
    objects = PlacedBoxes(
        inputs.ground_truth.boxes_xywh[matches.object_rows[countable]],
        matches.object_images[countable],
        matches.object_labels[countable],
    )
    taken, overlapped = _taken_objects(boxes, objects, iou)
    background = len(inputs.ground_truth.category_ids)
    missed = np.setdiff1d(np.arange(len(countable)), taken)
    labels = np.append(objects.labels, background)  # taken is -1 where there is no object
    true = np.concatenate([labels[taken], objects.labels[missed]])
    found = np.concatenate([boxes.labels, np.full(len(missed), background)])
    pairs, counts = np.unique(true * (background + 1) + found, return_counts=True)
    return Confusion(
        class_names=list(inputs.ground_truth.class_names),
        true=pairs // (background + 1),
        found=pairs % (background + 1),
        counts=counts.astype(np.int64),
        repeated=int(((taken < 0) & (overlapped >= 0)).sum()),
        threshold=threshold,
        iou=iou,
        examples=_examples(
            true,
            found,
            images=np.concatenate([boxes.images, objects.images[missed]]),
            objects=np.append(matches.object_rows[countable], -1)[
                np.concatenate([np.where(taken < 0, overlapped, taken), missed])
            ],
            detections=np.concatenate([matches.rows[used], np.full(len(missed), -1)]),
            rank=np.concatenate([matches.scores[used], objects.boxes_xywh[missed, 2:].prod(axis=1)]),
        ),
    )


def _taken_objects(boxes: PlacedBoxes, objects: PlacedBoxes, iou: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) row of the object that each box takes, best box of an image first, and of the one it overlaps most.

    -1 where there is none with such an IoU.
    """
    taken, overlapped = np.full(len(boxes), -1), np.full(len(boxes), -1)
    free = np.ones(len(objects), bool)
    for pairs in overlapping_pairs(boxes, objects):
        near = np.flatnonzero(pairs.iou >= iou)
        order = near[np.lexsort((pairs.objects[near], -pairs.iou[near], pairs.boxes[near]))]
        for box, row in zip(pairs.boxes[order].tolist(), pairs.objects[order].tolist(), strict=True):
            if overlapped[box] < 0:
                overlapped[box] = row
            if free[row] and taken[box] < 0:
                taken[box], free[row] = row, False
    return taken, overlapped


def _examples(
    true: NDArray[np.int64],
    found: NDArray[np.int64],
    *,
    images: NDArray[np.int64],
    objects: NDArray[np.int64],
    detections: NDArray[np.int64],
    rank: NDArray[np.float64],
) -> dict[tuple[int, int], list[Example]]:
    """The confusions with the highest rank, by class of object and detection."""
    off = np.flatnonzero(true != found)
    off = off[np.argsort(-rank[off], kind="stable")]
    examples: dict[tuple[int, int], list[Example]] = {}
    columns = (true[off], found[off], images[off], objects[off], detections[off])
    for a, b, image, object_row, row in zip(*(column.tolist() for column in columns), strict=True):
        chosen = examples.setdefault((a, b), [])
        if len(chosen) < EXAMPLES:
            chosen.append(Example(image, None if object_row < 0 else object_row, None if row < 0 else row))
    return examples
