from __future__ import annotations

import gzip
import json
import pickle
import zipfile

import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.evaluation.detection_files import read_detection_file
from codetr_cli.evaluation.detection_records import has_masks, match_detections
from codetr_cli.evaluation.hints import hints
from codetr_cli.evaluation.scoring import score_detections
from tests.evaluation.detection_makers import BOXES, OF_IMAGE, TEXTS, ground_truth, records


@pytest.mark.parametrize("name", TEXTS)
def test_detections_of_every_writer_are_the_same(tmp_path, name):
    truth = ground_truth(tmp_path / "a.json")
    path = tmp_path / "detections.json"
    path.write_bytes(TEXTS[name]())
    file = read_detection_file(path)
    assert not has_masks(file)
    table = match_detections(file, truth, "a.json").table
    assert [record | {"bbox": [*map(float, record["bbox"])]} for record in table.to_records()] == records()
    assert score_detections(truth, table, where="a.json").metrics["AP"] == 1
    assert hints(table, truth) == []


def test_a_single_record_and_a_single_image_are_files_of_one_line(tmp_path):
    truth = ground_truth(tmp_path / "a.json")
    path = tmp_path / "detections.jsonl"
    x, y, w, h = BOXES[11]
    image = {"file_name": "000007.jpg", "boxes": [[x, y, x + w, y + h]], "scores": [0.5], "labels": [OF_IMAGE[11]]}
    for value in (records()[0], image):
        path.write_text(json.dumps(value))
        table = match_detections(read_detection_file(path), truth, "a.json").table
        assert table.to_records() == records()[:1]


def test_boxes_by_their_centre_are_said(tmp_path):
    path = tmp_path / "detections.json"
    path.write_bytes(TEXTS["Roboflow"]())
    matched = match_detections(read_detection_file(path), ground_truth(tmp_path / "a.json"), "a.json")
    assert any("centre" in note for note in matched.notes)


@pytest.mark.parametrize("content", ["[]", '{"predictions": []}', '[{"file_name": "x.jpg", "detections": []}]'])
def test_no_detections_are_said(tmp_path, content):
    truth = ground_truth(tmp_path / "a.json")
    path = tmp_path / "detections.json"
    path.write_text(content)
    table = match_detections(read_detection_file(path), truth, "a.json").table
    assert len(table) == 0
    assert "no detections" in hints(table, truth)[0]
    assert score_detections(truth, table, where="a.json").metrics["AP"] == 0


def refused(path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_detection_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_json_are_named(tmp_path):
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps(records()))
    assert "pickle" in refused(path)
    path.write_bytes(pickle.dumps(records(), protocol=0))
    assert "pickle" in refused(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("detections.json", "[]")
    assert "unpack" in refused(tmp_path / "a.zip")
    path = tmp_path / "detections.json.gz"
    path.write_bytes(gzip.compress(b"[]"))
    assert "gunzip" in refused(path)
    (tmp_path / "run").mkdir()
    assert "folder" in refused(tmp_path / "run")
    (tmp_path / "run/predictions.json").write_text("[]")
    assert "run/predictions.json" in refused(tmp_path / "run")


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "detections.jsonl"
    path.write_text(json.dumps(records()[0]) + "\n" + '{"image_id": 1,')
    assert "line 2" in refused(path)


@pytest.mark.parametrize("content", ['{"boxes": [1]}', "{}", "7", '{"annotation": []}'])
def test_other_values_are_no_detections(tmp_path, content):
    path = tmp_path / "detections.json"
    path.write_text(content)
    assert "not a list of COCO detections" in refused(path)


def test_several_lists_with_scores_are_ambiguous(tmp_path):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"predictions": records(), "detections": records()}))
    assert "several lists" in refused(path)


@pytest.mark.parametrize(
    ("mode", "name"), [(2, "XYXY_REL"), (3, "XYWH_REL"), (4, "XYWHA_ABS"), (9, "9"), (True, "True")]
)
def test_boxes_that_are_not_in_pixels_or_rotated_are_refused(tmp_path, mode, name):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([records()[0], {**records()[1], "bbox_mode": mode}]))
    with pytest.raises(DatasetError, match=f"number 1 has bbox_mode '?{name}"):
        read_detection_file(path)
