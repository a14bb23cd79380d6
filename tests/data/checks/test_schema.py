"""Annotation files that cannot be parsed or whose records break the schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.checks.fakes import Edit, check, drop, edit, found, put


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda text: text[:300], "truncated_json", "it ends at byte 300"),
        (lambda text: text[: text.index("width") + 3], "truncated_json", "while the JSON is still open"),
        (lambda text: text[: text.index("128")] + "12", "truncated_json", "while the JSON is still open"),
        (lambda text: "", "truncated_json", "zero bytes"),
        (lambda text: " \n", "truncated_json", "white space"),
        (lambda text: "<xml/>", "not_json", "Expecting value at byte 0 (line 1, column 1)"),
        (lambda text: text + text, "not_json", "Extra data at byte"),
        (lambda text: text.replace("width", "wid\u00e4th", 1)[:400].replace(",", ";", 1), "not_json", "delimiter"),
        (lambda text: "[" * 100_000, "not_json", "recursion"),
        (lambda text: "null", "wrong_schema", "the top level is null, an object is needed"),
        (lambda text: '[{"image_id": 1, "score": 0.5}]', "wrong_schema", "looks like a file of detections"),
        (
            lambda text: '{"images": {}, "annotations": []}',
            "wrong_schema",
            "key 'images' is an object, a list is needed",
        ),
        (lambda text: '{"images": {}, "annotations": []}', "wrong_schema", "key 'categories' is missing"),
    ],
)
def test_files_that_cannot_be_understood(tiny_coco: Path, damage: Callable[[str], str], kind: str, words: str) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    path.write_text(damage(path.read_text()), encoding="utf-8")
    report = check(tiny_coco)
    finding = found(report)[kind]
    assert (finding.severity, finding.where) == ("error", "annotations/instances_train2017.json")
    assert words in finding.first[0]
    assert "train" not in report.splits


def test_bytes_are_counted_as_bytes(tiny_coco: Path) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    path.write_text('{"images": ["\u00e4\u00f6\u00fc"] x', encoding="utf-8")
    assert "at byte 22" in found(check(tiny_coco))["not_json"].first[0]


def test_latin_1_is_not_utf_8(tiny_coco: Path) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    path.write_bytes('{"images": "\u00e4"}'.encode("latin-1"))
    assert "no UTF-8 text at byte 12" in found(check(tiny_coco))["not_json"].first[0]


def set_record(key: str, index: int, value: object) -> Edit:
    return lambda table: table[key].__setitem__(index, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("images", 1, "file_name"), "images[1] (id 201) has no 'file_name'"),
        (drop("images", 0, "id"), "images[0] has no 'id'"),
        (drop("images", 0, "height"), "images[0] (id 100, 000000000100.jpg) has no 'height'"),
        (put("images", 0, width="wide"), "has the width 'wide', a positive integer is needed"),
        (put("images", 0, width=0), "has the width 0, a positive integer is needed"),
        (set_record("images", 2, 7), "images[2] is a number, an object is needed"),
        (drop("annotations", 3, "bbox"), "annotations[3] (id 4) has no 'bbox'"),
        (
            put("annotations", 0, bbox=[1, 2, 3]),
            "annotations[0] (id 1) has the bbox [1, 2, 3], four numbers are needed",
        ),
        (put("annotations", 0, bbox=[1, 2, "3", 4]), "four numbers are needed"),
        (drop("annotations", 0, "category_id"), "annotations[0] (id 1) has no 'category_id'"),
        (put("annotations", 0, image_id="100"), "annotations[0] has the image_id '100', an integer is needed"),
        (set_record("annotations", 1, None), "annotations[1] is null, an object is needed"),
        (drop("categories", 1, "name"), "categories[1] has no name"),
        (put("categories", 1, id=2.5), "categories[1] has the id 2.5, an integer is needed"),
    ],
)
def test_records_that_break_the_schema_are_named(tiny_coco: Path, change: Edit, words: str) -> None:
    edit(tiny_coco, change)
    finding = found(check(tiny_coco))["wrong_schema"]
    assert finding.severity == "error"
    assert any(words in name for name in finding.first)


def test_whole_floats_are_integers(tiny_coco: Path) -> None:
    edit(tiny_coco, put("images", 0, width=128.0, height=96.0, id=100.0))
    assert check(tiny_coco).errors == 0
