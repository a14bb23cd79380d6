"""Annotation files that a stranger may have written: read alike by training and `codetr prepare`, or refused."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_cli.annotations.annotation_json import read_json_file, read_tables
from codetr_cli.annotations.findings import Findings
from codetr_cli.annotations.json_text import UnusableFileError
from codetr_cli.annotations.objects import Annotations, read_annotations
from codetr_cli.data.checks.annotations import check_annotations
from codetr_cli.errors import DatasetError, shown
from codetr_cli.evaluation.scoring import score_detections
from codetr_cli.inference.detections import DetectionTable
from tests.data.fakes import mixed_content
from tests.data.hostile_json import variants


def lvis_content() -> dict[str, Any]:
    content = mixed_content()
    for image in content["images"]:
        image |= {"neg_category_ids": [0], "not_exhaustive_category_ids": [3]}
    for category in content["categories"]:
        category["frequency"] = "r"
    return content


def read(path: Path) -> Annotations | None:
    """The annotations; None for a DatasetError. Every other exception fails the test."""
    try:
        return read_annotations(path, with_outlines=True)
    except DatasetError as error:
        message = str(error)
    assert str(path) in message
    assert len(message) < 2000
    return None


def use(annotations: Annotations) -> None:
    """What training and evaluation compute from annotations."""
    rows = np.arange(len(annotations.image_ids))
    annotations.usable_objects(rows, with_crowd=True)
    assert annotations.outlines is not None
    for row in range(len(annotations.labels)):
        with contextlib.suppress(DatasetError):
            annotations.outlines.masks([row], (48, 64))
    if not len(rows) or not annotations.category_ids:
        return
    one = DetectionTable.of_image(
        int(annotations.image_ids[0]), np.array([[1, 1, 9, 9]]), np.array([0.5]), annotations.category_ids[:1]
    )
    with contextlib.suppress(DatasetError):  # broken outlines
        score_detections(annotations, one, where="annotations")


@pytest.mark.parametrize(("content", "seed"), [(mixed_content(), 0), (lvis_content(), 1)])
def test_broken_variants_are_refused_by_training_and_check_alike(
    tmp_path: Path, content: dict[str, Any], seed: int
) -> None:
    path = tmp_path / "instances.json"
    accepted = 0
    for variant in variants(content, seed, 250):
        path.write_bytes(variant)
        annotations = read(path)
        findings = Findings()
        check_annotations(path, findings, "here", training=False)
        json.dumps([finding.as_json() for finding in findings.sorted()])
        assert (annotations is None) == (findings.count("error") > 0), variant[:3000]
        if annotations is not None:
            accepted += 1
            use(annotations)
    assert 50 < accepted < 150


@pytest.mark.parametrize(
    "segmentation",
    [
        '"segmentation" : [0]',
        '"segmentation": [0]',
        '"\\u0073egmentation": [0]',
        '"segmentation": [true]',
        '"segmentation": [NaN]',
        '"segmentation": {"counts": "ab}cd\\"}{\\\\", "size": [48, 64]}',
        '"segmentation": {"counts": "},", "size": [48, 64]}',
        '"segmentation": {"},":":1,", ":":2}',
        '"segmentation": {"counts": "\\u00e9\u00e9", "size": [48, 64]}',
        '"segmentation": [[1, 2]], "segmentation": [[3, 4]]',
        '"x\\"segmentation": [[1, 2]], "segmentation": [[3, 4]]',
        '"segmentation": "outline-0000000000000000-0"',
        '"segmentation": {"a": {"b": [1]}}',
        '"segmentation": [ ]',
    ],
)
def test_outlines_are_what_a_json_parser_finds(tmp_path: Path, segmentation: str) -> None:
    entry = '{"image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], %s}'
    content = mixed_content() | {"annotations": []}
    entries = ", ".join([entry % '"segmentation": [[9, 9, 9]]', entry % segmentation, entry % '"segmentation": []'])
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content).replace('"annotations": []', f'"annotations": [{entries}]'))
    outlines = read_annotations(path, with_outlines=True).outlines
    assert outlines is not None
    expected = json.loads(f"{{{segmentation}}}")["segmentation"]
    expected = expected if expected and isinstance(expected, list | dict) else None
    np.testing.assert_equal([outlines.parse(row) for row in range(3)], [[[9, 9, 9]], expected, None])


@pytest.mark.parametrize(
    "bad", ["[1,,2]", "[[1,2]", "[1.2.3]", "[[[[[]", "{1:2}", '{"a" "b"}', "[" * 5000 + "]" * 5000]
)
def test_an_outline_that_is_not_json_is_a_broken_one(tmp_path: Path, bad: str) -> None:
    """Only where outlines are used: they are not parsed otherwise."""
    content = mixed_content()
    content["annotations"][0]["segmentation"] = "@"
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content).replace('"@"', bad))
    findings = Findings()
    check_annotations(path, findings, "here", training=True)
    if findings.count("error"):  # the text after it is not JSON, either
        assert read(path) is None
        return
    outlines = read_annotations(path, with_outlines=True).outlines
    assert outlines is not None
    with pytest.raises(DatasetError, match=r"annotations\[0\] has a (segmentation that is not JSON|broken polygon)"):
        outlines.masks([0], (50, 50))
    broken = findings.get("broken_outline", "here")
    assert broken is not None
    assert "annotation 1 has a" in broken.first[0]


@pytest.mark.parametrize(
    "unit", ['"segmentation":{"\\"', '"segmentation":[', '"segmentation":{', '"segmentation": {" ', " "]
)
def test_the_time_of_cutting_is_linear(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text('{"a":"segmentation":' + unit * 40_000)
    started = time.process_time()
    with pytest.raises(UnusableFileError):
        read_tables(path, with_outlines=True)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}' + b"\0" * 100, "byte 8 is zero"),
        ('{"a": 1}'.encode("utf-16") + b"\0" * 100, "byte 17 is zero"),
        (b'{"a": "\xff"}', "no UTF-8 text at byte 7"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"thousands of digits.*the number at character 6"),
        (b"[" * 10**6, "nested too deeply"),
        (b'{"a": tru', "while the JSON is still open"),
        (b'{"a": 1.', "while the JSON is still open"),
    ],
)
def test_unusable_files_are_explained(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UnusableFileError, match=words):
        read_json_file(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(mixed_content()), encoding="utf-8-sig")
    annotations = read(path)
    assert annotations is not None
    assert annotations.outlines is not None
    assert annotations.outlines.parse(0) == [[1.5, 2, 3, 4e-2, 5, 6]]
    findings = Findings()
    check_annotations(path, findings, "here", training=True)
    assert not findings.count("error")


def test_holes_of_a_sparse_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.write(b'{"images": [')
        file.truncate(1 << 40)
    with pytest.raises(DatasetError, match="byte 12 is zero"):
        read_annotations(path)


def test_only_regular_files_are_read() -> None:
    with pytest.raises(DatasetError, match="it is a device, not a regular file"):
        read_annotations(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ("images", {"id": True}, "id = True instead of an integer"),
        ("images", {"id": -(2**63) - 1}, "instead of an integer of at most 64 bits"),
        ("images", {"id": 2**63}, "instead of an integer of at most 64 bits"),
        ("images", {"id": 2.0**53}, "instead of an integer of at most 64 bits"),
        ("images", {"width": 1_000_001}, "instead of an integer from 1 to 1,000,000"),
        ("images", {"height": 10**400}, "instead of an integer from 1"),
        ("images", {"file_name": "a\0b"}, r"the file_name 'a\\x00b', which no file can have"),
        ("images", {"file_name": "\ud800"}, "which no file can have"),
        ("images", {"file_name": "x" * 5000}, "a file_name of 5,000 characters"),
        ("categories", {"name": "x" * 1001}, "a name of 1,001 characters; at most 1,000"),
        ("categories", {"name": "\udc80"}, "which is not Unicode text"),
        ("annotations", {"iscrowd": 0.5}, "iscrowd = 0.5 instead of 0 or 1"),
        ("annotations", {"ignore": "yes"}, "ignore = 'yes' instead of 0 or 1"),
        ("annotations", {"area": 1e300}, r"area = 1e\+300 instead of a number"),
        ("annotations", {"bbox": [1, 2, 1e300, 5]}, "not finite or far too large"),
        ("annotations", {"bbox": [1, 2, -(10**400), 5]}, "not finite or far too large"),
        ("annotations", {"bbox": [1, 2, True, 5]}, r"instead of \[x, y, width, height\]"),
        ("annotations", {"category_id": [[[[[[1]]]]]]}, r"category_id = \[\[\[\[...\]\]\]\]"),
    ],
)
def test_values_out_of_range_are_named(tmp_path: Path, table: str, changes: dict[str, Any], message: str) -> None:
    content = mixed_content()
    content[table][1] |= changes
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message) as caught:
        read_annotations(path)
    assert f"{table}[1]" in str(caught.value)
    findings = Findings()
    check_annotations(path, findings, "here", training=False)
    assert findings.count("error")


def test_ids_may_be_negative_and_flags_any_integer(tmp_path: Path) -> None:
    content = mixed_content()
    content["images"][1]["id"] = content["annotations"][0]["image_id"] = -17
    content["annotations"][0].update(iscrowd=2, ignore=-3)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    annotations = read(path)
    assert annotations is not None
    assert annotations.image_ids[annotations.image_rows[0]] == -17
    assert annotations.iscrowd[0] == 1
    assert annotations.ignore[0]
    findings = Findings()
    check_annotations(path, findings, "here", training=False)
    assert not findings.count("error")


def test_whole_floats_are_ids(tmp_path: Path) -> None:
    content = mixed_content()
    content["images"][1]["id"] = content["annotations"][0]["image_id"] = 17.0
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    annotations = read(path)
    assert annotations is not None
    assert annotations.image_ids.tolist() == [7, 17, 27, 37, 47]
    assert annotations.image_rows[0] == 1
    assert annotations.unlisted == 1


def test_any_value_can_be_shown() -> None:
    values: list[Any] = ["x" * 10**6, [[[[[[[[1]]]]]]]], 10**5000, {"a": ["b" * 999] * 999}, None, "\x1b[2J"]
    assert all(len(shown(value)) <= 80 for value in values)
