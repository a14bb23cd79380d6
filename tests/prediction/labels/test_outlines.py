"""Masks of detections as polygons."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from codetr_cli.inference.rle import encode_crop
from codetr_cli.prediction.labels.outlines import mask_polygons


def polygons(pixels: np.ndarray) -> list[list[float]]:
    return mask_polygons(encode_crop(pixels.astype(bool), 0, 0, pixels.shape[:2]))


def test_a_polygon_covers_the_pixels_of_its_mask():
    """In pixel coordinates with edges of no width: the first pixel is from 0 to 1."""
    pixels = np.zeros((40, 60), np.uint8)
    cv2.ellipse(pixels, (30, 20), (20, 12), 30, 0, 360, 1, -1)
    (polygon,) = polygons(pixels)
    xs, ys = np.array(polygon[::2]), np.array(polygon[1::2])
    rows, columns = np.nonzero(pixels)
    assert (xs.min(), ys.min()) == pytest.approx((columns.min(), rows.min()), abs=0.75)
    assert (xs.max(), ys.max()) == pytest.approx((columns.max() + 1, rows.max() + 1), abs=0.75)
    area = abs(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))) / 2
    assert area == pytest.approx(pixels.sum(), rel=0.05)
    assert len(xs) < 40


def test_parts_are_apart_specks_are_none_and_holes_are_filled():
    pixels = np.zeros((40, 60), np.uint8)
    pixels[2:22, 5:25] = 1
    pixels[8:12, 9:13] = 0
    pixels[30, 50] = 1
    assert len(polygons(pixels)) == 1
    pixels[25:35, 30:45] = 1
    first, second = polygons(pixels)
    assert (min(first[::2]), max(first[1::2])) == pytest.approx((5, 22), abs=0.5)
    assert min(second[::2]) == pytest.approx(30, abs=0.5)
    assert polygons(np.zeros((4, 4), np.uint8)) == []
