"""Which detections become labels, and which images are to be reviewed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from codetr_cli.errors import ConfigError
from codetr_cli.inference.options import DetectOptions
from codetr_cli.inference.prediction import Prediction
from codetr_cli.prediction.labels.options import LabelOptions
from codetr_cli.prediction.labels.selection import MAX_REASONS, LabelSelection
from tests.prediction.labels.predictions import prediction_of

NAMES, IDS = ["cat", "dog"], [5, 9]
FAR = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(30)]


def detector() -> Any:
    loaded = SimpleNamespace(postprocess=SimpleNamespace(max_detections=100))
    return SimpleNamespace(class_names=NAMES, category_ids=IDS, loaded=loaded)


def prediction(*rows: tuple[int, float, tuple[float, ...]]) -> Prediction:
    return prediction_of(rows, NAMES, IDS, (100, 700))


def test_without_a_band_all_is_as_detected():
    options = DetectOptions(score=0.4, class_scores={"dog": 0.6}, max_dets=3)
    selection = LabelSelection(detector(), options, LabelOptions())
    assert selection.options is options
    found = prediction((0, 0.9, FAR[0]), (1, 0.7, FAR[1]))
    assert selection.select(found) == (found, None)
    assert (selection.class_names, selection.category_ids) == (NAMES, IDS)


def test_the_network_is_asked_for_the_whole_band():
    options = DetectOptions(score=0.4, class_scores={"dog": 0.6, "cat": 0.1}, max_dets=3)
    selection = LabelSelection(detector(), options, LabelOptions(review=(0.2, 0.5)))
    asked = selection.options
    assert (asked.score, asked.class_scores, asked.max_dets) == (0.2, {"dog": 0.2, "cat": 0.1}, None)
    many = LabelSelection(detector(), DetectOptions(max_dets=200), LabelOptions(review=(0.2, 0.5)))
    assert many.options.max_dets == 200  # more than the settings have, which the network has to know
    rows = [(0, 0.9, FAR[0]), (1, 0.65, FAR[1]), (1, 0.55, FAR[2]), (0, 0.45, FAR[3]), (0, 0.3, FAR[4])]
    kept, review = selection.select(prediction(*rows))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.65, 0.45])  # the labels are those without a band
    assert review is not None
    assert [(each["class"], each["score"], each["is_label"]) for each in review["detections"]] == [("cat", 0.45, True)]


def test_weak_detections_count_unless_their_object_is_known():
    selection = LabelSelection(detector(), DetectOptions(score=0.4), LabelOptions(review=(0.2, 0.5)))
    known = (0, 0.9, FAR[0])
    assert selection.select(prediction(known, (1, 0.3, FAR[0])))[1] is None
    assert selection.select(prediction(known, (0, 0.19, FAR[1])))[1] is None
    assert selection.select(prediction(known))[1] is None
    assert selection.select(prediction())[1] is None
    kept, review = selection.select(prediction(known, (1, 0.3, FAR[1])))
    assert len(kept) == 1
    assert review == {
        "count": 1,
        "detections": [{"class": "dog", "score": 0.3, "bbox": [20, 0, 10, 10], "is_label": False}],
    }
    # A label in the band is itself uncertain: what overlaps it is a reason, too.
    review = selection.select(prediction((0, 0.45, FAR[0]), (1, 0.3, FAR[0])))[1]
    assert review is not None
    assert review["count"] == 2


def test_reasons_are_counted_and_the_first_listed():
    selection = LabelSelection(detector(), DetectOptions(score=0.4), LabelOptions(review=(0.2, 0.5)))
    review = selection.select(prediction(*((0, 0.49 - i / 100, FAR[i]) for i in range(25))))[1]
    assert review is not None
    assert (review["count"], len(review["detections"])) == (25, MAX_REASONS)


def test_classes_are_mapped_after_their_scores():
    labels = LabelOptions(class_map={"dog": "pet", "cat": ""}, review=(0.2, 0.5))
    selection = LabelSelection(detector(), DetectOptions(score=0.4, class_scores={"dog": 0.8}), labels)
    assert (selection.class_names, selection.category_ids) == (["pet"], [9])
    kept, review = selection.select(prediction((0, 0.9, FAR[0]), (1, 0.85, FAR[1]), (1, 0.5, FAR[2]), (0, 0.3, FAR[3])))
    assert kept.class_names == ["pet"]
    assert review is None
    with pytest.raises(ConfigError, match="no class 'dogs'"):
        LabelSelection(detector(), DetectOptions(class_scores={"dogs": 0.8}), LabelOptions())
    with pytest.raises(ConfigError, match="no class 'dogs'"):
        LabelSelection(detector(), DetectOptions(), LabelOptions(class_map={"dogs": ""}))


def test_a_band_changes_no_label():
    """Also with a limit and a map: the limit is of what the network finds, with a band and without one."""
    rows = [(0, 0.9, FAR[0]), (1, 0.8, FAR[1]), (1, 0.7, FAR[2])]
    for class_map in ({"cat": ""}, {"cat": "dog"}):
        kept = []
        for band in (None, (0.2, 0.5)):
            options = DetectOptions(score=0.4, max_dets=2)
            selection = LabelSelection(detector(), options, LabelOptions(class_map=class_map, review=band))
            kept.append(selection.select(prediction(*rows)[: selection.options.max_dets])[0].scores.tolist())
        assert kept[0] == kept[1]
