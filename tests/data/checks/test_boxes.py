"""Ids, boxes, crowds and masks of annotations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.data.checks.fakes import Edit, check, drop, edit, found, put


@pytest.mark.parametrize(
    ("change", "kind", "severity", "words"),
    [
        (put("images", 1, id=100), "duplicate_image_id", "error", "100 (000000000100.jpg, 000000000201.jpg)"),
        (put("images", 1, file_name="000000000100.jpg"), "duplicate_file_name", "warning", "000000000100.jpg"),
        (put("categories", 1, id=7), "duplicate_category_id", "error", "7 (ring, disc)"),
        (put("categories", 1, name="ring"), "duplicate_category_name", "warning", "ring"),
        (put("annotations", 1, id=1), "duplicate_annotation_id", "warning", "1"),
        (put("annotations", 1, id=0), "zero_annotation_id", "info", ""),
        (drop("annotations", 1, "id"), "no_annotation_id", "info", ""),
        (put("annotations", 1, image_id=999), "unknown_image_id", "warning", "annotation 2 (image_id 999)"),
        (
            put("annotations", 1, category_id=99),
            "unknown_category_id",
            "error",
            "annotation 2 (category_id 99)",
        ),
        (
            lambda table: table["categories"].append({"id": 9, "name": "ghost"}),
            "unused_category",
            "warning",
            "ghost (id 9)",
        ),
        (put("categories", 0, name="wheel"), "categories_differ", "error", "id 7 is 'wheel' in train, 'ring' in val"),
        (lambda table: table["images"].clear(), "no_images", "error", ""),
        (lambda table: table["categories"].clear(), "no_categories", "error", ""),
        (lambda table: table["annotations"].clear(), "no_objects", "error", ""),
        (
            put("annotations", 0, bbox=[1, 2, float("nan"), 4]),
            "box_not_finite",
            "error",
            "annotation 1: [1, 2, nan, 4]",
        ),
        (put("annotations", 0, bbox=[1, 2, float("inf"), 4]), "box_not_finite", "error", "annotation 1"),
        (put("annotations", 0, bbox=[10**400, 2, 3, 4]), "box_not_finite", "error", "annotation 1"),
        (
            put("annotations", 0, bbox=[50, 50, -10, 20]),
            "box_negative",
            "error",
            "annotation 1: [50, 50, -10, 20]",
        ),
        (put("annotations", 0, bbox=[5, 5, 0, 20]), "box_degenerate", "warning", "annotation 1: [5, 5, 0, 20]"),
        (put("annotations", 0, bbox=[200, 5, 9, 9]), "box_outside", "warning", "[200, 5, 9, 9] in 128 x 96"),
        (put("annotations", 0, bbox=[100, 5, 40, 40]), "box_beyond_edge", "info", "[100, 5, 40, 40] in 128 x 96"),
        (
            put("annotations", 0, area="big"),
            "bad_area",
            "error",
            "annotation 1 (area 'big')",
        ),
        (put("annotations", 0, area=0), "area_not_positive", "warning", "annotation 1 (area 0)"),
        (put("annotations", 0, ignore=1), "ignored", "info", ""),
        (put("annotations", 0, iscrowd="no"), "crowd_value", "error", "annotation 1 (iscrowd 'no')"),
        (put("annotations", 0, iscrowd=3), "crowd_number", "warning", "annotation 1 (iscrowd 3)"),
        (put("annotations", 0, ignore=2), "ignored", "info", ""),
        (put("annotations", 0, iscrowd=1), "crowd_without_rle", "warning", "annotation 1"),
    ],
)
def test_ids_classes_and_boxes(tiny_coco: Path, change: Edit, kind: str, severity: str, words: str) -> None:
    edit(tiny_coco, change)
    report = check(tiny_coco)
    finding = found(report)[kind]
    assert finding.severity == severity
    assert not words or any(words in name for name in finding.first)
    assert severity != "error" or report.errors


def test_ids_with_equal_hashes_take_no_time(tiny_coco: Path) -> None:
    def repeat(table: dict[str, Any]) -> None:
        first = table["annotations"][0]
        table["annotations"] += [{**first, "id": number * (2**61 - 1)} for number in range(15_000)]

    edit(tiny_coco, repeat)
    started = time.process_time()
    check(tiny_coco)
    assert time.process_time() - started < 2


def test_run_length_crowds_are_right(tiny_coco: Path) -> None:
    mask = {"counts": [1, 2], "size": [96, 128]}
    for split in ("train", "val"):
        edit(tiny_coco, put("annotations", -1, segmentation=mask), split)
    report = check(tiny_coco)
    assert report.splits["train"].crowd == 1
    assert "crowd_without_rle" not in found(report)


def test_normalised_boxes_are_recognised(tiny_coco: Path) -> None:
    def shrink(table: dict[str, Any]) -> None:
        for annotation in table["annotations"]:
            annotation["bbox"] = [value / 128 for value in annotation["bbox"]]

    edit(tiny_coco, shrink)
    assert "annotation 1: [" in found(check(tiny_coco))["box_normalised"].first[0]


def test_corner_boxes_are_recognised(tiny_coco: Path) -> None:
    def corners(table: dict[str, Any]) -> None:
        for annotation in table["annotations"]:
            annotation["bbox"] = [60, 50, 90, 90]

    edit(tiny_coco, corners)
    assert found(check(tiny_coco))["box_corners"].count == 7


def test_more_objects_than_queries(tiny_coco: Path) -> None:
    def crowd(table: dict[str, Any]) -> None:
        first = table["annotations"][0]
        table["annotations"] += [first | {"id": 1000 + i} for i in range(950)]

    edit(tiny_coco, crowd)
    assert found(check(tiny_coco))["many_objects"].first == ["image 100: 951"]


def test_an_annotation_that_is_not_trained_on_counts_once(tiny_coco: Path) -> None:
    def spoil(table: dict[str, Any]) -> None:
        table["annotations"][0].update(iscrowd=1, ignore=1, bbox=[200, 5, 0.2, 9], area=0)
        table["annotations"][1].update(ignore=1, bbox=[200, 5, 9, 9])
        table["annotations"][2].update(bbox=[200, 5, 9, 9], area=0)

    edit(tiny_coco, spoil)
    findings = {each.kind: each for each in check(tiny_coco).findings if "train" in each.where}
    total = findings["excluded_objects"]
    counts = {kind: findings[kind].count for kind in ("crowd", "ignored", "box_outside")}
    assert counts == {"crowd": 2, "ignored": 1, "box_outside": 1}  # one crowd was there
    assert not {"box_degenerate", "area_not_positive"} & set(findings)
    assert (total.count, total.first) == (4, [])
