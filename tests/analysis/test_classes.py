"""Rows of classes beside pycocotools' numbers, and LVIS's groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codetr_cli.analysis.classes import ClassRow, average_recall, class_rows, frequency_groups, known
from codetr_cli.analysis.inputs import AnalysisInputs
from codetr_cli.analysis.matches import match_detections
from codetr_cli.evaluation.backends import compute_tables
from codetr_cli.evaluation.scoring import score_detections, scoring_inputs
from tests.analysis.input_samples import material
from tests.analysis.scene import Scene


def rows_of(inputs: AnalysisInputs) -> list[ClassRow]:
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids, where="a.json")
    return class_rows(inputs, scores, match_detections(inputs))


@pytest.mark.parametrize("lvis", [False, True])
def test_recall_is_that_of_the_tables(tmp_path: Path, lvis: bool) -> None:
    inputs = material(tmp_path, lvis=lvis)
    limits = [300 if lvis else 100]
    scored = scoring_inputs(inputs.ground_truth, inputs.image_ids, inputs.object_rows, inputs.detections, limits)
    table = compute_tables("pycocotools", scored).recall[:, :, 0, 0].mean(axis=0)
    recall = average_recall(match_detections(inputs))
    assert np.array_equal(np.isnan(recall), table < 0)
    assert recall[table >= 0] == pytest.approx(table[table >= 0], abs=1e-12)


def test_rows_count_what_is_to_find(tmp_path: Path) -> None:
    scene = Scene(tmp_path, images=3)
    scene.annotate((10, 10, 50, 50))
    scene.annotate((100, 10, 50, 50))
    scene.annotate((10, 10, 50, 50), image=2)
    scene.annotate((10, 10, 50, 50), image=3, crowd=1)
    scene.detect((10, 10, 50, 50), image=2)
    cup, plate = rows_of(scene.inputs())
    assert (cup.name, cup.category_id, cup.objects, cup.images, cup.detections) == ("cup", 3, 3, 2, 1)
    assert cup.ar == pytest.approx(1 / 3)
    assert cup.ap == pytest.approx(34 / 101)
    assert (plate.objects, plate.images, plate.ap, plate.ap50, plate.ar) == (0, 0, None, None, None)
    assert cup.frequency is None
    assert cup.mask_ap is None


def test_groups_of_lvis_are_those_of_the_scores(tmp_path: Path) -> None:
    inputs = material(tmp_path, lvis=True)
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids, where="a.json")
    groups = frequency_groups(class_rows(inputs, scores, match_detections(inputs)))
    assert groups is not None
    assert [group.name for group in groups] == ["rare", "common", "frequent"]
    for group in groups:
        expected = scores.metrics[f"AP{group.key}"]
        assert known(expected) == (None if group.ap is None else pytest.approx(group.ap, abs=1e-9))
    assert sum(group.classes for group in groups) == len(inputs.ground_truth.category_ids)
    assert sum(group.objects for group in groups) == len(inputs.object_rows)


def test_other_data_sets_have_no_groups(tmp_path: Path) -> None:
    inputs = material(tmp_path)
    scores = score_detections(inputs.ground_truth, inputs.detections, inputs.image_ids, where="a.json")
    assert frequency_groups(class_rows(inputs, scores, match_detections(inputs))) is None


@pytest.mark.parametrize(("value", "expected"), [(0.5, 0.5), (0, 0.0), (-1, None), (float("nan"), None), (None, None)])
def test_unknown_scores(value: float | None, expected: float | None) -> None:
    assert known(value) == expected
