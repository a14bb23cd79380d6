"""The recorded cases of the published code against our networks, losses, operators, data pipeline and optimizer.

Small cases are in `cases/` next to this file; the others in $CODETR_SHARED, else in `shared` next to the checkout.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.case import Case, failing_lines
from tests.golden.data_cases import shared_dir
from tests.golden.run import run_case
from tests.golden.shared_cases import QUICK_CASES, SLOW_CASES

HERE = Path(__file__).resolve().parent / "cases"
SLOW_SMALL_CASES = ("co_dino_r50_sensex_eval", "co_dino_r50_steps")
SMALL_CASES = [
    pytest.param(folder.name, marks=[pytest.mark.slow] if folder.name in SLOW_SMALL_CASES else [])
    for folder in sorted(HERE.iterdir())
]


def check(folder: Path) -> None:
    check_case(Case.load(folder))


def check_case(case: Case) -> None:
    report = run_case(case)
    assert report.ok, failing_lines(report)


@pytest.mark.parity
@pytest.mark.parametrize("name", SMALL_CASES)
def test_small_case(name: str) -> None:
    check(HERE / name)


@pytest.mark.parity
def test_the_first_of_the_recorded_steps() -> None:
    case = Case.load(HERE / "co_dino_r50_steps").of_first_steps(1)
    assert len(case.facts["steps"]) == 1
    assert list(case.tensors) == ["step/0/delta_norm", "step/0/delta_probe"]
    check_case(case)


@pytest.mark.parity
@pytest.mark.parametrize("name", [*QUICK_CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES)])
def test_shared_case(name: str) -> None:
    folder = shared_dir() / "golden" / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"no recorded case at {folder}: set CODETR_SHARED")
    check(folder)
