"""Which part of a data set a name means."""

from __future__ import annotations

import pytest

from codetr_cli.formats.split_names import split_in, split_of, split_of_folder, splits_of_files, splits_of_folders


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_train2014.json", "train"),
        ("instances_Validation.json", "val"),
        ("valid", "val"),
        ("my-dev.json", "val"),
        ("TestSet", "test"),
        ("TESTset", "test"),
        ("trainset", "train"),
        ("testimages2", "test"),
        ("valdata", "val"),
        ("testA", "test"),
        ("testb", "test"),
        ("2020_train", "train"),
        ("train_f", "train"),
        ("my_train", "train"),
        ("test-dev", "test"),
        ("image_info_test-dev2017.json", "test"),
        ("trainval.json", "trainval"),
        ("train_val.json", "trainval"),
        ("TrainVal", "trainval"),
        ("eval", "val"),
        ("Holdout", "val"),
        ("hold-out", "val"),
        ("development", "val"),
        ("evaluation.json", "val"),
        ("training_set", "train"),
        ("obj_Test_data", "test"),
        ("annotations-training", "train"),
        ("train_and_test", None),
        ("instances_default.json", None),
        ("trainers.json", None),
        ("contest.json", None),
        ("strain", None),
        ("détest", None),
        ("latest", None),
        ("", None),
    ],
)
def test_words_of_names(name: str, split: str | None) -> None:
    assert split_in(name) == split


def test_the_name_of_a_file_counts_before_those_of_its_folders() -> None:
    assert split_of("train/labels.json") == "train"
    assert split_of("train/annotations/val.json") == "val"
    assert split_of("annotations/all.json") is None


@pytest.mark.parametrize(
    ("folder", "split"),
    [("train/test", "train"), ("images/val2017", "val"), ("valid/test/x", "val"), ("a/b", None), ("", None)],
)
def test_the_outermost_folder_counts(folder: str, split: str | None) -> None:
    assert split_of_folder(folder) == split


def test_the_folder_that_all_share() -> None:
    divided = splits_of_folders(["my_test_set/train/a", "my_test_set/valid"])
    assert divided == {"my_test_set/train/a": "train", "my_test_set/valid": "val"}
    assert splits_of_folders(["train/test", "train/bus"]) == {"train/test": "train", "train/bus": "train"}
    assert splits_of_folders(["test", "test/a"]) == {"test": "test", "test/a": "test"}
    assert splits_of_folders([]) == {}
    names = ["test_2/train/labels.json", "test_2/val/labels.json"]
    assert splits_of_files(names) == dict(zip(names, ("train", "val"), strict=True))
