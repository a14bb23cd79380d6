"""Overlaps of many boxes at once, as pycocotools computes them one image after the other."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from codetr_cli.analysis.overlaps import PlacedBoxes, best_overlaps, overlap_counts, overlapping_pairs


def random_boxes(count: int, seed: int, images: int = 7) -> PlacedBoxes:
    numbers = np.random.default_rng(seed)
    boxes = np.concatenate([numbers.integers(0, 60, (count, 2)), numbers.integers(0, 30, (count, 2))], axis=1)
    return PlacedBoxes(boxes.astype(np.float64), numbers.integers(0, images, count), numbers.integers(0, 3, count))


def iou_of(boxes: PlacedBoxes, objects: PlacedBoxes) -> np.ndarray:
    """(N, G) IoU, 0 for boxes of different images."""
    iou = np.asarray(mask_utils.iou(boxes.boxes_xywh, objects.boxes_xywh, [False] * len(objects)))
    return np.where(boxes.images[:, None] == objects.images, np.nan_to_num(iou), 0)


@pytest.mark.parametrize("at_once", [1, 50, 10_000])
def test_pairs_are_those_of_pycocotools(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("codetr_cli.analysis.overlaps.PAIRS_AT_ONCE", at_once)
    boxes, objects = random_boxes(120, 0), random_boxes(40, 1, images=9)
    iou = np.zeros((len(boxes), len(objects)))
    for pairs in overlapping_pairs(boxes, objects):
        assert (iou[pairs.boxes, pairs.objects] == 0).all()
        iou[pairs.boxes, pairs.objects] = pairs.iou
    expected = iou_of(boxes, objects)
    assert np.array_equal(iou, expected)
    assert np.array_equal(overlap_counts(boxes, objects), (expected > 0).sum(axis=1))


def test_the_best_object_is_the_first_with_the_largest_iou() -> None:
    boxes, objects = random_boxes(300, 2), random_boxes(80, 3)
    objects = PlacedBoxes(
        np.concatenate([objects.boxes_xywh] * 2), *[np.tile(x, 2) for x in (objects.images, objects.labels)]
    )
    best, iou = best_overlaps(boxes, objects), iou_of(boxes, objects)
    own = np.where(boxes.labels[:, None] == objects.labels, iou, 0)
    other = np.where(boxes.labels[:, None] != objects.labels, iou, 0)
    for values, found, expected in (
        (best.own_iou, best.own_object, own),
        (best.other_iou, best.other_object, other),
    ):
        assert np.array_equal(values, expected.max(axis=1))
        assert np.array_equal(found, np.where(expected.max(axis=1) > 0, expected.argmax(axis=1), -1))


@pytest.mark.parametrize(("boxes", "objects"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_compare(boxes: int, objects: int) -> None:
    best = best_overlaps(random_boxes(boxes, 0), random_boxes(objects, 1))
    assert best.own_iou.tolist() == [0] * boxes
    assert best.other_object.tolist() == [-1] * boxes
