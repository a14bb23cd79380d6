"""Which boxes overlap which annotated objects of their image, for a million boxes at once.

IoU as pycocotools computes it, to the last bit. Shape letters: N boxes, G objects, P pairs of them that overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAIRS_AT_ONCE = 2_000_000
"""Candidate pairs that exist at the same time: about 150 MB."""


@dataclass(frozen=True, eq=False)
class PlacedBoxes:
    """Boxes with what decides which others they are compared with.

    Attributes:
        boxes_xywh: (N, 4) float64 in pixels.
        images: (N,) int64 number of the image.
        labels: (N,) int64 index of the class.
    """

    boxes_xywh: NDArray[np.float64]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> PlacedBoxes:
        """Some of them."""
        return PlacedBoxes(self.boxes_xywh[rows], self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of boxes that overlap, sorted by box, then by object.

    Attributes:
        boxes: (P,) int64 rows of the boxes.
        objects: (P,) int64 rows of the objects.
        iou: (P,) float64 over 0.
    """

    boxes: NDArray[np.int64]
    objects: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BestOverlaps:
    """The object of the own class and of another class that each of N boxes overlaps most, the first of equal ones.

    Attributes:
        own_iou: (N,) float64, 0 without overlap.
        own_object: (N,) int64 row of the object, -1 without overlap.
        other_iou: (N,) float64, as `own_iou`, of objects of other classes.
        other_object: (N,) int64.
    """

    own_iou: NDArray[np.float64]
    own_object: NDArray[np.int64]
    other_iou: NDArray[np.float64]
    other_object: NDArray[np.int64]


def overlapping_pairs(boxes: PlacedBoxes, objects: PlacedBoxes) -> Iterator[Pairs]:
    """All pairs of a box and an object of the same image that overlap, in parts that end between two boxes."""
    order = np.argsort(objects.images, kind="stable")
    images = objects.images[order]
    first = np.searchsorted(images, boxes.images, "left")
    candidates = np.searchsorted(images, boxes.images, "right") - first
    ends = np.cumsum(candidates)
    own, others = _Columns.of(boxes.boxes_xywh), _Columns.of(objects.boxes_xywh[order])
    start = 0
    while start < len(boxes):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, "right")))
        counts = candidates[start:stop]
        box = np.repeat(np.arange(start, stop), counts)
        other = np.arange(len(box)) + np.repeat(first[start:stop] - (ends[start:stop] - counts - done), counts)
        # One axis after the other, as most pairs do not overlap.
        width = np.minimum(own.right[box], others.right[other]) - np.maximum(own.x[box], others.x[other])
        near = np.flatnonzero(width > 0)
        box, other, width = box[near], other[near], width[near]
        height = np.minimum(own.bottom[box], others.bottom[other]) - np.maximum(own.y[box], others.y[other])
        near = np.flatnonzero(height > 0)
        box, other = box[near], other[near]
        common = width[near] * height[near]
        yield Pairs(box, order[other], common / (own.area[box] + others.area[other] - common))
        start = stop


@dataclass(frozen=True, eq=False)
class _Columns:
    """Boxes as columns, which are read faster than rows: (N,) float64 each."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    right: NDArray[np.float64]
    bottom: NDArray[np.float64]
    area: NDArray[np.float64]

    @classmethod
    def of(cls, boxes_xywh: NDArray[np.float64]) -> _Columns:
        """The columns of boxes (N, 4)."""
        x, y, width, height = np.ascontiguousarray(boxes_xywh.T)
        return cls(x, y, x + width, y + height, width * height)


def best_overlaps(boxes: PlacedBoxes, objects: PlacedBoxes) -> BestOverlaps:
    """The object of the own class and of another class that each box overlaps most."""
    best = BestOverlaps(np.zeros(len(boxes)), np.full(len(boxes), -1), np.zeros(len(boxes)), np.full(len(boxes), -1))
    for pairs in overlapping_pairs(boxes, objects):
        is_own = boxes.labels[pairs.boxes] == objects.labels[pairs.objects]
        for iou, found, chosen in (
            (best.own_iou, best.own_object, is_own),
            (best.other_iou, best.other_object, ~is_own),
        ):
            box, other, value = pairs.boxes[chosen], pairs.objects[chosen], pairs.iou[chosen]
            if not len(box):
                continue
            starts = np.flatnonzero(np.diff(box, prepend=-1))
            iou[box[starts]] = np.maximum.reduceat(value, starts)
            best_rows = np.flatnonzero(value == iou[box])[::-1]  # the first of equal ones is written last
            found[box[best_rows]] = other[best_rows]
    return best


def overlap_counts(boxes: PlacedBoxes, objects: PlacedBoxes) -> NDArray[np.int64]:
    """(N,) number of objects, of any class, that each box overlaps."""
    counts = np.zeros(len(boxes), np.int64)
    for pairs in overlapping_pairs(boxes, objects):
        counts += np.bincount(pairs.boxes, minlength=len(boxes))
    return counts
