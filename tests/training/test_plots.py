from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from codetr_cli.training import plots
from codetr_cli.training.plots import draw_plots, draw_pr_curves, thinned


@pytest.fixture(autouse=True)
def _quick_plots() -> None:
    """They are drawn here."""


def line(step: int, loss: float = 3.0, **groups: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "lr": 1e-4 / step, "loss": loss, "groups": groups or {"decoder": loss}}


def evaluation(step: int, **metrics: float) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "metrics": metrics}


def test_each_kind_of_line_has_its_picture(tmp_path: Path):
    lines = [line(1), line(2, 2.5), evaluation(2, AP=0.1, AP50=0.2, APl=-1.0), {"kind": "end", "step": 2}]
    written = draw_plots(lines, tmp_path)
    assert [path.name for path in written] == ["losses.png", "learning_rate.png", "ap.png"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    for path in written:
        image = cv2.imread(str(path))
        assert image.shape[0] > 300
        assert image.std() > 5  # something is drawn


def test_a_picture_changes_with_its_numbers(tmp_path: Path):
    draw_plots([line(1), line(2)], tmp_path)
    before = (tmp_path / "losses.png").read_bytes()
    draw_plots([line(1), line(2), line(3, 1.0)], tmp_path)
    assert (tmp_path / "losses.png").read_bytes() != before


def test_skipped_steps_are_marked(tmp_path: Path):
    draw_plots([line(1), line(9)], tmp_path)
    before = cv2.imread(str(tmp_path / "losses.png"))
    draw_plots([line(1), {"kind": "skip", "step": 5}, line(9)], tmp_path)
    after = cv2.imread(str(tmp_path / "losses.png"))

    def red(image: Any) -> int:
        return int(((image[..., 2] > 200) & (image[..., :2] < 60).all(axis=2)).sum())

    assert red(before) == 0
    assert red(after) > 5


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [evaluation(1, AP=-1.0)],
        [line(1, 0.0)],
        [line(1, 1.0, decoder=1.0), line(2, 1.0, decoder=0.5, roi=0.5)],
    ],
    ids=["nothing", "no value", "zero loss", "a group that comes later"],
)
def test_odd_runs_can_be_drawn(tmp_path: Path, lines: list[dict[str, Any]]):
    assert len(draw_plots(lines, tmp_path)) == len({x["kind"] for x in lines}) * (
        2 if lines and "loss" in lines[0] else 1
    )


def test_a_plot_of_a_long_run_needs_no_more_memory_than_that_of_a_short_one(monkeypatch: pytest.MonkeyPatch):
    lines = [line(1), evaluation(1, AP=0.1), *(line(step) for step in range(2, 1000)), {"kind": "end", "step": 9}]
    assert len(thinned(lines)) == 1000
    monkeypatch.setattr(plots, "MAX_DRAWN", 10)
    drawn = thinned(iter(lines))
    assert [one["step"] for one in drawn if one["kind"] == "train"] == [1, 129, 257, 385, 513, 641, 769, 897]
    assert [one["kind"] for one in drawn].count("eval") == 1


def precision_of(*columns: list[float]) -> np.ndarray:
    """Precision of some classes at both IoUs: each column gives that at a few recalls."""
    table = np.stack([np.repeat(column, 101 // len(column) + 1)[:101] for column in columns], axis=1)
    return np.stack([table, np.where(table > 0, table / 2, table)])


def test_precision_by_recall(tmp_path: Path):
    path = draw_pr_curves(precision_of([1.0, 0.5], [0.8, 0.0], [-1.0]), ["a", "b", "c"], [3, 2, 0], 7, tmp_path)
    assert path == tmp_path / "pr_curves.png"
    image = cv2.imread(str(path))
    assert image.std() > 5
    draw_pr_curves(precision_of([1.0, 0.5], [0.8, 0.8], [-1.0]), ["a", "b", "c"], [3, 2, 0], 7, tmp_path)
    assert (cv2.imread(str(path)) != image).any()


@pytest.mark.parametrize("name", ["$x^{2$", "_private", "猫", "a\nb", "x" * 1000, "\\frac", ""])
def test_precision_by_recall_with_any_class_name(tmp_path: Path, name: str):
    draw_pr_curves(precision_of([1.0], [0.5]), [name, "b"], [1, 1], 7, tmp_path)
    assert cv2.imread(str(tmp_path / "pr_curves.png")).shape == (495, 880, 3)


def test_precision_by_recall_of_many_and_of_no_classes(tmp_path: Path):
    many = precision_of(*([0.5] for _ in range(1203)))
    draw_pr_curves(many, [f"class {n}" for n in range(1203)], list(range(1203)), 7, tmp_path)
    draw_pr_curves(precision_of([-1.0]), ["a"], [0], 7, tmp_path)
    draw_pr_curves(precision_of([0.5]), ["a"], [1], 7, tmp_path)
