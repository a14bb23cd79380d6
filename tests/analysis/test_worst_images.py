from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codetr_cli.analysis.image_outcomes import image_outcomes
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import match_detections
from codetr_cli.analysis.worst_images import worst_images
from tests.analysis.input_samples import material, scattered


def test_ranked_by_missed_objects_and_the_scores_of_false_alarms(tmp_path):
    """Alarms are in images 0, 1, 2 in turn; the object of image 2 is missed at the threshold."""
    detections = [(0, 0.9), (None, 0.6), (1, 0.8), (None, 0.2), (2, 0.3), (None, 0.5), (None, 0.9)]
    inputs = scattered(tmp_path, objects=3, detections=detections)
    matches = match_detections(inputs)
    worst = worst_images(inputs, matches, np.array([0.4]))
    assert [(each.image, each.hits, each.misses, each.false_alarms) for each in worst] == [
        (2, 0, 1, 1),  # 1 + 0.5
        (0, 1, 0, 1),  # 0.9
        (1, 1, 0, 1),  # 0.6
    ]
    assert [each.loss for each in worst] == pytest.approx([1.5, 0.9, 0.6])
    assert [each.f1 for each in worst] == pytest.approx([0, 2 / 3, 2 / 3])
    assert [each.file_name for each in worst] == ["2.jpg", "0.jpg", "1.jpg"]
    assert worst[0].missed_rows.tolist() == [2]
    assert worst[0].alarm_rows.tolist() == [5]
    assert worst[1].hit_rows.tolist() == [0]
    assert worst[1].found_rows.tolist() == [0]
    assert worst_images(inputs, matches, np.array([0.4]), limit=1)[0].image_id == 2


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
def test_rows_are_all_that_is_in_an_image(tmp_path, lvis):
    inputs = material(tmp_path, lvis=lvis)
    matches = match_detections(inputs)
    thresholds = np.array([0.2, 0.4, 0.6, 0.8])
    worst = worst_images(inputs, matches, thresholds)
    assert [each.loss for each in worst] == sorted((each.loss for each in worst), reverse=True)
    assert len(worst) == (image_outcomes(matches, thresholds).errors > 0).sum()
    assert len(worst) >= 8
    truth, table = inputs.ground_truth, inputs.detections
    for each in worst:
        assert (len(each.hit_rows), len(each.missed_rows), len(each.alarm_rows)) == (
            each.hits,
            each.misses,
            each.false_alarms,
        )
        objects = np.sort(np.concatenate([each.found_rows, each.missed_rows, each.crowd_rows]))
        assert objects.tolist() == np.flatnonzero(truth.image_ids[truth.image_rows] == each.image_id).tolist()
        assert truth.iscrowd[each.crowd_rows].all()
        assert truth.labels[each.found_rows].tolist() == [
            truth.category_ids.index(i) for i in table.category_ids[each.hit_rows].tolist()
        ]
        detections = np.concatenate([each.hit_rows, each.alarm_rows, each.ignored_rows])
        labels = np.searchsorted(truth.category_ids, table.category_ids)
        shown = (table.image_ids == each.image_id) & (table.scores >= thresholds[labels])
        assert set(detections.tolist()) <= set(np.flatnonzero(shown).tolist())
        assert len(set(detections.tolist())) == len(detections)
        assert len(detections) == shown.sum() or lvis  # LVIS: classes that the image was not annotated for
        assert each.loss == pytest.approx(each.misses + table.scores[each.alarm_rows].sum())


def test_a_higher_threshold_is_a_shorter_list(tmp_path):
    """Detections above a threshold find what they find in a file without the others."""
    inputs = material(tmp_path)
    worst = worst_images(inputs, match_detections(inputs), np.full(4, 0.5))
    rows = np.flatnonzero(inputs.detections.scores >= 0.5)
    shorter = replace(inputs, detections=inputs.detections.select(rows))
    for each, other in zip(worst, worst_images(shorter, match_detections(shorter), np.zeros(4)), strict=True):
        assert (each.image, each.f1, each.loss) == pytest.approx((other.image, other.f1, other.loss))
        assert each.hit_rows.tolist() == rows[other.hit_rows].tolist()
        assert each.found_rows.tolist() == other.found_rows.tolist()


def test_nothing_wrong_and_nothing_at_all(tmp_path):
    right = scattered(tmp_path, objects=2, detections=[(0, 0.9), (1, 0.8)])
    assert worst_images(right, match_detections(right), np.array([0.5])) == []
    inputs = material(tmp_path)
    nothing = AnalysisInputs.of(inputs.ground_truth, inputs.detections, inputs.paths, [])
    assert worst_images(nothing, match_detections(nothing), np.full(4, 0.5)) == []
    silent = replace(inputs, detections=inputs.detections.select(slice(0)))
    matches = match_detections(silent)
    worst = worst_images(silent, matches, np.full(4, 0.5))
    assert sum(each.misses for each in worst) == matches.class_objects.sum()
    assert {each.f1 for each in worst} == {0.0}
