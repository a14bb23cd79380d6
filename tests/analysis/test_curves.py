from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codetr_cli.analysis.curves import (
    DEFAULT_THRESHOLD,
    THRESHOLDS,
    class_curves,
    overall_curve,
    shortest_between,
    suggested_thresholds,
)
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import match_detections
from codetr_cli.evaluation.backends import compute_tables
from codetr_cli.evaluation.scoring import scoring_inputs
from tests.analysis.input_samples import all_found, material, scattered


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_equal_those_of_scikit_learn(tmp_path, seed):
    metrics = pytest.importorskip("sklearn.metrics")
    inputs = all_found(tmp_path, seed=seed)
    matches = match_detections(inputs)
    right, scores = matches.hits(), matches.scores
    (curve,) = class_curves(inputs, matches)
    assert curve.objects == right.sum()  # every object is found: scikit-learn counts those of the list alone
    for number in range(0, 101, 7):
        chosen = scores >= THRESHOLDS[number]
        precision = metrics.precision_score(right, chosen, zero_division=np.nan)
        assert curve.precision_at[number] == pytest.approx(precision, nan_ok=True)
        assert curve.recall_at[number] == pytest.approx(metrics.recall_score(right, chosen))
        assert curve.f1[number] == pytest.approx(metrics.f1_score(right, chosen))
    precisions, recalls, thresholds = metrics.precision_recall_curve(right, scores)
    f1 = [2 * p * r / (p + r) if p + r else 0 for p, r in zip(precisions, recalls, strict=True)]
    assert curve.best_f1 == pytest.approx(max(f1))
    best = max(threshold for threshold, value in zip(thresholds, f1, strict=False) if value > max(f1) - 1e-12)
    assert [*(scores >= curve.best_threshold)] == [*(scores >= best)]
    predicted = scores >= curve.best_threshold
    assert curve.precision_at_best == pytest.approx(metrics.precision_score(right, predicted))
    assert curve.recall_at_best == pytest.approx(metrics.recall_score(right, predicted))
    assert len(str(curve.best_threshold)) < len(str(float(best))) or curve.best_threshold == best


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_precision_at_each_recall_is_the_one_that_ap50_is_the_mean_of(tmp_path, seed, lvis):
    inputs = material(tmp_path, seed=seed, lvis=lvis)
    rows, limit = inputs.object_rows, 300 if lvis else 100
    tables = compute_tables(
        "pycocotools", scoring_inputs(inputs.ground_truth, inputs.image_ids, rows, inputs.detections, [limit])
    )
    for label, curve in enumerate(class_curves(inputs, match_detections(inputs))):
        assert curve.precision == pytest.approx(tables.precision[0, :, label, 0, 0], abs=1e-12)
        assert curve.name == f"class {curve.category_id}"


def test_all_classes_are_pooled(tmp_path):
    inputs = material(tmp_path)
    matches = match_detections(inputs)
    overall, curves = overall_curve(inputs, matches), class_curves(inputs, matches)
    assert overall.objects == sum(curve.objects for curve in curves) > 40
    counts = [matches.labels[(matches.scores >= 0.5) & ~matches.ignored[0]] == label for label in range(4)]
    weights = [int(count.sum()) for count in counts]
    right = sum(curve.precision_at[50] * weight for curve, weight in zip(curves, weights, strict=True))
    assert overall.precision_at[50] == pytest.approx(right / sum(weights))
    found = sum(curve.recall_at[50] * curve.objects for curve in curves)
    assert overall.recall_at[50] == pytest.approx(found / overall.objects)


def test_thresholds_with_equal_f1_scores(tmp_path):
    """Of 4 objects, one is found at 0.9, one at 0.5 after a false alarm at 0.6, and the F1-score of both is 0.4."""
    inputs = scattered(
        tmp_path, objects=4, detections=[(0, 0.9), (None, 0.8), (None, 0.8), (None, 0.7), (None, 0.65), (1, 0.5)]
    )
    matches = match_detections(inputs)
    (curve,) = class_curves(inputs, matches)
    assert curve.f1[[90, 50]].tolist() == [0.4, 0.4]
    assert curve.best_threshold == 0.9
    assert (curve.best_f1, curve.precision_at_best, curve.recall_at_best) == (0.4, 1, 0.25)


def test_a_threshold_is_never_between_equal_scores(tmp_path):
    inputs = scattered(tmp_path, objects=2, detections=[(0, 0.7), (1, 0.7), (None, 0.7), (None, 0.1)])
    (curve,) = class_curves(inputs, match_detections(inputs))
    assert curve.best_f1 == pytest.approx(0.8)
    assert curve.best_threshold == 0.7
    assert curve.precision_at_best == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("below", "score", "expected"),
    [
        (0.3712, 0.3745, 0.374),
        (0.29, 0.31, 0.3),
        (0.3, 0.35, 0.35),
        (0.0, 0.62, 0.6),
        (0.0, 0.04, 0.04),
        (0.1, 0.2, 0.2),
        (0.12345678, 0.12345679, 0.12345679),
        (0.123456789012, 0.123456789013, 0.123456789013),
        (0.99, 1.0, 1.0),
    ],
)
def test_shortest_number_that_separates_scores(below, score, expected):
    assert shortest_between(below, score) == expected


def without(inputs: AnalysisInputs, label: int, *, detections: bool = False, objects: bool = False) -> AnalysisInputs:
    """The inputs, without the detections or the objects of a class."""
    truth, table = inputs.ground_truth, inputs.detections
    if detections:
        table = table.select(table.category_ids != truth.category_ids[label])
    if objects:  # a crowd of another class
        of_class = truth.labels == label
        truth = replace(truth, iscrowd=np.where(of_class, 1, truth.iscrowd))
    return replace(inputs, ground_truth=truth, detections=table)


def test_a_class_never_predicted(tmp_path):
    inputs = without(material(tmp_path), 1, detections=True)
    curve = class_curves(inputs, match_detections(inputs))[1]
    assert curve.objects > 0
    assert not curve.precision.any()
    assert not curve.f1.any()
    assert not curve.recall_at.any()
    assert np.isnan(curve.precision_at).all()
    assert curve.best_f1 == 0
    assert math.isnan(curve.best_threshold)


def test_a_class_without_objects(tmp_path):
    inputs = without(material(tmp_path), 1, objects=True)
    curve = class_curves(inputs, match_detections(inputs))[1]
    assert curve.objects == 0
    assert np.isnan(curve.precision).all()
    assert np.isnan([curve.best_threshold, curve.best_f1, curve.precision_at_best, curve.recall_at_best]).all()
    assert curve.precision_at[0] == 0  # of the detections outside crowds, none is right


def test_thresholds_where_a_class_has_none_of_its_own(tmp_path):
    inputs = without(material(tmp_path), 1, detections=True)
    matches = match_detections(inputs)
    curves, overall = class_curves(inputs, matches), overall_curve(inputs, matches)
    thresholds = suggested_thresholds(curves, overall)
    assert thresholds[1] == overall.best_threshold
    assert thresholds[[0, 2, 3]].tolist() == [curves[label].best_threshold for label in (0, 2, 3)]
    nothing = replace(inputs, detections=inputs.detections.select(slice(0)))
    matches = match_detections(nothing)
    curves, overall = class_curves(nothing, matches), overall_curve(nothing, matches)
    assert suggested_thresholds(curves, overall).tolist() == [DEFAULT_THRESHOLD] * 4
    assert overall.best_f1 == 0


def test_no_images(tmp_path: Path):
    inputs = material(tmp_path)
    nothing = AnalysisInputs.of(inputs.ground_truth, inputs.detections, inputs.paths, [])
    matches = match_detections(nothing)
    assert [curve.objects for curve in class_curves(nothing, matches)] == [0] * 4
    assert math.isnan(overall_curve(nothing, matches).best_f1)
