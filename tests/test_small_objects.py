"""The scenes and the scoring of benchmarks/small_objects.py."""

from __future__ import annotations

import json

import numpy as np
import pytest

small_objects = pytest.importorskip("benchmarks.small_objects", reason="a source distribution has no benchmarks")


def test_scenes_are_those_of_their_seed_and_objects_do_not_overlap():
    size = (240, 320)
    pixels, objects = small_objects.draw_scene(np.random.default_rng(5), size)
    again, _ = small_objects.draw_scene(np.random.default_rng(5), size)
    assert pixels.shape == (*size, 3)
    np.testing.assert_array_equal(pixels, again)
    boxes = np.array([[*points.min(axis=0), *points.max(axis=0)] for _, points in objects])
    assert len(boxes) >= 1
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size[::-1]).all()
    for row, box in enumerate(boxes):
        shared = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
        assert (shared > 0).all(axis=1).sum() == 1, row


def test_average_precision_counts_as_many_detections_as_it_says(tmp_path):
    boxes = [[10 * (i % 40), 10 * (i // 40), 8, 8] for i in range(400)]
    objects = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 64, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 200, "width": 500}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "disc"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(truth))
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes]
    result = small_objects.average_precision(tmp_path / "a.json", found)
    assert result["AP"] == pytest.approx({100: 0.25, 300: 0.75, 500: 1.0}, abs=0.01)
