from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.queries import recall_by_detections
from codetr_cli.evaluation.scoring import score_detections
from tests.analysis.input_samples import crowded, material, scattered


def best_of_images(inputs: AnalysisInputs, number: int) -> AnalysisInputs:
    rows: list[int] = []
    for image_id in inputs.image_ids.tolist():
        here = np.flatnonzero(inputs.detections.image_ids == image_id)
        rows += here[np.argsort(-inputs.detections.scores[here], kind="stable")][:number].tolist()
    return replace(inputs, detections=inputs.detections.select(np.sort(rows)))


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
def test_each_point_is_the_evaluation_of_fewer_detections(tmp_path, lvis):
    inputs = material(tmp_path, seed=1, lvis=lvis)
    points = recall_by_detections(inputs)
    most = int(np.unique(inputs.detections.image_ids, return_counts=True)[1].max())
    assert [point.detections for point in points] == [1, 3, 10, 30, most]
    for number, recall, ap, recall50 in points:
        few = best_of_images(inputs, number)
        scores = score_detections(few.ground_truth, few.detections, where="a.json")
        assert ap == pytest.approx(scores.metrics["AP"], abs=1e-12)
        assert (recall, recall50) == (recall_by_detections(few)[-1].recall, recall_by_detections(few)[-1].recall50)
        assert recall50 > recall
    recalls = [point.recall for point in points]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[2] < recalls[-1]


def test_recall_is_a_share_of_all_objects(tmp_path):
    inputs = scattered(
        tmp_path, objects=4, detections=[(0, 0.9), (1, 0.9), (2, 0.4), (None, 0.1), (None, 0.2), (None, 0.5)]
    )
    found = [(point.detections, point.recall, point.recall50) for point in recall_by_detections(inputs)]
    assert found == [(1, 0.75, 0.75), (2, 0.75, 0.75)]


def test_nothing_to_find_and_nothing_found(tmp_path):
    inputs = material(tmp_path)
    assert recall_by_detections(replace(inputs, detections=inputs.detections.select(slice(0)))) == []
    crowds = replace(inputs.ground_truth, iscrowd=np.ones_like(inputs.ground_truth.iscrowd))
    points = recall_by_detections(replace(inputs, ground_truth=crowds))
    assert len(points) > 3
    assert all(math.isnan(point.recall) and math.isnan(point.ap) for point in points)


def test_recall_of_crowded_images_rises_beyond_what_ap_counts(tmp_path):
    inputs = crowded(tmp_path)
    scores = score_detections(inputs.ground_truth, inputs.detections, where="crowded.json").metrics
    points = {point.detections: point for point in recall_by_detections(inputs)}
    assert list(points) == [1, 3, 10, 30, 100, 140]
    assert points[100].recall == pytest.approx(scores["AR100"])
    assert points[140].recall == pytest.approx(scores["AR1000"])
    assert scores["AR1000"] > scores["AR100"] + 0.1
    assert points[140].ap == points[100].ap == pytest.approx(scores["AP"])
