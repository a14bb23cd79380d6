from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.annotations.objects import read_annotations
from codetr_cli.errors import DatasetError
from tests.data.fakes import mixed_content

Rewrite = Callable[[dict[str, Any]], Path]


def test_outlines_are_skipped_without_touching_other_text(rewrite: Rewrite) -> None:
    content = mixed_content()
    content["categories"][0]["name"] = '"segmentation": [[1, 2]], "x'
    content["annotations"][0] = {"segmentation": [], "bbox": [1, 1, 20, 20], "category_id": 3, "image_id": 7, "id": 1}
    content["annotations"][1] = {"id": 2, "bbox": [1, 1, 9, 9], "category_id": 3, "image_id": 7, "segmentation": None}
    annotations = read_annotations(rewrite(content))
    assert annotations.class_names[2] == '"segmentation": [[1, 2]], "x'
    assert annotations.boxes_xywh[:2].tolist() == [[1, 1, 20, 20], [1, 1, 9, 9]]


@pytest.mark.parametrize(
    ("table", "index", "changes", "message"),
    [
        ("annotations", 1, {"bbox": [1, float("nan"), 5, 5]}, r"annotations\[1\] \(id 2\).*not finite"),
        ("annotations", 1, {"bbox": [1, 2, -5, 5]}, r"annotations\[1\] \(id 2\).*negative width or height"),
        ("annotations", 2, {"bbox": [1, 2, 5]}, r"annotations\[2\].*\[x, y, width, height\]"),
        ("annotations", 2, {"bbox": ["1,5", 2, 5, 5]}, r"annotations\[2\].*\[x, y, width, height\]"),
        ("annotations", 2, {"bbox": None}, r"annotations\[2\].*has no 'bbox'"),
        ("annotations", 0, {"category_id": 44}, r"annotations\[0\].*`categories` does not list"),
        ("annotations", 0, {"category_id": "x3"}, r"annotations\[0\].*category_id = 'x3' instead of an integer"),
        ("annotations", 0, {"image_id": 1.5}, r"annotations\[0\].*image_id = 1.5 instead of an integer"),
        ("annotations", 0, {"area": "big"}, r"annotations\[0\].*area = 'big' instead of a number"),
        ("images", 3, {"height": None}, r"images\[3\] \(id 37, 3.png\) has no 'height'"),
        ("images", 3, {"width": 0}, r"images\[3\].*width = 0 instead of an integer from 1"),
        ("images", 3, {"id": 7}, r"id 7 \(0.png, 3.png\) occurs more than once in 'images'"),
        ("images", 3, {"id": 2**63}, r"images\[3\].*instead of an integer"),
        ("images", 3, {"file_name": 5}, r"images\[3\].*file_name = 5 instead of a string"),
        ("categories", 1, {"id": 3}, r"id 3 \(first, middle\) occurs more than once in 'categories'"),
    ],
)
def test_wrong_entries_are_named(
    rewrite: Rewrite, table: str, index: int, changes: dict[str, Any], message: str
) -> None:
    content = mixed_content()
    content[table][index].update(changes)
    path = rewrite(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(mixed_content())[:900], "truncated"),
        (json.dumps(mixed_content())[:-1], "truncated"),
        ("", "truncated"),
        ("<html>", "not valid JSON"),
        ("[]", "not a COCO annotation file"),
        ('{"images": []}', "'categories' is missing"),
        ('{"images": [], "categories": [], "annotations": []}', "'images' is empty"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_annotation_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)


def test_binary_instead_of_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(b"\x80\x03\xff\xfe" * 10)
    with pytest.raises(DatasetError, match="no UTF-8 text"):
        read_annotations(path)
