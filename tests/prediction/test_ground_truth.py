from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from codetr_cli.errors import DatasetError
from codetr_cli.prediction import ground_truth
from codetr_cli.prediction.ground_truth import NONE, GroundTruth, annotation_state
from codetr_cli.prediction.inputs import find_images
from codetr_cli.prediction.sources.input_list import InputImage


@pytest.fixture
def tmp_path(tmp_path):
    """Two folders deep: images are searched for beside the folder of annotations, too, and other tests have some."""
    folder = tmp_path / "data" / "set"
    folder.mkdir(parents=True)
    return folder


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


def input_image(path, name=None):
    return InputImage(path, name or path.name, 1)


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def test_objects_are_those_of_the_file(tmp_path):
    truth = GroundTruth(write(tmp_path / "truth.json", content("a/1.jpg", "2.jpg")), CLASSES)
    found = truth.find(input_image(tmp_path / "elsewhere/1.jpg"))
    assert found.boxes.tolist() == [[1, 2, 11, 22], [5, 5, 35, 25]]
    assert [CLASSES[label] for label in found.labels] == ["bar", "Disc"]
    assert found.class_names == ["bar", "disc"]
    assert found.iscrowd.tolist() == [False, True]
    assert found.judged.tolist() == [True, True, True, False]
    assert found.size == (40, 60)
    assert len(truth.find(input_image(tmp_path / "2.png", "2")).boxes) == 0
    assert truth.find(input_image(tmp_path / "3.jpg")) is None
    (note,) = truth.notes(CLASSES)
    assert "lacks classes of the network (cube)" in note


def test_unknown_classes_stay_as_misses(tmp_path):
    table = content("1.jpg", categories=("sphere", "bar"))
    truth = GroundTruth(write(tmp_path / "truth.json", table), CLASSES)
    assert truth.find(input_image(tmp_path / "1.jpg")).labels.tolist() == [2, NONE]
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
        found = truth.find(input_image(tiny_coco / folder / name))
        boxes = [a["bbox"] for a in table["annotations"] if a["image_id"] == table["images"][0]["id"]]
        assert np.allclose(found.boxes[:, :2], np.array(boxes)[:, :2])
    assert truth.find(input_image(tiny_coco / "copies" / name)) is None, "either could be meant"


def test_other_layouts_are_read(tiny_coco, tmp_path):
    folder = tmp_path / "yolo"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    source = sorted((tiny_coco / "val2017").glob("*.jpg"))[0]
    shutil.copy(source, folder / "images/a.jpg")
    (folder / "labels/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [ring, bar]\n")
    found = GroundTruth(folder, CLASSES).find(input_image(folder / "images/a.jpg"))
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
    found = truth.find(input_image(tmp_path / "1.jpg"))
    assert found.judged.tolist() == [True, True, True, False]
    assert found.exhaustive.tolist() == [True, True, False, False]
    assert not found.iscrowd.any()
    assert not truth.find(input_image(tmp_path / "2.jpg")).judged.any()


@pytest.mark.parametrize("name", ["absent.json", "empty", "text.json"])
def test_what_is_no_data_set_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(DatasetError, match=name):
        GroundTruth(tmp_path / name, CLASSES)


def test_names_that_no_file_can_have_are_no_images(tmp_path):
    truth = GroundTruth(write(tmp_path / "truth.json", content("a\\b/1.jpg", "../../../etc/1.jpg")), CLASSES)
    assert truth.find(input_image(tmp_path / "x.jpg")) is None
    assert truth.find(input_image(tmp_path / "1.jpg")) is None


def files(root, *names):
    """Files with a content of their own; what is searched are their names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def matched(truth_path, *sources):
    """The annotated row of each image that is predicted, by its name; the box says which it is."""
    images = find_images([str(source) for source in sources])
    truth = GroundTruth(truth_path, CLASSES, images)
    found = {str(image.path): truth.find(image) for image in images}
    return {name: objects and int(objects.boxes[0, 0]) for name, objects in found.items()}


def numbered(*names):
    """Annotations in which the first box of an image has the image's number as its left side."""
    table = content(*names)
    table["annotations"] = [
        {"id": i, "image_id": 5 + i, "category_id": 11, "bbox": [i, 2, 10, 20], "area": 200, "iscrowd": 0}
        for i in range(len(names))
    ]
    return table


@pytest.mark.parametrize(
    ("annotated", "given", "expected"),
    [
        (["1.jpg"], ["i/a/1.jpg", "i/b/1.jpg"], [None, None]),
        (["1.jpg"], ["i/1.jpg", "i/a/1.jpg"], [0, None]),
        (["a.jpg"], ["i/a.jpg", "i/a.png"], [0, None]),
        (["cam1/1.jpg", "cam2/1.jpg"], ["i/cam1/1.jpg", "i/cam2/1.jpg"], [0, 1]),
        (["1.jpg", "2.jpg"], ["i/a/1.jpg", "i/b/2.jpg"], [0, 1]),
    ],
)
def test_an_annotated_image_is_not_compared_with_several(tmp_path, annotated, given, expected):
    path = write(tmp_path / "elsewhere/truth.json", numbered(*annotated))
    files(tmp_path, *given)
    found = matched(path, tmp_path / "i")
    assert [found[str(tmp_path / name)] for name in given] == expected


def test_the_annotated_file_itself_comes_before_others_of_its_name(tmp_path):
    path = write(tmp_path / "set/truth.json", numbered("1.jpg"))
    files(tmp_path, "set/images/1.jpg", "set/other/1.jpg")
    found = matched(path, tmp_path / "set/other", tmp_path / "set/images")
    assert found == {str(tmp_path / "set/other/1.jpg"): None, str(tmp_path / "set/images/1.jpg"): 0}
    assert matched(path, tmp_path / "set/other") == {str(tmp_path / "set/other/1.jpg"): 0}, "alone, a copy may be meant"


def test_an_image_of_another_part_is_not_the_annotated_one(tmp_path):
    path = write(tmp_path / "set/truth.json", numbered("train/1.jpg"))
    files(tmp_path, "set/train/1.jpg", "set/val/1.jpg")
    assert matched(path, tmp_path / "set/val") == {str(tmp_path / "set/val/1.jpg"): None}
    assert matched(path, tmp_path / "set/train") == {str(tmp_path / "set/train/1.jpg"): 0}


def test_copies_in_one_folder_are_found_where_their_content_is_equal(tmp_path):
    path = write(tmp_path / "set/truth.json", numbered("c1/1.jpg", "c2/2.jpg"))
    files(tmp_path, "set/c1/1.jpg", "set/c2/2.jpg")
    (tmp_path / "flat").mkdir()
    for number in (1, 2):
        shutil.copy(tmp_path / f"set/c{number}/{number}.jpg", tmp_path / "flat")
    assert list(matched(path, tmp_path / "flat").values()) == [0, 1]
    (tmp_path / "flat/2.jpg").write_text("another")
    assert list(matched(path, tmp_path / "flat").values()) == [0, None]


def test_the_number_in_the_name_of_an_input_is_not_a_name(tmp_path):
    path = write(tmp_path / "elsewhere/truth.json", numbered("1_2.jpg"))
    files(tmp_path, "a/1.jpg", "b/1.jpg")
    assert [each.name for each in find_images([str(tmp_path / "a"), str(tmp_path / "b")])] == ["1.jpg", "1_2.jpg"]
    assert list(matched(path, tmp_path / "a", tmp_path / "b").values()) == [None, None]
    path = write(tmp_path / "elsewhere/truth.json", numbered("1.jpg"))
    assert list(matched(path, tmp_path / "a", tmp_path / "b").values()) == [None, None]


def test_an_image_that_is_annotated_twice_is_none(tmp_path):
    path = write(tmp_path / "truth.json", numbered("1.jpg", "1.jpg"))
    files(tmp_path, "1.jpg")
    assert list(matched(path, tmp_path / "1.jpg").values()) == [None]


def test_many_images_of_one_name_are_resolved_once(tmp_path, monkeypatch):
    names = [f"{i}/rgb.png" for i in range(40)]
    path = write(tmp_path / "set/truth.json", numbered(*names))
    files(tmp_path / "set", *names)
    images = find_images([str(tmp_path / "set")])
    truth = GroundTruth(path, CLASSES, images)
    resolved = []
    real = ground_truth._real_file
    monkeypatch.setattr(ground_truth, "_real_file", lambda path: resolved.append(path) or real(path))
    assert all(truth.find(each) is not None for each in images)
    assert len(resolved) < 4 * len(names)


def test_the_state_changes_with_the_annotations(tiny_coco, tmp_path):
    before = annotation_state(tiny_coco)
    assert before
    assert annotation_state(tiny_coco) == before
    file = tiny_coco / "annotations/instances_val2017.json"
    file.write_text(file.read_text() + " ")
    assert annotation_state(tiny_coco) != before
    assert annotation_state(file) not in ([], annotation_state(tiny_coco))
    (tmp_path / "empty").mkdir()
    assert annotation_state(tmp_path / "empty") == []
    folder = tmp_path / "yolo"
    files(folder, "labels/a.txt")
    (folder / "images").mkdir()
    shutil.copy(next((tiny_coco / "val2017").glob("*.jpg")), folder / "images/a.jpg")
    (folder / "labels/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [ring, bar]\n")
    before = [annotation_state(folder), annotation_state(folder / "data.yaml")]
    assert all(before)
    (folder / "labels/a.txt").write_text("1 0.5 0.5 0.25 0.25\n")
    after = [annotation_state(folder), annotation_state(folder / "data.yaml")]
    assert all(old != new for old, new in zip(before, after, strict=True))
