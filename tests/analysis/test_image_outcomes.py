from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.analysis.curves import class_curves
from codetr_cli.analysis.image_outcomes import best_thresholds, image_outcomes
from codetr_cli.analysis.matches import match_detections
from codetr_cli.prediction.comparison import compare
from codetr_cli.prediction.ground_truth import ImageTruth
from tests.analysis.run_samples import SIDE, annotations, detections, inputs


@pytest.fixture(scope="module")
def sample():
    truth = annotations(40, crowds=3)
    return inputs(truth, detections(truth, seed=1))


def test_best_thresholds_have_the_best_f1(sample):
    matches = match_detections(sample)
    found = best_thresholds(matches)
    for label in range(3):
        here = matches.labels == label
        scores = matches.scores[here]
        f1 = []
        for threshold in scores:
            used = here & (matches.scores >= threshold)
            right, wrong = matches.hits()[used].sum(), matches.false_alarms()[used].sum()
            f1.append(2 * right / (right + wrong + matches.class_objects[label]))
        assert found[label] == scores[int(np.argmax(f1))]


def test_classes_without_objects_or_detections_have_no_best_threshold():
    truth = annotations(10, classes=("a", "b"))
    only = np.flatnonzero(truth.labels == 0)
    without = detections(truth, seed=1).select(np.array([], int))
    assert np.isnan(best_thresholds(match_detections(inputs(truth, without)))).all()
    assert len(only)


def test_every_object_and_detection_has_one_outcome(sample):
    matches = match_detections(sample)
    outcomes = image_outcomes(matches, [0.3, 0.5, np.nan])
    to_find = np.bincount(matches.object_images[~matches.object_ignored], minlength=40)
    assert (outcomes.hits + outcomes.misses == to_find).all()
    assert (outcomes.misses >= 0).all()
    for image in range(40):
        rows = outcomes.rows_of(image)
        assert (len(rows.hits), len(rows.misses), len(rows.alarms)) == (
            outcomes.hits[image],
            outcomes.misses[image],
            outcomes.alarms[image],
        )
        here = np.flatnonzero(sample.ground_truth.image_rows == sample.file_rows[image])
        assert sorted([*rows.found, *rows.misses, *rows.crowds]) == here.tolist()
        assert (sample.detections.image_ids[[*rows.hits, *rows.alarms]] == sample.image_ids[image]).all()
        assert (sample.detections.scores[[*rows.hits, *rows.alarms]] >= 0.3).all()


def test_outcomes_are_those_of_the_comparison_of_one_image(sample):
    outcomes = image_outcomes(match_detections(sample), [0.4, 0.4, 0.4])
    truth, table = sample.ground_truth, sample.detections
    for image, image_id in enumerate(sample.image_ids.tolist()):
        rows = np.flatnonzero((table.image_ids == image_id) & (table.scores >= 0.4))
        rows = rows[np.argsort(-table.scores[rows], kind="stable")]
        objects = np.flatnonzero(truth.image_rows == sample.file_rows[image])
        boxes, object_boxes = table.boxes_xywh[rows], truth.boxes_xywh[objects]
        labels = (table.category_ids[rows] - 1) // 2
        expected = compare(
            np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            table.scores[rows],
            labels,
            one_image(object_boxes, truth.labels[objects], truth.iscrowd[objects]),
        )
        assert expected.counts() == {
            "hits": outcomes.hits[image],
            "misses": outcomes.misses[image],
            "false_alarms": outcomes.alarms[image],
        }


def one_image(boxes_xywh: np.ndarray, labels: np.ndarray, iscrowd: np.ndarray) -> ImageTruth:
    corners = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    known = np.ones(3, bool)
    return ImageTruth(corners, labels, ["object"] * len(labels), iscrowd != 0, known, known, (SIDE, SIDE))


def test_the_thresholds_are_those_that_reports_suggest(sample):
    matches = match_detections(sample)
    suggested = [curve.best_f1 for curve in class_curves(sample, matches)]
    for label, threshold in enumerate(best_thresholds(matches)):
        used = (matches.labels == label) & (matches.scores >= threshold)
        right, wrong = matches.hits()[used].sum(), matches.false_alarms()[used].sum()
        assert 2 * right / (right + wrong + matches.class_objects[label]) >= suggested[label] - 1e-9
