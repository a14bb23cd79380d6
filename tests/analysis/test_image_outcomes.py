from __future__ import annotations

import numpy as np
import pytest

from codetr_cli.analysis.image_outcomes import image_outcomes
from codetr_cli.analysis.matches import match_detections
from codetr_cli.prediction.comparison import compare
from codetr_cli.prediction.ground_truth import ImageTruth
from tests.analysis.run_samples import SIDE, annotations, detections, inputs


@pytest.fixture(scope="module")
def sample():
    truth = annotations(40, crowds=3)
    return inputs(truth, detections(truth, seed=1))


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
