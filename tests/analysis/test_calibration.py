from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.analysis.calibration import calibration
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.jsonable import jsonable
from codetr_cli.analysis.matches import match_detections
from codetr_cli.evaluation.backends import hotcoco_evaluation
from codetr_cli.evaluation.scoring import scoring_inputs
from tests.analysis.input_samples import all_found, material, scattered


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(tmp_path, seed):
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    inputs = all_found(tmp_path, seed=seed)
    matches = match_detections(inputs)
    result = calibration(inputs, matches, min_score=0)
    # scikit-learn counts a score on an edge with the bin below it
    inside = ~np.isclose(matches.scores * 10, np.round(matches.scores * 10))
    assert inside.all()
    accuracy, confidence = curve(matches.hits(), matches.scores, n_bins=10)
    used = [each for each in result.bins if each.count]
    assert [each.accuracy for each in used] == pytest.approx(accuracy.tolist())
    assert [each.confidence for each in used] == pytest.approx(confidence.tolist())
    gaps = np.abs(accuracy - confidence)
    assert result.mce == pytest.approx(gaps.max())
    assert result.ece == pytest.approx(np.average(gaps, weights=[each.count for each in used]))
    assert result.count == sum(each.count for each in used) == 120


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
def test_equals_hotcoco(tmp_path, lvis):
    inputs = material(tmp_path, lvis=lvis)
    scored = scoring_inputs(inputs.ground_truth, inputs.image_ids, inputs.object_rows, inputs.detections, [100])
    theirs = hotcoco_evaluation(scored).calibration()
    ours = calibration(inputs, match_detections(inputs), min_score=0)
    assert ours.ece == pytest.approx(theirs["ece"])
    assert ours.mce == pytest.approx(theirs["mce"])
    assert ours.count == theirs["num_detections"]
    for mine, other in zip(ours.bins, theirs["bins"], strict=True):
        assert (mine.low, mine.high, mine.count) == pytest.approx(
            (other["bin_lower"], other["bin_upper"], other["count"])
        )
        if mine.count:
            assert (mine.confidence, mine.accuracy) == pytest.approx((other["avg_confidence"], other["avg_accuracy"]))
    for number, mine in enumerate(ours.per_class, 1):  # hotcoco numbers the classes
        assert mine.ece == pytest.approx(theirs["per_category"][str(number)])


def test_scores_close_to_zero_do_not_count(tmp_path):
    inputs = scattered(tmp_path, objects=2, detections=[(0, 0.8), (None, 0.8), *[(None, 0.01)] * 50])
    result = calibration(inputs, match_detections(inputs))
    assert (result.count, result.min_score) == (2, 0.05)
    assert (result.ece, result.mce) == pytest.approx((0.3, 0.3))
    assert [(each.low, each.high) for each in result.bins[:2]] == [(0.05, 0.1), (0.1, 0.2)]
    every = calibration(inputs, match_detections(inputs), min_score=0)
    assert every.ece == pytest.approx((2 * 0.3 + 50 * 0.01) / 52)


def test_scores_on_edges_belong_to_the_bin_above(tmp_path):
    inputs = scattered(tmp_path, objects=2, detections=[(0, 0.3), (1, 1.0), (None, 0.7)])
    result = calibration(inputs, match_detections(inputs))
    assert [each.low for each in result.bins if each.count] == [0.3, 0.7, 0.9]
    assert result.bins[3].high == 0.4


def test_classes_beside_each_other(tmp_path):
    inputs = material(tmp_path)
    matches = match_detections(inputs)
    result = calibration(inputs, matches)
    assert sum(each.count for each in result.per_class) == result.count
    pooled = sum(each.count * each.confidence for each in result.per_class) / result.count
    counted = ~matches.ignored[0] & (matches.scores >= 0.05)
    assert pooled == pytest.approx(matches.scores[counted].mean())
    one = without_detections_of(inputs, 5)
    result = calibration(one, match_detections(one))
    assert (result.per_class[1].count, result.per_class[1].name) == (0, "class 5")
    assert math.isnan(result.per_class[1].ece)


def without_detections_of(inputs: AnalysisInputs, category_id: int) -> AnalysisInputs:
    return replace(inputs, detections=inputs.detections.select(inputs.detections.category_ids != category_id))


def test_no_detections(tmp_path):
    inputs = material(tmp_path)
    nothing = replace(inputs, detections=inputs.detections.select(slice(0)))
    result = calibration(nothing, match_detections(nothing))
    assert math.isnan(result.ece)
    assert math.isnan(result.mce)
    assert [each.count for each in result.bins] == [0] * 10
    found = jsonable(result)
    assert found["bins"][0] == {"low": 0.05, "high": 0.1, "confidence": None, "accuracy": None, "count": 0}
    assert found["ece"] is None
