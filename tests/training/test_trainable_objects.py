from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.errors import DatasetError
from codetr_cli.training.trainable_objects import count_trainable

BOX = [4.0, 4.0, 10.0, 10.0]


def counted(tmp_path: Path, *entries: dict[str, Any], min_side: int = 32, max_images: int | None = None) -> list[int]:
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps(
            {
                "categories": [{"id": 3, "name": "a"}, {"id": 8, "name": "b"}],
                "images": [
                    {"id": 1, "file_name": "1.jpg", "height": 100, "width": 60},
                    {"id": 2, "file_name": "2.jpg", "height": 100, "width": 20},
                    {"id": 3, "file_name": "3.jpg", "height": 50, "width": 50},
                ],
                "annotations": [
                    {"id": index, "image_id": 1, "category_id": 8, "bbox": BOX, **entry}
                    for index, entry in enumerate(entries)
                ],
            }
        )
    )
    return count_trainable(read_annotations(path), path, min_side=min_side, max_images=max_images).tolist()


def test_objects_that_training_sees_are_counted(tmp_path: Path):
    entries = ({}, {"category_id": 3}, {"image_id": 2}, {"image_id": 3}, {"iscrowd": 1})
    assert counted(tmp_path, *entries) == [1, 2]
    assert counted(tmp_path, *entries, min_side=20) == [1, 3]
    assert counted(tmp_path, *entries, max_images=1) == [1, 1]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"iscrowd": 1}, "2 are crowd regions or marked `ignore`"),
        ({"ignore": 1}, "2 are crowd regions or marked `ignore`"),
        ({"bbox": [20, 30, 0.5, 0.4]}, "2 have a side under one pixel or no area."),
        ({"bbox": [20, 30, 0, 40]}, "2 have a side under one pixel or no area."),
        ({"bbox": [100, 10, 20, 20]}, "2 are outside their image"),
        ({"image_id": 2}, "2 are in images with a side under data.min_side 32"),
        ({"image_id": 77}, "2 are of images that `images` does not list"),
    ],
)
def test_data_that_teaches_nothing_is_refused_with_the_reason(tmp_path: Path, entry: dict[str, Any], reason: str):
    with pytest.raises(DatasetError) as error:
        counted(tmp_path, entry, entry)
    assert "no object of any class to train on" in str(error.value)
    assert f"of the annotations, {reason}" in str(error.value)
    assert error.value.exit_code == 3
    counted(tmp_path, entry, {})


def test_boxes_that_look_like_fractions_are_named(tmp_path: Path):
    """Beside a crowd in pixels; where all boxes are so small, the file is refused before."""
    with pytest.raises(DatasetError, match=r"1 have a side under one pixel or no area \(they look like fractions"):
        counted(tmp_path, {"bbox": [0.2, 0.3, 0.5, 0.4]}, {"iscrowd": 1})


def test_several_reasons_are_told_apart(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"1 are crowd regions.*, 2 are outside.*, 1 are in images beyond the first"):
        counted(
            tmp_path,
            {"bbox": [100, 10, 20, 20]},
            {"bbox": [10, 200, 20, 20]},
            {"iscrowd": 1, "image_id": 2},
            {"image_id": 3},
            max_images=1,
        )
    with pytest.raises(DatasetError, match="3 images, 2 categories; no annotations"):
        counted(tmp_path)
