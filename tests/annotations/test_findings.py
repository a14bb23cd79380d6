"""Findings: counts, names and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codetr_cli.annotations.finding_kinds import KINDS
from codetr_cli.annotations.findings import Findings
from tests.data.checks.fakes import check, edit, found


def test_offenders_are_counted_and_the_first_five_named(tiny_coco: Path) -> None:
    def spoil(table: dict[str, Any]) -> None:
        for annotation in table["annotations"]:
            annotation["bbox"][2] = -1

    edit(tiny_coco, spoil)
    finding = found(check(tiny_coco))["box_negative"]
    assert (finding.count, len(finding.first)) == (7, 5)
    assert "7 box(es) of negative width or height: annotation 1: [" in finding.sentence()
    assert " and 2 more. COCO boxes are (x, y, width, height)" in finding.sentence()


def test_every_serious_kind_has_a_fix() -> None:
    assert [name for name, kind in KINDS.items() if kind.severity != "info" and not kind.fix] == []


def test_merged_findings_keep_counts_and_order() -> None:
    left, right = Findings(), Findings()
    for index in range(4):
        left.add("missing_file", "x", f"left {index}")
    for index in range(7):
        right.add("missing_file", "x", f"right {index}")
    left.merge(right)
    finding = left.get("missing_file", "x")
    assert finding is not None
    assert (finding.count, finding.first[3:]) == (11, ["left 3", "right 0"])
