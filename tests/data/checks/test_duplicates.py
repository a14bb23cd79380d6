"""Annotations that repeat others, by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from codetr_cli.data.checks.duplicates import repeated_rows
from tests.data.checks.fakes import check, edit, found


def test_rows_are_compared_with_all_others() -> None:
    generator = np.random.default_rng(0)
    images, classes = generator.integers(0, 3, 2000), generator.integers(0, 3, 2000)
    boxes = generator.integers(0, 3, (2000, 4)).astype(np.float64)
    boxes[5, 0], boxes[7, 1] = np.nan, -0.0
    for labels in (classes, None):
        repeated, first = repeated_rows(images, labels, boxes)
        seen: dict[tuple[Any, ...], int] = {}
        for row in range(2000):
            key = (images[row], None if labels is None else labels[row], *boxes[row].tolist())
            source = seen.setdefault(key, row) if row != 5 else row
            assert repeated[row] == (source != row)
            assert first.get(row, row) == source


def test_none_and_few_rows() -> None:
    for count in (0, 1):
        ids = np.zeros(count, np.int64)
        assert repeated_rows(ids, ids, np.zeros((count, 4)))[0].tolist() == [False] * count


def test_a_merged_export_is_one_warning(tiny_coco: Path) -> None:
    edit(tiny_coco, lambda table: table["annotations"].extend(json.loads(json.dumps(table["annotations"]))))
    report = check(tiny_coco)
    finding = found(report)["duplicate_box"]
    assert (finding.severity, finding.count) == ("warning", 7)
    assert finding.first[0].startswith("annotation 1 of image 100: [")
    assert finding.first[0].endswith("], like annotation 1")
    assert "duplicate_annotation_id" not in found(report)


def test_the_same_box_of_two_classes_is_no_warning(tiny_coco: Path) -> None:
    def add(table: dict[str, Any]) -> None:
        first = table["annotations"][0]
        table["annotations"].append({**first, "id": 900, "category_id": 9 - first["category_id"] or 2})

    edit(tiny_coco, add)
    kinds = found(check(tiny_coco))
    assert kinds["box_of_two_classes"].severity == "info"
    assert "duplicate_box" not in kinds
