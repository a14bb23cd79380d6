"""Names of image files in the published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codetr_cli.data.annotations import read_annotations
from codetr_cli.data.formats.layouts import image_name
from codetr_cli.errors import DatasetError
from tests.data.dataset_samples import ADDRESS, lvis_content, write


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"file_name": "a/b.jpg"}, "a/b.jpg"),
        ({"file_name": "000.jpg", "coco_url": ADDRESS + "val2017/000.jpg"}, "000.jpg"),
        ({"coco_url": ADDRESS + "val2017/000.jpg"}, "val2017/000.jpg"),
        ({"file_name": "images/v2/patch16/x.jpg"}, "patch16/x.jpg"),
        ({"file_name": "v1/patch0/x.jpg"}, "patch0/x.jpg"),
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
    with pytest.raises(DatasetError, match=r"images\[2\] has file_name = None"):
        read_annotations(path)
    content = lvis_content("train", 1)
    content["images"][1]["neg_category_ids"] = "2"
    write(path, content)
    with pytest.raises(DatasetError, match=r"images\[1\] has neg_category_ids = '2'"):
        read_annotations(path)
