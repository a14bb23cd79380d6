"""What a report adds to a card: only of the same weights and the same AP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codetr_cli.inference.hub.findings import REPORT_KIND, Findings, find_findings

COSTS = {"loose box": 0.02, "missed": 0.11, "duplicate": 0.0, "background": None}


def report(**changes: Any) -> dict[str, Any]:
    table = {
        "kind": REPORT_KIND,
        "version": 1,
        "facts": {"weights": "abc"},
        "metrics": {"AP": 0.42},
        "per_class": [],
        "analysis": {"ap_interval": [0.4, 0.45], "threshold": 0.35, "errors": {"delta_ap": COSTS}},
    }
    return {**table, **changes}


def write(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints" / "best" / "model.safetensors"


@pytest.mark.parametrize("name", ["report.json", "report_2.json", "eval/best/val/report.json"])
def test_a_report_of_the_run(weights: Path, tmp_path: Path, name: str):
    write(tmp_path / "run" / name, report())
    assert find_findings(weights, content="abc", ap=0.42) == Findings(
        ap=0.42, ap_interval=(0.4, 0.45), error_costs={"missed": 0.11, "loose box": 0.02}, threshold=0.35
    )
    assert list(Findings.__dataclass_fields__) == ["ap", "ap_interval", "error_costs", "threshold"]


def test_reports_of_other_weights_and_of_another_evaluation_do_not_count(weights: Path, tmp_path: Path):
    write(tmp_path / "run/report.json", report())
    assert find_findings(weights, content="other", ap=0.42) is None
    assert find_findings(weights, content="abc", ap=0.43) is None
    assert find_findings(weights, content=None, ap=0.42) is None
    write(tmp_path / "run/eval/report.json", report(metrics={"AP": 0.43}))
    assert find_findings(weights, content="abc", ap=0.43) is not None


@pytest.mark.parametrize(
    "table",
    [
        [],
        {},
        report(kind="other"),
        report(metrics=None),
        report(metrics={"AP": None}),
        report(facts=[]),
    ],
)
def test_other_files_are_none(weights: Path, tmp_path: Path, table: Any):
    write(tmp_path / "run/report.json", table)
    assert find_findings(weights, content="abc", ap=0.42) is None


@pytest.mark.parametrize(
    "analysis",
    [None, [], {"ap_interval": None}, {"ap_interval": [0.1]}, {"ap_interval": ["a", 1]}, {"errors": {"delta_ap": [1]}}],
)
def test_parts_that_are_missing(weights: Path, tmp_path: Path, analysis: Any):
    write(tmp_path / "run/report.json", report(analysis=analysis))
    assert find_findings(weights, content="abc", ap=0.42) == Findings(ap=0.42)
