from __future__ import annotations

import json

import numpy as np
import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.inference.detections import DetectionTable, load_detections
from tests.evaluation.annotation_samples import write_material


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"image_id": 1', "not valid JSON"),
        ('{"annotations": []}', "not a list"),
        ("[7]", "number 0 is a int, not an object"),
        ('[{"image_id": "x", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "image_id"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, NaN, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}]', "bbox"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]', "score"),
    ],
)
def test_broken_detection_files_are_named(tmp_path, text, expected):
    path = tmp_path / "detections.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=expected) as caught:
        load_detections(path)
    assert str(path) in str(caught.value)


def test_missing_detection_file(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        load_detections(tmp_path / "none.json")


MASK = '{"image_id": 1, "category_id": 1, "score": 1, "segmentation": {"size": [2, 2], "counts": "04"}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'[{MASK}, {{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}}]', "number 1 .*which others"),
        (MASK.replace('"04"', "7"), "counts"),
        (MASK.replace('"04"', '"0x"'), "counts"),
        (MASK.replace('"04"', '"0o"'), "counts"),
        (MASK.replace('"04"', '""'), "counts"),
        (MASK.replace("[2, 2]", "[2, 0]"), "size"),
        (MASK.replace('"score": 1', '"score": 1, "mask_score": "x"'), "mask_score"),
        (MASK.replace('"score": 1', '"score": 1, "bbox": [1]'), "bbox"),
    ],
)
def test_broken_masks_are_named(tmp_path, text, expected):
    path = tmp_path / "detections.json"
    path.write_text(text if text.startswith("[") else f"[{text}]")
    with pytest.raises(DatasetError, match=expected):
        load_detections(path)


def test_records_are_xywh_with_original_ids():
    boxes = np.array([[10.12347, 20, 30, 50.5]], np.float32)
    (record,) = DetectionTable.of_image(7, boxes, np.array([0.123456789012]), [90]).to_records()
    assert record == {
        "image_id": 7,
        "category_id": 90,
        "bbox": [10.1235, 20.0, 19.8765, 30.5],
        "score": 0.12345679,
    }
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("masks", [False, True])
def test_a_written_table_is_read_as_it_was(tmp_path, monkeypatch, masks):
    monkeypatch.setattr("codetr_cli.inference.detections.ROWS_AT_ONCE", 7)
    table = write_material(tmp_path / "a.json", seed=0, masks=masks)
    path = tmp_path / "detections.json"
    path.write_text(table.to_json())
    assert json.loads(path.read_text()) == table.to_records()
    assert load_detections(path).to_records() == table.to_records()
    path.write_text(DetectionTable.empty().to_json())
    assert len(load_detections(path)) == 0


def test_a_box_that_is_not_given_is_that_of_the_mask(tmp_path):
    path = tmp_path / "detections.json"
    path.write_text(f"[{MASK}]")
    assert load_detections(path).boxes_xywh.tolist() == [[0, 0, 2, 2]]


def test_tables_are_joined_and_taken_apart(tmp_path):
    table = write_material(tmp_path / "a.json", seed=0, masks=True)
    images = sorted(set(table.image_ids.tolist()))
    parts = [table.of_images([image_id]) for image_id in images]
    whole = DetectionTable.join([parts[0], DetectionTable.empty(), *parts[1:]])
    order = np.argsort(table.image_ids, kind="stable")
    assert whole.to_records() == table.select(order).to_records()
    assert table.of_images(images) is table


def test_masks_are_dropped_when_some_detections_have_none():
    box, score = np.array([[0, 0, 1, 1]]), np.array([0.5])
    plain = DetectionTable.of_image(1, box, score, [1])
    masked = DetectionTable.of_image(2, box, score, [1], [{"size": [2, 2], "counts": "04"}], np.array([0.25]))
    assert DetectionTable.join([plain, masked]).masks is None
    joined = DetectionTable.join([masked, DetectionTable.empty()])
    assert joined.masks == masked.masks
    assert joined.ranking_of_masks().tolist() == [0.25]
    assert plain.ranking_of_masks().tolist() == [0.5]
