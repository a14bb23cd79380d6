"""What a JSON file is, from parts of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.formats import json_sample
from codetr_cli.formats.json_sample import first_keys, has_tables, sample_json
from tests.formats.coco_exports import table

COCO = table(["a.jpg", "b.jpg"])


@pytest.mark.parametrize(
    "keys",
    [
        ("images", "annotations", "categories"),
        ("annotations", "categories", "images"),
        ("categories", "images", "annotations"),
        ("images",),
    ],
)
def test_coco_tables_in_any_order(keys: tuple[str, ...]) -> None:
    text = json.dumps(
        {"info": {"images": "x"}, "licenses": [{"id": 1, "name": "n"}], **{key: COCO[key] for key in keys}}
    )
    assert has_tables(text)
    assert has_tables(json.dumps(json.loads(text), indent=1))


@pytest.mark.parametrize(
    "value",
    [
        [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
        {"version": "5.0.1", "shapes": [{"label": "cat", "points": []}], "imagePath": "a.jpg", "imageData": None},
        [{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.jpg"}}],
        {"images": [{"file": "a.jpg"}], "name": "a page"},
        {"name": "package", "categories": [{"id": 1, "name": "x"}]},
        {"annotations": ["images", "categories"]},
        {},
    ],
)
def test_other_json_files(value: Any) -> None:
    assert not has_tables(json.dumps(value))


def test_keys_inside_texts_and_records_do_not_count() -> None:
    text = '{"a": "{\\"images\\": [", "f": [1], "images": [{"id": 1, "b": {"file_name": "x"}, "c": ["d"]}, {"e": 1}]}'
    assert first_keys(text) == {"images": {"id", "b", "c"}, "f": set()}
    assert first_keys('{"images": [{"id": 1, "file_na') == {"images": {"id"}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
def test_names_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(table(["图像.jpg"]), ensure_ascii=False).encode(encoding))
    assert sample_json(path).names == ["图像.jpg"]


@pytest.mark.parametrize("order", [("images", "annotations", "categories"), ("annotations", "images", "categories")])
def test_large_files_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]) -> None:
    monkeypatch.setattr(json_sample, "WHOLE_BYTES", 4096)
    monkeypatch.setattr(json_sample, "START_BYTES", 2048)
    monkeypatch.setattr(json_sample, "BLOCK_BYTES", 256)
    whole = table([f"{index:06d}.jpg" for index in range(2000)])
    path = tmp_path / "a.json"
    path.write_text(json.dumps({key: whole[key] for key in order}))
    sample = sample_json(path)
    assert 50 < len(sample.names) < 500
    assert min(sample.names) < "000400.jpg"
    assert max(sample.names) > "001600.jpg"
    assert sample.kind == "boxes"
    assert [record["name"] for record in sample.categories] == ["cat", "dog"]


def test_names_between_the_parts_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_sample, "WHOLE_BYTES", 4096)
    monkeypatch.setattr(json_sample, "START_BYTES", 1024)
    monkeypatch.setattr(json_sample, "BLOCK_BYTES", 16)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"x": "-" * 5000, **table(["only.jpg"]), "y": "-" * 300_000}))
    assert sample_json(path).names == ["only.jpg"]


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"bbox": [1, 2, 3, 4]}, "boxes"),
        ({"bbox": [1, 2, 3, 4], "keypoints": [], "num_keypoints": 0}, "keypoints"),
        ({"caption": "a cat"}, "captions"),
        ({"segments_info": []}, "panoptic"),
        ({"category_id": 1}, "labels"),
    ],
)
def test_kinds_of_annotations(tmp_path: Path, record: dict[str, Any], kind: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**COCO, "annotations": [{"id": 1, "image_id": 1, **record}]}))
    assert sample_json(path).kind == kind


def test_a_file_without_annotations(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": COCO["images"], "categories": COCO["categories"]}))
    assert sample_json(path).kind == "images"
