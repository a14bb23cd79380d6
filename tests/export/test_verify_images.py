"""Images of three shapes, from nothing and from data sets that have fewer."""

from __future__ import annotations

import numpy as np

from codetr_cli.export.accuracy import find_images
from codetr_cli.export.verify_images import MIN_IMAGES, SHAPES, data_images, synthetic_images


def test_synthetic_images():
    images = synthetic_images(160)
    assert len(images) >= MIN_IMAGES
    assert [image.shape for image in images] == [shape for shape in SHAPES for _ in range(3)]
    assert images[0].pixels.shape == (120, 160, 3)
    assert images[3].pixels.shape == (160, 120, 3)
    assert images[6].pixels.shape == (80, 80, 3)
    assert np.array_equal(images[4].pixels, synthetic_images(160)[4].pixels)
    assert len({image.name for image in images}) == len(images)


def test_images_of_data(tiny_coco):
    data = find_images(tiny_coco, "val")
    images = data_images(data.paths, data.ground_truth.file_names, max_pixels=10**6)
    assert len(images) >= MIN_IMAGES
    assert {image.shape for image in images} == set(SHAPES)
    assert [image.name for image in images[:2]] == data.ground_truth.file_names
    assert data_images(data.paths, [], max_pixels=10**6) == []
