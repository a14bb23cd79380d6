from __future__ import annotations

import cv2
import numpy as np

from codetr_cli.images.regions import ArrayRegions, ImageRegions

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)


def test_an_array_is_read_in_parts() -> None:
    regions: ImageRegions = ArrayRegions(PIXELS)
    assert regions.size == (30, 50)
    part = regions.read(left=7, top=3, width=20, height=10)
    np.testing.assert_array_equal(part, PIXELS[3:13, 7:27])
    assert np.shares_memory(part, PIXELS)


def test_a_reduced_array_is_that_of_the_test_transform() -> None:
    np.testing.assert_array_equal(
        ArrayRegions(PIXELS).reduced(12, 20), cv2.resize(PIXELS, (20, 12), interpolation=cv2.INTER_LINEAR)
    )
    np.testing.assert_array_equal(ArrayRegions(PIXELS).reduced(30, 50), PIXELS)
