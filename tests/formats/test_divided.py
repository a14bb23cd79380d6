"""A COCO file without a validation part is divided, the same for all verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from codetr_cli.annotations.cache import source_of
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.config.data_settings import DataConfig
from codetr_cli.data.checks.dataset import check_dataset
from codetr_cli.errors import DatasetError
from codetr_cli.formats.found import ReadOptions
from codetr_cli.formats.open import open_dataset
from codetr_cli.formats.resolve import find_data
from tests.data.checks.fakes import silent


@pytest.fixture
def train_only(tmp_path) -> Path:
    """A published folder without validation images; ten images of noise, one object each, of two classes."""
    table: dict[str, Any] = {"info": {"year": 2026}, "images": [], "annotations": [], "licenses": [{"id": 1}]}
    table["categories"] = [{"id": 3, "name": "cat", "supercategory": "pet"}, {"id": 8, "name": "dog"}]
    (tmp_path / "train2017").mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        assert cv2.imwrite(str(tmp_path / "train2017" / f"{i}.png"), pixels)
        table["images"].append({"id": 100 + i, "file_name": f"{i}.png", "height": 40, "width": 60, "flickr": f"x{i}"})
        table["annotations"].append(
            {"id": i + 1, "image_id": 100 + i, "category_id": (3, 8)[i % 2], "bbox": [1, 2, 20.5, 10], "area": 99.25,
             "iscrowd": 0, "segmentation": [[1, 2, 21, 2, 21, 12]], "mood": i}
        )  # fmt: skip
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(table))
    return tmp_path


def table_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_both_parts_keep_every_entry_as_it_was(train_only):
    found = open_dataset(train_only)
    assert found is not None
    parts = [table_of(found.splits[name].annotations_path) for name in ("train", "val")]
    whole = table_of(train_only / "annotations" / "instances_train2017.json")
    assert [len(part["images"]) for part in parts] == [8, 2]
    for key in ("images", "annotations"):
        assert sorted((entry for part in parts for entry in part[key]), key=lambda entry: entry["id"]) == whole[key]
    assert all(part["categories"] == whole["categories"] and part["info"] == whole["info"] for part in parts)
    assert {entry["category_id"] for entry in parts[1]["annotations"]} == {3, 8}
    assert "2 of the 10 images are reserved" in found.notes[0]


def test_all_verbs_divide_alike(train_only):
    config = DataConfig(root=str(train_only))
    paths = {split: find_data(config, None, split) for split in ("train", "val")}
    images = {split: read_annotations(each.annotations_path).file_names for split, each in paths.items()}
    report = check_dataset(train_only, config=config, progress=silent)
    assert report.errors == 0
    assert {name: [image[0] for image in split.images] for name, split in report.splits.items()} == images
    assert any("reserved for validation" in note for note in (*report.notes, *paths["val"].notes))
    assert source_of(paths["val"].annotations_path).name.endswith("instances_train2017.json (reserved)")
    assert "codetr prepare" in source_of(paths["val"].annotations_path).check


def test_another_share_or_none(train_only):
    def count(fraction: float) -> dict[str, int]:
        found = open_dataset(train_only, ReadOptions(val_fraction=fraction))
        assert found is not None
        return {name: len(table_of(split.annotations_path)["images"]) for name, split in found.splits.items()}

    assert count(0.5) == {"train": 5, "val": 5}
    assert count(0) == {"train": 10}
    assert count(0.2) == {"train": 8, "val": 2}


def test_changed_annotations_are_divided_again(train_only):
    path = train_only / "annotations" / "instances_train2017.json"
    first = open_dataset(train_only)
    table = table_of(path)
    table["images"].pop()
    table["annotations"].pop()
    path.write_text(json.dumps(table))
    second = open_dataset(train_only)
    assert first is not None
    assert second is not None
    assert first.splits["train"].annotations_path != second.splits["train"].annotations_path
    assert "of the 9 images" in second.notes[0]


def test_a_broken_file_is_reported_with_its_own_entries(train_only):
    path = train_only / "annotations" / "instances_train2017.json"
    table = table_of(path)
    del table["annotations"][7]["bbox"]
    path.write_text(json.dumps(table))
    found = open_dataset(train_only)
    assert found is not None
    assert set(found.splits) == {"train"}
    with pytest.raises(DatasetError, match=r"instances_train2017.json: annotations\[7\]"):
        read_annotations(find_data(DataConfig(root=str(train_only)), None, "train").annotations_path)


def test_images_without_annotations_are_not_replaced(train_only):
    """A folder val2017/ means that its annotation file is missing."""
    (train_only / "val2017").mkdir()
    found = open_dataset(train_only)
    assert found is not None
    assert set(found.splits) == {"train"}


def test_names_that_lead_out_are_not_read(train_only, monkeypatch):
    path = train_only / "annotations" / "instances_train2017.json"
    table = table_of(path)
    table["images"][0]["file_name"] = "../../secret.png"
    path.write_text(json.dumps(table))
    seen: list[str] = []
    monkeypatch.setattr("codetr_cli.formats.similar._picture", lambda path: seen.append(str(path)))
    assert open_dataset(train_only) is not None
    assert not any("secret" in name and not name.startswith("/dev/null/") for name in seen)


def test_one_file_in_both_parts_is_an_error_for_all_verbs(train_only):
    path = train_only / "annotations" / "instances_train2017.json"
    table = table_of(path)
    for entry in table["images"]:
        entry["file_name"] = f"{'xy'[entry['id'] % 2]}/{(entry['id'] - 100) // 2}.png"
    path.write_text(json.dumps(table))
    (train_only / "train2017.txt").unlink(missing_ok=True)
    words = r"train2017 is the image of .*\.png and of another entry"
    with pytest.raises(DatasetError, match=words):
        check_dataset(train_only, config=DataConfig(), progress=silent)
    with pytest.raises(DatasetError, match=words):
        find_data(DataConfig(root=str(train_only)), None, "train")
