"""Category ids of an annotation file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.data.checks.fakes import check, edit, found


def move(table: dict[str, Any]) -> None:
    """Category ids 0, 1, 2 instead of 7, 2, 3."""
    new = {7: 0, 2: 1, 3: 2}
    for category in table["categories"]:
        category["id"] = new[category["id"]]
    for annotation in table["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]


def test_ids_from_zero_are_fine(tiny_coco: Path) -> None:
    edit(tiny_coco, move)
    edit(tiny_coco, move, "val")
    report = check(tiny_coco)
    assert report.errors == 0
    assert found(report)["category_id_zero"].first == ["ring"]
    assert "category_id_holes" not in found(report)
