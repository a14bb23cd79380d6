"""Recorded runs of the published pipelines and sampler, replayed through our code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden import data_cases
from tests.golden.case import Report


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "run", "least"),
    [
        ("augment", data_cases.run_augment, 29 * 45),
        ("preprocess", data_cases.run_preprocess, 15 * 10),
        ("sampler", data_cases.run_sampler, 14 * 2),
    ],
)
def test_recorded_case(shared_dir: Path, name: str, run: Callable[[Path, data_cases.Report], None], least: int) -> None:
    report = Report(name)
    run(shared_dir / "golden" / "cases" / name, report)
    assert [line for line in report.lines if not line.ok] == []
    assert len(report.lines) >= least
