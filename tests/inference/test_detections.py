from __future__ import annotations

import json

import numpy as np
import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.evaluation.detection_files import read_detection_file
from codetr_cli.evaluation.detection_records import match_detections
from codetr_cli.inference.detections import DetectionTable
from tests.evaluation.annotation_samples import write_material


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
    ground_truth = read_annotations(tmp_path / "a.json")
    read = match_detections(read_detection_file(path), ground_truth, "a.json", with_masks=masks)
    assert read.table.to_records() == table.to_records()
    path.write_text(DetectionTable.empty().to_json())
    assert len(match_detections(read_detection_file(path), ground_truth, "a.json").table) == 0


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
