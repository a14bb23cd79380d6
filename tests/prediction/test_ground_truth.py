from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.prediction.ground_truth import NONE, GroundTruth

CLASSES = ["ring", "Disc", "bar", "cube"]  # of the network, in its own order


def content(*names, categories=("disc", "bar", "ring"), **more):
    return {
        "images": [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(names, 5)],
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(categories)],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 11, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 10, "bbox": [5, 5, 30, 20], "area": 600, "iscrowd": 1},
        ],
        **more,
    }


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def test_objects_are_those_of_the_file(tmp_path):
    truth = GroundTruth(write(tmp_path / "truth.json", content("a/1.jpg", "2.jpg")), CLASSES)
    found = truth.find("1.jpg", tmp_path / "elsewhere/1.jpg")
    assert found.boxes.tolist() == [[1, 2, 11, 22], [5, 5, 35, 25]]
    assert [CLASSES[label] for label in found.labels] == ["bar", "Disc"]
    assert found.class_names == ["bar", "disc"]
    assert found.iscrowd.tolist() == [False, True]
    assert found.judged.tolist() == [True, True, True, False]
    assert found.size == (40, 60)
    assert len(truth.find("2", tmp_path / "2.png").boxes) == 0
    assert truth.find("3.jpg", tmp_path / "3.jpg") is None
    (note,) = truth.notes(CLASSES)
    assert "lacks classes of the network (cube)" in note


def test_unknown_classes_stay_as_misses(tmp_path):
    table = content("1.jpg", categories=("sphere", "bar"))
    truth = GroundTruth(write(tmp_path / "truth.json", table), CLASSES)
    assert truth.find("1.jpg", tmp_path / "1.jpg").labels.tolist() == [2, NONE]
    assert "does not know (sphere)" in truth.notes(CLASSES)[0]


def test_no_class_in_common(tmp_path):
    path = write(tmp_path / "truth.json", content("1.jpg", categories=("cat", "dog")))
    with pytest.raises(DatasetError, match="no class in common: the annotations have cat, dog, the network has ring"):
        GroundTruth(path, CLASSES)


def test_all_parts_of_a_data_set_are_used_and_files_distinguish_equal_names(tiny_coco):
    train = json.loads((tiny_coco / "annotations/instances_train2017.json").read_text())
    val = json.loads((tiny_coco / "annotations/instances_val2017.json").read_text())
    name = train["images"][0]["file_name"]
    (tiny_coco / "val2017" / val["images"][0]["file_name"]).rename(tiny_coco / "val2017" / name)
    val["images"][0]["file_name"] = name
    write(tiny_coco / "annotations/instances_val2017.json", val)
    truth = GroundTruth(tiny_coco, ["disc", "bar", "ring"])
    for folder, table in (("train2017", train), ("val2017", val)):
        found = truth.find(name, tiny_coco / folder / name)
        boxes = [a["bbox"] for a in table["annotations"] if a["image_id"] == table["images"][0]["id"]]
        assert np.allclose(found.boxes[:, :2], np.array(boxes)[:, :2])
    assert truth.find(name, tiny_coco / "copies" / name) is None, "either could be meant"


def test_other_layouts_are_read(tiny_coco, tmp_path):
    folder = tmp_path / "yolo"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    source = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    shutil.copy(source, folder / "images/a.jpg")
    (folder / "labels/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [ring, bar]\n")
    found = GroundTruth(folder, CLASSES).find("a.jpg", folder / "images/a.jpg")
    height, width = found.size
    assert found.boxes[0] == pytest.approx([0.375 * width, 0.25 * height, 0.625 * width, 0.75 * height], abs=0.01)
    assert CLASSES[found.labels[0]] == "bar"


def test_lvis_says_what_is_not_annotated(tmp_path):
    table = content("1.jpg", "2.jpg")
    for image, negative, partly in zip(table["images"], ([12], []), ([11], []), strict=True):
        image |= {"neg_category_ids": negative, "not_exhaustive_category_ids": partly}
    for category in table["categories"]:
        category["frequency"] = "f"
    truth = GroundTruth(write(tmp_path / "lvis.json", table), CLASSES)
    found = truth.find("1.jpg", tmp_path / "1.jpg")
    assert found.judged.tolist() == [True, True, True, False]
    assert found.exhaustive.tolist() == [True, True, False, False]
    assert not found.iscrowd.any()
    assert not truth.find("2.jpg", tmp_path / "2.jpg").judged.any()


@pytest.mark.parametrize("name", ["absent.json", "empty", "text.json"])
def test_what_is_no_data_set_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(DatasetError, match=name):
        GroundTruth(tmp_path / name, CLASSES)


def test_names_that_no_file_can_have_are_no_images(tmp_path):
    truth = GroundTruth(write(tmp_path / "truth.json", content("a\\b/1.jpg", "../../../etc/1.jpg")), CLASSES)
    assert truth.find("x.jpg", tmp_path / "x.jpg") is None
    assert truth.find("1.jpg", tmp_path / "1.jpg") is None
