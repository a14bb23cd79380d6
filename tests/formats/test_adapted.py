"""Copies of annotation files: without the category that stands for the project, with the right names of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetr_cli.annotations.cache import source_of
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.adapted import placeholder_name
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from tests.formats.coco_exports import picture, roboflow, table, write_json

PLACEHOLDER = {"id": 0, "name": "animals", "supercategory": "none"}
CAT = {"id": 1, "name": "cat", "supercategory": "animals"}


@pytest.mark.parametrize(
    ("categories", "name"),
    [
        ([PLACEHOLDER, CAT], "animals"),
        ([CAT, PLACEHOLDER], "animals"),
        ([PLACEHOLDER], None),
        ([{**PLACEHOLDER, "id": 5}, CAT], None),
        ([PLACEHOLDER, {**CAT, "supercategory": "pets"}], None),
        ([{**PLACEHOLDER, "supercategory": "things"}, CAT], None),
        ([PLACEHOLDER, None], None),
        ([{"id": 0, "name": "cat", "supercategory": None}, {"id": 1, "name": "dog", "supercategory": None}], None),
    ],
)
def test_what_looks_like_a_placeholder(categories: list[object], name: str | None) -> None:
    assert placeholder_name(categories) == name


def test_a_placeholder_is_no_class(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "set")
    found = open_dataset(root)
    assert found is not None
    for name, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        path = found.splits[name].annotations_path
        annotations = read_annotations(path)
        assert (annotations.class_names, annotations.category_ids) == (["cat", "dog"], [1, 2])
        assert annotations.image_ids.tolist() == [1, 2, 3, 4]
        assert source_of(path).name == str(root / folder / "_annotations.coco.json")
    assert any("'animals' with id 0 is not a class" in note for note in found.notes)
    again = open_dataset(root)
    assert again is not None
    assert again.splits == found.splits


def test_a_category_with_an_object_in_any_part_is_a_class(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "set")
    path = root / "test/_annotations.coco.json"
    table = json.loads(path.read_text())
    table["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(table))
    found = open_dataset(root)
    assert found is not None
    assert found.splits["train"].annotations_path == root / "train/_annotations.coco.json"
    assert read_annotations(found.splits["train"].annotations_path).class_names == ["animals", "cat", "dog"]
    assert not any("is not a class" in note for note in found.notes)


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("images\\a.jpg", "images/a.jpg"),
        ("a%20b.jpg", "images/a b.jpg"),
        (" a.jpg ", "images/a.jpg"),
        ("/home/me/set/images/a.jpg", "images/a.jpg"),
        ("C:\\data\\images\\a.jpg", "images/a.jpg"),
        ("A.JPG", "images/a.jpg"),
        ("http://host/data/images/a.jpg", "images/a.jpg"),
    ],
)
@pytest.mark.parametrize("one_file", [False, True])
def test_names_of_other_systems_and_computers(tmp_path: Path, written: str, file: str, one_file: bool) -> None:
    picture(tmp_path / file)
    path = tmp_path / "all.json"
    write_json(path, table([written]))
    options = ReadOptions(images=tmp_path / "images" if one_file else None)
    found = open_dataset(path if one_file else tmp_path, options)
    assert found is not None
    split = found.splits["train"]
    names = read_annotations(split.annotations_path).file_names
    assert [(split.images_dir / name).resolve() for name in names] == [tmp_path / file]
    assert source_of(split.annotations_path).name == str(path)
    assert "1 name of an image is written in another way" in " ".join(found.notes)


def test_images_in_several_folders(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "y/2.jpg", "y/3.jpg"):
        picture(tmp_path / "images" / name)
    write_json(tmp_path / "all.json", table(["1.jpg", "2.jpg", "3.jpg", "missing.jpg"]))
    found = open_dataset(tmp_path, ReadOptions(val_fraction=0.0))
    assert found is not None
    assert found.splits["train"].images_dir == tmp_path / "images"
    names = read_annotations(found.splits["train"].annotations_path).file_names
    assert names == ["x/1.jpg", "y/2.jpg", "y/3.jpg", "missing.jpg"]


def test_names_that_are_right_are_not_copied(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    write_json(tmp_path / "all.json", table(["a.jpg", "missing.jpg"]))
    found = open_dataset(tmp_path, ReadOptions(val_fraction=0.0))
    assert found is not None
    assert found.splits["train"].annotations_path == tmp_path / "all.json"
