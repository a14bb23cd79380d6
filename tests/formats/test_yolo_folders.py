"""YOLO data sets without a description: the splits and images that folders, lists and .data files show."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.survey import Survey
from codetr_cli.errors import DatasetError
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.yolo_folders import find_data_file, read_settings
from tests.data.fakes import write_image
from tests.formats import yolo_exports as exports
from tests.formats.yolo_exports import XYWH, write, write_pair


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/{}/{}.jpg", "labels/{}/{}.txt"),
        ("{}/images/{}.jpg", "{}/labels/{}.txt"),
        ("{}/{}.jpg", "{}/{}.txt"),
        ("{}/{}.png", "{}/labels/{}.txt"),
        ("{}/{}.png", "labels/{}/{}.txt"),
        ("images/{}2017/{}.jpg", "labels/{}2017/{}.txt"),
        ("{}_images/{}.jpg", "{}_labels/{}.txt"),
        ("images/{}/deep/er/{}.jpg", "labels/{}/deep/er/{}.txt"),
        ("Images/{}/{}.jpg", "Labels/{}/{}.txt"),
        ("{}/JPEGImages/{}.bmp", "{}/labels/{}.txt"),
        ("data/obj_{}_data/{}.jpg", "data/obj_{}_data/{}.txt"),
        ("photos/{}/{}.jpg", "annotations/{}/{}.txt"),
    ],
)
@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_folders_of_splits(tmp_path: Path, image: str, labels: str, validation: str) -> None:
    for split, stem in (("train", "a"), ("train", "b.c"), (validation, "d")):
        write_pair(tmp_path, image.format(split, stem), labels.format(split, stem))
    write(tmp_path, "classes.txt", "cat\ndog\n")
    tables = exports.tables(tmp_path)
    assert {split: list(table) for split, table in tables.items()} == {
        "train": [image.format("train", "a"), image.format("train", "b.c")],
        "val": [image.format(validation, "d")],
    }
    assert all(boxes == XYWH for table in tables.values() for boxes in table.values())


def test_images_elsewhere_are_not_data(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path, f"set/images/{number}.jpg", f"set/labels/{number}.txt")
    write_image(tmp_path / "set/images/background.jpg")
    write_image(tmp_path / "docs/images/logo.png")
    write(tmp_path, "set/classes.txt", "cat\ndog\n")
    write(tmp_path, "README.txt", "1 2 3 4 5\n")
    found = open_dataset(tmp_path)
    assert found is not None
    assert sum(len(table) for table in exports.tables(tmp_path).values()) == 5
    assert {finding.kind: finding.first for finding in found.findings} == {
        "image_without_labels": ["set/images/background.jpg"],
        "unlisted_file": ["docs/images/logo.png"],
    }


def test_lists_without_a_description(tmp_path: Path) -> None:
    root = exports.labelimg(tmp_path)
    write(root, "train.txt", "DSC_0.jpg\nDSC_1.jpg\n")
    write(root, "valid.txt", "/home/me/DSC_2.jpg\n")
    found = open_dataset(root)
    assert found is not None
    assert {split: list(table) for split, table in exports.tables(root).items()} == {
        "train": ["DSC_0.jpg", "DSC_1.jpg"],
        "val": ["DSC_2.jpg"],
    }
    assert [(finding.kind, finding.first) for finding in found.findings] == [("outside_splits", ["DSC_3.jpg"])]
    assert "valid.txt has 1 line that is another path here" in found.notes[0]


def test_a_description_with_names_only(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path, f"images/{split}/1.jpg", f"labels/{split}/1.txt")
    write(tmp_path, "data.yaml", "nc: 2\nnames: [ant, bee]\n")
    assert exports.classes(tmp_path) == ["ant", "bee"]


def test_linked_folders(tmp_path: Path) -> None:
    store = exports.label_studio(tmp_path / "store")
    root = tmp_path / "set"
    root.mkdir()
    write(root, "classes.txt", "cat\ndog\n")
    for name in ("images", "labels"):
        (root / name).symlink_to(store / name)
    write_pair(root, "local/images/x.jpg", "local/labels/x.txt")
    tables = exports.tables(root)
    assert sum(len(table) for table in tables.values()) == 5
    assert all(boxes == XYWH for table in tables.values() for boxes in table.values())


def test_a_data_file(tmp_path: Path) -> None:
    write(tmp_path, "x.data", "no settings\n")
    write(tmp_path, "y.data", "classes= 2\r\n train = data/a b.txt \r\nnames=obj.names\r\nbackup =\r\n")
    survey = Survey.of(tmp_path)
    assert find_data_file(survey) == "y.data"
    assert read_settings(survey, "y.data") == {"classes": "2", "train": "data/a b.txt", "names": "obj.names"}


def test_a_data_file_whose_list_is_absent(tmp_path: Path) -> None:
    root = exports.cvat_yolo_11(tmp_path)
    (root / "train.txt").unlink()
    (root / "Validation.txt").unlink()
    tables = exports.tables(root)
    assert {split: len(table) for split, table in tables.items()} == {"train": 2, "val": 1}
    found = open_dataset(root)
    assert found is not None
    assert found.notes == ["obj.data names lists that are not in the folder: data/train.txt, data/Validation.txt"]


def test_a_part_of_a_data_set(tmp_path: Path) -> None:
    root = exports.roboflow(tmp_path)
    with pytest.raises(DatasetError, match=r"train is part of a YOLO data set.*data.yaml may have. Give the folder"):
        open_dataset(root / "train")


def test_no_class_names(tmp_path: Path) -> None:
    write_pair(tmp_path, "images/1.jpg", "labels/1.txt")
    with pytest.raises(DatasetError, match=r"without class names: write them into .*classes.txt"):
        open_dataset(tmp_path)
