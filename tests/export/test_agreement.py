"""Detections are matched one to one, and counted where they have no counterpart."""

from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.export.agreement import box_ious, compare, lowest_score
from codetr_cli.export.tolerances import TOLERANCES
from codetr_cli.inference.prediction import Prediction

FP32 = TOLERANCES["fp32"]


def predict(*rows: tuple[float, float, float, float, float, int]) -> Prediction:
    """Detections (x1, y1, x2, y2, score, label), best first."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    labels = table[:, 5].astype(np.int64)
    names = ["disc", "bar", "ring"]
    return Prediction(
        table[:, :4], table[:, 4], labels, labels + 1, [names[label] for label in labels], (100, 100), classes=names
    )


A = (0, 0, 10, 10, 0.9, 0)
B = (50, 50, 70, 80, 0.8, 1)
C = (1, 0, 11, 10, 0.7, 0)


def test_the_order_does_not_matter():
    found = compare(predict(A, B, C), predict(B, A, C), FP32)
    assert sorted(map(tuple, found.rows.tolist())) == [(0, 1), (1, 0), (2, 2)]
    assert (found.wrong, found.compared) == (0, 3)


def test_overlapping_detections_have_one_counterpart_each():
    """The nearest pair of each would leave one over."""
    found = compare(predict(A, C), predict((1, 0, 11, 10, 0.9, 0), (2, 0, 12, 10, 0.7, 0)), FP32)
    assert found.rows.tolist() == [[0, 0], [1, 1]]
    assert found.box_differences[:, 0].tolist() == [1, 1]
    assert found.outliers == 2


def test_differences_are_in_pixels_of_the_input():
    found = compare(predict(A), predict((1, 0, 10, 10, 0.8995, 0)), FP32, scale=(0.25, 2))
    assert found.box_differences[0].tolist() == [0.25, 0, 0, 0]
    assert found.score_differences[0] == pytest.approx(-0.0005, abs=1e-6)
    assert found.wrong == 0


def test_another_class_is_no_counterpart():
    other = predict((0, 0, 10, 10, 0.9, 2), B)
    found = compare(predict(A, B), other, FP32)
    assert (found.missing.tolist(), found.extra.tolist(), found.wrong) == ([0], [0], 2)
    assert compare(predict(A, B), other, FP32, any_class=True).wrong == 0


def test_low_scores_do_not_count_beside_higher_ones():
    low = (30, 30, 40, 40, 0.04, 2)
    assert compare(predict(A, low), predict(A), FP32).compared == 1
    assert compare(predict(A), predict(A, (30, 30, 40, 40, 0.06, 2)), FP32).extra.tolist() == [1]


def test_the_best_count_where_no_score_is_high():
    rows = [(5 * n, 0, 5 * n + 4, 4, 0.04 - 0.001 * n, 0) for n in range(30)]
    found = compare(predict(*rows), predict(*rows[1:]), FP32)
    assert found.floor == pytest.approx(0.04 - 0.019)
    assert (found.missing.tolist(), found.outliers) == ([0], 0)
    assert lowest_score(np.zeros(0, np.float32)) == 0.05


def test_nothing_on_one_side():
    assert compare(predict(A), predict(), FP32).missing.tolist() == [0]
    assert compare(predict(), predict(A), FP32).extra.tolist() == [0]
    assert compare(predict(), predict(), FP32).compared == 0


def test_ious_of_boxes_without_area():
    point = np.array([[3, 3, 3, 3]], np.float32)
    assert box_ious(point, point).item() == 1
    assert box_ious(point, point + 5).item() == 0
