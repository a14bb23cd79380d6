"""Annotation files that cannot be parsed or whose records break the schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_cli.annotations import annotation_columns
from codetr_cli.annotations.findings import SHOWN
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
        (lambda text: "[" * 100_000, "not_json", "nested too deeply"),
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


def test_utf_16_is_read(tiny_coco: Path) -> None:
    path = tiny_coco / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text(), encoding="utf-16")
    assert check(tiny_coco).errors == 0


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
        (drop("images", 0, "id"), "images[0] (000000000100.jpg) has no 'id'"),
        (put("images", 0, width="wide"), "has width = 'wide' instead of an integer from 1 to 1,000,000"),
        (put("images", 0, width=0), "has width = 0 instead of an integer from 1 to 1,000,000"),
        (set_record("images", 2, 7), "images[2] is a number, an object is needed"),
        (drop("annotations", 3, "bbox"), "annotations[3] (id 4) has no 'bbox'"),
        (
            put("annotations", 0, bbox=[1, 2, 3]),
            "annotations[0] (id 1) has bbox = [1, 2, 3] instead of [x, y, width, height]",
        ),
        (put("annotations", 0, bbox=[1, 2, "three", 4]), "instead of [x, y, width, height]"),
        (drop("annotations", 0, "category_id"), "annotations[0] (id 1) has no 'category_id'"),
        (put("annotations", 0, image_id="a100"), "has image_id = 'a100' instead of an integer"),
        (set_record("annotations", 1, None), "annotations[1] is null, an object is needed"),
        (drop("categories", 1, "name"), "categories[1] (id 2) has no name"),
        (put("categories", 1, id=2.5), "categories[1] (id 2.5) has id = 2.5 instead of an integer"),
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


@pytest.mark.parametrize("table", ["annotations", "images"])
def test_only_the_first_wrong_records_are_described(
    tiny_coco: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    described: list[object] = []
    monkeypatch.setattr(annotation_columns, "json_type", lambda value: described.append(value) or "a number")
    edit(tiny_coco, lambda content: content[table].extend([7] * 500))
    finding = found(check(tiny_coco))["wrong_schema"]
    assert finding.count == 500
    assert finding.first[0].endswith("] is a number, an object is needed")
    assert len(described) <= SHOWN
