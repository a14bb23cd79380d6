"""The recorded cases of the published code through our networks, losses, operators, data pipeline and optimizer.

Small cases lie in `cases/` beside this file; the others in CODETR_SHARED, else in `shared` beside the checkout.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.case import Case, Report
from tests.golden.data_cases import shared_dir
from tests.golden.run import run_case

HERE = Path(__file__).resolve().parent / "cases"
MOST_LISTED = 12


def failing_lines(report: Report) -> str:
    """The first stages that differ, one a line: the first of all is where to look."""
    failing = [
        f"{line.key}: {line.error:.2e} > {line.tolerance:.0e} {line.note}" for line in report.lines if not line.ok
    ]
    return "\n".join([f"{report.name}: {len(failing)} of {len(report.lines)} stages differ", *failing[:MOST_LISTED]])


def check(folder: Path) -> None:
    report = run_case(Case.load(folder))
    assert report.ok, failing_lines(report)


@pytest.mark.parity
@pytest.mark.parametrize("folder", sorted(HERE.iterdir()), ids=lambda folder: folder.name)
def test_small_case(folder: Path) -> None:
    check(folder)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "co_dino_r50_eval",
        "co_dino_r50_train_empty",
        "co_dino_r50_init",
        "msda_op",
        "preprocess",
        "augment",
        pytest.param("co_dino_r50_train", marks=pytest.mark.slow),
        pytest.param("co_dino_r50_train_all_empty", marks=pytest.mark.slow),
        pytest.param("co_dino_r50_9enc_eval", marks=pytest.mark.slow),
        "co_deformable_r50_eval",
        "co_deformable_r50_init",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "co_deformable_r50_train",
                "co_deformable_r50_train_empty",
                "co_deformable_r50_train_all_empty",
                "co_deformable_swin_t_eval",
                "co_deformable_swin_l_900q_eval",
                "co_deformable_mask_r50_eval",
                "co_deformable_mask_r50_train",
                "co_dino_swin_l_eval",
                "co_dino_vit_l_eval",
                "co_dino_vit_l_eval_b2",
                "co_dino_vit_l_inst_eval",
                "co_dino_vit_l_inst_train",
            )
        ),
    ],
)
def test_shared_case(name: str) -> None:
    folder = shared_dir() / "golden" / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"no recorded case at {folder}: set CODETR_SHARED")
    check(folder)
