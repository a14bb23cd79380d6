"""Which image a row of a CSV file means."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.errors import DatasetError
from tests.data.checks.fakes import silent
from tests.formats.labelling_exports import boxes, counts, opened, picture, write

HEADER = "filename,xmin,ymin,xmax,ymax,class\n"


def table(root: Path, name: str, *images: str) -> None:
    write(root / name, HEADER + "".join(f"{image},1,2,30,40,{Path(name).stem}\n" for image in images))


def pictures(root: Path, *names: str) -> None:
    for name in names:
        picture(root / name)


@pytest.mark.parametrize(
    ("images", "tables", "absent"),
    [
        (("cats/2.jpg", "dogs/1.jpg"), {"a.csv": ("cats/1.jpg", "cats/2.jpg", "dogs/1.jpg")}, "cats/1.jpg"),
        (("cats/2.jpg", "dogs/1.jpg"), {"a.csv": ("cats/1.jpg", "cats/2.jpg")}, "cats/1.jpg"),
        (("train/2.jpg", "test/1.jpg"), {"train/t.csv": ("1.jpg", "2.jpg"), "test/t.csv": ("1.jpg",)}, "1.jpg"),
        (("train/2.jpg", "test/1.jpg"), {"train_labels.csv": ("1.jpg", "2.jpg")}, "1.jpg"),
        (("B/0.jpg",), {"A/t.csv": ("0.jpg",), "B/t.csv": ("0.jpg",)}, "0.jpg"),
        (("images/0.jpg",), {"t.csv": ("0.jpg", "images/0.jpg")}, "0.jpg"),
    ],
)
def test_a_missing_image_is_no_namesake_of_another_folder(tmp_path, images, tables, absent):
    pictures(tmp_path, *images)
    for name, rows in tables.items():
        table(tmp_path, name, *rows)
    with pytest.raises(DatasetError, match=rf"1 of \d annotated images are not in .*: {absent} \("):
        opened(tmp_path)


@pytest.mark.parametrize("folder", ["", "images/"])
def test_the_part_of_a_table_chooses_the_folder(tmp_path, folder):
    """As scripts for TensorFlow write them: train_labels.csv, test_labels.csv, and a folder of images each."""
    for part in ("train", "test"):
        pictures(tmp_path, f"{folder}{part}/1.jpg", f"{folder}{part}/2.jpg")
        table(tmp_path, f"data/{part}_labels.csv", "1.jpg", "2.jpg")
    found = opened(tmp_path)
    assert (found.val_is_test, counts(found)) == (True, {})
    assert boxes(tmp_path) == {f"{folder}train/{n}.jpg": [("train_labels", [1, 2, 29, 38])] for n in (1, 2)}


def test_a_table_of_a_part_without_a_folder_of_it(tmp_path):
    pictures(tmp_path, "train/1.jpg", "train/2.jpg")
    table(tmp_path, "train.csv", "1.jpg")
    table(tmp_path, "val.csv", "2.jpg")
    assert list(boxes(tmp_path)) == ["train/1.jpg"]


def test_a_path_beside_the_name_decides(tmp_path):
    pictures(tmp_path, "A/1.jpg", "B/1.jpg")
    header = "path,filename,xmin,ymin,xmax,ymax,class\n"
    write(tmp_path / "a.csv", f"{header}/x/A/1.jpg,1.jpg,1,2,30,40,c\n/x/B/1.jpg,1.jpg,5,5,50,50,d\n")
    assert boxes(tmp_path, val_fraction=0) == {"A/1.jpg": [("c", [1, 2, 29, 38])], "B/1.jpg": [("d", [5, 5, 45, 45])]}
    picture(tmp_path / "A" / "2.jpg")
    (tmp_path / "A" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match="1 of 2 annotated images are not in"):
        opened(tmp_path, val_fraction=0)


def test_names_of_another_folder_are_not_one_image(tmp_path):
    pictures(tmp_path, "1.jpg")
    table(tmp_path, "a.csv", "/x/1.jpg", "/y/1.jpg")
    assert boxes(tmp_path, val_fraction=0) == {"1.jpg": [("a", [1, 2, 29, 38])]}
    assert counts(opened(tmp_path, val_fraction=0)) == {"second_annotation": 1}


@pytest.mark.parametrize(
    ("image", "named", "hint"),
    [("a.jpg", "a.png", r" \(a.jpg is there\)"), ("0007.jpg", "7", r" \(0007.jpg is there\)"), ("a.jpg", "b.jpg", "")],
)
def test_tables_without_images_are_explained(tmp_path, image, named, hint):
    pictures(tmp_path, image)
    table(tmp_path, "labels.csv", named)
    words = rf"labels.csv has boxes, but its images are not in the folder: {named}{hint}\. Copy"
    with pytest.raises(DatasetError, match=words):
        check_dataset(tmp_path, config=DataConfig(), progress=silent)
