"""Names of image files in the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.annotations.layouts import image_name
from codetr_cli.annotations.objects import read_annotations
from codetr_cli.errors import DatasetError
from tests.conftest import Ran
from tests.data.dataset_samples import ADDRESS, lvis_content, write


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"file_name": "a/b.jpg"}, "a/b.jpg"),
        ({"file_name": "000.jpg", "coco_url": ADDRESS + "val2017/000.jpg"}, "000.jpg"),
        ({"coco_url": ADDRESS + "val2017/000.jpg"}, "val2017/000.jpg"),
        (
            {"file_name": "images/v2/patch16/objects365_v2_00908726.jpg"},
            "patch16/objects365_v2_00908726.jpg",
        ),
        ({"file_name": "v1/patch0/objects365_v1_00000001.jpg"}, "patch0/objects365_v1_00000001.jpg"),
        ({"file_name": "images/v1/patch8/x.jpg"}, "images/v1/patch8/x.jpg"),
        ({"file_name": "images/v2/other/x.jpg"}, "images/v2/other/x.jpg"),
        ({"file_name": 5}, 5),
        ({}, None),
    ],
)
def test_names_of_image_files(record: dict[str, Any], name: object) -> None:
    assert image_name(record) == name


def test_a_name_that_is_none_is_refused(lvis: Path) -> None:
    path = lvis / "annotations" / "lvis_v1_train.json"
    content = lvis_content("train", 1)
    del content["images"][2]["coco_url"]
    write(path, content)
    with pytest.raises(DatasetError, match=r"images\[2\] \(id 3\) has no 'file_name'"):
        read_annotations(path)
    content = lvis_content("train", 1)
    content["images"][1]["neg_category_ids"] = "2"
    write(path, content)
    with pytest.raises(DatasetError, match=r"images\[1\] .* has neg_category_ids = '2'"):
        read_annotations(path)


def test_a_name_that_is_too_long_is_wrong_data(codetr: Callable[..., Ran]) -> None:
    for command in (("prepare",), ("train", "--preset", "co_dino_r50", "--dry-run", "--data"), ("convert-data",)):
        ran = codetr(*command, "a" * 300, *(("--out", "out") if command == ("convert-data",) else ()))
        assert ran.code == 3, ran.err
        assert "folder" in ran.err
