"""What names of folders say."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.formats.folder_splits import by_split, place_of, split_folder
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from tests.formats.annotated_folders import LAYOUTS, Layout, annotated, parts


def test_the_folder_of_a_split() -> None:
    assert split_folder("set/train/annotations/cats") == "set/train"
    assert split_folder("cats") == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train/Annotations", "train/JPEGImages"),
        ("labels/train/cats", "images/train/cats"),
        ("train_xml", "train_images"),
        ("Annotations", ""),
        ("VOC_labels/2020-01-02", "photos/2020-01-02"),
    ],
)
def test_folders_of_annotations_and_images_are_the_same_place(one: str, other: str) -> None:
    assert place_of(one) == place_of(other)


def test_other_folders_are_other_places() -> None:
    assert len({place_of(name) for name in ("images/cats", "images/dogs", "images", "backup/images")}) == 4


def test_the_names_of_each_split() -> None:
    assert by_split("ab", {"a": "train", "b": "val"}) == ({"train": ["a"], "val": ["b"]}, [])
    assert by_split("abc", {"a": "train", "b": "val", "c": None}) == ({"train": ["a"], "val": ["b"]}, ["c"])
    assert by_split("ab", {"a": "test", "b": None}) == ({"train": ["b"], "test": ["a"]}, [])
    assert by_split("ab", {"a": None, "b": "train"}) == ({"all": ["a", "b"]}, [])
    assert by_split("a", {"a": "train"}) == ({"train": ["a"]}, [])
    assert by_split("a", {"a": None}) == ({"all": ["a"]}, [])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("TrainSet TestSet", {"train": ["TrainSet"], "val": ["TestSet"]}),
        ("trainset valid", {"train": ["trainset"], "val": ["valid"]}),
        ("train testA testB", {"train": ["train"], "val": ["testA", "testB"]}),
        ("2020_train 2020_test", {"train": ["2020_train"], "val": ["2020_test"]}),
        ("train val test-dev", {"train": ["train"], "val": ["val"], "test": ["test-dev"]}),
        ("my_train holdout", {"train": ["my_train"], "val": ["holdout"]}),
        ("bus car train", {"train": ["bus", "car", "train"]}),
        ("train/bus train/test valid/test", {"train": ["train_bus", "train_test"], "val": ["valid_test"]}),
        ("old/train old/test", {"train": ["old_train"], "val": ["old_test"]}),
        ("test_2/train test_2/val", {"train": ["test_2_train"], "val": ["test_2_val"]}),
        ("more val", {"train": ["more"], "val": ["val"]}),
    ],
)
def test_all_layouts_read_the_same_parts(
    layout: Layout, folders: str, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    assert parts(annotated(tmp_path, layout, folders.split())) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotated_images_of_no_part_are_a_warning(layout: Layout, tmp_path: Path) -> None:
    found = open_dataset(annotated(tmp_path, layout, ("train", "val", "more"), 2))
    assert found is not None
    assert [(each.kind, each.count) for each in found.findings] == [("outside_splits", 2)]
    assert found.findings[0].first[0].startswith("more/more_0.")


@pytest.mark.parametrize("layout", ["voc", "labelme", "cvat"])
def test_the_reserved_images_are_those_of_the_folder_inside(layout: Layout, tmp_path: Path) -> None:
    annotated(tmp_path, layout, ("archive/day/images/a", "archive/day/images/b"), 10)
    chosen = []
    for folder in ("", "archive", "archive/day", "archive/day/images"):
        found = open_dataset(tmp_path / folder, ReadOptions(val_fraction=0.2))
        assert found is not None
        names = read_annotations(found.splits["val"].annotations_path).file_names
        chosen.append({name.rpartition("/")[2] for name in names})
    assert chosen[0]
    assert all(each == chosen[0] for each in chosen)
