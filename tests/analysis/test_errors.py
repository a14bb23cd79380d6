"""Types of errors as tidecv and hotcoco count them, and single errors of each type."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_cli.analysis.bootstrap import image_weights
from codetr_cli.analysis.errors import ERROR_TYPES, error_counts_per_image, error_types, find_errors, resampled_costs
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import match_detections
from codetr_cli.evaluation.backends import hotcoco_evaluation
from codetr_cli.evaluation.scoring import _best_of_each_image, scoring_inputs
from codetr_cli.inference.detections import DetectionTable
from tests.analysis import run_samples
from tests.analysis.input_samples import material
from tests.analysis.run_samples import annotations, copied_images, detections
from tests.analysis.scene import Scene
from tests.analysis.tide_samples import SAMPLES, inputs_of_sample
from tests.conftest import REPOSITORY

TOLERANCE = 1e-12
"""Sums of some hundred numbers in another order."""


def types_of(inputs: AnalysisInputs, threshold: float = 0.0) -> Any:
    matches = match_detections(inputs)
    return error_types(matches, find_errors(inputs, matches), threshold)


@pytest.mark.parametrize("name", SAMPLES)
def test_tidecv_has_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With its recalls, that is: 7 / 100 where COCO has 7 * 0.01, which is larger than a recall of 7 in 100."""
    monkeypatch.setattr("codetr_cli.analysis.errors.RECALLS", np.array([number / 100 for number in range(101)]))
    golden = json.loads((REPOSITORY / f"tests/golden/tide/{name}.json").read_text())
    inputs = inputs_of_sample(tmp_path, name)
    if name == "many":  # tidecv counts the 100 best detections of an image, COCO those of an image and class
        best = _best_of_each_image(inputs.detections.image_ids, inputs.detections.scores, 100)
        assert len(best) < len(inputs.detections)
        inputs = replace(inputs, detections=inputs.detections.select(best))
    types = types_of(inputs)
    assert types.counts == {ours: golden["counts"][tide] for ours, tide in ERROR_TYPES.items()}
    assert types.ap50 == pytest.approx(golden["ap50"], abs=TOLERANCE)
    for ours, tide in ERROR_TYPES.items():
        assert types.delta_ap[ours] == pytest.approx(golden["delta_ap"][tide], abs=TOLERANCE), ours
    assert types.delta_false_alarms == pytest.approx(golden["special"]["FalsePos"], abs=TOLERANCE)
    assert types.delta_misses == pytest.approx(golden["special"]["FalseNeg"], abs=TOLERANCE)
    assert sum(value > 0 for value in types.delta_ap.values()) >= 4  # else the sample shows nothing


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if not sample.crowds])
def test_hotcoco_has_the_same_figures(tmp_path: Path, name: str) -> None:
    inputs = inputs_of_sample(tmp_path, name)
    scored = scoring_inputs(inputs.ground_truth, inputs.image_ids, inputs.object_rows, inputs.detections, [100])
    theirs = hotcoco_evaluation(scored).tide_errors()
    types = types_of(inputs)
    assert types.counts == {ours: theirs["counts"][tide] for ours, tide in ERROR_TYPES.items()}
    for ours, tide in ERROR_TYPES.items():
        assert types.delta_ap[ours] == pytest.approx(max(theirs["delta_ap"][tide], 0), abs=TOLERANCE), ours


@pytest.mark.parametrize("threshold", [0.0, 0.4, 2.0])
def test_counts_of_images_add_up(tmp_path: Path, threshold: float) -> None:
    inputs = inputs_of_sample(tmp_path, "crowds")
    matches = match_detections(inputs)
    counts = error_counts_per_image(inputs, matches, threshold=threshold)
    assert counts.shape == (len(inputs.image_ids), len(ERROR_TYPES))
    types = types_of(inputs, threshold)
    assert dict(zip(ERROR_TYPES, counts.sum(axis=0).tolist(), strict=True)) == types.counts_at_threshold


def test_a_threshold_counts_as_if_other_detections_were_not_there(tmp_path: Path) -> None:
    inputs = inputs_of_sample(tmp_path, "noisy")
    fewer = replace(inputs, detections=inputs.detections.select(inputs.detections.scores >= 0.4))
    assert types_of(inputs, 0.4).counts_at_threshold == types_of(fewer).counts != types_of(inputs).counts


@pytest.mark.parametrize("lvis", [False, True])
def test_ignored_detections_are_no_errors(tmp_path: Path, lvis: bool) -> None:
    inputs = material(tmp_path, lvis=lvis)
    matches = match_detections(inputs)
    types = find_errors(inputs, matches).types
    assert np.array_equal(types >= 0, matches.false_alarms())
    assert matches.ignored[0].any()


BOX = (100, 100, 50, 50)


@pytest.mark.parametrize(
    ("kind", "box", "category", "first"),
    [
        ("loose box", (125, 100, 50, 50), 3, False),
        ("wrong class", (101, 100, 50, 50), 7, False),
        ("duplicate", (101, 100, 50, 50), 3, True),
        ("background", (300, 100, 50, 50), 3, False),
        ("wrong class and loose box", (125, 100, 50, 50), 7, False),
    ],
)
def test_each_type(tmp_path: Path, kind: str, box: tuple[int, ...], category: int, first: bool) -> None:
    scene = Scene(tmp_path)
    scene.annotate(BOX)
    if first:
        scene.detect(BOX, score=0.95)
    scene.detect(box, category, 0.9)
    counts = types_of(scene.inputs()).counts
    expected = {kind: 1}
    if kind in ("background", "wrong class and loose box"):  # neither would find the object
        expected["missed"] = 1
    assert {name: number for name, number in counts.items() if number} == expected


def test_an_object_has_one_detection_that_is_fixed(tmp_path: Path) -> None:
    """Of two loose boxes only the better one becomes a hit."""
    scene = Scene(tmp_path)
    scene.annotate(BOX)
    scene.annotate((300, 100, 50, 50))
    scene.detect((125, 100, 50, 50), score=0.9)
    scene.detect((75, 100, 50, 50), score=0.8)
    types = types_of(scene.inputs())
    assert types.counts["loose box"] == 2
    assert types.ap50 == 0
    assert types.missed_classes == 0
    assert types.delta_ap["loose box"] == pytest.approx(51 / 101)  # one of two objects, and no false alarm


def test_without_detections_everything_is_missed(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.annotate(BOX)
    types = types_of(scene.inputs())
    assert types.ap50 == 0
    assert types.delta_ap["missed"] == 0  # as in tidecv: no objects, no AP
    assert types.missed_classes == 1
    assert types.counts["missed"] == 1
    assert sum(types.counts.values()) == 1


def test_without_objects_everything_is_background(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.detect(BOX)
    inputs = scene.inputs()
    types = types_of(inputs)
    assert np.isnan(types.ap50)
    assert types.counts["background"] == 1
    assert error_counts_per_image(inputs, match_detections(inputs)).sum() == 1


def test_resampled_costs_are_those_of_copies_of_the_images():
    truth = annotations(40, crowds=2)
    table = detections(truth, seed=1, noise=0.2)
    # Some have a wrong class, and some are there twice, so that all types occur.
    wrong = np.arange(len(table)) % 4 == 0
    table = replace(table, category_ids=np.where(wrong, 1 + (table.category_ids + 1) % 6, table.category_ids))
    table = DetectionTable.join([table, replace(table.select(slice(0, None, 3)), scores=table.scores[::3] / 2)])
    matches = match_detections(run_samples.inputs(truth, table))
    errors = find_errors(run_samples.inputs(truth, table), matches)
    costs = error_types(matches, errors).delta_ap
    assert all(costs[name] > 0 for name in ("loose box", "wrong class", "duplicate", "background", "missed"))
    found = resampled_costs(matches, errors, costs, 40)
    expected: dict[str, list[float]] = {name: [] for name in ERROR_TYPES}
    for drawn in image_weights(40, 40, 0).astype(int):
        copies = run_samples.inputs(*copied_images(truth, table, np.repeat(np.arange(40), drawn)))
        copied = match_detections(copies)
        for name, cost in error_types(copied, find_errors(copies, copied)).delta_ap.items():
            expected[name].append(cost)
    for name in ERROR_TYPES:
        of_copies = np.array(expected[name])
        shifted = (of_copies + costs[name] - of_copies.mean()).clip(0, 1)
        assert found[name] == pytest.approx(shifted, abs=1e-9)


def test_costs_on_a_few_images_are_not_resampled():
    truth = annotations(4)
    matches = match_detections(run_samples.inputs(truth, detections(truth, seed=1)))
    errors = find_errors(run_samples.inputs(truth, detections(truth, seed=1)), matches)
    found = resampled_costs(matches, errors, error_types(matches, errors).delta_ap, 10)
    assert all(np.isnan(values).all() for values in found.values())
