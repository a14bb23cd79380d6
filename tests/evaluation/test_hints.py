from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.evaluation.hints import hints
from codetr_cli.inference.detections import DetectionTable

WIDTH, HEIGHT = 640, 480
CLASSES = {1: "a", 2: "b", 3: "c", 4: "d", 7: "e"}
SETS = {
    "from 1": [*range(1, 41)],
    "with gaps": [*range(5, 205, 5)],
}


def truth(path, ids: list[int], seed: int = 0) -> Annotations:
    generator = np.random.default_rng(seed)
    images = [{"id": i, "file_name": f"{i:06d}.jpg", "width": WIDTH, "height": HEIGHT} for i in ids]
    objects = []
    for image_id in ids:
        for _ in range(4):
            w, h = generator.uniform(20, 200, 2).round(1).tolist()
            x, y = generator.uniform(0, WIDTH - w), generator.uniform(0, HEIGHT - h)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image_id,
                    "category_id": int(generator.choice(list(CLASSES))),
                    "bbox": [x, y, w, h],
                }
            )
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return read_annotations(path)


def perfect(ground_truth: Annotations, noise: float = 0.0, seed: int = 1) -> DetectionTable:
    """Every object, its box shifted by a share of its size."""
    generator = np.random.default_rng(seed)
    boxes = ground_truth.boxes_xywh
    shift = generator.normal(0, noise, boxes.shape) * np.tile(boxes[:, 2:], 2)
    boxes = boxes + shift if noise else boxes
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:].clip(min=1)], 1)
    return DetectionTable(
        image_ids=ground_truth.image_ids[ground_truth.image_rows],
        category_ids=np.array(ground_truth.category_ids)[ground_truth.labels],
        boxes_xywh=boxes,
        scores=generator.uniform(0, 1, len(boxes)),
    )


@pytest.fixture(params=SETS)
def ground_truth(request, tmp_path) -> Annotations:
    return truth(tmp_path / "a.json", SETS[request.param])


@pytest.mark.parametrize("noise", [0, 0.05, 0.2, 0.5, 2])
@pytest.mark.parametrize("seed", range(3))
def test_correct_files_have_no_hints(ground_truth, noise, seed):
    assert hints(perfect(ground_truth, noise, seed), ground_truth) == []


def test_boxes_at_random_have_no_hints(ground_truth):
    """Of a detector that learned nothing: in the image, but on no object."""
    for seed in range(5):
        generator = np.random.default_rng(seed)
        table = perfect(ground_truth)
        sides = generator.uniform(5, 300, (len(table), 2))
        corner = generator.uniform(0, 1, (len(table), 2)) * ([WIDTH, HEIGHT] - sides)
        boxes = np.concatenate([corner, sides], 1)
        labels = generator.choice(list(CLASSES), len(table))
        assert hints(replace(table, boxes_xywh=boxes, category_ids=labels), ground_truth) == []


def to_corners(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def to_centres(boxes):
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (to_corners, "x2 - x1"),
        (lambda boxes: to_corners(boxes) / 4 + 10, ""),
        (to_centres, "cx - width / 2"),
        (lambda boxes: boxes[:, [1, 0, 3, 2]], "(y, x, height, width)"),
        (lambda boxes: to_corners(boxes)[:, [1, 0, 3, 2]], "(y1, x1, y2, x2)"),
        (lambda boxes: boxes / [WIDTH, HEIGHT, WIDTH, HEIGHT], "Multiply x and width"),
        (lambda boxes: to_centres(boxes) / [WIDTH, HEIGHT, WIDTH, HEIGHT], "Multiply x and width"),
    ],
)
@pytest.mark.parametrize("noise", [0, 0.05])
def test_boxes_of_other_conventions(ground_truth, change, expected, noise):
    table = perfect(ground_truth, noise)
    found = hints(replace(table, boxes_xywh=change(table.boxes_xywh)), ground_truth)
    assert len(found) == bool(expected)
    assert all(expected in hint for hint in found)


def test_corners_that_fit_no_object_show_by_the_edges_of_images(ground_truth):
    table = perfect(ground_truth, noise=2)
    boxes = table.boxes_xywh.clip(0, 300)
    corners = to_corners(np.concatenate([boxes[:, :2], boxes[:, 2:].clip(20, 150)], 1))
    (found,) = hints(replace(table, boxes_xywh=corners), ground_truth)
    assert "x2 - x1" in found


@pytest.mark.parametrize(("factor", "expected"), [(100, "percent"), (1000, "sigmoid"), (1, "")])
def test_scores_above_one(ground_truth, factor, expected):
    table = perfect(ground_truth)
    found = hints(replace(table, scores=table.scores * factor), ground_truth)
    assert len(found) == bool(expected)
    assert all(expected in hint for hint in found)


@pytest.mark.parametrize("shift", [-1, 1])
def test_images_numbered_from_another_number(tmp_path, shift):
    """Those whose number is known in both ways."""
    ground_truth = truth(tmp_path / "a.json", SETS["from 1"])
    table = perfect(ground_truth)
    kept = table.select((table.image_ids + shift > 0) & (table.image_ids + shift <= 40))
    (found,) = hints(replace(kept, image_ids=kept.image_ids + shift), ground_truth)
    assert f"numbered from {0 if shift < 0 else 1} instead of" in found


def test_images_numbered_by_their_names(tmp_path):
    ground_truth = truth(tmp_path / "a.json", SETS["from 1"])
    table = perfect(ground_truth)
    names = [f"{41 - i:06d}.jpg" for i in range(1, 41)]
    (found,) = hints(replace(table, image_ids=41 - table.image_ids), replace(ground_truth, file_names=names))
    assert "the number in the file name" in found


def test_categories_numbered_from_another_number(ground_truth):
    table = perfect(ground_truth, 0.05)
    for shift, others in ((-1, [2, 3, 4]), (1, [1, 2, 3])):
        kept = table.select(np.isin(table.category_ids, others))
        (found,) = hints(replace(kept, category_ids=kept.category_ids + shift), ground_truth)
        assert f"numbered from {0 if shift < 0 else 1} instead of" in found


def test_nothing_is_changed(ground_truth):
    table = perfect(ground_truth)
    before = table.to_records()
    hints(table, ground_truth)
    assert table.to_records() == before


def normalized(table: DetectionTable) -> DetectionTable:
    return replace(table, boxes_xywh=table.boxes_xywh / [WIDTH, HEIGHT, WIDTH, HEIGHT])


def test_normalized_boxes_may_leave_the_image(ground_truth):
    table = normalized(perfect(ground_truth))
    table.boxes_xywh[0] = [-0.01, 0, 1.003, 0.5]
    assert "normalized" in hints(table, ground_truth)[0]


def test_few_boxes_of_a_pixel_are_not_normalized(tmp_path):
    truth_ = truth(tmp_path / "a.json", [1])
    one = perfect(truth_).select(slice(1))
    assert hints(replace(one, boxes_xywh=np.array([[0.0, 0, 1, 1]])), truth_) == []
    assert "normalized" in hints(normalized(one), truth_)[0]


def test_names_that_decided_leave_no_doubt_about_numbers(tmp_path):
    truth_ = truth(tmp_path / "a.json", [*range(1, 41)])
    table = perfect(truth_)
    late = replace(table, image_ids=table.image_ids + 1).select(table.image_ids < 40)
    assert "image_id" in hints(late, truth_)[0]
    assert hints(late, truth_, images_by_name=True) == []
    confused = replace(table, category_ids=table.category_ids + 1).select(table.category_ids < 4)
    assert "category_id" in hints(confused, truth_)[0]
    assert hints(confused, truth_, classes_by_name=True) == []


def test_one_class_taken_for_another_may_be_the_detector(tmp_path):
    truth_ = truth(tmp_path / "a.json", [*range(1, 41)])
    table = perfect(truth_)
    table = table.select(table.category_ids == 1)
    assert hints(replace(table, category_ids=table.category_ids + 1), truth_) == []
